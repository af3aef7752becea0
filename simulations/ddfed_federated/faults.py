"""Rehearsed faults: which client fails how in which round, drawn from the run's seed, and what each fault does.

A plan says the same on every back end and in every run: it hangs on seed, round, phase and client, never on time or
order. So the server knows it too, and its rows say what was rehearsed. Nothing here filters anything: the screen
refuses garbage (`ddfed.federation.check_release`), and Byzantine releases pass it, which is their point.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ddfed.errors import ConfigError, FederationError, one_of, suggest
from ddfed.federation import MAX_RELEASE_BYTES, Arrays, Broadcast, Release
from ddfed.seeds import Streams

ANY = "*"
#: A client that never answers sleeps so long, in seconds; its process is ended before.
_FOR_EVER_S = 3600.0
#: How much further than its client's update a boosted release goes.
_BOOST = 10.0


@dataclass(frozen=True)
class Scene:
    """What a fault may look at.

    Args:
        client: partition id.
        clients: how many there are.
        classes: of the task.
        broadcast: what the client answers.
        streams: for what it draws.
        delay_s: mean of a slow client's delay, in seconds.
    """

    client: int
    clients: int
    classes: int
    broadcast: Broadcast
    streams: Streams
    delay_s: float = 1.0


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    Args:
        name: in settings and rows.
        group: absence (no release comes), garbage (refused by the screen) or byzantine (valid and hostile).
        summary: one line.
        before: what happens before the client works.
        after: what becomes of its release.
    """

    name: str
    group: str
    summary: str
    before: Callable[[Scene], None] = lambda scene: None
    after: Callable[[Release, Scene], Release] = lambda release, scene: release


# --- absence ---------------------------------------------------------------------------------------------------------


def _drop(scene: Scene) -> None:
    raise FederationError(f"client {scene.client} dropped out (rehearsed)")


def _raise(release: Release, scene: Scene) -> Release:
    raise RuntimeError(f"client {scene.client} failed after its work (rehearsed)")


def _delay(scene: Scene) -> None:
    time.sleep(scene.streams.numpy("delay").exponential(scene.delay_s))


def _hang(scene: Scene) -> None:
    time.sleep(_FOR_EVER_S)


def _crash(scene: Scene) -> None:
    if _own_process():
        os._exit(1)
    raise FederationError(f"client {scene.client} crashed (rehearsed)")


def _own_process() -> bool:
    """Whether this process is a client's, so that its end ends nothing else."""
    from ddfed_federated.flower import client_app, pool

    return pool.in_worker() or client_app.in_ray_actor()


# --- garbage ---------------------------------------------------------------------------------------------------------


def _with_array(release: Release, change: Callable[[Tensor], Tensor]) -> Release:
    """The release with its first array of floats changed; one with nothing to send stays as it is."""
    for kind, arrays in release.payload.items():
        for name, array in arrays.items():
            if array.is_floating_point():
                return replace(release, payload={**release.payload, kind: {**arrays, name: change(array)}})
    return release


def _nan(release: Release, scene: Scene) -> Release:
    def change(array: Tensor) -> Tensor:
        broken = array.clone()
        broken.view(-1)[0] = float("nan")
        return broken

    return _with_array(release, change)


def _shape(release: Release, scene: Scene) -> Release:
    return _with_array(release, lambda array: (array.flatten(1) if array.ndim > 1 else array.reshape(-1))[..., :-1])


def _oversize(release: Release, scene: Scene) -> Release:
    return _with_array(release, lambda array: torch.zeros(MAX_RELEASE_BYTES // array.element_size() + 1).to(array))


def _labels(release: Release, scene: Scene) -> Release:
    if not release.set:
        return replace(release, class_counts=(*release.class_counts, 1))
    return replace(release, payload={**release.payload, "set": {**release.set, "y": release.set["y"] + 1000}})


def _replay(release: Release, scene: Scene) -> Release:
    return replace(release, round=release.round - 1)


def _forge(release: Release, scene: Scene) -> Release:
    return replace(release, client=(release.client + 1) % max(2, scene.clients))


# --- hostile and valid -----------------------------------------------------------------------------------------------


def _bent(change: Callable[[Tensor, Scene], Tensor]) -> Callable[[Release, Scene], Release]:
    """A release in which everything that is learned from goes astray: items, tables, and the step of the weights."""

    def after(release: Release, scene: Scene) -> Release:
        start = scene.broadcast.weights
        payload = {
            kind: {k: _moved(k, v, start if kind == "weights" else {}, change, scene) for k, v in arrays.items()}
            for kind, arrays in release.payload.items()
        }
        return replace(release, payload=payload)

    return after


def _moved(name: str, value: Tensor, start: Arrays, change: Callable[[Tensor, Scene], Tensor], scene: Scene) -> Tensor:
    if not value.is_floating_point() or name == "soft":
        return value
    begun = start.get(name, torch.zeros(())).to(value)
    return begun + change(value - begun, replace(scene, streams=scene.streams.child(name)))


def _noise(step: Tensor, scene: Scene) -> Tensor:
    """As large as what it takes the place of."""
    drawn = torch.randn(step.shape, generator=scene.streams.torch("noise"))
    return drawn.to(step) * step.std(unbiased=False)


def _mislabel(release: Release, scene: Scene) -> Release:
    """Each class takes the next one's name: in a set by its labels, in weights by the rows of the last layer."""
    payload: dict[str, Arrays] = dict(release.payload)
    if "set" in payload:
        soft = {"soft": release.set["soft"].roll(1, 1)} if "soft" in release.set else {}
        payload["set"] = {**release.set, "y": (release.set["y"] + 1) % scene.classes, **soft}
    if "weights" in payload:
        payload["weights"] = _last_layer_rolled(release.weights)
    if "statistics" in payload:
        payload["statistics"] = {
            k: v.roll(1, 0) if v.ndim and len(v) == scene.classes else v for k, v in release.statistics.items()
        }
    return replace(release, payload=payload)


def _last_layer_rolled(weights: Arrays) -> Arrays:
    """A state dict whose last matrix, and the bias that follows it, give each class the next one's place."""
    names = list(weights)
    matrices = [i for i, name in enumerate(names) if weights[name].ndim >= 2]
    last = names[matrices[-1] :] if matrices else []
    rows = len(weights[last[0]]) if last else 0
    return {k: v.roll(1, 0) if k in last and v.ndim and len(v) == rows else v for k, v in weights.items()}


NONE = Kind("", "", "nothing happens")
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("drop", "absence", "does not take part", before=_drop),
        Kind("raise", "absence", "an error after its work; what it learned is lost", after=_raise),
        Kind("crash", "absence", "its process ends; an error where clients share the server's process", before=_crash),
        Kind("late", "absence", "the release comes when the round is over, whatever the clock says"),
        Kind("delay", "delay", "really waits before it works, on average fault_delay_s seconds", before=_delay),
        Kind("hang", "absence", "never answers", before=_hang),
        Kind("nan", "garbage", "a value that is not finite", after=_nan),
        Kind("shape", "garbage", "an array of the wrong shape", after=_shape),
        Kind("labels", "garbage", "classes that there are not; of weights, counts of them", after=_labels),
        Kind("oversize", "garbage", "more bytes than a release may have", after=_oversize),
        Kind("replay", "garbage", "a release of the round before", after=_replay),
        Kind("forged", "garbage", "signed as another client", after=_forge),
        Kind("mislabel", "byzantine", "each class takes the next one's name", after=_mislabel),
        Kind("flip", "byzantine", "items, tables and steps with the sign turned", after=_bent(lambda v, _: -v)),
        Kind("boost", "byzantine", "items, tables and steps ten times as large", after=_bent(lambda v, _: _BOOST * v)),
        Kind("noise", "byzantine", "noise as large as what it takes the place of", after=_bent(_noise)),
    )
}
#: Groups whose rate is shared out evenly among their kinds.
GROUPS = ("garbage", "byzantine")


def shares_of(rates: Mapping[str, float]) -> dict[str, float]:
    """Rates of single kinds, those of groups shared out.

    Raises:
        ValueError: no such kind or group, a rate outside [0, 1], or more than 1 in all.
    """
    known = [*KINDS, *GROUPS]
    found: dict[str, float] = {}
    for name, rate in rates.items():
        if name not in known:
            raise ValueError(f"no fault is called {name!r}.{suggest(name, known)} Possible are {one_of(known)}")
        if not 0 <= rate <= 1:
            raise ValueError(f"the rate of fault {name!r} is {rate}; it must lie between 0 and 1")
        kinds = [k.name for k in KINDS.values() if k.group == name] if name in GROUPS else [name]
        for kind in kinds:
            found[kind] = found.get(kind, 0.0) + rate / len(kinds)
    if sum(found.values()) > 1 + 1e-9:
        raise ValueError(f"the rates of faults add up to {sum(found.values()):g}; they must not exceed 1")
    return found


def parse_fault(text: str) -> tuple[str, str, str]:
    """``ROUND:CLIENT:KIND``, where round and client may be ``*``.

    Raises:
        ValueError: it is none.
    """
    parts = text.split(":")
    if len(parts) != 3 or not all(p == ANY or p.isdigit() for p in parts[:2]) or parts[2] not in KINDS:
        raise ValueError(
            f"{text!r} is not ROUND:CLIENT:KIND, with * for every round or client and KIND one of {', '.join(KINDS)}"
        )
    return parts[0], parts[1], parts[2]


@dataclass(frozen=True)
class FaultPlan:
    """What goes wrong in a run.

    Args:
        seed: of the run.
        exact: faults by round and client, which hold in every phase; the first that fits counts.
        rates: probability of each kind, for each client and phase where no exact fault holds.
        delay_s: mean delay of slow clients, in seconds.
    """

    seed: int
    exact: tuple[tuple[str, str, str], ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)
    delay_s: float = 1.0

    @classmethod
    def of(cls, settings: Any) -> FaultPlan:
        """That of a run's settings."""
        federation = settings.federation
        exact = tuple(parse_fault(text) for text in federation.faults)
        return cls(settings.run.seed, exact, shares_of(federation.rates_of_faults), federation.fault_delay_s)

    def __bool__(self) -> bool:
        return bool(self.exact) or any(self.rates.values())

    @property
    def kinds(self) -> set[str]:
        """Kinds that may happen."""
        return {kind for *_, kind in self.exact} | {kind for kind, rate in self.rates.items() if rate}

    def at(self, number: int, phase: str, client: int) -> Kind:
        """What happens to a client in a phase of a round."""
        for at, who, kind in self.exact:
            if at in (ANY, str(number)) and who in (ANY, str(client)):
                return KINDS[kind]
        if not any(self.rates.values()):
            return NONE
        drawn, reached = self._streams(number, phase, client).numpy("kind").random(), 0.0
        for kind in KINDS:
            reached += self.rates.get(kind, 0.0)
            if drawn < reached:
                return KINDS[kind]
        return NONE

    def scene(self, client: int, clients: int, classes: int, broadcast: Broadcast) -> Scene:
        """Where it happens."""
        streams = self._streams(broadcast.round, broadcast.phase, client)
        return Scene(client, clients, classes, broadcast, streams, self.delay_s)

    def told(self, number: int, phase: str, clients: Sequence[int]) -> Iterator[tuple[int, str]]:
        """The clients of a phase that something happens to, and what."""
        for client in clients:
            kind = self.at(number, phase, client)
            if kind.name:
                yield client, kind.name

    def _streams(self, number: int, phase: str, client: int) -> Streams:
        return Streams(self.seed).child("faults", number, phase, client)


def check_plan(plan: FaultPlan, federation: Any) -> None:
    """Refuse faults that would end or stop the run itself.

    Raises:
        ConfigError: a client that never answers, and nobody who would go on without it.
    """
    if "hang" in plan.kinds and (federation.in_turn or federation.deadline_s is None):
        raise ConfigError("fault 'hang' never answers: set federation.deadline_s and federation.workers")


__all__ = ["GROUPS", "KINDS", "NONE", "FaultPlan", "Kind", "Scene", "check_plan", "parse_fault", "shares_of"]
