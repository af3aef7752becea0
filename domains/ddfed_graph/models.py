"""The networks of the field: GCN, SGC, GraphSAGE, GAT, APPNP, ChebNet, and an MLP that sees no structure.

Each takes `Nodes` of a real graph, rows without structure or rows with their adjacency beside, see `structure.see`;
the code is the same. Layers are those of the papers. Weights start as Glorot and Bengio's uniform ones, biases at
zero, as in Kipf and Welling's code. Every network ends in one linear map after the last step along the edges, which
is exact because the step is linear, too: A^ (h W') + b = (A^ h) W' + b.

Every network is built in the order in which `ddfed.domain.reset` walks its modules, so redrawing in place gives the
weights that building anew would.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ddfed.data import TaskInfo
from ddfed.domain import Network
from ddfed.errors import ConfigError, UnknownNameError, one_of, suggest
from ddfed_graph.graph import Nodes
from ddfed_graph.structure import Hop, Identity, Seen, see

MODELS = ("sgc", "gcn", "gcn-p0", "sage", "gat", "appnp", "cheb", "mlp")
#: What a part of a name sets, and how it is written.
_PARTS = {
    "d": r"[1-9]",
    "w": r"[1-9]\d{0,3}",
    "p": r"0|0\.\d+",
    "k": r"[1-9]\d?",
    "t": r"0|0\.\d+",
}


@dataclass(frozen=True)
class Shape:
    """What a network's name says.

    Args:
        depth: layers with weights, the last one included.
        width: hidden units of each.
        dropout: share of hidden units that are dropped in training; at 0 there is no such module.
        steps: propagations of `SGC` (2 when None) and `APPNP` (10).
        threshold: above it an entry of a dense A' is an edge to attention.
    """

    depth: int = 2
    width: int = 256
    dropout: float = 0.5
    steps: int | None = None
    threshold: float = 0.5


def build(name: str, info: TaskInfo) -> Network:
    """An untrained network; call under `ddfed.seeds.isolated`.

    Args:
        name: one of `MODELS`, or one with any of its parts given, in any order: ``gcn-w128-d3-p0`` (width, depth,
            share of hidden units dropped). ``sgc-k1`` and ``appnp-k5`` take other numbers of steps, ``gat-t0.1``
            another threshold (see `structure`). When not said: 2 layers, 256 units, 0.5 dropped, as in the field's
            evaluation (Jin et al., Graph Condensation for Graph Neural Networks, ICLR 2022).
        info: gives the number of features and of classes.

    Raises:
        UnknownNameError: no such network.
        ConfigError: items are not feature vectors, or attention heads cannot share the width.
    """
    kind, values = read_name(name, {kind: letters for kind, (_, letters) in _BUILDERS.items()}, MODELS)
    return _BUILDERS[kind][0](info, shaped(values, Shape()))


def read_name(name: str, known: Mapping[str, str], offered: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """The kind of a network and the values of the parts in its name, by letter.

    Args:
        name: such as ``gcn-d3-w128-p0``.
        known: letters of the parts that each kind may have.
        offered: names to propose instead.

    Raises:
        UnknownNameError: no such network.
    """
    kind, *parts = name.split("-")
    letters = known.get(kind, "")
    found = [part for part in parts if part and part[0] in letters and re.fullmatch(_PARTS[part[0]], part[1:])]
    values = {part[0]: part[1:] for part in found}
    if kind not in known or len(values) < len(parts):
        raise UnknownNameError(
            f"unknown network {name!r} of domain 'graph'.{suggest(name, offered)} Possible: {one_of(offered)}, and "
            f"with parts such as 'gcn-d3-w128-p0' (depth from 1 to 9, width below 10000, dropout from 0 to below 1), "
            f"'sgc-k1', 'appnp-k5' (steps below 100) and 'gat-t0.1' (threshold)"
        )
    return kind, values


def shaped(values: Mapping[str, str], default: Shape) -> Shape:
    """What the parts of a name say, `Shape`."""
    return Shape(
        int(values.get("d", default.depth)),
        int(values.get("w", default.width)),
        float(values.get("p", default.dropout)),
        int(values["k"]) if "k" in values else None,
        float(values.get("t", default.threshold)),
    )


class Linear(nn.Linear):
    """A linear map that starts as Glorot and Bengio's (AISTATS 2010), without offset."""

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def _project(h: Tensor | Seen, weight: Tensor) -> Tensor:
    return h.project(weight) if isinstance(h, Seen) else nn.functional.linear(h, weight)


class GraphNetwork(Network):
    """What the networks share: hidden layers with a nonlinearity each, the last step along the edges, and the head.

    Args:
        info: the task.
        shape: see `Shape`.

    Raises:
        ConfigError: items are not feature vectors.
    """

    head: Linear

    def __init__(self, info: TaskInfo, shape: Shape) -> None:
        super().__init__()
        if len(info.shape) != 1:
            raise ConfigError(
                f"graph networks take items of shape (features,); {info.dataset!r} has {info.shape}. "
                f"Load a data set of domain 'graph'."
            )
        self.shape, self.features = shape, info.shape[0]
        widths = [self.features, *[shape.width] * self.hidden]
        self.layers = nn.ModuleList(self.layer(before, after) for before, after in zip(widths, widths[1:]))
        self.drop = nn.Dropout(shape.dropout) if shape.dropout > 0 and self.hidden else nn.Identity()
        self.head = self.end(widths[-1], info.num_classes)

    @property
    def hidden(self) -> int:
        """Layers before the last one."""
        return self.shape.depth - 1

    def layer(self, before: int, after: int) -> nn.Module:
        """A hidden layer."""
        return Linear(before, after)

    def end(self, before: int, outputs: int) -> Linear:
        """The head."""
        return Linear(before, outputs)

    def look(self, x: Tensor | Nodes) -> Seen:
        """What the network sees: one step a layer when not said otherwise."""
        return see(x, self.features, self.shape.depth, self.head.weight, threshold=self.shape.threshold)

    def hide(self, number: int, h: Tensor | Seen, hops: tuple[Hop, ...]) -> Tensor:
        """Hidden layer ``number`` before its nonlinearity, of the activations before or of what is seen."""
        raise NotImplementedError

    def rise(self, h: Tensor) -> Tensor:
        """The nonlinearity of the hidden layers."""
        return torch.relu(h)

    def last(self, h: Tensor, hops: tuple[Hop, ...]) -> Tensor:
        """What enters the head."""
        raise NotImplementedError

    def made(self, layers: int) -> int:
        """Steps along the edges that are made after some hidden layers."""
        return layers

    def stages(self, x: Tensor | Nodes) -> list[Tensor]:
        """See `Network.stages`; activations of the nodes that were asked for, not of those around them."""
        seen = self.look(x)
        if self.hidden == 0:
            return [self.last(seen.dense(self.head.weight), seen.hops)]
        h: Tensor | Seen = seen
        found = []
        for number in range(self.hidden):
            h = self.rise(self.hide(number, h, seen.hops))
            found.append(seen.own(h, self.made(number + 1)))
            h = self.drop(h)
        assert isinstance(h, Tensor)
        return [*found, self.last(h, seen.hops)]

    def embed(self, x: Tensor | Nodes) -> Tensor:
        return self.stages(x)[-1]


class MLP(GraphNetwork):
    """relu(X W' + b) and a linear map: what the structure adds is what the others have above it."""

    def look(self, x: Tensor | Nodes) -> Seen:
        return see(x, self.features, 0, self.head.weight)

    def hide(self, number: int, h: Tensor | Seen, hops: tuple[Hop, ...]) -> Tensor:
        layer = self.layers[number]
        assert isinstance(layer, Linear)
        return _project(h, layer.weight) + layer.bias

    def last(self, h: Tensor, hops: tuple[Hop, ...]) -> Tensor:
        return h

    def made(self, layers: int) -> int:
        return 0


class SGC(MLP):
    """One linear map of H_K = A^^K X, which `embed` gives (Wu et al., ICML 2019, eq. 8)."""

    hidden = 0

    def look(self, x: Tensor | Nodes) -> Seen:
        return see(x, self.features, 0, self.head.weight, smooth=self.shape.steps or 2)


class GCN(MLP):
    """relu(A^ H W' + b), layer by layer (Kipf and Welling, ICLR 2017, eq. 9); features take the first step."""

    def look(self, x: Tensor | Nodes) -> Seen:
        seen = see(x, self.features, self.shape.depth - 1, self.head.weight, smooth=1)
        return replace(seen, hops=(Identity(), *seen.hops))

    def hide(self, number: int, h: Tensor | Seen, hops: tuple[Hop, ...]) -> Tensor:
        layer = self.layers[number]
        assert isinstance(layer, Linear)
        return hops[number].gcn(_project(h, layer.weight)) + layer.bias

    def last(self, h: Tensor, hops: tuple[Hop, ...]) -> Tensor:
        return hops[-1].gcn(h)

    def made(self, layers: int) -> int:
        return layers


class APPNP(MLP):
    """An MLP, then Z <- (1 - alpha) A^ Z + alpha H (Gasteiger et al., ICLR 2019, eq. 4), 10 times with alpha = 0.1.

    The head comes after the steps, which are linear; only its bias is then not propagated, unlike the paper's.
    """

    ALPHA = 0.1

    def look(self, x: Tensor | Nodes) -> Seen:
        return see(x, self.features, self.shape.steps or 10, self.head.weight)

    def last(self, h: Tensor, hops: tuple[Hop, ...]) -> Tensor:
        z = h
        for hop in hops:
            h = hop.here(h)
            z = (1 - self.ALPHA) * hop.gcn(z) + self.ALPHA * h
        return z


class _Pair(nn.Module):
    """Weights of a node and of its surroundings."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.own = Linear(before, after)
        self.others = Linear(before, after, bias=False)


class _PairNetwork(GraphNetwork):
    """Layers with a term of the node itself and one of its surroundings."""

    def around(self, hop: Hop, h: Tensor) -> Tensor:
        raise NotImplementedError

    def layer(self, before: int, after: int) -> nn.Module:
        return _Pair(before, after)

    def end(self, before: int, outputs: int) -> Linear:
        return Linear(2 * before, outputs)

    def hide(self, number: int, h: Tensor | Seen, hops: tuple[Hop, ...]) -> Tensor:
        layer = self.layers[number]
        assert isinstance(layer, _Pair)
        both = _project(h, torch.cat([layer.own.weight, layer.others.weight]))
        own, others = both.chunk(2, -1)
        return hops[number].here(own) + self.around(hops[number], others) + layer.own.bias

    def last(self, h: Tensor, hops: tuple[Hop, ...]) -> Tensor:
        return torch.cat([hops[-1].here(h), self.around(hops[-1], h)], -1)


class SAGE(_PairNetwork):
    """relu(H W' + D^-1 A H W2' + b) (Hamilton et al., NeurIPS 2017, mean aggregator), rows not normalised."""

    def around(self, hop: Hop, h: Tensor) -> Tensor:
        return hop.mean(h)


class ChebNet(_PairNetwork):
    """relu(H W' + L^ H W2' + b): two Chebyshev terms (Defferrard et al., NeurIPS 2016, eq. 4, K = 2).

    With its two terms the field evaluates, and PyTorch Geometric calls it K = 2; the polynomial has degree 1.
    """

    def around(self, hop: Hop, h: Tensor) -> Tensor:
        return hop.laplacian(h)


class _Scores(nn.Module):
    """The two halves of the attention vector, of each head."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.source = nn.Parameter(torch.empty(heads, width))
        self.target = nn.Parameter(torch.empty(heads, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.source)
        nn.init.xavier_uniform_(self.target)

    def forward(self, values: Tensor, hop: Hop) -> Tensor:
        """Attended values, from (rows, heads, width) to (rows after the step, heads * width)."""
        scores = ((values * half).sum(-1) for half in (self.source, self.target))
        return hop.attend(values, *scores).flatten(1)


class _Heads(nn.Module):
    def __init__(self, before: int, heads: int, width: int) -> None:
        super().__init__()
        self.linear = Linear(before, heads * width)
        self.scores = _Scores(heads, width)


class GAT(GraphNetwork):
    """elu of 8 attention heads side by side (Velickovic et al., ICLR 2018); no dropout of attention.

    The last layer has one head, whose scores are taken of the activations and not of their images under the head's
    weights W: vectors W'a give the paper's.

    Raises:
        ConfigError: a width that 8 heads cannot share.
    """

    HEADS = 8

    def __init__(self, info: TaskInfo, shape: Shape) -> None:
        if shape.width % self.HEADS:
            raise ConfigError(
                f"the {self.HEADS} heads of 'gat' share its width, and {shape.width} is no multiple of {self.HEADS}"
            )
        super().__init__(info, shape)
        self.scores = _Scores(1, shape.width if self.hidden else self.features)

    def layer(self, before: int, after: int) -> nn.Module:
        return _Heads(before, self.HEADS, after // self.HEADS)

    def hide(self, number: int, h: Tensor | Seen, hops: tuple[Hop, ...]) -> Tensor:
        layer = self.layers[number]
        assert isinstance(layer, _Heads)
        values = _project(h, layer.linear.weight).unflatten(-1, (self.HEADS, -1))
        return layer.scores(values, hops[number]) + layer.linear.bias

    def rise(self, h: Tensor) -> Tensor:
        return nn.functional.elu(h)

    def last(self, h: Tensor, hops: tuple[Hop, ...]) -> Tensor:
        return self.scores(h[:, None], hops[-1])


#: each network, and the parts its name may have
_BUILDERS: dict[str, tuple[type[GraphNetwork], str]] = {
    "sgc": (SGC, "k"),
    "gcn": (GCN, "dwp"),
    "sage": (SAGE, "dwp"),
    "gat": (GAT, "dwpt"),
    "appnp": (APPNP, "dwpk"),
    "cheb": (ChebNet, "dwp"),
    "mlp": (MLP, "dwp"),
}
