"""Parametrisations that keep values of the input itself: plain, multi-formation, mirrored.

Multi-formation: Kim et al., Dataset Condensation via Efficient Synthetic-Data Parameterization (IDC), ICML
2022, section 4; Zhao et al. (IDM), CVPR 2023. Mirrored: Son et al., FYI: Flip Your Images, ECCV 2024.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ddfed.data import TaskInfo
from ddfed.errors import ConfigError
from ddfed.seeds import Streams
from ddfed.store.base import UNSEEDED, Store, view_of
from ddfed.store.cells import resizing


class Pixels(Store):
    """Each item is one row, stored as it is.

    Args:
        free: share of each class's items that learn, the later ones; the others stay what they were filled with
            (SelMatch, Lee and Chung, ICML 2024). With 0 labels alone can learn (LD, Bohdal et al., 2020).

    Raises:
        ConfigError: a share that is not from 0 to 1.
    """

    name = "pixels"
    defaults = {"free": 1.0}

    def __init__(self, info: TaskInfo, classes: Tensor, **options: Any) -> None:
        super().__init__(info, classes, **options)
        _ = self._share

    @property
    def _share(self) -> float:
        return 0.0 if self.options["free"] == 0 else self.share("free")

    @cached_property
    def _free(self) -> Tensor:
        """Which items learn, (items,)."""
        held = torch.bincount(self.classes)[self.classes]
        return view_of(self.classes) >= held - (self._share * held).round().long()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"x": (self.items, *self.info.shape)}

    def decode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        x = self.params["x"][items]
        if self.options["free"] < 1:
            free = self._free[items].view(-1, *[1] * (x.ndim - 1))
            x = torch.where(free, x, x.detach())
        return x, torch.arange(len(items))

    def fill(self, rows: Tensor, streams: Streams = UNSEEDED) -> None:
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
        multi: decode with every factor from 1 to ``factor``, so that the whole canvas is a row as well (IDC's
            multi-scale form). Its cap on the number of rows is left out: it draws rows at random, and a set must
            decode to the same rows whoever asks.

    Raises:
        ConfigError: the task's items have no cell axes, or an option is out of range.
    """

    name = "multi-formation"
    defaults = {"factor": 2, "multi": False}

    def __init__(self, info: TaskInfo, classes: Tensor, **options: Any) -> None:
        factor = options.get("factor", 2)
        if not info.cell_axes:
            raise ConfigError(f"store 'multi-formation' needs items that can be cut in cells; {info.domain!r} has none")
        shortest = min(info.shape[axis] for axis in info.cell_axes)
        if not (isinstance(factor, int) and 2 <= factor <= shortest):
            raise ConfigError(
                f"factor must be an integer from 2 to {shortest} for items of shape {info.shape}, got {factor!r}"
            )
        if not isinstance(options.get("multi", False), bool):
            raise ConfigError(f"multi must be true or false, got {options['multi']!r}")
        super().__init__(info, classes, **options)

    @property
    def factor(self) -> int:
        return self.options["factor"]

    @property
    def _factors(self) -> range:
        return range(1 if self.options["multi"] else self.factor, self.factor + 1)

    @property
    def rows_per_item(self) -> int:
        return sum(factor ** len(self.info.cell_axes) for factor in self._factors)

    @property
    def seeds_per_item(self) -> int:
        return self.factor ** len(self.info.cell_axes)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"x": (self.items, *self.info.shape)}

    def decode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        canvas = self.params["x"][items]
        rows = torch.cat([self._cells(canvas, factor) for factor in self._factors], 1).flatten(0, 1)
        return rows, torch.arange(len(items)).repeat_interleave(self.rows_per_item)

    def fill(self, rows: Tensor, streams: Streams = UNSEEDED) -> None:
        cells = rows.flatten(0, 1)
        for axis in self.info.cell_axes:
            down = self._resizers[axis, self.factor][0].to(rows)
            cells = (cells.movedim(axis, -1) @ down.T).movedim(-1, axis)
        parts = list(cells.view(self.items, self.seeds_per_item, *cells.shape[1:]).unbind(1))
        # Undo the cutting in `_cells`: the last axis varies fastest.
        for axis in reversed(self.info.cell_axes):
            parts = [
                torch.cat(parts[i : i + self.factor], axis).narrow(axis, 0, self.info.shape[axis])
                for i in range(0, len(parts), self.factor)
            ]
        with torch.no_grad():
            self.params["x"].copy_(parts[0])

    def _cells(self, canvas: Tensor, factor: int) -> Tensor:
        """The rows of one factor, (k, factor^axes, *item)."""
        cells = [canvas]
        for axis in self.info.cell_axes:
            cells = [part for cell in cells for part in self._cut(cell, axis, factor)]
        rows = torch.stack(cells, 1)
        for axis in self.info.cell_axes:
            up = self._resizers[axis, factor][1].to(rows)
            rows = (rows.movedim(axis, -1) @ up.T).movedim(-1, axis)
        return rows

    def _cut(self, canvas: Tensor, axis: int, factor: int) -> list[Tensor]:
        size = -(-self.info.shape[axis] // factor)
        pad = size * factor - self.info.shape[axis]
        if pad:
            shape = list(canvas.shape)
            shape[axis] = pad
            middle = (self.info.space.low + self.info.space.high) / 2
            filler = self.info.space.encode(torch.full((1, *self.info.shape), middle)).flatten(2).mean(2)
            filler = filler.view(1, -1, *[1] * (canvas.ndim - 2)).to(canvas).expand(shape)
            canvas = torch.cat([canvas, filler], axis)
        return list(canvas.split(size, axis))

    @cached_property
    def _resizers(self) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
        """Per axis and factor: the matrices (cell, length) and (length, cell) of linear resizing."""
        found = {}
        for axis in self.info.cell_axes:
            length = self.info.shape[axis]
            for factor in self._factors:
                size = -(-length // factor)
                found[axis, factor] = (resizing(length, size), resizing(size, length))
        return found
