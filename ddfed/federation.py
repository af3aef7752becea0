"""What a federated method is: two pure functions of typed records. No Flower here.

    client(state, gate, broadcast, context) -> (Release, state)
    server(state, releases, context)        -> (Broadcast, state)

The in-process simulator, Ray and a deployed federation call the same two functions. A `Release` is
everything that leaves a client; its arrays are what the byte ledger counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddfed.data import TaskInfo
from ddfed.errors import ReleaseError
from ddfed.ledger import Ledger

#: Anything larger is refused before it is looked at: 64 MiB is fifty ConvNets.
MAX_RELEASE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Broadcast:
    """What the server sends to every client of a round.

    Args:
        round: 1-based.
        weights: the global model's state dict; empty for methods that send none.
        arrays: anything else the method sends down.
        scalars: numbers that travel with it.
    """

    round: int
    weights: dict[str, Tensor] = field(default_factory=dict)
    arrays: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Release:
    """Everything that leaves a client in one round.

    Args:
        client: partition id, 0-based.
        round: the round it was made for.
        kind: ``"set"`` (labelled synthetic items: arrays ``x`` (m, *item) and ``y`` (m,)), ``"weights"``
            (a state dict), or ``"empty"`` (the client had nothing to send).
        arrays: the payload in model space (sets) or as named tensors (weights).
        examples: number of real records the client stands for (weighting); 0 for an empty client.
        class_counts: real records per class, or empty when not released.
        metrics: numbers for people: losses, steps done, seconds. Never used for decisions.
        ledger: what the client says was asked of its records to make this. The server's own statement is made
            of these; it is no more trustworthy than the client.
    """

    client: int
    round: int
    kind: str
    arrays: dict[str, Tensor] = field(default_factory=dict)
    examples: int = 0
    class_counts: tuple[int, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def size_bytes(self) -> int:
        """Nominal payload: elements times width, without headers."""
        return sum(t.numel() * t.element_size() for t in self.arrays.values())


def check_release(release: Release, info: TaskInfo, round_number: int, quota: int | None) -> None:
    """Refuse a release that does not fit the task. Called by the server before anything is merged.

    Args:
        release: as decoded from the wire.
        info: the task's public facts.
        round_number: the round being held; older releases are refused.
        quota: most items a set may hold, None for no bound.

    Raises:
        ReleaseError: says which client sent what, and what would have been right.
    """
    who = f"client {release.client}, round {release.round}"
    if release.round != round_number:
        raise ReleaseError(f"{who}: made for another round; this is round {round_number}")
    if release.size_bytes > MAX_RELEASE_BYTES:
        raise ReleaseError(f"{who}: {release.size_bytes} bytes, more than the {MAX_RELEASE_BYTES} allowed")
    if release.examples < 0 or any(n < 0 for n in release.class_counts):
        raise ReleaseError(f"{who}: negative counts ({release.examples} examples, per class {release.class_counts})")
    if release.class_counts and len(release.class_counts) != info.num_classes:
        raise ReleaseError(f"{who}: {len(release.class_counts)} class counts for {info.num_classes} classes")
    for name, tensor in release.arrays.items():
        if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
            raise ReleaseError(f"{who}: {name!r} holds values that are not finite")
    for name, value in release.metrics.items():
        if not math.isfinite(value):
            raise ReleaseError(f"{who}: metric {name!r} is {value}")
    if release.kind == "set":
        _check_set(release, info, quota, who)
    elif release.kind not in ("weights", "empty"):
        raise ReleaseError(f"{who}: unknown kind {release.kind!r}; 'set', 'weights' and 'empty' exist")


def _check_set(release: Release, info: TaskInfo, quota: int | None, who: str) -> None:
    if set(release.arrays) != {"x", "y"}:
        raise ReleaseError(f"{who}: a set has the arrays 'x' and 'y', got {sorted(release.arrays)}")
    x, y = release.arrays["x"], release.arrays["y"]
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
    if quota is not None and len(y) > quota:
        raise ReleaseError(f"{who}: {len(y)} items, but the budget allows {quota}")


def check_weights(release: Release, reference: Mapping[str, Tensor]) -> None:
    """Refuse weights whose names, shapes or types differ from the global model's.

    Raises:
        ReleaseError: names the first tensor that differs.
    """
    who = f"client {release.client}, round {release.round}"
    if list(release.arrays) != list(reference):
        odd = sorted(set(release.arrays) ^ set(reference))[:3]
        raise ReleaseError(f"{who}: weights have other names than the global model, for example {odd}")
    for name, tensor in reference.items():
        if release.arrays[name].shape != tensor.shape:
            raise ReleaseError(
                f"{who}: {name!r} has shape {tuple(release.arrays[name].shape)}, the global model {tuple(tensor.shape)}"
            )
        if release.arrays[name].dtype != tensor.dtype:
            raise ReleaseError(f"{who}: {name!r} is {release.arrays[name].dtype}, in the global model {tensor.dtype}")


def coverage(releases: Sequence[Release], classes: int) -> list[int]:
    """Classes that no set of the round holds: the server would forget them."""
    seen = {int(c) for r in releases if r.kind == "set" for c in r.arrays["y"].unique()}
    return [c for c in range(classes) if c not in seen]
