"""Items as coefficients of a basis that all classes share.

Deng and Russakovsky, Remember the Past: Distilling Datasets into Addressable Memories, NeurIPS 2022; Yang et
al., Neural Spectral Decomposition for Dataset Distillation (NSD), ECCV 2024.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from ddfed.seeds import Streams
from ddfed.store.base import UNSEEDED, Store
from ddfed.store.cells import Grid, along

_TINY = 1e-2


class SharedBasis(Store):
    """All items together are a tensor of low rank: row i is ``sum_r coefficients[i, r] * basis[r]``.

    With ``share`` 1 the basis is stored as it is, an addressable memory. Below 1 it is itself of low rank along
    each cell axis: a core times one factor matrix per axis (Tucker; NSD's spectral tensors). Everything but
    the coefficients is shared by all classes.

    `fill` gives the best approximation of its rows by a truncated singular value decomposition, mode after
    mode, and divides each singular value evenly between coefficient and basis.

    Args:
        rank: elements of the basis.
        share: values along each cell axis that a basis element has, as a part of the axis, up to 1.

    Raises:
        ConfigError: an option is out of range, or ``share`` is below 1 for items without cell axes.
    """

    name = "basis"
    defaults = {"rank": 16, "share": 1.0}
    # One factor for each cell axis; no known item has more than four.
    shared = frozenset({"core", *(f"factor{i}" for i in range(4))})

    @cached_property
    def _grid(self) -> Grid | None:
        return Grid(self.info, self.name) if self.share("share") < 1 else None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        size = math.prod(self.info.shape)
        rank = self.whole("rank", 1, size)
        if self._grid is None:
            return {"coefficients": (self.items, rank), "core": (rank, *self.info.shape)}
        lengths = self._grid.lengths
        small = [max(1, round(self.options["share"] * length)) for length in lengths]
        factors = {f"factor{i}": pair for i, pair in enumerate(zip(lengths, small))}
        return {"coefficients": (self.items, rank), "core": (rank, self._grid.channels, *small), **factors}

    def decode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        # The basis is spanned once, however many items ask for it.
        basis = self._spanned(self.params["core"])
        return torch.tensordot(self.params["coefficients"][items], basis, 1), torch.arange(len(items))

    def fill(self, rows: Tensor, streams: Streams = UNSEEDED) -> None:
        cells = rows[:, 0] if self._grid is None else self._grid.split(rows[:, 0])
        factors = [_leading(cells, 2 + axis, width) for axis, width in enumerate(self._widths)]
        core = along(cells, [factor.T for factor in factors])
        left, scale, right = torch.linalg.svd(core.flatten(1), full_matrices=False)
        rank, root = self.options["rank"], scale[: self.options["rank"]].sqrt()
        with torch.no_grad():
            for i, factor in enumerate(factors):
                self.params[f"factor{i}"].copy_(factor)
            # Where there are fewer rows than elements the rest starts near zero: at zero no gradient moves it.
            for name in ("coefficients", "core"):
                self.params[name].copy_(
                    _TINY * torch.randn(self.params[name].shape, generator=streams.torch("basis", name))
                )
            self.params["coefficients"][:, : len(root)] = left[:, :rank] * root
            self.params["core"][: len(root)] = (root[:, None] * right[:rank]).unflatten(1, core.shape[1:])

    def constrain(self) -> None:
        """Nothing: a range of values is no range of coefficients."""

    @property
    def _widths(self) -> list[int]:
        return [shape[1] for name, shape in self.shapes().items() if name.startswith("factor")]

    def _spanned(self, core: Tensor) -> Tensor:
        if self._grid is None:
            return core
        return self._grid.join(along(core, [self.params[f"factor{i}"] for i in range(len(self._widths))]))


def _leading(x: Tensor, axis: int, width: int) -> Tensor:
    """The ``width`` leading directions along an axis, orthonormal, (length, width)."""
    # By the Gram matrix, in float64 because it squares the condition: the other side of `x` may have 10^5 columns.
    flat = x.movedim(axis, 0).flatten(1).double()
    return torch.linalg.eigh(flat @ flat.T).eigenvectors.flip(1)[:, :width].to(x.dtype)
