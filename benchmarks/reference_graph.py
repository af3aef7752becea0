"""The naive reference for graphs: gradient matching class by class, as published code does it.

Written from the paper and the usual code (GCond: Jin et al., Graph Condensation for Graph Neural Networks, ICLR
2022), sharing nothing with ddfed but the random numbers, so that both must give the same loss and gradients. Habits
kept on purpose: for each class a forward pass over the whole sparse graph and another over the condensed one, a
gradient by autograd for either, degrees as diagonal matrices, the MLP fed with every pair of feature vectors side by
side. The published code makes the adjacency once a step; making it anew for each class is there to be chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PairMLP(nn.Module):
    """An adjacency from an MLP over all pairs of nodes: three linear layers, batch norm and ReLU between."""

    def __init__(self, features: int, hidden: int, nodes: int) -> None:
        super().__init__()
        widths = [2 * features, hidden, hidden, 1]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) for _ in range(2))
        self.pairs = torch.tensor([[i, j] for i in range(nodes) for j in range(nodes)]).T
        self.nodes = nodes

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([x[self.pairs[0]], x[self.pairs[1]]], dim=1)
        for layer, norm in zip(self.layers[:2], self.norms):
            h = F.relu(norm(layer(h)))
        a = self.layers[2](h).reshape(self.nodes, self.nodes)
        a = torch.sigmoid((a + a.T) / 2)
        return a - torch.diag(torch.diag(a, 0))


class LinearGNN(nn.Module):
    """Two steps along the edges and one linear map (SGC)."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, features))
        self.bias = nn.Parameter(torch.zeros(classes))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        h = x
        for _ in range(2):
            h = torch.spmm(adjacency, h) if adjacency.is_sparse else torch.mm(adjacency, h)
        return F.log_softmax(torch.mm(h, self.weight.T) + self.bias, dim=1)


def normalised(adjacency: Tensor) -> Tensor:
    """D^-1/2 (A + I) D^-1/2 of a dense matrix."""
    looped = adjacency + torch.eye(len(adjacency))
    scale = torch.diag(looped.sum(1).pow(-1 / 2))
    return scale @ looped @ scale


def gcond_step(
    net: LinearGNN,
    features: Tensor,
    adjacency: Tensor,
    members: Sequence[Tensor],
    x: Tensor,
    pge: PairMLP,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    anew: bool = False,
) -> float:
    """One outer step of GCond.

    Args:
        net: its weights have gradients.
        features: X of the real graph, (n, d).
        adjacency: A^ of the real graph, sparse (n, n).
        members: training nodes of each class.
        x: condensed features, class after class, as many of each, (n', d), with gradient.
        pge: makes their adjacency.
        optimizers: of ``x`` and of ``pge``.
        anew: make the adjacency again for each class.

    Returns:
        The distance, summed over classes.
    """
    parameters, each = list(net.parameters()), len(x) // len(members)
    loss = torch.tensor(0.0)
    condensed = normalised(pge(x))
    for c, nodes in enumerate(members):
        output = net(features, adjacency)
        loss_real = F.nll_loss(output[nodes], torch.full((len(nodes),), c))
        wanted = [g.detach().clone() for g in torch.autograd.grad(loss_real, parameters)]
        if anew and c:
            condensed = normalised(pge(x))
        output = net(x, condensed)
        loss_syn = F.nll_loss(output[c * each : (c + 1) * each], torch.full((each,), c))
        found = torch.autograd.grad(loss_syn, parameters, create_graph=True)
        loss = loss + _distance(wanted[0], found[0])
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


def _distance(g: Tensor, h: Tensor) -> Tensor:
    """One minus the cosine of what leads to each output, summed; offsets do not count."""
    return torch.sum(1 - torch.sum(g * h, dim=-1) / (torch.norm(g, dim=-1) * torch.norm(h, dim=-1) + 0.000001))


def take_weights(pge: PairMLP, values: Mapping[str, Tensor]) -> None:
    """Give an MLP the values of another, by the names ``first``, ``first_b``, ``norm1``, ..."""
    with torch.no_grad():
        for layer, name in zip(pge.layers, ("first", "second", "third")):
            layer.weight.copy_(values[name])
            if f"{name}_b" in values:
                layer.bias.copy_(values[f"{name}_b"])
        for norm, name in zip(pge.norms, ("norm1", "norm2")):
            norm.weight.copy_(values[name][0])
            norm.bias.copy_(values[name][1])
