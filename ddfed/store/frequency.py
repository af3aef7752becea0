"""Items as the frequencies of a cosine transform that matter in their class.

Shin et al., Frequency Domain-based Dataset Distillation (FreD), NeurIPS 2023.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from ddfed.errors import ArtifactError, ConfigError
from ddfed.seeds import Streams
from ddfed.store.base import UNSEEDED, Store
from ddfed.store.cells import Grid, along, small_integer


class Frequencies(Store):
    """Each item is a row's coefficients under an orthonormal cosine transform along the cell axes.

    Only a share of the frequencies is stored. Which ones is decided once for each class, from the
    channel-averaged coefficients of its initial rows.

    Stored: coefficients (items, channels, kept) and, for each class held in ascending order, the numbers of
    its frequencies (classes, kept) in the smallest integer type, which FreD does not count.

    Args:
        share: part of the frequencies that is kept, above 0 and up to 1.
        by: what makes a frequency matter: its ``variance`` over the rows (FreD), or its ``energy``, the mean
            square. They differ in the class mean, which variance does not see: where rows of a class look
            alike, as digits do, its frequencies are lost. A single row has no variance; energy decides then.

    Raises:
        ConfigError: the task's items have no cell axes, or an option is out of range.
    """

    name = "dct"
    defaults = {"share": 0.25, "by": "variance"}

    @cached_property
    def _grid(self) -> Grid:
        return Grid(self.info, self.name)

    @cached_property
    def kept(self) -> int:
        """Frequencies of each channel that are stored."""
        return max(1, round(self.share("share") * self._grid.positions))

    @cached_property
    def _held(self) -> Tensor:
        return self.classes.unique()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        if self.options["by"] not in ("variance", "energy"):
            raise ConfigError(f"store 'dct': by must be 'variance' or 'energy', got {self.options['by']!r}")
        return {"coefficients": (self.items, self._grid.channels, self.kept)}

    def buffer_shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"frequencies": ((len(self._held), self.kept), small_integer(self._grid.positions))}

    def decode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        coefficients = self.params["coefficients"][items]
        spectrum = coefficients.new_zeros(len(items), self._grid.channels, self._grid.positions)
        spectrum = spectrum.scatter(2, self._places(items), coefficients)
        rows = along(spectrum.unflatten(2, self._grid.lengths), [c.T for c in self._transforms])
        return self._grid.join(rows), torch.arange(len(items))

    def fill(self, rows: Tensor, streams: Streams = UNSEEDED) -> None:
        spectrum = along(self._grid.split(rows[:, 0]), self._transforms).flatten(2)
        for line, c in enumerate(self._held):
            found = spectrum[self.classes == c].mean(1)
            by_variance = self.options["by"] == "variance" and len(found) > 1
            importance = found.var(0, correction=0) if by_variance else found.square().mean(0)
            self.buffers["frequencies"][line] = importance.topk(self.kept).indices.sort().values
        with torch.no_grad():
            self.params["coefficients"].copy_(spectrum.gather(2, self._places(torch.arange(self.items))))

    def constrain(self) -> None:
        """Nothing: a range of values is no range of coefficients."""

    def take(self, items: Tensor) -> Store:
        taken = type(self)(self.info, self.classes[items], **self.options)
        lines = torch.isin(self._held, taken.classes)
        taken.load(
            {
                "coefficients": self.params["coefficients"].detach()[items],
                "frequencies": self.buffers["frequencies"][lines],
            }
        )
        return taken

    def check_buffers(self) -> None:
        numbers = self.buffers["frequencies"]
        if numbers.numel() and (int(numbers.min()) < 0 or int(numbers.max()) >= self._grid.positions):
            raise ArtifactError(f"stored frequencies leave the range 0 to {self._grid.positions - 1}")

    def _places(self, items: Tensor) -> Tensor:
        """Where the coefficients of each item belong in its spectrum, (k, channels, kept) int64."""
        line = torch.searchsorted(self._held, self.classes[items])
        return self.buffers["frequencies"][line].long()[:, None].expand(-1, self._grid.channels, -1)

    @cached_property
    def _transforms(self) -> list[Tensor]:
        return [cosine_transform(length) for length in self._grid.lengths]


def cosine_transform(length: int) -> Tensor:
    """The orthonormal matrix of the cosine transform of type II, (length, length); its transpose undoes it."""
    n = torch.arange(length, dtype=torch.float64)
    matrix = torch.cos(math.pi * (2 * n + 1) * n[:, None] / (2 * length)) * math.sqrt(2 / length)
    matrix[0] /= math.sqrt(2)
    return matrix.float()
