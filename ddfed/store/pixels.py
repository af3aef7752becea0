"""Parametrisations that keep values of the input itself: plain, multi-formation, mirrored.

Multi-formation: Kim et al., Dataset Condensation via Efficient Synthetic-Data Parameterization (IDC), ICML
2022, section 4; Zhao et al. (IDM), CVPR 2023. Mirrored: Son et al., FYI: Flip Your Images, ECCV 2024.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.data import TaskInfo
from ddfed.errors import ConfigError
from ddfed.store.base import Store


class Pixels(Store):
    """Each item is one row, stored as it is."""

    name = "pixels"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"x": (self.items, *self.info.shape)}

    def decode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        return self.params["x"][items], torch.arange(len(items))

    def fill(self, rows: Tensor) -> None:
        with torch.no_grad():
            self.params["x"].copy_(rows[:, 0])


class Mirrored(Pixels):
    """Each item gives two rows, itself and its mirror image; replaces the random flip.

    Raises:
        ConfigError: the task has no axis whose reversal keeps the class (digits, text).
    """

    name = "mirrored"

    def __init__(self, info: TaskInfo, classes: Tensor, **options: Any) -> None:
        if info.mirror_axis is None:
            raise ConfigError(
                f"store 'mirrored' needs items whose mirror image keeps its class; {info.dataset!r} has none. "
                f"Use 'pixels' or 'multi-formation'."
            )
        super().__init__(info, classes, **options)

    @property
    def rows_per_item(self) -> int:
        return 2

    def decode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        x, origin = super().decode(items)
        assert self.info.mirror_axis is not None
        return torch.cat([x, x.flip(self.info.mirror_axis)]), torch.cat([origin, origin])


class MultiFormation(Store):
    """Each item is a canvas cut in ``factor`` cells along every cell axis; a cell upsampled is a row.

    An image of 32x32 with factor 2 gives four rows from 16x16 cells. Where the length does not divide, cells
    have ceil(length / factor) values and the canvas is padded at its end with the middle of the natural
    range (IDC). Upsampling is linear along each axis and done as a product with a fixed matrix.

    Args:
        factor: cells per axis, at least 2.

    Raises:
        ConfigError: the task's items have no cell axes, or the factor is out of range.
    """

    name = "multi-formation"
    defaults = {"factor": 2}

    def __init__(self, info: TaskInfo, classes: Tensor, **options: Any) -> None:
        factor = options.get("factor", 2)
        if not info.cell_axes:
            raise ConfigError(f"store 'multi-formation' needs items that can be cut in cells; {info.domain!r} has none")
        shortest = min(info.shape[axis] for axis in info.cell_axes)
        if not (isinstance(factor, int) and 2 <= factor <= shortest):
            raise ConfigError(
                f"factor must be an integer from 2 to {shortest} for items of shape {info.shape}, got {factor!r}"
            )
        super().__init__(info, classes, **options)

    @property
    def factor(self) -> int:
        return self.options["factor"]

    @property
    def rows_per_item(self) -> int:
        return self.factor ** len(self.info.cell_axes)

    @property
    def seeds_per_item(self) -> int:
        return self.rows_per_item

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"x": (self.items, *self.info.shape)}

    def decode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        cells = [self.params["x"][items]]
        for axis in self.info.cell_axes:
            cells = [part for cell in cells for part in self._cut(cell, axis)]
        rows = torch.stack(cells, 1).flatten(0, 1)  # (k * cells, *shape of a cell)
        for axis in self.info.cell_axes:
            up = self._resizers[axis][1].to(rows)
            rows = (rows.movedim(axis, -1) @ up.T).movedim(-1, axis)
        return rows, torch.arange(len(items)).repeat_interleave(self.rows_per_item)

    def fill(self, rows: Tensor) -> None:
        cells = rows.flatten(0, 1)
        for axis in self.info.cell_axes:
            down = self._resizers[axis][0].to(rows)
            cells = (cells.movedim(axis, -1) @ down.T).movedim(-1, axis)
        parts = list(cells.view(self.items, self.rows_per_item, *cells.shape[1:]).unbind(1))
        # Undo the cutting in `decode`: the last axis varies fastest.
        for axis in reversed(self.info.cell_axes):
            parts = [
                torch.cat(parts[i : i + self.factor], axis).narrow(axis, 0, self.info.shape[axis])
                for i in range(0, len(parts), self.factor)
            ]
        with torch.no_grad():
            self.params["x"].copy_(parts[0])

    def _cut(self, canvas: Tensor, axis: int) -> list[Tensor]:
        size = -(-self.info.shape[axis] // self.factor)
        pad = size * self.factor - self.info.shape[axis]
        if pad:
            shape = list(canvas.shape)
            shape[axis] = pad
            middle = (self.info.space.low + self.info.space.high) / 2
            filler = self.info.space.encode(torch.full((1, *self.info.shape), middle)).flatten(2).mean(2)
            filler = filler.view(1, -1, *[1] * (canvas.ndim - 2)).to(canvas).expand(shape)
            canvas = torch.cat([canvas, filler], axis)
        return list(canvas.split(size, axis))

    @cached_property
    def _resizers(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Per axis: the matrices (cell, length) and (length, cell) of linear resizing, taken from the library."""
        found = {}
        for axis in self.info.cell_axes:
            length = self.info.shape[axis]
            size = -(-length // self.factor)
            down = F.interpolate(torch.eye(length)[:, None], size, mode="linear", align_corners=False)[:, 0].T
            up = F.interpolate(torch.eye(size)[:, None], length, mode="linear", align_corners=False)[:, 0].T
            found[axis] = (down.contiguous(), up.contiguous())
        return found
