"""How unequal the clients are: label and quantity measures of a split, from its count matrix alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ddfed.errors import ConfigError


def _entropy(shares: np.ndarray) -> np.ndarray:
    """Shannon entropy over the last axis, in nats."""
    return -np.sum(shares * np.log(np.where(shares > 0, shares, 1.0)), axis=-1)


def gini(sizes: np.ndarray) -> float:
    """Gini coefficient of non-negative sizes, shape (k,): 0 for equal, (k - 1) / k if one holds all."""
    ranked = np.sort(sizes).astype(np.float64)
    if ranked.sum() == 0:
        return 0.0
    k = len(ranked)
    return float(2 * np.dot(np.arange(1, k + 1), ranked) / (k * ranked.sum()) - (k + 1) / k)


def kept_ties(ties: Mapping[str, Sequence[int]]) -> str:
    """What a split leaves of what ties rows, in words; nothing where rows are free.

    Example:
        >>> kept_ties({"edges": (4312, 5278)})
        'edges kept 4,312 of 5,278 (81.7 %)'
    """
    return ", ".join(
        f"{name} kept {kept:,} of {every:,} ({100 * kept / every if every else 100:.1f} %)"
        for name, (kept, every) in ties.items()
    )


def heterogeneity(counts: np.ndarray, *, enough: int = 10) -> dict[str, float]:
    """Label and quantity measures of a split.

    With p_k the label shares of client k, p the pooled shares and w_k = n_k / n:

    - ``label_l1``: sum_k w_k sum_c abs(p_k(c) - p(c)), from 0 to 2. Often called EMD in the literature.
    - ``label_js``: generalised Jensen-Shannon divergence H(p) - sum_k w_k H(p_k), in nats.
    - ``effective_classes``: exp(H(p_k)), mean over clients that hold rows.
    - ``classes_held``: classes with at least ``enough`` rows, mean over clients.
    - ``size_cv``: coefficient of variation of n_k (population deviation); ``size_gini``; ``size_min``;
      ``size_max``; ``empty_clients``.

    Args:
        counts: rows per (client, class), shape (clients, classes), non-negative integers.
        enough: rows from which a class counts as held.

    Returns:
        Plain floats by name. All zero for a split without rows.

    Raises:
        ConfigError: not a matrix, or negative counts.
    """
    counts = np.asarray(counts)
    if counts.ndim != 2 or counts.size == 0 or counts.min() < 0:
        raise ConfigError(f"counts must be a non-negative (clients, classes) matrix, got shape {counts.shape}")
    sizes = counts.sum(axis=1).astype(np.float64)
    rows = max(sizes.sum(), 1.0)
    pooled = counts.sum(axis=0) / rows
    shares = counts / np.maximum(sizes, 1.0)[:, None]
    weights = sizes / rows
    some = sizes > 0
    spread = _entropy(shares)
    return {
        "label_l1": float(weights @ np.abs(shares - pooled).sum(axis=1)),
        "label_js": max(0.0, float(_entropy(pooled) - weights @ spread)),
        "effective_classes": float(np.exp(spread[some]).mean()) if some.any() else 0.0,
        "classes_held": float((counts >= enough).sum(axis=1).mean()),
        "size_cv": float(sizes.std() / sizes.mean()) if some.any() else 0.0,
        "size_gini": gini(sizes),
        "size_min": float(sizes.min()),
        "size_max": float(sizes.max()),
        "empty_clients": float((~some).sum()),
    }
