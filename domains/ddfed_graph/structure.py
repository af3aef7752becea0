"""How a network sees what surrounds its rows: one set of operations for sparse, dense and absent structure.

Notation: A the adjacency without self-loops, D = diag(sum_j |a_ij|), A^ = (D + I)^-1/2 (A + I) (D + I)^-1/2, L^ the
scaled Laplacian 2 L / lambda_max - I with L = I - D^-1/2 A D^-1/2 and lambda_max = 2, thus -D^-1/2 A D^-1/2.

Conventions:

- A node without neighbours is its own neighbour, as the literature's A' = I has it: its neighbour mean is itself, and
  its row of L^ is that of the graph of self-loops (L = 0), -1 at itself. PyTorch Geometric leaves both at zero, so
  that training without structure would leave the neighbours' weights as they were drawn.
- Degrees are sums of absolute weights: a signed A' (eigenbasis methods) then has real roots. For weights >= 0 nothing
  changes, derivatives at a weight of 0 included (they are those from above).
- Attention ignores weights. Of a dense A' edges are the entries above a threshold, and it gets no gradient; of a real
  graph all are edges.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from ddfed.errors import DataError
from ddfed_graph.graph import Graph, Nodes
from ddfed_graph.sampling import entries, generator_for, sample

#: Slope of the attention's leaky ReLU below zero (Velickovic et al., ICLR 2018).
_SLOPE = 0.2
#: Edges of the receptive fields that a graph remembers, some 45 bytes each.
_REMEMBERED = 2**22

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _constant(make: Callable[_P, _R]) -> Callable[_P, _R]:
    """For what is kept: made outside of all transforms and modes, which must not be outlived by what they made."""

    @wraps(make)
    def outside(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with torch.inference_mode(False), torch.no_grad(), torch._C._DisableFuncTorch():
            return make(*args, **kwargs)

    return outside


class Hop(ABC):
    """One step along the edges: from the nodes that a layer has to those that the next one needs.

    Rows of the arguments are nodes before the step, rows of the results are nodes after it.
    """

    @abstractmethod
    def here(self, h: Tensor) -> Tensor:
        """The rows of the nodes after the step, as they are."""

    @abstractmethod
    def gcn(self, h: Tensor) -> Tensor:
        """A^ h."""

    @abstractmethod
    def mean(self, h: Tensor) -> Tensor:
        """D^-1 A h: the neighbours' mean, weighted; a node without neighbours counts as its own."""

    @abstractmethod
    def laplacian(self, h: Tensor) -> Tensor:
        """L^ h."""

    @abstractmethod
    def attend(self, values: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Means of the values of a node's neighbours and itself, by softmax_j(LeakyReLU(source_j + target_i)).

        Args:
            values: (rows, heads, width).
            source, target: (rows, heads).
        """


class Identity(Hop):
    """No structure, A' = I."""

    def here(self, h: Tensor) -> Tensor:
        return h

    def gcn(self, h: Tensor) -> Tensor:
        return h

    def mean(self, h: Tensor) -> Tensor:
        return h

    def laplacian(self, h: Tensor) -> Tensor:
        return -h

    def attend(self, values: Tensor, source: Tensor, target: Tensor) -> Tensor:
        return values


class Dense(Hop):
    """A' as a matrix; differentiable in it.

    Args:
        adjacency: (r, r), zero diagonal.
        threshold: above it an entry is an edge to attention.
    """

    def __init__(self, adjacency: Tensor, threshold: float) -> None:
        self.adjacency, self.threshold = adjacency, threshold

    @cached_property
    def _loops(self) -> Tensor:
        return torch.eye(self.adjacency.shape[-1], dtype=self.adjacency.dtype, device=self.adjacency.device)

    @cached_property
    def _degrees(self) -> Tensor:
        # Not abs(): its derivative at 0 is 0, and that of a weight that may only grow is 1.
        return torch.where(self.adjacency < 0, -self.adjacency, self.adjacency).sum(-1)

    @cached_property
    def _lone(self) -> Tensor:
        return (self._degrees == 0).to(self.adjacency.dtype)

    @cached_property
    def _gcn(self) -> Tensor:
        scale = (self._degrees + 1).rsqrt()
        return scale[:, None] * (self.adjacency + self._loops) * scale

    @cached_property
    def _mean(self) -> Tensor:
        return (self.adjacency + self._lone * self._loops) / (self._degrees + self._lone)[:, None]

    @cached_property
    def _laplacian(self) -> Tensor:
        scale = (self._degrees + self._lone).rsqrt()
        return -scale[:, None] * (self.adjacency + self._lone * self._loops) * scale

    def here(self, h: Tensor) -> Tensor:
        return h

    def gcn(self, h: Tensor) -> Tensor:
        return self._gcn @ h

    def mean(self, h: Tensor) -> Tensor:
        return self._mean @ h

    def laplacian(self, h: Tensor) -> Tensor:
        return self._laplacian @ h

    def attend(self, values: Tensor, source: Tensor, target: Tensor) -> Tensor:
        edges = (self.adjacency + self._loops * (1 + self.threshold)) > self.threshold
        scores = functional.leaky_relu(target[:, None] + source, _SLOPE)
        shares = scores.masked_fill(~edges[..., None], -torch.inf).softmax(1)
        return torch.einsum("ijh,jhk->ihk", shares, values)


@dataclass(frozen=True, eq=False)
class Block(Hop):
    """Edges of a constant graph into some of its nodes, entries as in the whole graph.

    Args:
        rows, columns: of each edge, its position among the nodes after and before the step.
        weights: of the edges, times the factors of `sampling.sample`. Of sampled edges gcn, mean and laplacian then
            have the true sums as expectations; attention is a softmax over what was drawn.
        after, before: degrees of the nodes after and before the step in the whole graph.
        at: positions of the nodes after among those before; None where they are the same.
    """

    rows: Tensor
    columns: Tensor
    weights: Tensor
    after: Tensor
    before: Tensor
    at: Tensor | None
    _moved: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    @_constant
    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and columns with the loops, and the places of the nodes after, where a computation takes place."""
        if device not in self._moved:
            rows, columns = self._with_loops
            self._moved[device] = rows.to(device), columns.to(device), columns[len(self.rows) :].to(device)
        return self._moved[device]

    def _matrix(self, values: Tensor, loops: Tensor) -> Sparse:
        rows, columns, where = *self._with_loops, loops.nonzero().squeeze(1)
        where = torch.cat([torch.arange(len(values)), len(values) + where])
        shape = (len(self.after), len(self.before))
        return Sparse.of(rows[where], columns[where], torch.cat([values, loops])[where], shape)

    @cached_property
    @_constant
    def _with_loops(self) -> tuple[Tensor, Tensor]:
        own = torch.arange(len(self.after))
        return torch.cat([self.rows, own]), torch.cat([self.columns, own if self.at is None else self.at])

    @cached_property
    @_constant
    def _lone(self) -> Tensor:
        return (self.after == 0).float()

    @cached_property
    @_constant
    def _gcn(self) -> Sparse:
        after, before = ((degrees + 1).rsqrt() for degrees in (self.after, self.before))
        return self._matrix(self.weights * after[self.rows] * before[self.columns], after.square())

    @cached_property
    @_constant
    def _mean(self) -> Sparse:
        return self._matrix(self.weights / self.after[self.rows], self._lone)

    @cached_property
    @_constant
    def _laplacian(self) -> Sparse:
        scale = (self.after[self.rows] * self.before[self.columns]).rsqrt()
        return self._matrix(-self.weights * scale, -self._lone)

    def here(self, h: Tensor) -> Tensor:
        return h if self.at is None else h[self._on(h.device)[2]]

    def gcn(self, h: Tensor) -> Tensor:
        return self._gcn @ h

    def mean(self, h: Tensor) -> Tensor:
        return self._mean @ h

    def laplacian(self, h: Tensor) -> Tensor:
        return self._laplacian @ h

    def attend(self, values: Tensor, source: Tensor, target: Tensor) -> Tensor:
        rows, columns, _ = self._on(values.device)
        scores = functional.leaky_relu(source[columns] + self.here(target)[rows], _SLOPE)
        blank = scores.new_zeros(len(self.after), scores.shape[1])
        # Without the largest score no exponential overflows; it cancels, so it needs no gradient.
        top = blank.scatter_reduce(0, rows[:, None].expand_as(scores), scores.detach(), "amax", include_self=False)
        raised = (scores - top[rows]).exp()
        shares = raised / blank.index_add(0, rows, raised)[rows]
        sums = values.new_zeros(len(self.after), *values.shape[1:])
        return sums.index_add(0, rows, shares[..., None] * values[columns])


class Sparse:
    """A constant sparse matrix whose product with a dense one has derivatives of any order in the dense one."""

    def __init__(self, matrix: Tensor, transposed: Sparse | None = None) -> None:
        self.matrix = matrix
        self._moved: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        if transposed is not None:
            self.__dict__["transposed"] = transposed

    @classmethod
    def of(cls, rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Sparse:
        """From entries in any order; two at one place count both."""
        order = torch.argsort(rows, stable=True)
        begin = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(rows, minlength=shape[0]).cumsum(0)])
        return cls(torch.sparse_csr_tensor(begin, columns[order], values[order], shape, check_invariants=False))

    @cached_property
    @_constant
    def transposed(self) -> Sparse:
        begin, columns, values = self.matrix.crow_indices(), self.matrix.col_indices(), self.matrix.values()
        rows = torch.repeat_interleave(torch.arange(len(begin) - 1), begin.diff())
        found = Sparse.of(columns, rows, values, (self.matrix.shape[1], self.matrix.shape[0]))
        found.__dict__["transposed"] = self
        return found

    def take(self, rows: Tensor) -> Sparse:
        """Some rows, in their order."""
        begin, columns, values = self.matrix.crow_indices(), self.matrix.col_indices(), self.matrix.values()
        counts = begin.diff()[rows]
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        where = torch.arange(int(ends[-1])) + torch.repeat_interleave(begin[rows] - ends[:-1], counts)
        shape = (len(rows), self.matrix.shape[1])
        return Sparse(torch.sparse_csr_tensor(ends, columns[where], values[where], shape, check_invariants=False))

    @_constant
    def like(self, h: Tensor) -> Tensor:
        """The matrix where ``h`` is and of its type; products of half precision are single ones."""
        key = (h.device, torch.promote_types(h.dtype, torch.float32))
        if key not in self._moved:
            self._moved[key] = self.matrix.to(*key)
        return self._moved[key]

    def __matmul__(self, h: Tensor) -> Tensor:
        product: Tensor = _Product.apply(self, h)
        return product


class _Product(torch.autograd.Function):
    """Sparse times dense. The library's own has no second derivative in all formats, and none under torch.func."""

    @staticmethod
    def forward(matrix: Sparse, h: Tensor) -> Tensor:
        found = matrix.like(h)
        return (found @ h.to(found.dtype).contiguous()).to(h.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Sparse, Tensor], output: Tensor) -> None:
        ctx.matrix = inputs[0]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor]:
        return None, ctx.matrix.transposed @ g

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor) -> Tensor:
        return ctx.matrix @ tangent

    @staticmethod
    def vmap(info: Any, in_dims: tuple[None, int], matrix: Sparse, h: Tensor) -> tuple[Tensor, int]:
        beside = h.movedim(in_dims[1], 1)
        return (matrix @ beside.flatten(1)).unflatten(1, beside.shape[1:]), 1


@dataclass(frozen=True, eq=False)
class Seen:
    """What a network sees.

    Args:
        features: of the nodes that the first of all steps starts from, (rows, d).
        hops: the steps of the network, in their order.
        before: steps by A^ that the features are still to go before.
    """

    features: Tensor | Sparse
    hops: tuple[Hop, ...]
    before: tuple[Hop, ...] = ()

    def project(self, weight: Tensor) -> Tensor:
        """Features times weight', (rows, width): A^ X W' is A^ (X W'), and the steps are along fewer columns."""
        return self._stepped(self.features @ weight.T)

    def dense(self, like: Tensor) -> Tensor:
        """The features themselves, (rows, d)."""
        features = self.features
        return self._stepped(features.like(like).to_dense() if isinstance(features, Sparse) else features)

    def _stepped(self, h: Tensor) -> Tensor:
        for hop in self.before:
            h = hop.gcn(h)
        return h

    def own(self, h: Tensor, made: int) -> Tensor:
        """Of what is known after some steps, the rows that were asked for."""
        for hop in self.hops[made:]:
            h = hop.here(h)
        return h


def see(x: Tensor | Nodes, features: int, hops: int, like: Tensor, smooth: int = 0, threshold: float = 0.5) -> Seen:
    """What a network sees that makes some steps.

    Of real nodes it is their receptive field alone, with the entries of the whole graph, or the whole graph where the
    field covers more than half. Features that are smoothed first are cached with the graph (Chen et al., Stochastic
    Training of GCNs with Variance Reduction, ICML 2018, do the same for the first layer): they are exact and draw no
    neighbours, so of ``fanouts`` only the steps after them use any. Sparse features that a layer projects take those
    steps after the projection, along all edges.

    Args:
        x: `Nodes`; or rows (r, d) without structure; or (r, d + r), with A' in the last columns.
        features: d.
        hops: steps of the network.
        like: gives the device and type of real features.
        smooth: steps by A^ before all others.
        threshold: see `Dense`.

    Raises:
        DataError: rows of no such width; fan-outs below 1.
    """
    if isinstance(x, Nodes):
        return _see_nodes(x, features, hops, like, smooth)
    rows, width = x.shape
    if width not in (features, features + rows):
        raise DataError(
            f"a graph network for {features} features takes rows of {features} columns, or of {features + rows} with "
            f"the adjacency among the {rows} rows beside; got {width}. Rows that carry an adjacency belong together: "
            f"pass all of them at once."
        )
    hop: Hop = Identity() if width == features else Dense(x[:, features:], threshold)
    return Seen(x[:, :features], (hop,) * hops, (hop,) * smooth)


def _see_nodes(x: Nodes, features: int, hops: int, like: Tensor, smooth: int) -> Seen:
    if x.graph.features.shape[1] != features:
        raise DataError(f"nodes have {x.graph.features.shape[1]} features, and the network was built for {features}")
    if smooth and hops and _sparse(x.graph) is not None and x.fanouts is None:
        # A^ (X W') with X sparse took 0.4 of the time of (A^ X) W' with A^ X dense for 140 of Cora's nodes and 0.16
        # for 1,000; with A^ X sparse, 6 % of it not zero, as long as the first for 140 and twice as long for 1,000.
        found = receptive_field(x, smooth + hops)
        return Seen(found.features(0, like), found.hops[smooth:], found.hops[:smooth])
    found = receptive_field(x, hops)
    return Seen(found.features(smooth, like), found.hops)


@dataclass(frozen=True, eq=False)
class Field:
    """The receptive field of some nodes.

    Args:
        graph: the graph.
        nodes: that the first step starts from; None for all.
        hops: the steps.
    """

    graph: Graph
    nodes: Tensor | None
    hops: tuple[Block, ...]
    _sliced: dict[int, Sparse] = field(default_factory=dict)

    @property
    def edges(self) -> int:
        """Edges of its own; blocks of the whole graph are there once for all fields."""
        return sum(len(hop.rows) for hop in self.hops if hop.at is not None)

    @_constant
    def features(self, smooth: int, like: Tensor) -> Tensor | Sparse:
        """H_smooth of the nodes that the first step starts from; sparse if X is and nothing is smoothed."""
        whole = _sparse(self.graph)
        if smooth == 0 and whole is not None:
            if self.nodes is None:
                return whole
            if 0 not in self._sliced:
                self._sliced[0] = whole.take(self.nodes)
            return self._sliced[0]
        rows = self.graph.hop(smooth) if self.nodes is None else self.graph.hop(smooth)[self.nodes]
        return rows.to(like.device, like.dtype)


@_constant
def receptive_field(x: Nodes, hops: int) -> Field:
    """What some steps that end in the nodes start from and go along; the graph remembers the latest.

    Fan-outs count from the nodes outwards, and the last one holds for all further steps.

    Raises:
        DataError: a fan-out below 1.
    """
    if x.fanouts is not None and (not x.fanouts or min(x.fanouts) < 1):
        raise DataError(f"fanouts must be numbers of neighbours of 1 or more, one a hop; got {x.fanouts}")
    remembered = _kept(x.graph, "fields", OrderedDict)
    key = (hashlib.sha256(x.ids.contiguous().numpy().tobytes()).digest(), hops, x.fanouts)
    found = remembered.pop(key, None) or _field(x, hops)
    remembered[key] = found
    while sum(one.edges for one in remembered.values()) > _REMEMBERED and len(remembered) > 1:
        remembered.popitem(last=False)
    return found


def _field(x: Nodes, hops: int) -> Field:
    generator = None if x.fanouts is None else generator_for(x.ids)
    nodes: Tensor | None = x.ids
    blocks: list[Block] = []
    for step in range(hops):
        fanout = None if x.fanouts is None else x.fanouts[min(step, len(x.fanouts) - 1)]
        if nodes is None and fanout is None:
            blocks.append(_kept(x.graph, "whole", lambda: _whole(x.graph)))
        else:
            block, nodes = _block(x.graph, nodes, fanout, generator)
            blocks.append(block)
    return Field(x.graph, nodes, tuple(reversed(blocks)))


@_constant
def _sparse(graph: Graph) -> Sparse | None:
    """X, if most features are zero."""

    def make() -> Sparse | None:
        x = graph.sparse_features
        return Sparse(x) if x.layout == torch.sparse_csr else None

    found: Sparse | None = _kept(graph, "sparse", make)
    return found


def _whole(graph: Graph) -> Block:
    return Block(graph.edges[0], graph.edges[1], graph.weights, graph.degrees, graph.degrees, None)


def _block(
    graph: Graph, after: Tensor | None, fanout: int | None, generator: torch.Generator | None
) -> tuple[Block, Tensor | None]:
    """The step into some nodes (None: into all), and the nodes that it starts from, sorted (None: from all)."""
    nodes = torch.arange(len(graph)) if after is None else after
    if fanout is None:
        rows, edges = entries(graph, nodes)
        weights = graph.weights[edges]
    else:
        rows, edges, factors = sample(graph, nodes, fanout, generator)
        weights = graph.weights[edges] * factors
    sources = graph.edges[1][edges]
    before = torch.unique(torch.cat([nodes, sources]))
    if 2 * len(before) > len(graph):
        return Block(rows, sources, weights, graph.degrees[nodes], graph.degrees, after), None
    columns, at = torch.searchsorted(before, sources), torch.searchsorted(before, nodes)
    return Block(rows, columns, weights, graph.degrees[nodes], graph.degrees[before], at), before


def _kept(graph: Graph, name: str, make: Callable[[], Any]) -> Any:
    """What was made of a graph once; it is constant."""
    kept: dict[str, Any] = graph.__dict__.setdefault("_structure", {})
    if name not in kept:
        kept[name] = make()
    return kept[name]
