"""Items as channels over a grid of cells, and linear maps along the axes of the grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.data import TaskInfo
from ddfed.errors import ConfigError


class Grid:
    """An item with its cell axes brought to the back: (channels, *lengths).

    What is no cell axis is a channel, so an item of shape (3, 32, 32) has 3 channels over 32x32 cells and a
    sequence of shape (12, 100) 12 channels over 100.

    Args:
        info: public facts about the task.
        store: who asks, for the message.

    Attributes:
        lengths: cells along each axis.
        channels: values of one cell.
        positions: cells of an item.

    Raises:
        ConfigError: the task's items have no cell axes.
    """

    def __init__(self, info: TaskInfo, store: str) -> None:
        if not info.cell_axes:
            raise ConfigError(
                f"store {store!r} needs items with cell axes; {info.domain!r} has none. Use 'pixels' or 'basis'."
            )
        self.shape, axes = info.shape, sorted(info.cell_axes)
        channels = [axis for axis in range(-len(info.shape), 0) if axis not in axes]
        self._order = [0, *(1 + axis % len(info.shape) for axis in (*channels, *axes))]
        self._channels = tuple(info.shape[axis] for axis in channels)
        self.lengths = tuple(info.shape[axis] for axis in axes)
        self.channels = math.prod(self._channels)
        self.positions = math.prod(self.lengths)

    def split(self, rows: Tensor) -> Tensor:
        """(rows, *item) -> (rows, channels, *lengths)."""
        return rows.permute(self._order).reshape(len(rows), self.channels, *self.lengths)

    def join(self, cells: Tensor) -> Tensor:
        """Inverse of `split`."""
        parts = cells.reshape(len(cells), *self._channels, *self.lengths)
        return parts.permute([self._order.index(axis) for axis in range(len(self._order))])


def along(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Apply one matrix along each of the last axes.

    Args:
        x: (..., n_1, ..., n_k).
        matrices: k matrices (m_i, n_i).

    Returns:
        (..., m_1, ..., m_k), differentiable in both.
    """
    for axis, matrix in enumerate(matrices, start=-len(matrices)):
        x = (x.movedim(axis, -1) @ matrix.to(x).T).movedim(-1, axis)
    return x


def resizing(length: int, size: int) -> Tensor:
    """The matrix (size, length) of linear resizing along one axis, taken from the library."""
    return F.interpolate(torch.eye(length)[:, None], size, mode="linear", align_corners=False)[:, 0].T.contiguous()


def small_integer(count: int) -> torch.dtype:
    """The smallest integer type that numbers ``count`` things."""
    return torch.uint8 if count <= 2**8 else torch.int16 if count <= 2**15 else torch.int32
