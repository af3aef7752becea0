"""Training that looks for flat minima."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Flat:
    """Surrogate-gap guided sharpness-aware minimisation (GSAM), with a step in proportion to each weight.

    The gradient g' is taken at w + rho g w^2 / |w g|; what of the first gradient g is orthogonal to g' is then taken
    off: g' - alpha (g - proj g).

    Source: Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, ICLR 2022, algorithm 1, in
    the adaptive form with which FTD (Du et al., CVPR 2023) trains experts.

    Args:
        rho: length of the climb.
        alpha: weight of the orthogonal part.
    """

    rho: float
    alpha: float

    def climb(self, weights: Sequence[Tensor], gradient: Sequence[Tensor]) -> list[Tensor]:
        """How far each weight is moved before the second gradient."""
        norm = torch.stack([(w * g).square().sum() for w, g in zip(weights, gradient)]).sum().sqrt()
        return [self.rho * g * w.square() / (norm + 1e-12) for w, g in zip(weights, gradient)]

    def combined(self, here: Sequence[Tensor], there: Sequence[Tensor]) -> list[Tensor]:
        """What the optimiser is given, from the gradients before and after the climb."""
        product = torch.stack([(a * b).sum() for a, b in zip(here, there)]).sum()
        along = product / (torch.stack([b.square().sum() for b in there]).sum() + 1e-12)
        return [b - self.alpha * (a - along * b) for a, b in zip(here, there)]
