"""What a federated method says, and what must hold of it. No Flower here.

A round has one or more *phases*; in each the server broadcasts, clients answer, and the server merges::

    client(state, gate, broadcast, context) -> (Release, state)
    merge(state, releases, context)         -> state

The in-process simulator, Ray and a deployed federation call the same functions. A `Release` is everything
that leaves a client; its payload is what the byte ledger counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddfed.data import TaskInfo
from ddfed.errors import ReleaseError, one_of
from ddfed.ledger import Ledger

#: Anything larger is refused before it is looked at: 64 MiB is fifty ConvNets.
MAX_RELEASE_BYTES = 64 * 2**20
#: What a release may be made of: labelled synthetic items, a state dict, and named tables of numbers (class means,
#: logits on shared items, a radius).
PAYLOADS = ("set", "weights", "statistics")

Arrays = Mapping[str, Tensor]


@dataclass(frozen=True)
class Broadcast:
    """What the server sends to every client of a phase.

    Args:
        round: 1-based; 0 for what is done once before the first round.
        weights: the global model's state dict; empty for methods that send none.
        arrays: anything else the method sends down.
        scalars: numbers that travel with it.
        phase: which part of the round it begins.
    """

    round: int
    weights: dict[str, Tensor] = field(default_factory=dict)
    arrays: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)
    phase: str = ""


@dataclass(frozen=True)
class Release:
    """Everything that leaves a client in one phase.

    Args:
        client: partition id, 0-based.
        round: the round it was made for.
        payload: by kind, see `PAYLOADS`; empty when the client had nothing to send. A ``set`` has ``x``
            (m, *item) and ``y`` (m,) in model space, and may have ``soft`` (m, classes), the targets that take the
            place of ``y`` in training.
        examples: number of real records the client stands for (weighting); 0 for an empty client.
        class_counts: real records per class, or empty when not released.
        metrics: numbers for people: losses, steps done, seconds. Never used for decisions.
        ledger: what the client says was asked of its records to make this. The server's own statement is made
            of these; it is no more trustworthy than the client.
        phase: of the broadcast that it answers.
        age: rounds since it was made. The server's own note, where an old release stands in for a missing one.
    """

    client: int
    round: int
    payload: Mapping[str, Arrays] = field(default_factory=dict)
    examples: int = 0
    class_counts: tuple[int, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    phase: str = ""
    age: int = 0

    @property
    def set(self) -> Arrays:
        """The labelled items; empty when there are none."""
        return self.payload.get("set", {})

    @property
    def weights(self) -> Arrays:
        """A state dict; empty when none was sent."""
        return self.payload.get("weights", {})

    @property
    def statistics(self) -> Arrays:
        """Named tables; empty when none were sent."""
        return self.payload.get("statistics", {})

    @property
    def items(self) -> int:
        """Items of the set."""
        return len(self.set["y"]) if self.set else 0

    @property
    def size_bytes(self) -> int:
        """Nominal payload: elements times width, without headers."""
        return sum(t.numel() * t.element_size() for arrays in self.payload.values() for t in arrays.values())


@dataclass(frozen=True)
class Expectation:
    """What a valid release of a phase holds.

    Args:
        payload: kinds that must be there, and no others. A release without any is always valid: the client had
            nothing to send.
        quota: most items a set may hold; None for no bound.
        soft: a set must bring ``soft`` targets.
        weights: names, shapes and types that weights must have.
        statistics: shape of each table; None stands for any length of an axis.
        equal: tables that must be exactly these, such as checksums of what both sides make from a shared seed.
    """

    payload: tuple[str, ...]
    quota: int | None = None
    soft: bool = False
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    statistics: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    equal: Mapping[str, Tensor] = field(default_factory=dict)


def check_release(release: Release, info: TaskInfo, broadcast: Broadcast, expected: Expectation) -> None:
    """Refuse a release that does not fit the task and the phase. Called by the server before anything is merged.

    Args:
        release: as decoded from the wire.
        info: the task's public facts.
        broadcast: what it must answer; releases of older rounds are refused.
        expected: what the method wants of it.

    Raises:
        ReleaseError: says which client sent what, and what would have been right.
    """
    who = f"client {release.client}, round {release.round}"
    if release.round != broadcast.round:
        raise ReleaseError(f"{who}: made for another round; this is round {broadcast.round}")
    if release.phase != broadcast.phase:
        raise ReleaseError(f"{who}: made for phase {release.phase!r}; this is {broadcast.phase!r}")
    if release.size_bytes > MAX_RELEASE_BYTES:
        raise ReleaseError(f"{who}: {release.size_bytes} bytes, more than the {MAX_RELEASE_BYTES} allowed")
    if release.examples < 0 or any(n < 0 for n in release.class_counts):
        raise ReleaseError(f"{who}: negative counts ({release.examples} examples, per class {release.class_counts})")
    if release.class_counts and len(release.class_counts) != info.num_classes:
        raise ReleaseError(f"{who}: {len(release.class_counts)} class counts for {info.num_classes} classes")
    if release.class_counts and sum(release.class_counts) != release.examples:
        raise ReleaseError(
            f"{who}: class counts add up to {sum(release.class_counts)}, and it stands for {release.examples} records"
        )
    for name, value in release.metrics.items():
        if not math.isfinite(value):
            raise ReleaseError(f"{who}: metric {name!r} is {value}")
    for arrays in release.payload.values():
        for name, tensor in arrays.items():
            if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
                raise ReleaseError(f"{who}: {name!r} holds values that are not finite")
    if not release.payload:
        return
    if set(release.payload) != set(expected.payload):
        raise ReleaseError(f"{who}: expected {one_of(expected.payload)}, got {one_of(sorted(release.payload))}")
    if "set" in release.payload:
        _check_set(release.set, info, expected, who)
    if "weights" in release.payload:
        _check_weights(release.weights, expected.weights, who)
    if "statistics" in release.payload:
        _check_statistics(release.statistics, expected, who)


def _check_set(arrays: Arrays, info: TaskInfo, expected: Expectation, who: str) -> None:
    wanted = {"x", "y", "soft"} if expected.soft else {"x", "y"}
    if set(arrays) != wanted:
        raise ReleaseError(f"{who}: a set has the arrays {one_of(sorted(wanted))}, got {one_of(sorted(arrays))}")
    x, y = arrays["x"], arrays["y"]
    if tuple(x.shape[1:]) != info.shape or not x.is_floating_point():
        raise ReleaseError(
            f"{who}: items are {x.dtype} of shape {tuple(x.shape[1:])}, the task has floats of {info.shape}"
        )
    whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if y.ndim != 1 or len(y) != len(x) or not whole:
        raise ReleaseError(f"{who}: {len(x)} items but labels are {y.dtype} of shape {tuple(y.shape)}")
    if len(y) and (int(y.min()) < 0 or int(y.max()) >= info.num_classes):
        raise ReleaseError(
            f"{who}: labels run from {int(y.min())} to {int(y.max())}, classes from 0 to {info.num_classes - 1}"
        )
    if expected.soft and tuple(arrays["soft"].shape) != (len(y), info.num_classes):
        raise ReleaseError(
            f"{who}: soft labels of shape {tuple(arrays['soft'].shape)}, must be {(len(y), info.num_classes)}"
        )
    if expected.quota is not None and len(y) > expected.quota:
        raise ReleaseError(f"{who}: {len(y)} items, but the budget allows {expected.quota}")


def _check_weights(arrays: Arrays, reference: Arrays, who: str) -> None:
    if list(arrays) != list(reference):
        odd = sorted(set(arrays) ^ set(reference))[:3]
        raise ReleaseError(f"{who}: weights have other names than the model asked for, for example {odd}")
    for name, tensor in reference.items():
        if arrays[name].shape != tensor.shape:
            raise ReleaseError(
                f"{who}: {name!r} has shape {tuple(arrays[name].shape)}, the model asked for {tuple(tensor.shape)}"
            )
        if arrays[name].dtype != tensor.dtype:
            raise ReleaseError(f"{who}: {name!r} is {arrays[name].dtype}, in the model asked for {tensor.dtype}")


def _check_statistics(arrays: Arrays, expected: Expectation, who: str) -> None:
    shapes = {**expected.statistics, **{name: tuple(table.shape) for name, table in expected.equal.items()}}
    if set(arrays) != set(shapes):
        raise ReleaseError(f"{who}: expected the tables {one_of(sorted(shapes))}, got {one_of(sorted(arrays))}")
    for name, shape in shapes.items():
        found = tuple(arrays[name].shape)
        if len(found) != len(shape) or any(want not in (None, have) for want, have in zip(shape, found)):
            raise ReleaseError(f"{who}: table {name!r} has shape {found}, must be {shape} (None: any)")
    for name, table in expected.equal.items():
        if arrays[name].dtype != table.dtype or not torch.equal(arrays[name], table):
            raise ReleaseError(
                f"{who}: table {name!r} differs from what the server made from the same seed. Client and server need "
                f"one version of torch and of ddfed, and the same settings."
            )


def coverage(releases: Sequence[Release], classes: int) -> list[int]:
    """Classes that no set of the round holds: the server would forget them."""
    seen = {int(c) for r in releases if r.set for c in r.set["y"].unique()}
    return [c for c in range(classes) if c not in seen]
