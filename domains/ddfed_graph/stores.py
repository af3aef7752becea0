"""Parametrisations of a condensed graph: features and, in several forms, the adjacency among them.

All decode to rows of (features, adjacency to each of the rows): A' is symmetric and has no diagonal. Weights are >= 0
but for `eigenbasis`, whose are signed.
Without structure, A' = I, a graph is stored as ``pixels``: its rows are separate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.data import TaskInfo
from ddfed.errors import ConfigError
from ddfed.seeds import Streams, isolated
from ddfed.store import Store
from ddfed.store.base import UNSEEDED


class GraphStore(Store):
    """Features X' (items, d) beside an adjacency that a subclass makes.

    The budget is counted in nodes, as everywhere in the field; `size_bytes` says what the structure costs beside them.

    What is released is the adjacency itself, never the function that made it, less what is below ``threshold``.

    Options:
        turns: [steps for the structure, steps for the features], which alternate in this order (GCond); None for both
            at every step.
        structure_lr: step size of what the adjacency is made from; None for that of the run.
        threshold: weights below it are no edges of the released graph (.05 in GCond for Cora and CiteSeer, .01 for the
            large sets).
    """

    coupled = True
    defaults: ClassVar[Mapping[str, Any]] = {"turns": None, "structure_lr": None, "threshold": 0.05}
    #: tensors with an axis for each of two nodes
    paired: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, info: TaskInfo, classes: Tensor, **options: Any) -> None:
        super().__init__(info, classes, **options)
        turns = self.options["turns"]
        if turns is not None and not (len(turns) == 2 and all(isinstance(n, int) and n >= 1 for n in turns)):
            raise ConfigError(
                f"store {self.name!r}: turns is [structure steps, feature steps], such as [10, 40]; got {turns}"
            )
        if self.options["structure_lr"] is not None:
            self.number("structure_lr", positive=True)
        self.number("threshold")

    @property
    def structure(self) -> frozenset[str]:
        """Names of the params that the adjacency is made from."""
        return frozenset(self.params) - {"x"}

    def adjacency(self, x: Tensor, items: Tensor) -> Tensor:
        """A' among some items, (k, k), differentiable.

        Args:
            x: their features, (k, d).
            items: their numbers, (k,).
        """
        raise NotImplementedError

    def decode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (k, d + k): features, and adjacency to each of the items decoded with them."""
        x = self.params["x"][items]
        return torch.cat([x, self.adjacency(x, items)], 1), torch.arange(len(items))

    def fill(self, rows: Tensor, streams: Streams = UNSEEDED) -> None:
        """From features (items, 1, d), or with an adjacency beside them (items, 1, d + items)."""
        d = self.info.shape[0]
        with torch.no_grad():
            self.params["x"].copy_(rows[:, 0, :d])
        self.begin(rows[:, 0, d:], streams)

    def begin(self, adjacency: Tensor, streams: Streams) -> None:
        """Initialise the structure from the adjacency of the items, (items, items); (items, 0) where there is none."""

    def constrain(self) -> None:
        """Features in their natural range; the structure is a function that has none."""
        with torch.no_grad():
            self.params["x"].copy_(self.info.space.clamp(self.params["x"]))

    def learns(self, step: int) -> frozenset[str]:
        turns = self.options["turns"]
        if turns is None:
            return frozenset(self.params)
        return self.structure if step % sum(turns) < turns[0] else frozenset({"x"})

    def rates(self) -> Mapping[str, float]:
        lr = self.options["structure_lr"]
        return {} if lr is None else dict.fromkeys(sorted(self.structure), float(lr))

    def released(self) -> Store:
        """The features, and the edges that are strong enough, as an `Induced` graph."""
        every = torch.arange(self.items)
        with torch.no_grad():
            x = self.params["x"].detach()
            a = self.adjacency(x, every)
        kept = Induced(self.info, self.classes)
        kept.load({"x": x, "a": torch.where(a.abs() >= self.options["threshold"], a, 0.0)})
        return kept

    def take(self, items: Tensor) -> Store:
        taken = type(self)(self.info, self.classes[items], **self.options)
        taken.load({name: self._of(items, name, tensor) for name, tensor in self.tensors().items()})
        return taken

    def _of(self, items: Tensor, name: str, tensor: Tensor) -> Tensor:
        if name in self.shared:
            return tensor
        return tensor[items][:, items] if name in self.paired else tensor[items]


class Induced(GraphStore):
    """Real nodes with the edges among them, none of which is learned: what selection keeps of a graph."""

    name = "induced"
    paired = frozenset({"a"})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"x": (self.items, *self.info.shape)}

    def buffer_shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"a": ((self.items, self.items), torch.float32)}

    def adjacency(self, x: Tensor, items: Tensor) -> Tensor:
        return self.buffers["a"][items][:, items]

    def begin(self, adjacency: Tensor, streams: Streams) -> None:
        if adjacency.shape[1]:
            self.buffers["a"].copy_(adjacency)


class FreeAdjacency(GraphStore):
    """A' = sigmoid(S) with a free logit for each pair; starts near the edges that real nodes have among them.

    Options:
        sure: logit of an edge that is there at first; one that is not has its negative.
    """

    name = "free-adjacency"
    defaults = {**GraphStore.defaults, "sure": 2.0}
    paired = frozenset({"s"})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"x": (self.items, *self.info.shape), "s": (self.items, self.items)}

    def adjacency(self, x: Tensor, items: Tensor) -> Tensor:
        logits = self.params["s"][items][:, items]
        return hollow(torch.sigmoid((logits + logits.T) / 2))

    def begin(self, adjacency: Tensor, streams: Streams) -> None:
        edges = adjacency if adjacency.shape[1] else torch.zeros(self.items, self.items)
        with torch.no_grad():
            self.params["s"].copy_(self.number("sure") * (2 * (edges > 0).float() - 1))


class LowRank(GraphStore):
    """A' = sigmoid of the symmetric part of U V^T: two short vectors for each node.

    Source: the low-rank form of Xu et al., Kernel Ridge Regression-Based Graph Dataset Distillation (KIDD), KDD 2023.

    Options:
        rank: length of the vectors.
        offset: subtracted from the logits, so that a graph starts sparse.
    """

    name = "low-rank-adjacency"
    defaults = {**GraphStore.defaults, "rank": 16, "offset": 2.0}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        rank = self.whole("rank", 1)
        return {"x": (self.items, *self.info.shape), "u": (self.items, rank), "v": (self.items, rank)}

    def adjacency(self, x: Tensor, items: Tensor) -> Tensor:
        logits = self.params["u"][items] @ self.params["v"][items].T
        return hollow(torch.sigmoid((logits + logits.T) / 2 - self.number("offset")))

    def begin(self, adjacency: Tensor, streams: Streams) -> None:
        generator = streams.torch("structure")
        with torch.no_grad():
            for name in ("u", "v"):
                self.params[name].copy_(0.1 * torch.randn(self.params[name].shape, generator=generator))


class PairwiseMLP(GraphStore):
    """A'_ij = sigmoid((g_ij + g_ji) / 2), g_ij = MLP([x'_i; x'_j]): three linear layers, batch norm and ReLU between.

    The first layer is split, W [x_i; x_j] = W_a x_i + W_b x_j, so no pair of feature vectors is ever held: memory grows
    with n'^2 hidden instead of n'^2 2d.

    Source: Jin et al., Graph Condensation for Graph Neural Networks (GCond), ICLR 2022, equation 9 (PGE). Batch norms
    use the pairs at hand both when a set is made and when it is read, so nothing but weights is stored.

    Options:
        hidden: width (128 in the paper, 256 on large sets).
    """

    name = "pge"
    defaults = {**GraphStore.defaults, "hidden": 128}
    shared = frozenset({"first", "first_b", "second", "second_b", "third", "third_b", "norm1", "norm2"})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        h, d = self.whole("hidden", 1), self.info.shape[0]
        return {
            "x": (self.items, d),
            "first": (h, 2 * d),
            "first_b": (h,),
            "norm1": (2, h),
            "second": (h, h),
            "second_b": (h,),
            "norm2": (2, h),
            "third": (1, h),
            "third_b": (1,),
        }

    def adjacency(self, x: Tensor, items: Tensor) -> Tensor:
        p, k, d = self.params, len(x), self.info.shape[0]
        pairs = (x @ p["first"][:, :d].T)[:, None] + (x @ p["first"][:, d:].T)[None, :] + p["first_b"]
        hidden = F.relu(_normalised(pairs.flatten(0, 1), p["norm1"]))
        hidden = F.relu(_normalised(hidden @ p["second"].T + p["second_b"], p["norm2"]))
        logits = (hidden @ p["third"].T + p["third_b"]).view(k, k)
        return hollow(torch.sigmoid((logits + logits.T) / 2))

    def begin(self, adjacency: Tensor, streams: Streams) -> None:
        h, d = self.options["hidden"], self.info.shape[0]
        with isolated(streams.seed("structure")), torch.no_grad():
            for name, width in (("first", 2 * d), ("second", h), ("third", h)):
                made = torch.nn.Linear(width, len(self.params[name]))
                self.params[name].copy_(made.weight)
                self.params[f"{name}_b"].copy_(made.bias)
            for name in ("norm1", "norm2"):
                self.params[name].copy_(torch.stack([torch.ones(h), torch.zeros(h)]))


def _normalised(values: Tensor, scale_and_shift: Tensor) -> Tensor:
    """Batch norm over the rows at hand, (rows, width); a single row stays zero."""
    centred = values - values.mean(0)
    return centred * (centred.square().mean(0) + 1e-5).rsqrt() * scale_and_shift[0] + scale_and_shift[1]


def hollow(weights: Tensor) -> Tensor:
    """Without its diagonal."""
    return weights * (1 - torch.eye(len(weights), dtype=weights.dtype, device=weights.device))
