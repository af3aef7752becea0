"""A condensed adjacency in closed form: how nodes express each other's features, drawn to what classes do (GCSR).

Source: Liu et al., Graph Data Condensation via Self-expressive Graph Structure Reconstruction (GCSR), KDD 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ddfed.data import RealData, TaskInfo
from ddfed.errors import DataError
from ddfed.pool import PoolContext
from ddfed.seeds import Streams
from ddfed.select import Composer
from ddfed_graph.calibrated import cosines
from ddfed_graph.facts import class_pairs
from ddfed_graph.selectors import Hops, compose_random, graph_of, propagated
from ddfed_graph.stores import GraphStore, hollow


class SelfExpressive(GraphStore):
    """A' = |Z| made symmetric and without its diagonal, Z the minimiser of |X'^T - X'^T Z|^2 + alpha |Z - P|^2.

    That is Z = (X' X'^T + alpha I)^-1 (X' X'^T + alpha P), and differentiable, so features alone are learned. P says
    how likely nodes of two classes are linked.

    Departure: P stays as it is; GCSR moves it and a second prior by moving averages of past adjacencies.

    Options:
        alpha: weight of the prior, in units of the mean squared length of the first features, so that it means the
            same however features are scaled.
    """

    name = "self-expressive"
    defaults: ClassVar[Mapping[str, Any]] = {**GraphStore.defaults, "alpha": 1.0}
    paired = frozenset({"prior"})
    shared = frozenset({"ridge"})

    def __init__(self, info: TaskInfo, classes: Tensor, **options: Any) -> None:
        super().__init__(info, classes, **options)
        self.number("alpha", positive=True)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"x": (self.items, *self.info.shape)}

    def buffer_shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"prior": ((self.items, self.items), torch.float32), "ridge": ((1,), torch.float32)}

    def adjacency(self, x: Tensor, items: Tensor) -> Tensor:
        return expressed(x, self.buffers["prior"][items][:, items], self.buffers["ridge"][0])

    def begin(self, adjacency: Tensor, streams: Streams) -> None:
        """Initialise from the prior, (items, items); without one it is zero."""
        if adjacency.shape[1]:
            self.buffers["prior"].copy_(adjacency)
        length = self.params["x"].detach().square().sum(1).mean()
        self.buffers["ridge"].fill_(self.number("alpha") * float(length) or 1.0)


def expressed(x: Tensor, prior: Tensor, ridge: Tensor | float) -> Tensor:
    """A' of features (k, d) and prior P (k, k), see `SelfExpressive`; (k, k), differentiable in features."""
    gram = x.double() @ x.double().T
    left = gram + ridge * torch.eye(len(x), dtype=gram.dtype, device=x.device)
    z = torch.linalg.solve(left, gram + ridge * prior.double()).abs()
    return hollow((z + z.T) / 2).to(x.dtype)


def compose_expressive(
    data: RealData,
    ctx: PoolContext,
    per_class: int,
    top_up: bool,
    *,
    prior: Literal["edges", "cosine"] = "edges",
    hops: Hops = 2,
) -> Tensor:
    """Propagated features of random nodes, and the prior P among them, (k, d + k).

    Args:
        data, ctx, per_class, top_up: as of every composer.
        prior: ``edges``: the share of pairs of training nodes of two classes that are linked, over the largest such
            share, counted on edges between training nodes alone. ``cosine``: that of the classes' mean propagated
            features, for graphs whose training nodes are not linked.
        hops: rounds of message passing of the features.

    Raises:
        ConfigError: the data is no graph.
        DataError: no edge joins two training nodes, and the prior counts them.
    """
    x = compose_random(data, ctx, per_class, top_up, hops=hops)
    between = _linked_share(data, ctx.classes) if prior == "edges" else _likeness(data, ctx.classes, hops)
    place = torch.arange(len(ctx.classes)).repeat_interleave(per_class)
    return torch.cat([x, hollow(between[place][:, place].float())], 1)


def _linked_share(data: RealData, classes: tuple[int, ...]) -> Tensor:
    """Of the pairs of training nodes of each two classes the share that is linked, the largest being 1, (C, C)."""
    graph = graph_of(data)
    label = torch.full((len(graph),), -1)
    label[data.inputs] = data.labels
    found = class_pairs(graph.edges, label, data.info.num_classes, nodes=data.inputs)
    # A class with a single training node has no pair of its own: nothing is known of it.
    found = found[list(classes)][:, list(classes)].nan_to_num(0.0)
    if not bool((found > 0).any()):
        raise DataError(
            f"no edge of {data.info.dataset!r} joins two of its {len(data)} training nodes, so it is unknown which "
            f"classes are linked. Set distill.init_options.prior = 'cosine', which looks at features instead."
        )
    return found / found.max()


def _likeness(data: RealData, classes: tuple[int, ...], hops: int) -> Tensor:
    """Cosines of the classes' mean propagated features, at least 0, (C, C)."""
    means = torch.stack([propagated(data, data.class_index[c], hops).mean(0) for c in classes])
    return cosines(means).clamp(min=0)


EXPRESSIVE = Composer("self-expressive", compose_expressive)
