"""A condensed graph with the eigenvalues of the real one: its eigenvectors are what is learned (GDEM).

Source: Liu, Bo and Shi, Graph Distillation with Eigenbasis Matching (GDEM), ICML 2024. L = I - A^ is the Laplacian of
the real graph's largest component with self-loops, as in its code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ddfed.data import RealData
from ddfed.errors import ConfigError
from ddfed.pool import PoolContext
from ddfed.seeds import Streams
from ddfed.select import Composer
from ddfed.store import Store
from ddfed_graph.facts import symmetric_normalised
from ddfed_graph.graph import Graph
from ddfed_graph.selectors import Hops, compose_random, graph_of
from ddfed_graph.stores import GraphStore, hollow

#: Up to so many nodes all eigenvectors are found at once.
_DENSE = 400
#: A diagonal entry of I - L' counts as at least this.
_LEAST = 0.05

Low = Annotated[float, Field(ge=0, le=1)]
Rank = Annotated[int, Field(ge=1)] | None


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Some eigenpairs of L, the smallest eigenvalues and then the largest, ascending.

    Args:
        values: (k,) float64 in [0, 2).
        vectors: columns of length one, (nodes, k) float64; of each only the sign is arbitrary.
        nodes: of the largest component, (nodes,).
    """

    values: Tensor
    vectors: Tensor
    nodes: Tensor


def spectrum(graph: Graph, count: int, low: float) -> Spectrum:
    """``ceil(low count)`` smallest and the rest of ``count`` largest eigenpairs of L; kept with the graph.

    Raises:
        ConfigError: the largest component has fewer nodes.
    """
    kept: dict[tuple[int, float], Spectrum] = graph.__dict__.setdefault("_spectra", {})
    if (count, low) not in kept:
        kept[count, low] = _spectrum(graph, count, low)
    return kept[count, low]


def _spectrum(graph: Graph, count: int, low: float) -> Spectrum:
    import scipy.sparse
    from scipy.sparse.csgraph import connected_components
    from scipy.sparse.linalg import eigsh

    s = graph.normalised
    parts = (s.values().double().numpy(), s.col_indices().numpy(), s.crow_indices().numpy())
    matrix = scipy.sparse.csr_matrix(parts, tuple(s.shape))
    component = connected_components(matrix, directed=False)[1]
    nodes = np.flatnonzero(component == np.bincount(component).argmax())
    if count > len(nodes):
        raise ConfigError(
            f"{count} eigenvectors are asked for, one for each condensed node, and the largest component has "
            f"{len(nodes)} nodes. Lower ipc, or set init_options.rank and store_options.rank to {len(nodes)} or less."
        )
    matrix, smallest = matrix[nodes][:, nodes], math.ceil(low * count)
    if len(nodes) <= _DENSE or count >= len(nodes) - 1:
        all_values, all_vectors = np.linalg.eigh(matrix.toarray())
        order = np.argsort(1 - all_values, kind="stable")
        taken = np.concatenate([order[:smallest], order[len(order) - (count - smallest) :]])
        values, vectors = 1 - all_values[taken], all_vectors[:, taken]
    else:
        start = np.random.default_rng(0).standard_normal(len(nodes))
        found = [eigsh(matrix, k, which=end, v0=start) for k, end in ((smallest, "LA"), (count - smallest, "SA")) if k]
        values = 1 - np.concatenate([pair[0] for pair in found])
        vectors = np.concatenate([pair[1] for pair in found], 1)
        order = np.argsort(values, kind="stable")
        values, vectors = values[order], vectors[:, order]
    return Spectrum(torch.from_numpy(values), torch.from_numpy(vectors.copy()), torch.from_numpy(nodes))


def compose_eigenbasis(
    data: RealData,
    ctx: PoolContext,
    per_class: int,
    top_up: bool,
    *,
    rank: Rank = None,
    low: Low = 0.8,
    hops: Hops = 0,
) -> Tensor:
    """What store ``eigenbasis`` starts from, (k, d + 2 rank): features, U', and the real eigenvalues in every row.

    Features are those of random nodes. U' are eigenvectors of a random graph of the condensed nodes, linked with
    probability 1/C within a class and 1/3C across (C classes), as in GDEM's code.

    Args:
        data, ctx, per_class, top_up: as of every composer.
        rank: K, eigenpairs; as many as there are condensed nodes when None.
        low: share of them from the low end of the spectrum.
        hops: rounds of message passing of the features.

    Raises:
        ConfigError: the data is no graph, or there are fewer eigenpairs.
    """
    nodes = per_class * len(ctx.classes)
    wanted = nodes if rank is None else rank
    if wanted > nodes:
        raise ConfigError(f"init_options.rank is {wanted}, and {nodes} condensed nodes have {nodes} eigenvectors")
    values = spectrum(graph_of(data), wanted, low).values.float()
    label = torch.arange(len(ctx.classes)).repeat_interleave(per_class)
    a = _blocks(label, 1 / len(ctx.classes), 1 / (3 * len(ctx.classes)), ctx.streams.torch("blocks"))
    vectors = torch.linalg.eigh(torch.eye(nodes, dtype=torch.float64) - symmetric_normalised(a))[1].float()
    x = compose_random(data, ctx, per_class, top_up, hops=hops)
    return torch.cat([x, vectors[:, :wanted], values.expand(nodes, -1)], 1)


def _blocks(label: Tensor, within: float, across: float, generator: torch.Generator) -> Tensor:
    """Adjacency of a random graph of communities, (k, k) float64."""
    chance = torch.where(label[:, None] == label, within, across)
    drawn = (torch.rand(chance.shape, generator=generator) < chance).double().triu(1)
    return drawn + drawn.T


class Eigenbasis(GraphStore):
    """A' = I - U' diag(l) U'^T with learned U' (items, K) and the eigenvalues l of the real graph; signed.

    Networks add self-loops of 1 and normalise, so entries are divided by the roots of the diagonal: A^' is then
    I - L' but for a factor of each node.

    Rows are decoded to (features, A', U'), (k, d + k + K): engine ``spectrum`` judges U', and networks refuse rows so
    wide. What is released is the graph alone.

    Options:
        rank: K; as many as there are items when None.
        threshold: 0, as weights are small and of either sign; otherwise of their absolute value.
    """

    name = "eigenbasis"
    defaults: ClassVar[Mapping[str, Any]] = {**GraphStore.defaults, "threshold": 0.0, "rank": None}
    shared = frozenset({"values"})

    @property
    def rank(self) -> int:
        return self.items if self.options["rank"] is None else self.whole("rank", 1)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"x": (self.items, *self.info.shape), "u": (self.items, self.rank)}

    def buffer_shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"values": ((self.rank,), torch.float32)}

    def adjacency(self, x: Tensor, items: Tensor) -> Tensor:
        return signed_adjacency(self.params["u"][items], self.buffers["values"])

    def decode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (k, d + k + K): features, adjacency, and U'."""
        rows, origin = super().decode(items)
        return torch.cat([rows, self.params["u"][items]], 1), origin

    def begin(self, adjacency: Tensor, streams: Streams) -> None:
        """Initialise from U' and the eigenvalues, (items, 2 K), of the composer of the same name.

        Raises:
            ConfigError: it is something else.
        """
        values = adjacency[:, self.rank :]
        if adjacency.shape[1] != 2 * self.rank or not bool((values == values[0]).all()):
            raise ConfigError(
                f"store 'eigenbasis' takes the eigenvalues of the real graph from init 'eigenbasis', with init_options."
                f"rank = store_options.rank ({self.rank} here); it was given {adjacency.shape[1]} values beside the "
                f"features. Set distill.init = 'eigenbasis'."
            )
        with torch.no_grad():
            self.params["u"].copy_(adjacency[:, : self.rank])
        self.buffers["values"].copy_(values[0])

    def take(self, items: Tensor) -> Store:
        taken = Eigenbasis(self.info, self.classes[items], **{**self.options, "rank": self.rank})
        taken.load({name: self._of(items, name, tensor) for name, tensor in self.tensors().items()})
        return taken


def propagation(u: Tensor, values: Tensor) -> Tensor:
    """I - U diag(l) U^T, (k, k), of U (k, K) and l (K,)."""
    return torch.eye(len(u), dtype=u.dtype, device=u.device) - (u * values) @ u.T


def signed_adjacency(u: Tensor, values: Tensor) -> Tensor:
    """`propagation` divided by the roots of its diagonal, and without it, (k, k)."""
    s = propagation(u, values)
    scale = s.diagonal().clamp(min=_LEAST).rsqrt()
    return hollow(s * (scale[:, None] * scale))


EIGENBASIS = Composer("eigenbasis", compose_eigenbasis)
