"""Facts about graphs that reports state. Pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ddfed.errors import DataError
from ddfed_graph.graph import Graph


def weighted_edges(adjacency: Tensor | None, threshold: float = 0.0) -> tuple[Tensor, Tensor]:
    """Entries of a condensed adjacency above a threshold, in both directions.

    Args:
        adjacency: (n', n') symmetric; None for the identity, which has none. Its diagonal is left out: networks add
            self-loops of their own.
        threshold: at least 0; GCond's Cora and Citeseer take 0.05, its arxiv 0.01.

    Returns:
        Edges (2, entries) int64 sorted by source and then target, and their weights (entries,) float32, on the CPU.

    Raises:
        DataError: no square matrix, not symmetric, not finite, or a negative threshold.
    """
    if adjacency is None:
        return torch.empty(2, 0, dtype=torch.int64), torch.empty(0)
    a = adjacency.detach().float().cpu()
    if a.ndim != 2 or a.shape[0] != a.shape[1]:
        raise DataError(f"an adjacency is a square matrix, got shape {tuple(a.shape)}")
    if threshold < 0:
        raise DataError(f"the threshold of weights must be at least 0, got {threshold}")
    if not bool(a.isfinite().all()) or not torch.allclose(a, a.T, atol=1e-5):
        raise DataError("the adjacency of an undirected graph must be finite and symmetric")
    a = (a + a.T) / 2  # rounding may tell the directions apart, and a threshold must not
    edges = (a.fill_diagonal_(0).abs() > threshold).nonzero().T.contiguous()
    return edges, a[edges[0], edges[1]]


def symmetric_normalised(adjacency: Tensor) -> Tensor:
    """A^' = (D + I)^-1/2 (A' + I) (D + I)^-1/2 of a dense A' with a zero diagonal, (n', n').

    D sums absolute weights, as networks do (`ddfed_graph.structure`).
    """
    scale = (adjacency.abs().sum(1) + 1).rsqrt()
    loops = torch.eye(len(adjacency), dtype=adjacency.dtype, device=adjacency.device)
    return scale[:, None] * (adjacency + loops) * scale


def homophily(edges: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Share of the edges, by weight, that join nodes of one class (edge homophily, Zhu et al. 2020).

    Args:
        edges: (2, entries), both directions or one.
        labels: (n,); edges at unlabelled nodes (-1) are not counted.
        weights: of the entries; 1 for all when None.

    Returns:
        From 0 to 1; NaN without an edge between labelled nodes.
    """
    ends = labels[edges]
    known = (ends >= 0).all(0)
    each = (torch.ones(edges.shape[1]) if weights is None else weights)[known].double()
    return float(each[(ends[0] == ends[1])[known]].sum() / each.sum())


def density(edges: Tensor, nodes: int) -> float:
    """Share of the ordered pairs of distinct nodes that are linked; NaN below two nodes.

    Args:
        edges: (2, entries) in both directions, without self-loops and repeats.
        nodes: n.
    """
    return edges.shape[1] / (nodes * (nodes - 1)) if nodes > 1 else float("nan")


def class_pairs(
    edges: Tensor, labels: Tensor, classes: int, weights: Tensor | None = None, nodes: Tensor | None = None
) -> Tensor:
    """Mean weight over all pairs of distinct nodes of two classes, linked or not; without weights edge probability.

    Args:
        edges: (2, entries) in both directions, without self-loops and repeats.
        labels: (n,); unlabelled nodes (-1) are not counted.
        classes: C.
        weights: of the entries; 1 for all when None.
        nodes: only pairs among these count, such as training nodes, whose labels may be looked at; None for all.

    Returns:
        (C, C) float64, symmetric; NaN where there is no pair.
    """
    counted = labels >= 0
    if nodes is not None:
        counted = torch.zeros_like(counted).index_fill_(0, nodes, True) & counted
    kept = counted[edges].all(0)
    each = (torch.ones(edges.shape[1]) if weights is None else weights)[kept].double()
    ends = labels[edges[:, kept]]
    sums = torch.zeros(classes, classes, dtype=torch.float64).index_put_((ends[0], ends[1]), each, accumulate=True)
    sizes = torch.bincount(labels[counted], minlength=classes).double()
    return sums / (sizes[:, None] * sizes - sizes.diag())


def condensed_bytes(features: Tensor, adjacency: Tensor | None, threshold: float = 0.0) -> int:
    """What a condensed graph takes: 4 bytes a feature, and of each edge above the threshold two indices and 4 bytes.

    Counted as `Graph.sparse_bytes` counts the real one, which it is compared with: 16-bit indices where they suffice,
    each edge once, no labels.
    """
    index = 2 if len(features) < 2**16 else 4
    links = weighted_edges(adjacency, threshold)[0].shape[1] // 2
    return features.numel() * 4 + links * (2 * index + 4)


def sizes(
    features: Tensor, adjacency: Tensor | None, graph: Graph, labelled: int, threshold: float = 0.0
) -> dict[str, float]:
    """A condensed graph beside the real one.

    Papers print n'/n (inductive: n'/n_train, then ``graph`` is the training graph), released code takes
    n'/n_labelled; both are given, and the count that both hide.

    Args:
        features: X', (n', d).
        adjacency: A', (n', n') or None.
        graph: the real graph.
        labelled: its labelled training nodes.
        threshold: see `weighted_edges`.
    """
    own = condensed_bytes(features, adjacency, threshold)
    return {
        "nodes": len(features),
        "ratio_of_nodes": len(features) / len(graph),
        "ratio_of_labelled": len(features) / labelled,
        "bytes": own,
        "real_bytes": graph.sparse_bytes,
        "ratio_of_bytes": own / graph.sparse_bytes,
    }
