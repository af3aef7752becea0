"""Condensed nodes that are made of propagated features, without any training.

H_2 = A^^2 X is what two rounds of message passing see of a node. A graph without structure, A' = I, shows a network
the stored row as it is, so storing H_2 tells it what the real graph would have. One mean of H_2 a class, stored so,
trains a GCN to the accuracy of the full graph on the citation networks: the row that stands beside every result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ddfed.data import RealData
from ddfed.errors import ConfigError
from ddfed.pool import PoolContext
from ddfed.select import Composer
from ddfed.select.rules import choose_herding, choose_kcenter, choose_random
from ddfed_graph.graph import Graph, GraphData

Hops = Annotated[int, Field(ge=0, le=10)]
#: (propagated features of the rows of a class (n, d), k, generator) -> (k, d)
Make = Callable[[Tensor, int, torch.Generator], Tensor]


def propagated(data: RealData, rows: Tensor, hops: int) -> Tensor:
    """H_hops of some rows, (k, d).

    Raises:
        ConfigError: the data is no graph.
    """
    return graph_of(data).hop(hops)[data.inputs[rows]]


def graph_of(data: RealData) -> Graph:
    """The graph that rows are nodes of.

    Raises:
        ConfigError: the data is no graph.
    """
    if not isinstance(data, GraphData):
        raise ConfigError(
            f"{data.info.dataset!r} is no graph, so its features cannot be propagated; use 'random' or 'herding'"
        )
    return data.graph


def _class_by_class(data: RealData, ctx: PoolContext, per_class: int, hops: int, make: Make) -> Tensor:
    found = []
    for c in ctx.classes:
        h, generator = propagated(data, data.class_index[c], hops), ctx.streams.torch("compose", c)
        rows = make(h, min(per_class, len(h)), generator)
        # A class with fewer nodes than asked repeats what it has.
        found.append(rows[torch.arange(per_class) % len(rows)])
    return torch.cat(found)


def compose_mean(data: RealData, ctx: PoolContext, per_class: int, top_up: bool, *, hops: Hops = 2) -> Tensor:
    """The mean of the propagated features of a class, as often as asked: one is all there is."""
    return _class_by_class(data, ctx, per_class, hops, lambda h, k, generator: h.mean(0, keepdim=True))


def compose_kmeans(data: RealData, ctx: PoolContext, per_class: int, top_up: bool, *, hops: Hops = 2) -> Tensor:
    """Centres of k-means over the propagated features of a class."""
    return _class_by_class(data, ctx, per_class, hops, lambda h, k, g: clustered(h, k, g)[0])


def compose_random(data: RealData, ctx: PoolContext, per_class: int, top_up: bool, *, hops: Hops = 2) -> Tensor:
    """Propagated features of random nodes of a class."""
    return _class_by_class(data, ctx, per_class, hops, lambda h, k, g: h[choose_random(h, k, g)])


def compose_herding(data: RealData, ctx: PoolContext, per_class: int, top_up: bool, *, hops: Hops = 2) -> Tensor:
    """Propagated features of nodes that follow their class mean."""
    return _class_by_class(data, ctx, per_class, hops, lambda h, k, g: h[choose_herding(h, k, g)])


def compose_kcenter(data: RealData, ctx: PoolContext, per_class: int, top_up: bool, *, hops: Hops = 2) -> Tensor:
    """Propagated features of nodes that cover their class."""
    return _class_by_class(data, ctx, per_class, hops, lambda h, k, g: h[choose_kcenter(h, k, g)])


def clustered(h: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """K-means: the centres (k, d), and the cluster of each row."""
    from sklearn.cluster import KMeans

    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    fitted = KMeans(k, n_init=10, random_state=seed).fit(h.double().numpy())
    return torch.from_numpy(fitted.cluster_centers_).float(), torch.from_numpy(fitted.labels_).long()


MEAN = Composer("mean-a2x", compose_mean)
KMEANS = Composer("kmeans-a2x", compose_kmeans)
RANDOM = Composer("random-a2x", compose_random)
HERDING = Composer("herding-a2x", compose_herding)
KCENTER = Composer("kcenter-a2x", compose_kcenter)
