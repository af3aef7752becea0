"""The structure-based neural tangent kernel of nodes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddfed.errors import ConfigError
from ddfed_graph.graph import Graph, Nodes

#: Nodes of a graph whose own covariance, (n, n) float64, is still held.
_MOST = 12_000
_K, _L = 2, 2


def sntk(a: Nodes | Tensor, b: Nodes | Tensor) -> Tensor:
    """Tangent kernel of an infinitely wide message-passing network, (rows of a, rows of b) float64.

    K times: the covariance is averaged over the neighbourhoods (a node itself included) on either side, then L updates
    of a ReLU layer, with S the covariance divided by the square roots of the two diagonals:

        k0 = (pi - acos S) / pi,  k1 = (S (pi - acos S) + sqrt(1 - S^2)) / pi
        T <- T k0 + k1,  covariance <- k1 times the square roots of the diagonals

    Source: Wang et al., Fast Graph Condensation with Structure-based Neural Tangent Kernel (GC-SNTK), WWW 2024, with
    K = L = 2. Departures: neighbourhoods are averaged, the variant of its code that divides by both degrees: fitted to
    Cora's 140 training nodes it tests at 81.4 %, sums at 76.5 and sums weighed by A^ at 80.5; float64.

    Args:
        a, b: nodes of a graph, or features (k, d) of nodes without structure, whose neighbourhood is themselves.
            Differentiable in features.

    Raises:
        ConfigError: a graph of more nodes than the covariance of all pairs, which its diagonal needs, is held for.
    """
    left, right = _Side(a), _Side(b)
    s = left.features @ right.features.T
    tangent = torch.zeros_like(s)
    depth = 0
    for _ in range(_K):
        s = right.summed(left.summed(s).T).T
        tangent = right.summed(left.summed(tangent).T).T
        for _ in range(_L):
            scale = left.lengths[depth][:, None] * right.lengths[depth][None, :]
            cosine = (s / scale).clamp(-_EDGE, _EDGE)
            angle = cosine.acos()
            s = (cosine * (math.pi - angle) + (1 - cosine.square()).sqrt()) / math.pi * scale
            tangent = tangent * (math.pi - angle) / math.pi + s
            depth += 1
    return left.picked(right.picked(tangent.T).T)


#: Inside (-1, 1): the derivative of acos is infinite at the ends.
_EDGE = 1 - 1e-7


class _Side:
    """One side of the kernel: features, sums over neighbourhoods, and the lengths along the recursion."""

    def __init__(self, rows: Nodes | Tensor) -> None:
        self.rows = rows
        if isinstance(rows, Nodes):
            self.features = rows.graph.features.double()
            self.lengths = _lengths_of(rows.graph)
        else:
            self.features = rows.double()
            # A ReLU update leaves a variance as it is: k1(1) = 1.
            self.lengths = [self.features.norm(dim=1).clamp(min=1e-12)] * (_K * _L)

    def summed(self, s: Tensor) -> Tensor:
        """Sums of the rows of ``s`` over neighbourhoods."""
        if not isinstance(self.rows, Nodes):
            return s
        return self.rows.graph.averaging.double() @ s

    def picked(self, s: Tensor) -> Tensor:
        return s[self.rows.ids] if isinstance(self.rows, Nodes) else s


def _lengths_of(graph: Graph) -> list[Tensor]:
    """Square roots of the diagonal before each update, (n,) each; kept, as the graph is constant."""
    kept: list[Tensor] | None = graph.__dict__.get("_sntk_lengths")
    if kept is not None:
        return kept
    if len(graph) > _MOST:
        raise ConfigError(
            f"kernel 'sntk' needs the covariance of all pairs of {len(graph):,} nodes, and holds those of {_MOST:,} at "
            f"most. Use kernel 'ntk-hops', which needs none."
        )
    with torch.no_grad():
        a, s = graph.averaging.double(), graph.features.double()
        s, found = s @ s.T, []
        for _ in range(_K):
            s = a @ (a @ s).T
            length = s.diagonal().clamp(min=0).sqrt().clamp(min=1e-12)
            for _ in range(_L):
                found.append(length)
                cosine = (s / length[:, None] / length[None, :]).clamp(-_EDGE, _EDGE)
                angle = cosine.acos()
                s = (cosine * (math.pi - angle) + (1 - cosine.square()).sqrt()) / math.pi
                s = s * length[:, None] * length[None, :]
    object.__setattr__(graph, "_sntk_lengths", found)
    return found


def ntk_hops(a: Nodes | Tensor, b: Nodes | Tensor) -> Tensor:
    """Neural tangent kernel of a fully connected network with one hidden layer on twice propagated features.

    What a GCN whose rounds of message passing come first would have; any size of graph.
    """
    from ddfed.kernels import ntk

    one, two = (rows.graph.hop(2)[rows.ids].double() if isinstance(rows, Nodes) else rows.double() for rows in (a, b))
    return ntk(one, two, depth=1)
