"""How unequal clients' rows look to one network: class means, linear MMD and Frechet distance of features.

All are divided by a variance of the features, so that they do not depend on the network's scale. Distances of means are
unbiased: rows of one source give 0 on average, however few they are. The Frechet distance is not, and compares only
between splits of equal sizes.

References:
    Gretton et al., A Kernel Two-Sample Test, JMLR 2012 (the unbiased estimate, here of the linear kernel). Dowson and
    Landau, The Frechet distance between multivariate normal distributions, 1982.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddfed.errors import ConfigError


def mean_gap(features: Tensor, owners: Tensor, count: int) -> tuple[float, int]:
    """Unbiased squared distance of the mean features of two owners (linear MMD^2), added up over all pairs of them.

    |m_i - m_j|^2 - s_i / n_i - s_j / n_j, with s the total variance (n - 1 in the denominator) of an owner's rows. The
    sum over ordered pairs of k owners is 2 k sum |m_i - m|^2 - 2 (k - 1) sum s_i / n_i, with m the mean of the means:
    no matrix of pairs is made, so a thousand owners cost no more than their rows.

    Args:
        features: (rows, width).
        owners: whose each row is, (rows,) in ``range(count)``.
        count: number of owners.

    Returns:
        The sum, which may be negative, and the number of ordered pairs of owners with at least two rows each.
    """
    x = features.double()
    sizes = torch.bincount(owners, minlength=count).double()
    means = x.new_zeros(count, x.shape[1]).index_add_(0, owners, x) / sizes.clamp(min=1)[:, None]
    squares = x.new_zeros(count).index_add_(0, owners, (x - means[owners]).square().sum(1))
    enough = sizes > 1
    means, errors = means[enough], (squares / (sizes - 1) / sizes)[enough]
    known = len(means)
    apart = (means - means.mean(0)).square().sum()
    return float(2 * known * apart - 2 * (known - 1) * errors.sum()) if known > 1 else 0.0, known * (known - 1)


def frechet(one: Tensor, other: Tensor) -> float:
    """Frechet distance of two normal distributions with the features' means and covariances.

    |m_1 - m_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1 C_2)^(1/2). The last trace is the nuclear norm of A_1 A_2^T, with
    A_i the centred rows over sqrt(n_i - 1): no matrix as wide as the features is decomposed.

    Args:
        one: (n_1, width), at least two rows.
        other: (n_2, width), at least two rows.

    Raises:
        ConfigError: fewer than two rows.
    """
    if min(len(one), len(other)) < 2:
        raise ConfigError(f"a covariance needs at least two rows; got {len(one)} and {len(other)}")
    means = [x.double().mean(0) for x in (one, other)]
    first, second = ((x.double() - mean) / (len(x) - 1) ** 0.5 for x, mean in zip((one, other), means, strict=True))
    shared = torch.linalg.svdvals(first @ second.T).sum()
    return float((means[0] - means[1]).square().sum() + first.square().sum() + second.square().sum() - 2 * shared)


def feature_heterogeneity(features: Tensor, labels: Tensor, owners: Tensor, clients: int) -> dict[str, float | None]:
    """Feature measures of a split.

    - ``feature_class_gap``: squared distance of the mean features of two clients' rows of one class, mean over classes
      and pairs of clients with at least two rows of it, over the variance of features within classes. Label skew alone
      leaves it at 0.
    - ``feature_mmd``: linear MMD^2 of two clients' rows, mean over pairs, over the variance of all features.
    - ``feature_frechet``: Frechet distance of a client's rows from everybody's, mean over clients with at least two
      rows, over the variance of all features.

    Args:
        features: (rows, width).
        labels: (rows,).
        owners: whose each row is, (rows,) in ``range(clients)``.
        clients: their number.

    Returns:
        Plain floats by name; None where no pair or client has enough rows, or features do not vary.
    """
    classes = [torch.nonzero(labels == c).flatten() for c in labels.unique()]
    gaps = [mean_gap(features[rows], owners[rows], clients) for rows in classes]
    enough = [features[owners == k] for k in range(clients)]
    apart = [frechet(mine, features) for mine in enough if len(mine) > 1]
    within, total = (_variance(features, groups) for groups in (classes, [torch.arange(len(features))]))
    return {
        "feature_class_gap": _share(sum(gap for gap, _ in gaps), sum(pairs for _, pairs in gaps), within),
        "feature_mmd": _share(*mean_gap(features, owners, clients), total),
        "feature_frechet": _share(sum(apart), len(apart), total),
    }


def _variance(features: Tensor, groups: list[Tensor]) -> float:
    """Total variance around the groups' means."""
    squares = sum(float((x - x.mean(0)).square().sum()) for x in (features[rows].double() for rows in groups))
    return squares / max(1, len(features) - len(groups))


def _share(total: float, count: int, variance: float) -> float | None:
    return total / count / variance if count and variance > 0 else None
