"""Networks that give a graph its class: GCN, GIN, and an MLP that sees no links; all average over the nodes.

They take rows as `ddfed_graph.sets` has them, learned ones included: links of any weight in [0, 1], and nodes that
are there in part. Layers and their first weights are those of `ddfed_graph.models`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddfed.data import TaskInfo
from ddfed.domain import Network
from ddfed.errors import ConfigError, one_of
from ddfed_graph import models
from ddfed_graph.models import Linear, Shape
from ddfed_graph.sets import Graphs, unpack, width

MODELS = ("gcn", "gcn-p0", "gin", "mlp")
#: DosCond's networks for graphs: 3 layers of 128 units, nothing dropped.
DEFAULT = Shape(depth=3, width=128, dropout=0.0)


def build(name: str, info: TaskInfo) -> Network:
    """An untrained network; call under `ddfed.seeds.isolated`.

    Args:
        name: one of `MODELS`, or with parts, such as ``gin-d2-w64``; see `ddfed_graph.models.build`. When not said: 3
            layers, 128 units, nothing dropped, as in DosCond's evaluation.
        info: gives the number of features and of classes.

    Raises:
        UnknownNameError: no such network.
        ConfigError: items are not graphs, or the network is one for nodes.
    """
    kind = name.split("-")[0]
    if kind in models.MODELS and kind not in _BUILDERS:
        raise ConfigError(
            f"network {name!r} classifies nodes, and items of {info.dataset!r} are whole graphs. Take one of "
            f"{one_of(MODELS)}."
        )
    kind, values = models.read_name(name, dict.fromkeys(_BUILDERS, "dwp"), MODELS)
    return _BUILDERS[kind](info, models.shaped(values, DEFAULT))


class SetNetwork(Network):
    """Layers with a nonlinearity each, the mean over the nodes that are there, and a linear map.

    Args:
        info: the task.
        shape: layers before the head, their units and what share of them is dropped.
    """

    def __init__(self, info: TaskInfo, shape: Shape) -> None:
        super().__init__()
        widths = [width(info), *[shape.width] * shape.depth]
        self.layers = nn.ModuleList(self.layer(before, after) for before, after in zip(widths, widths[1:]))
        self.drop = nn.Dropout(shape.dropout) if shape.dropout > 0 else nn.Identity()
        self.head = Linear(shape.width, info.num_classes)

    def layer(self, before: int, after: int) -> nn.Module:
        return Linear(before, after)

    def spread(self, graphs: Graphs) -> Tensor | None:
        """What brings features from node to node, (rows, m, m), computed once for all layers."""
        raise NotImplementedError

    def rise(self, layer: nn.Module, h: Tensor, spread: Tensor | None) -> Tensor:
        """Activations of all nodes after a layer, (rows, m, units)."""
        raise NotImplementedError

    def stages(self, x: Tensor) -> list[Tensor]:
        """See `Network.stages`; positions are nodes, those that are not there have zeros."""
        graphs = unpack(x)
        spread, there = self.spread(graphs), graphs.present[..., None]
        h, found = graphs.x, []
        for layer in self.layers:
            h = self.rise(layer, h, spread)
            found.append((h * there).mT)
            h = self.drop(h)
        return [*found, (h * there).sum(-2) / there.sum(-2).clamp(min=1)]

    def embed(self, x: Tensor) -> Tensor:
        return self.stages(x)[-1]


class MLP(SetNetwork):
    """relu(X W + b): what a node is, without its links."""

    def spread(self, graphs: Graphs) -> Tensor | None:
        return None

    def rise(self, layer: nn.Module, h: Tensor, spread: Tensor | None) -> Tensor:
        return torch.relu(layer(h))


class GCN(SetNetwork):
    """relu(A^ H W + b), A^ = D^-1/2 (A + I) D^-1/2 (Kipf and Welling, ICLR 2017, eq. 9).

    A place without a node has no link but its loop, so what stands there reaches nobody.
    """

    def spread(self, graphs: Graphs) -> Tensor:
        a = graphs.adjacency
        scale = (a.sum(-1) + 1).rsqrt()
        loops = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        return scale[..., :, None] * (a + loops) * scale[..., None, :]

    def rise(self, layer: nn.Module, h: Tensor, spread: Tensor | None) -> Tensor:
        assert isinstance(layer, Linear) and spread is not None
        return torch.relu(spread @ nn.functional.linear(h, layer.weight) + layer.bias)


class GIN(SetNetwork):
    """relu(MLP(H + A H)) with an MLP of two linear maps (Xu et al., ICLR 2019, eq. 4.1, epsilon 0).

    Departures: no batch norms, which would let graphs influence each other, and the mean over the nodes in place of
    the sum, which keeps the size of features from growing with the graph.
    """

    def layer(self, before: int, after: int) -> nn.Module:
        return nn.Sequential(Linear(before, after), nn.ReLU(), Linear(after, after))

    def spread(self, graphs: Graphs) -> Tensor:
        return graphs.adjacency

    def rise(self, layer: nn.Module, h: Tensor, spread: Tensor | None) -> Tensor:
        assert spread is not None
        return torch.relu(layer(h + spread @ h))


_BUILDERS: dict[str, type[SetNetwork]] = {"gcn": GCN, "gin": GIN, "mlp": MLP}
