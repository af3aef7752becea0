"""Ridge regression in the kernel of an infinitely wide network: no network is trained, nothing is random."""

from __future__ import annotations

import torch
from torch import Tensor

from ddfed.kernels import kernel_named, ntk, ridge_weights


class KernelRegression:
    """Ridge regression of targets on rows, in float64.

    Predicts K_TS (K_SS + lambda I)^-1 y_S with lambda = ``ridge`` times the mean of K_SS's diagonal.

    Args:
        x: rows it is fitted to, (m, *item).
        targets: (m, classes).
        kernel: see `ddfed.kernels.kernel_named`.
        ridge: relative to the mean of the diagonal.
    """

    def __init__(self, x: Tensor, targets: Tensor, kernel: str = "ntk-fc1", ridge: float = 1e-6) -> None:
        self.x, self.kernel = x.to("cpu", torch.float64), kernel_named(kernel)
        gram = self.kernel(self.x, self.x)
        self.weights = ridge_weights(gram, targets.double().cpu(), ridge * float(gram.diagonal().mean()))

    def __call__(self, x: Tensor) -> Tensor:
        """Scores of the classes, (rows, classes)."""
        return self.kernel(x.to("cpu", torch.float64), self.x) @ self.weights


__all__ = ["KernelRegression", "ntk", "ridge_weights"]
