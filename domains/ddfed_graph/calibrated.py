"""Condensed nodes by partition of each class into calibrated clusters, without training (CGC).

What two rounds of message passing make of the labelled nodes is clustered class by class; a condensed node is the mean
of a cluster, in which nodes that are surely of the class weigh more. With structure, features are then solved for that
give those means back once they are propagated along the condensed edges.

Source: Gao et al., Rethinking and Accelerating Graph Condensation: A Training-Free Approach with Class Partition (CGC),
WWW 2025.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ddfed.data import RealData
from ddfed.pool import PoolContext
from ddfed.select import Composer
from ddfed_graph.facts import symmetric_normalised
from ddfed_graph.selectors import clustered, propagated

#: Rounds of message passing that condensed nodes stand for.
_HOPS = 2
#: Of the mean squared length of a row: what the regression that calibrates is held back by.
_RIDGE = 1e-2

Temperature = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=10)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
Weight = Annotated[float, Field(gt=0)]


def compose_partition(
    data: RealData,
    ctx: PoolContext,
    per_class: int,
    top_up: bool,
    *,
    temperature: Temperature = 1.0,
    augment: Share = 0.5,
) -> Tensor:
    """Weighted means of the clusters of each class, (classes * per_class, d), for nodes without structure (CGC-X).

    A linear map is fitted to the mean of H_0, H_1 and H_2 of the training nodes. Its leave-one-out answers say how hard
    a class is (one minus F1) and how sure a node is. Beside the H_2 of its nodes a class is given H_1 of some of them,
    the harder it is the more; k-means divides both into ``per_class`` clusters.

    Args:
        data, ctx, per_class, top_up: as of every composer; a class with fewer nodes repeats its clusters.
        temperature: tau; nodes of a cluster weigh softmax(confidence / tau).
        augment: rows of H_1, as a share of the training nodes.

    Raises:
        ConfigError: the data is no graph.
    """
    rows = torch.cat([data.class_index[c] for c in ctx.classes])
    label = data.labels[rows]
    confidence, f1 = calibration(_mean_hops(data, rows), label)
    extra = _drawn_extra(label, f1, round(augment * len(rows)), ctx.streams.torch("augment"))
    pool = torch.cat([propagated(data, rows, _HOPS), propagated(data, rows[extra], 1)])
    label, confidence = torch.cat([label, label[extra]]), torch.cat([confidence, confidence[extra]])
    found = []
    for c in ctx.classes:
        own = label == c
        h, sure = pool[own], confidence[own]
        cluster = clustered(h, min(per_class, len(h)), ctx.streams.torch("compose", c))[1]
        means = torch.stack([weighted_mean(h[cluster == j], sure[cluster == j], temperature) for j in cluster.unique()])
        # Equal rows make fewer clusters than asked; those are repeated, as is a class with too few nodes.
        found.append(means[torch.arange(per_class) % len(means)])
    return torch.cat(found)


def compose_graph(
    data: RealData,
    ctx: PoolContext,
    per_class: int,
    top_up: bool,
    *,
    temperature: Temperature = 1.0,
    augment: Share = 0.5,
    threshold: Cosine = 0.8,
    alpha: Weight = 7.0,
) -> Tensor:
    """Features and adjacency of a condensed graph, (k, d + k) with k = classes * per_class.

    Nodes whose means h' (`compose_partition`) have a cosine above ``threshold`` are linked with weight 1; the features
    are those of `unpropagated`.

    Args:
        data, ctx, per_class, top_up, temperature, augment: of `compose_partition`.
        threshold: T.
        alpha: weight of giving h' back against smoothness along the edges.
    """
    h = compose_partition(data, ctx, per_class, top_up, temperature=temperature, augment=augment)
    a = (cosines(h) > threshold).float().fill_diagonal_(0)
    return torch.cat([unpropagated(h, a, alpha), a], 1)


def _mean_hops(data: RealData, rows: Tensor) -> Tensor:
    """Mean of H_0, H_1 and H_2 of some rows, (k, d)."""
    return torch.stack([propagated(data, rows, k) for k in range(_HOPS + 1)]).mean(0)


def cosines(h: Tensor) -> Tensor:
    """Cosine of each pair of rows, (k, k); 0 with a row of zeros."""
    units = F.normalize(h.double(), dim=1)
    return units @ units.T


def unpropagated(h: Tensor, a: Tensor, alpha: float) -> Tensor:
    """X' that minimises alpha |Q X' - H'|^2 + tr(X'^T (I - A^') X'), with Q = A^'^2, (k, d).

    Its normal equations are (alpha Q^T Q + I - A^') X' = alpha Q^T H'. They always have one solution: where A^' has
    eigenvalue m the matrix has alpha m^4 + 1 - m > 0.

    Departure: CGC's code solves (Q^T Q + I - A^') X' = alpha Q^T H' twice with Q = A^'^3, which scales features by
    about alpha each time; this is the minimum of the paper's objective.

    Args:
        h: H', (k, d).
        a: A', (k, k) with a zero diagonal.
        alpha: above 0.
    """
    s = symmetric_normalised(a.double())
    q = s @ s
    left = alpha * q.T @ q + torch.eye(len(s), dtype=s.dtype) - s
    factor = torch.linalg.cholesky(left)
    return torch.cholesky_solve(alpha * q.T @ h.double(), factor).float()


def calibration(h: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """How sure a linear classifier is of each row's own class, (rows,), and F1 of each class, (highest label + 1,).

    Ridge regression onto one-hot targets; every row is answered by a fit to the others (leave one out, in closed
    form), as a fit with more features than rows is right about all it was fitted to. Confidence is the softmax of the
    answer at the row's class.

    Args:
        h: (rows, d).
        label: (rows,) int64.
    """
    y = F.one_hot(label).double()
    k = h.double() @ h.double().T
    k.diagonal().add_(_RIDGE * float(k.diagonal().mean()) + 1e-12)
    inverse = torch.linalg.inv(k)
    # Rasmussen and Williams, Gaussian Processes for Machine Learning, equation 5.12.
    answer = y - inverse @ y / inverse.diagonal()[:, None]
    guess, classes = answer.argmax(1), y.shape[1]
    hits = torch.bincount(label[guess == label], minlength=classes).double()
    either = torch.bincount(label, minlength=classes) + torch.bincount(guess, minlength=classes)
    sure = answer.softmax(1).gather(1, label[:, None]).squeeze(1)
    return sure, 2 * hits / either.clamp(min=1)


def weighted_mean(h: Tensor, sure: Tensor, temperature: float) -> Tensor:
    """Mean of rows by softmax(sure / temperature), (d,)."""
    return ((sure / temperature).softmax(0) @ h.double()).float()


def _drawn_extra(label: Tensor, f1: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Positions of ``count`` rows, a class in proportion to one minus its F1; none where every class is all right."""
    hard = (1 - f1)[label]
    if not count or not bool((hard > 0).any()):
        return torch.empty(0, dtype=torch.int64)
    return torch.multinomial(hard, count, replacement=True, generator=generator)


CGC = Composer("cgc", compose_graph)
CGC_X = Composer("cgc-x", compose_partition)
