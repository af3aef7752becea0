"""Neighbours of nodes on CSR arrays: all of them, or some drawn at random."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ddfed_graph.graph import Graph


def entries(graph: Graph, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Whose and which the edges of some nodes are.

    Args:
        graph: the graph.
        nodes: (k,) int64; a node that is named twice has its edges twice.

    Returns:
        For each edge of each node, in their order, the position of the node in ``nodes`` and the number of the edge
        in ``graph.edges``, both (sum of the degrees,) int64.
    """
    begin = graph.pointers[nodes]
    counts = graph.pointers[nodes + 1] - begin
    owners = torch.repeat_interleave(torch.arange(len(nodes)), counts)
    # An edge's number is its node's first one, and as many more as edges of the node came before it.
    before = counts.cumsum(0) - counts
    return owners, torch.arange(len(owners)) + (begin - before)[owners]


def sample(
    graph: Graph, nodes: Tensor, fanout: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """At most ``fanout`` edges of each node, uniformly and without replacement; all where there are no more.

    With the factors, sums over a node's drawn neighbours have the sum over all of them as their expectation
    (Hamilton et al., NeurIPS 2017, draw likewise; the factor is Horvitz and Thompson's).

    Args:
        graph, nodes: see `entries`.
        fanout: 1 or more.
        generator: on the CPU; what it gives decides.

    Returns:
        Owners and edges as `entries` gives them, and for each edge the factor degree / drawn, (edges,) float32;
        the degree counts edges, not weights.
    """
    owners, found = entries(graph, nodes)
    counts = torch.bincount(owners, minlength=len(nodes))
    # Random keys within each node's stretch: its first ``fanout`` ones are a draw without replacement.
    keys = torch.rand(len(owners), dtype=torch.float64, generator=generator)
    order = torch.argsort(owners + keys)
    rank = torch.arange(len(owners)) - (counts.cumsum(0) - counts)[owners]
    kept = order[rank < fanout]
    return owners[kept], found[kept], (counts / counts.clamp(max=fanout))[owners[kept]]


def generator_for(ids: Tensor) -> torch.Generator:
    """A generator that hangs on the nodes alone: the same ones always see the same neighbours."""
    digest = hashlib.sha256(ids.contiguous().numpy().tobytes()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
