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
        hidden = self._second(self._first(x))
        return _linked(self._third(hidden), len(x))

    def begin(self, adjacency: Tensor, streams: Streams) -> None:
        with isolated(streams.seed("structure")), torch.no_grad():
            self._start(self.info.shape[0])

    def _first(self, of_node: Tensor, prefix: str = "") -> Tensor:
        """Hidden units of all ordered pairs of nodes, (k^2, hidden), from what is known of each, (k, width)."""
        weight, width, p = self.params[f"{prefix}first"], of_node.shape[1], self.params
        pairs = (of_node @ weight[:, :width].T)[:, None] + (of_node @ weight[:, width:].T)[None, :]
        return F.relu(_normalised((pairs + p[f"{prefix}first_b"]).flatten(0, 1), p[f"{prefix}norm1"]))

    def _second(self, hidden: Tensor, prefix: str = "") -> Tensor:
        p = self.params
        return F.relu(_normalised(hidden @ p[f"{prefix}second"].T + p[f"{prefix}second_b"], p[f"{prefix}norm2"]))

    def _third(self, hidden: Tensor, prefix: str = "") -> Tensor:
        return hidden @ self.params[f"{prefix}third"].T + self.params[f"{prefix}third_b"]

    def _start(self, width: int, prefix: str = "") -> None:
        """Draw the layers for nodes of which ``width`` values are known."""
        h = self.options["hidden"]
        for name, inputs in (("first", 2 * width), ("second", h), ("third", h)):
            made = torch.nn.Linear(inputs, len(self.params[prefix + name]))
            self.params[prefix + name].copy_(made.weight)
            self.params[f"{prefix}{name}_b"].copy_(made.bias)
        for name in ("norm1", "norm2"):
            self.params[prefix + name].copy_(torch.stack([torch.ones(h), torch.zeros(h)]))


class Graphon(PairwiseMLP):
    """A'_ij = sigmoid((g_ij + g_ji) / 2) of two such MLPs: one sees pairs of features, one pairs of points of [-1, 1].

    The second is a graphon: a function of two points that says how likely nodes there are linked. Its hidden units are
    multiplied by those of the first at both layers, and g is the sum of the two outputs weighed by 1 - ``mix`` and
    ``mix``. A node's point is random within the stretch of its class, so the generator is given noise, features and
    labels.

    Source: Yang et al., Does Graph Distillation See Like Vision Dataset Counterpart? (SGDD), NeurIPS 2023, where
    A' = GEN(Z, X', Y'), with the layers of its code. Departure: its code takes for Z the points of an even grid in
    the order of the nodes, which are sorted by class; drawn points mean the same in any order.

    Options:
        mix: share of the MLP of features in the logits, above 0 and up to 1 (.5 in the code, ``ep_ratio``).
    """

    name = "graphon"
    defaults = {**PairwiseMLP.defaults, "mix": 0.5}
    shared = PairwiseMLP.shared | {f"grid_{name}" for name in PairwiseMLP.shared}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        self.share("mix")
        own = super().shapes()
        beside = {f"grid_{name}": shape for name, shape in own.items() if name != "x"}
        return {**own, **beside, "grid_first": (self.whole("hidden", 1), 2)}

    def buffer_shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"point": ((self.items, 1), torch.float32)}

    def adjacency(self, x: Tensor, items: Tensor) -> Tensor:
        seen = self._first(x)
        placed = self._first(self.buffers["point"][items], "grid_") * seen
        seen = self._second(seen)
        placed = self._second(placed, "grid_") * seen
        mix = self.share("mix")
        return _linked((1 - mix) * self._third(placed, "grid_") + mix * self._third(seen), len(x))

    def begin(self, adjacency: Tensor, streams: Streams) -> None:
        super().begin(adjacency, streams)
        known, rank = torch.unique(self.classes, return_inverse=True)
        within = torch.rand(self.items, generator=streams.torch("graphon"))
        self.buffers["point"].copy_((2 * (rank + within) / len(known) - 1)[:, None])
        with isolated(streams.seed("graphon")), torch.no_grad():
            self._start(1, "grid_")


def _linked(logits: Tensor, nodes: int) -> Tensor:
    """A' from the logits of all ordered pairs, (k^2, 1)."""
    square = logits.view(nodes, nodes)
    return hollow(torch.sigmoid((square + square.T) / 2))


def _normalised(values: Tensor, scale_and_shift: Tensor) -> Tensor:
    """Batch norm over the rows at hand, (rows, width); a single row stays zero."""
    centred = values - values.mean(0)
    return centred * (centred.square().mean(0) + 1e-5).rsqrt() * scale_and_shift[0] + scale_and_shift[1]


def hollow(weights: Tensor) -> Tensor:
    """Without its diagonal."""
    return weights * (1 - torch.eye(len(weights), dtype=weights.dtype, device=weights.device))
