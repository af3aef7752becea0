"""Kernels and the ridge regression in them: one room for those who match by regression and those who judge by it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ddfed.errors import ConfigError, DivergedError, one_of, suggest
from ddfed.registry import registry

#: (n, *item), (m, *item) -> (n, m)
Kernel = Callable[[Tensor, Tensor], Tensor]

_NTK = re.compile(r"ntk-fc([0-9])")


def kernel_named(name: str) -> Kernel:
    """The kernel of rows called ``name``: ``linear``, ``ntk-fc1`` with its number of hidden layers, or a plugin's.

    Raises:
        ConfigError: no such kernel.
    """
    if name == "linear":
        return linear
    found = _NTK.fullmatch(name)
    if found is None and name in registry().names("kernel"):
        kernel: Kernel = registry().load("kernel", name)
        return kernel
    if found is None:
        named = ("linear", *registry().names("kernel"))
        raise ConfigError(
            f"unknown kernel {name!r}.{suggest(name, (*named, 'ntk-fc1'))} Possible: {one_of(named)}, and 'ntk-fc1' "
            f"with a number of hidden layers from 0 to 9"
        )
    return partial(ntk, depth=int(found[1]))


def linear(x: Tensor, y: Tensor) -> Tensor:
    """Inner products of the rows, (n, m); differentiable."""
    return x.flatten(1) @ y.flatten(1).T


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


def ridge_factor(kernel: Tensor, ridge: float) -> Tensor:
    """Lower Cholesky factor of K + ridge I, for `torch.cholesky_solve`.

    Args:
        kernel: (m, m), symmetric.
        ridge: absolute.

    Raises:
        DivergedError: the sum is not positive definite, or not finite.
    """
    eye = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    factor, failed = torch.linalg.cholesky_ex(kernel + ridge * eye)
    if int(failed) or not bool(torch.isfinite(factor).all()):
        raise DivergedError(
            f"the kernel of {len(kernel)} rows plus a ridge of {ridge:.3g} is not positive definite; raise the ridge"
        )
    return factor


def ridge_weights(kernel: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """(K + ridge I)^-1 targets, by Cholesky.

    Args:
        kernel: (m, m), symmetric.
        targets: (m, classes).
        ridge: absolute.

    Raises:
        DivergedError: the sum is not positive definite.
    """
    return torch.cholesky_solve(targets, ridge_factor(kernel, ridge))
