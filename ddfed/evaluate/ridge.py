"""Ridge regression in the kernel of an infinitely wide network: no network is trained, nothing is random."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddfed.errors import DivergedError


def ntk(x: Tensor, y: Tensor, depth: int = 1, weight: float = 2.0, bias: float = 0.01) -> Tensor:
    """Neural tangent kernel of a fully connected ReLU network of infinite width.

    Weights have variance ``weight / fan_in``, biases ``bias``; all layers are trained. With K the covariance of
    pre-activations and T the tangent kernel, one hidden layer after another:

        K = weight x.x' / d + bias;  T = K
        q = sqrt(K_xx K_x'x');  t = acos(K / q)
        K <- weight q (sin t + (pi - t) cos t) / 2 pi + bias
        T <- K + T weight (pi - t) / 2 pi

    Source: Jacot et al., Neural Tangent Kernel, NeurIPS 2018; arc-cosine forms of Cho and Saul, NeurIPS 2009. The
    defaults (standard deviations sqrt 2 and 0.1, one hidden layer) are those of Nguyen et al., KIP, ICLR 2021.

    Args:
        x: (n, *item).
        y: (m, *item).
        depth: hidden layers.

    Returns:
        (n, m), of the type of ``x``; differentiable, also where the two rows are equal.
    """
    x, y = x.flatten(1), y.flatten(1)
    size = x.shape[1]
    k = weight * x @ y.T / size + bias
    k_xx = weight * x.square().sum(1) / size + bias
    k_yy = weight * y.square().sum(1) / size + bias
    tangent = k
    # Inside (-1, 1) by a few roundings: the derivative of acos is infinite at the ends.
    edge = 1 - 4 * torch.finfo(x.dtype).eps
    for _ in range(depth):
        q = (k_xx[:, None] * k_yy[None, :]).sqrt()
        cosine = (k / q).clamp(-edge, edge)
        angle = cosine.acos()
        k = weight * q * (angle.sin() + (math.pi - angle) * cosine) / (2 * math.pi) + bias
        tangent = k + tangent * weight * (math.pi - angle) / (2 * math.pi)
        k_xx, k_yy = weight * k_xx / 2 + bias, weight * k_yy / 2 + bias
    return tangent


def ridge_weights(kernel: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """(K + ridge I)^-1 targets, by Cholesky.

    Args:
        kernel: (m, m), symmetric.
        targets: (m, classes).
        ridge: absolute.

    Raises:
        DivergedError: the sum is not positive definite.
    """
    factor, failed = torch.linalg.cholesky_ex(kernel + ridge * torch.eye(len(kernel), dtype=kernel.dtype))
    if int(failed):
        raise DivergedError(
            f"the kernel of {len(kernel)} rows plus a ridge of {ridge:.3g} is not positive definite; raise the ridge"
        )
    return torch.cholesky_solve(targets, factor)


class KernelRegression:
    """Ridge regression of targets on rows, in float64.

    Predicts K_TS (K_SS + lambda I)^-1 y_S with lambda = ``ridge`` times the mean of K_SS's diagonal.

    Args:
        x: rows it is fitted to, (m, *item).
        targets: (m, classes).
        depth: of the kernel's network.
        ridge: relative to the mean of the diagonal.
    """

    def __init__(self, x: Tensor, targets: Tensor, depth: int = 1, ridge: float = 1e-6) -> None:
        self.x, self.depth = x.double().cpu(), depth
        kernel = ntk(self.x, self.x, depth)
        self.weights = ridge_weights(kernel, targets.double().cpu(), ridge * float(kernel.diagonal().mean()))

    def __call__(self, x: Tensor) -> Tensor:
        """Scores of the classes, (rows, classes)."""
        return ntk(x.double().cpu(), self.x, self.depth) @ self.weights
