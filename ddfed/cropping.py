"""Parts of rows along their cell axes, resized linearly: one matrix an axis, for any modality that has cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def resampling(length: int, out: int, start: Tensor, size: Tensor) -> Tensor:
    """Matrices that resize the part [start, start + size) of an axis to ``out`` cells.

    A triangle as wide as the step between samples where the part shrinks, so that nothing is skipped (antialiased as
    in Pillow); plain linear interpolation, held at the part's ends, where it grows.

    Args:
        length: cells of the axis.
        out: cells of the result.
        start: first cell of each part, (rows,), whole numbers.
        size: cells of each part, (rows,), whole numbers.

    Returns:
        (rows, out, length), each row of weights sums to 1.
    """
    start, size = start.double()[:, None], size.double()[:, None]
    middle = start + (torch.arange(out, device=start.device) + 0.5) * size / out  # in cells, their edges whole
    cell = torch.arange(length, device=start.device, dtype=torch.float64) + 0.5
    reach = (size / out).clamp(min=1)
    weights = (1 - (cell - middle[:, :, None]).abs() / reach[:, :, None]).clamp(min=0)
    weights = weights * ((cell > start) & (cell < start + size))[:, None, :]
    return weights / weights.sum(2, keepdim=True)


def parts_of(x: Tensor, axes: Sequence[int], starts: Tensor, sizes: Tensor, lengths: Sequence[int]) -> Tensor:
    """One part of each row, resized.

    Args:
        x: (rows, *item).
        axes: negative item axes.
        starts: first cell of each part along each axis, (rows, axes).
        sizes: cells of each part, (rows, axes).
        lengths: cells of the result along each axis.

    Returns:
        (rows, *item) with ``lengths`` along ``axes``; differentiable in ``x``.
    """
    for number, (axis, out) in enumerate(zip(axes, lengths)):
        matrix = resampling(x.shape[axis], out, starts[:, number], sizes[:, number]).to(x)
        x = x.movedim(axis, -1)
        moved = torch.bmm(x.flatten(1, -2), matrix.transpose(1, 2))
        x = moved.view(*x.shape[:-1], out).movedim(-1, axis)
    return x
