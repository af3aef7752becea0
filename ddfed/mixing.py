"""Mixing rows of a batch while a network trains."""

from __future__ import annotations

import torch
from torch import Tensor


def cutmix(x: Tensor, order: Tensor, axes: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, float]:
    """Put a box of the rows ``x[order]`` into ``x``.

    The kept share is drawn from Beta(1, 1) and then set to what the box, clipped at the borders, really
    leaves (Yun et al., CutMix, ICCV 2019).

    Args:
        x: (rows, *item).
        order: partner of each row.
        axes: negative item axes of the box.
        generator: CPU generator.

    Returns:
        The mixed rows, and the share of each item that is its own.
    """
    edge = (1 - float(torch.rand((), generator=generator))) ** (1 / len(axes))
    mask = x.new_ones(x.shape[1:], dtype=torch.bool)
    inside = 1.0
    for axis in axes:
        length = x.shape[axis]
        centre = int(torch.randint(length, (), generator=generator))
        half = int(length * edge) // 2
        low, high = max(centre - half, 0), min(centre + half, length)
        along = torch.zeros(length, dtype=torch.bool, device=x.device)
        along[low:high] = True
        mask &= along.view(-1, *[1] * (-axis - 1))
        inside *= (high - low) / length
    return torch.where(mask, x[order], x), 1 - inside
