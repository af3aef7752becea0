"""One graph, some of its nodes, and labelled nodes as real data.

Notation: n nodes, d features, A the adjacency with weights >= 0 and no self-loops, A^ = D^-1/2 (A + I) D^-1/2 with D
the degrees of A + I, H_k = A^^k X.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ddfed.data import Batch, RealData
from ddfed.errors import DataError

#: Below this share of non-zero features, products with them are sparse.
_SPARSE = 0.1


def compressed(matrix: Tensor) -> Tensor:
    """As sparse CSR, without torch's word that this is in beta."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
        return matrix.to_sparse_csr()


@dataclass(frozen=True, eq=False)
class Graph:
    """An undirected graph with features; constant, so what is computed from it is kept.

    Args:
        features: X, (n, d) float32.
        edges: both directions of every edge, sorted by source and then target, without repeats and self-loops,
            (2, entries) int64.
        weights: of the entries, above 0, (entries,) float32.

    Raises:
        DataError: an edge names no node, or the edges are not as said; `Graph.of` puts them right.
    """

    features: Tensor
    edges: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        if self.edges.ndim != 2 or len(self.edges) != 2 or self.edges.shape[1] != len(self.weights):
            raise DataError(f"edges must have shape (2, {len(self.weights)}), got {tuple(self.edges.shape)}")
        if self.edges.numel() and not 0 <= int(self.edges.min()) <= int(self.edges.max()) < len(self):
            raise DataError(f"edges name node {int(self.edges.max())}, and there are {len(self)} nodes")
        if not bool(torch.isfinite(self.features).all()):
            raise DataError("a node has features that are not finite")

    @classmethod
    def of(cls, features: Tensor, edges: Tensor, weights: Tensor | None = None) -> Graph:
        """From edges in any order and direction: made undirected, self-loops left out, of repeats the largest weight.

        Args:
            features: (n, d).
            edges: (2, entries).
            weights: of the entries; 1 for all when None.
        """
        n, kept = len(features), edges[0] != edges[1]
        given = torch.ones(edges.shape[1]) if weights is None else weights.float()
        both = torch.cat([edges[:, kept], edges[:, kept].flip(0)], 1).long()
        if both.numel() and not 0 <= int(both.min()) <= int(both.max()) < n:
            raise DataError(f"edges name node {int(both.max())}, and there are {n} nodes")
        keys, place = torch.unique(both[0] * n + both[1], return_inverse=True)
        merged = torch.zeros(len(keys)).scatter_reduce_(0, place, torch.cat([given[kept]] * 2), "amax")
        return cls(features.float(), torch.stack([keys // n, keys % n]), merged)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def links(self) -> int:
        """Undirected edges."""
        return self.edges.shape[1] // 2

    @cached_property
    def degrees(self) -> Tensor:
        """Sum of the weights at each node, itself not counted, (n,)."""
        return torch.zeros(len(self)).index_add_(0, self.edges[0], self.weights)

    @cached_property
    def pointers(self) -> Tensor:
        """Where the entries of each node begin (CSR), (n + 1,) int64."""
        counts = torch.bincount(self.edges[0], minlength=len(self))
        return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])

    @cached_property
    def normalised(self) -> Tensor:
        """A^ as a sparse CSR matrix (n, n)."""
        scale = (self.degrees + 1).rsqrt()
        return self._with_loops(lambda index: scale[index[0]] * scale[index[1]])

    @cached_property
    def averaging(self) -> Tensor:
        """D^-1 (A + I), the mean of a neighbourhood with the node itself, as a sparse CSR matrix (n, n)."""
        scale = 1 / (self.degrees + 1)
        return self._with_loops(lambda index: scale[index[0]])

    def _with_loops(self, scale: Callable[[Tensor], Tensor]) -> Tensor:
        """A + I with its entries scaled."""
        n = len(self)
        index = torch.cat([self.edges, torch.arange(n).expand(2, n)], 1)
        values = torch.cat([self.weights, torch.ones(n)]) * scale(index)
        return compressed(torch.sparse_coo_tensor(index, values, (n, n), check_invariants=False).coalesce())

    def hop(self, k: int) -> Tensor:
        """H_k = A^^k X, (n, d); kept."""
        kept: dict[int, Tensor] = self.__dict__.setdefault("_hops", {0: self.features})
        for step in range(max(kept) + 1, k + 1):
            kept[step] = self.normalised @ kept[step - 1]
        return kept[k]

    @cached_property
    def sparse_features(self) -> Tensor:
        """X as a sparse CSR matrix where most features are zero, else as it is."""
        filled = float((self.features != 0).float().mean()) if self.features.numel() else 1.0
        return compressed(self.features) if filled < _SPARSE else self.features

    def induced(self, nodes: Tensor) -> Graph:
        """The graph of some nodes, in their order, with the edges among them."""
        place = torch.full((len(self),), -1)
        place[nodes] = torch.arange(len(nodes))
        inside = (place[self.edges] >= 0).all(0)
        renamed = place[self.edges[:, inside]]
        order = torch.argsort(renamed[0] * len(nodes) + renamed[1])
        return Graph(self.features[nodes], renamed[:, order], self.weights[inside][order])

    def dense(self, nodes: Tensor) -> Tensor:
        """A among some nodes, (k, k)."""
        part = self.induced(nodes)
        return torch.zeros(len(nodes), len(nodes)).index_put_((part.edges[0], part.edges[1]), part.weights)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over features, edges and weights."""
        digest = hashlib.sha256()
        for tensor in (self.features, self.edges, self.weights):
            digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def sparse_bytes(self) -> int:
        """What the graph takes when only what is not zero is stored: 16-bit indices where they suffice, else 32.

        Features: an index each, and 4 bytes for values unless all of them are equal in a row. Edges: two indices each
        way saved once.
        """
        index = 2 if max(self.features.shape) < 2**16 else 4
        filled = self.features != 0
        rows = self.features.sum(1, keepdim=True) / filled.sum(1, keepdim=True).clamp(min=1)
        flat = bool(torch.allclose(torch.where(filled, self.features - rows, 0.0), torch.zeros(()), atol=1e-6))
        values = 0 if flat else 4
        return int(filled.sum()) * (index + values) + self.links * 2 * index


@dataclass(frozen=True, eq=False)
class Nodes:
    """Some nodes of a graph, as a network sees them: with all that surrounds them.

    Engines move it and count it, and never look inside.

    Args:
        graph: it lives on the CPU; networks move what they need.
        ids: of the nodes, (k,) int64.
        fanouts: neighbours drawn of each node, one number a hop from the nodes outwards; None for all.
    """

    graph: Graph
    ids: Tensor
    fanouts: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, *_: Any, **__: Any) -> Nodes:
        return self


@dataclass(frozen=True, eq=False)
class GraphData(RealData):
    """Labelled nodes of a graph. ``inputs`` are their numbers, (rows,) int64.

    Args:
        graph: the whole graph, which the nodes are seen in.
        fanouts: see `Nodes`.
    """

    graph: Graph = None  # type: ignore[assignment]
    fanouts: tuple[int, ...] | None = None

    def batch(self, rows: Tensor) -> Batch:
        """Rows as a network sees them: `Nodes`."""
        return Batch(Nodes(self.graph, self.inputs[rows], self.fanouts), self.labels[rows])

    def items(self, rows: Tensor, coupled: bool = False) -> Tensor:
        """Features of the rows, (k, d); for a coupled store with the adjacency among them beside, (k, d + k)."""
        ids = self.inputs[rows]
        x = self.graph.features[ids]
        return torch.cat([x, self.graph.dense(ids)], 1) if coupled else x

    def passes(self, rows: Tensor, chunk: int) -> tuple[Tensor, ...]:
        """All rows at once: a pass costs what surrounds them, however few they are. Sampled ones go in chunks."""
        return (rows,) if self.fanouts is None else super().passes(rows, chunk)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over the graph, the rows and their labels."""
        digest = hashlib.sha256(self.graph.content_hash.encode())
        for tensor in (self.inputs, self.labels):
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def units(self) -> int:
        """All nodes, also those that are no rows."""
        return len(self.graph)

    def rows_of(self, units: Tensor) -> Tensor:
        """Rows whose nodes are among ``units``."""
        return torch.nonzero(torch.isin(self.inputs, units)).flatten()

    def units_of(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Nodes of each client: those of its rows, and others as `ddfed_graph.shares.follow` says."""
        from ddfed_graph.shares import follow

        return follow(self.graph, [self.inputs[rows] for rows in parts])

    def severed(self, parts: Sequence[Tensor]) -> GraphData:
        """The same nodes without the edges between clients."""
        kept = self._inside(parts)
        return replace(self, graph=Graph(self.graph.features, self.graph.edges[:, kept], self.graph.weights[kept]))

    def ties(self, parts: Sequence[Tensor]) -> dict[str, tuple[int, int]]:
        """Edges, each counted once."""
        return {"edges": (int(self._inside(parts).sum()) // 2, self.graph.links)}

    def _inside(self, parts: Sequence[Tensor]) -> Tensor:
        """Which entries lie within one client, (entries,) bool."""
        owner = torch.full((len(self.graph),), -1)
        for client, nodes in enumerate(parts):
            owner[nodes] = client
        return owner[self.graph.edges[0]] == owner[self.graph.edges[1]]

    def within(self, nodes: Tensor) -> GraphData:
        """What somebody has who holds only some nodes: their induced graph, and the rows that are among them."""
        place = torch.full((len(self.graph),), -1)
        place[nodes] = torch.arange(len(nodes))
        mine = place[self.inputs] >= 0
        kept = replace(self, inputs=place[self.inputs[mine]], labels=self.labels[mine], groups=self._groups_of(mine))
        return replace(kept, graph=self.graph.induced(nodes))
