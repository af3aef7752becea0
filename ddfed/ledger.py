"""Privacy events: what was asked of real data, under which mechanism.

The ledger only records. Turning events into an (epsilon, delta) statement is an accountant's work, and
accountants come in by plugins. Without a private mechanism the only honest statement is that there is none.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

#: Mechanisms that protect nothing, the one that tells most first, and what is said of them.
_UNPROTECTED = {
    "raw": "synthetic items start from real records.",
    "none": "real data was read without noise.",
    "rows": "real data was read without noise.",
    "insecure": "its noise came from a known seed.",
}


@dataclass(frozen=True)
class PrivacyEvent:
    """One touch of real data.

    Args:
        mechanism: ``"raw"`` when records were handed out, ``"none"`` for exact sums, ``"rows"`` for statistics of
            single records, ``"insecure"`` where somebody can make the noise again, else the mechanism's name.
        query: what was asked, such as ``"class means"``.
        scope: whose records: the data set, or the client.
        unit: what one contribution belongs to: ``"record"``, ``"client"``, ...
        parameters: noise multiplier, sampling rate, sensitivity ...: whatever an accountant needs.
        adjacency: which data sets are neighbours for the mechanism: ``"add_remove"`` (one unit more or less),
            ``"replace_one"``; empty where nothing is protected.
    """

    mechanism: str
    query: str
    scope: str = "dataset"
    unit: str = "record"
    parameters: tuple[tuple[str, float], ...] = ()
    adjacency: str = ""

    def __post_init__(self) -> None:
        # One order, so that equal events stay equal through JSON.
        object.__setattr__(self, "parameters", tuple(sorted(self.parameters)))


@dataclass
class Ledger:
    """Append-only list of events, kept as counts of equal ones."""

    counts: Counter[PrivacyEvent] = field(default_factory=Counter)

    def append(self, event: PrivacyEvent) -> None:
        self.counts[event] += 1

    def merge(self, other: Ledger) -> None:
        """Append the other ledger's events (another client, another phase)."""
        self.counts.update(other.counts)

    def statement(self) -> str:
        """One sentence for the card; a plugin that accounts replaces it."""
        if not self.counts:
            return "No real data was touched."
        mechanisms = {event.mechanism for event in self.counts}
        for mechanism, why in _UNPROTECTED.items():
            if mechanism in mechanisms:
                return f"No formal privacy guarantee: {why}"
        return "Noisy mechanisms only; see the events and an accountant for epsilon and delta."

    def to_json(self) -> list[dict[str, Any]]:
        """Events with their counts, in order of first appearance."""
        return [{**asdict(e), "parameters": dict(e.parameters), "count": n} for e, n in self.counts.items()]

    @classmethod
    def from_json(cls, rows: list[dict[str, Any]]) -> Ledger:
        """Inverse of `to_json`.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: these are no events.
        """
        ledger = cls()
        for row in rows:
            fields = {k: v for k, v in row.items() if k != "count"}
            fields["parameters"] = tuple((str(k), float(v)) for k, v in fields["parameters"].items())
            words = [v for k, v in fields.items() if k != "parameters"]
            if not all(isinstance(word, str) for word in words) or type(row["count"]) is not int or row["count"] < 1:
                raise ValueError(f"no privacy event: {row!r:.200}")
            ledger.counts[PrivacyEvent(**fields)] += row["count"]
        return ledger
