"""How unequal clients' optimisation is: their gradients at one point, and their updates.

References:
    Li et al., Federated Optimization in Heterogeneous Networks (FedProx), MLSys 2020, definition 3 (B).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ddfed.errors import ConfigError


def gradient_dissimilarity(gradients: Iterable[Tensor], weights: Sequence[float]) -> float | None:
    """B^2 = sum_k p_k |g_k|^2 / |sum_k p_k g_k|^2: 1 where all clients agree, above it otherwise.

    Args:
        gradients: of each client's mean loss at the same point, (parameters,) each; consumed one by one.
        weights: p_k up to a factor, at least 0.

    Returns:
        None where the gradients cancel out, or there are none.

    Raises:
        ConfigError: other numbers of gradients and weights, or a negative weight.
    """
    if min(weights, default=0) < 0:
        raise ConfigError(f"weights of clients must be at least 0; the smallest is {min(weights)}")
    mean: Tensor | float = 0.0
    squares, total, seen = 0.0, sum(weights), 0
    for seen, gradient in enumerate(gradients, 1):
        if seen > len(weights):
            break
        share, g = weights[seen - 1] / (total or 1.0), gradient.double()
        mean = mean + share * g
        squares += share * float(g.square().sum())
    if seen != len(weights):
        raise ConfigError(f"{len(weights)} weights but {'more' if seen > len(weights) else seen} gradients")
    norm = float(mean.square().sum()) if isinstance(mean, Tensor) else 0.0
    return squares / norm if norm > 0 else None


def update_measures(updates: Sequence[Tensor]) -> dict[str, float | None]:
    """How far clients' updates w_k - w of one round point apart.

    Args:
        updates: (parameters,) each.

    Returns:
        ``update_cosine``: cosine of two clients' updates, mean over pairs; ``update_cosine_spread``: its deviation over
        pairs (population); ``update_cosine_min``: the smallest; None with fewer than two clients that moved.
        ``client_drift``: mean length of an update.
    """
    moved = [u.double() for u in updates if float(u.norm()) > 0]
    lengths = [float(u.double().norm()) for u in updates]
    found: dict[str, float | None] = dict.fromkeys(("update_cosine", "update_cosine_spread", "update_cosine_min"))
    if len(moved) > 1:
        ways = torch.stack([u / u.norm() for u in moved])
        pairs = (ways @ ways.T)[tuple(torch.triu_indices(len(ways), len(ways), 1))]
        found = {
            "update_cosine": float(pairs.mean()),
            "update_cosine_spread": float(pairs.std(correction=0)),
            "update_cosine_min": float(pairs.min()),
        }
    return {**found, "client_drift": sum(lengths) / len(lengths) if lengths else None}
