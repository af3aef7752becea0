"""Old sets that stand in for clients without a release in this round: late ones, last ones, and those of lost classes.

A stored set costs nothing to use again, unlike weights: it is data. It was made around older global weights, though, so
its age is bounded and its weight may decay. The paper's default is to go on without the absent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ddfed.federation import Release
from ddfed_federated.settings import SimulateSettings


@dataclass
class _Kept:
    """A client's last valid release of a phase.

    Args:
        release: with a set.
        late: it came when its round was over.
        used: last round whose union it was in; 0 for none.
    """

    release: Release
    late: bool
    used: int = 0


class Shelf:
    """The last valid set of each client and phase, and the rules by which it is used again.

    ``federation.late = "use"``: a set that came too late is used in the next round. ``federation.absent = "reuse"``:
    the last set of any client without a release in this round is used while it is at most ``reuse_age`` rounds old,
    and a class that nobody holds any more is taken from the youngest set that has it, however old. A set that the
    server still remembers (``server.history``) is not added a second time.
    """

    def __init__(self, settings: SimulateSettings) -> None:
        federation = settings.federation
        self._late, self._reuse = federation.late == "use", federation.absent == "reuse"
        self._age, self._history = federation.reuse_age, settings.server.history
        self._kept: dict[tuple[str, int], _Kept] = {}

    def keep(self, release: Release, late: bool = False) -> None:
        """Remember a valid release, if it may be used again; a late one never takes the place of a younger one."""
        key = release.phase, release.client
        younger = key in self._kept and self._kept[key].release.round > release.round
        if release.set and not younger and (self._reuse or (late and self._late)):
            self._kept[key] = _Kept(release, late)

    def stand_ins(self, phase: str, number: int, fresh: Sequence[Release], classes: int) -> list[Release]:
        """What is used beside the fresh releases of a phase, in order of client.

        Args:
            phase: its name.
            number: the round.
            fresh: valid releases, empty ones too: a client with nothing to send is not absent.
            classes: of the task.
        """
        here = {r.client for r in fresh}
        kept = [self._kept[key] for key in sorted(self._kept) if key[0] == phase]
        kept = [k for k in kept if k.release.round < number]
        found = [_aged(k.release, number) for k in kept if k.release.client not in here and self._serves(k, number)]
        if self._reuse:
            known = [k.release for k in kept if self._remembered(k, number)]
            found += _lost_classes([*fresh, *found, *known], [k.release for k in kept], number, classes)
        return sorted(found, key=lambda r: r.client)

    def settle(self, number: int, merged: Sequence[Release]) -> None:
        """Note which sets are in the union of a round that counts."""
        for release in merged:
            kept = self._kept.get((release.phase, release.client))
            if kept is not None and kept.release.round == release.round:
                kept.used = number
        self._kept = {key: k for key, k in self._kept.items() if self._reuse or number - k.release.round < 1}

    def _serves(self, kept: _Kept, number: int) -> bool:
        age = number - kept.release.round
        if kept.late and self._late and age == 1:
            return True
        return self._reuse and 1 <= age <= self._age and not self._remembered(kept, number)

    def _remembered(self, kept: _Kept, number: int) -> bool:
        """Whether the server trains on it anyway."""
        return bool(kept.used) and number - kept.used < self._history

    # --- checkpoint ----------------------------------------------------------------------------------------------

    def remember(self) -> list[dict[str, Any]]:
        """As tensors and JSON."""
        return [
            {
                "client": k.release.client,
                "phase": k.release.phase,
                "round": k.release.round,
                "payload": {kind: dict(arrays) for kind, arrays in k.release.payload.items()},
                "examples": k.release.examples,
                "class_counts": list(k.release.class_counts),
                "late": k.late,
                "used": k.used,
            }
            for k in (self._kept[key] for key in sorted(self._kept))
        ]

    def resume(self, memory: Sequence[Mapping[str, Any]]) -> None:
        """Take over what `remember` gave."""
        for entry in memory:
            about = {k: v for k, v in entry.items() if k not in ("late", "used", "class_counts")}
            release = Release(**about, class_counts=tuple(entry["class_counts"]))
            self._kept[release.phase, release.client] = _Kept(release, bool(entry["late"]), int(entry["used"]))


def _aged(release: Release, number: int) -> Release:
    return replace(release, age=number - release.round)


def _lost_classes(present: Sequence[Release], kept: Sequence[Release], number: int, classes: int) -> Iterator[Release]:
    """For each class that no set holds, the rows of the youngest kept set that has it."""
    held = {int(c) for r in present if r.set for c in r.set["y"].unique()}
    for lost in sorted(set(range(classes)) - held):
        holders = [r for r in kept if bool((r.set["y"] == lost).any())]
        if holders:
            yield _aged(_of_class(max(holders, key=lambda r: (r.round, -r.client)), lost), number)


def _of_class(release: Release, wanted: int) -> Release:
    """The release with the rows of one class only."""
    rows = release.set["y"] == wanted
    records = release.class_counts[wanted] if release.class_counts else release.examples
    counts = tuple(n if c == wanted else 0 for c, n in enumerate(release.class_counts))
    payload = {**release.payload, "set": {k: v[rows] for k, v in release.set.items()}}
    return replace(release, payload=payload, examples=records, class_counts=counts)


__all__ = ["Shelf"]
