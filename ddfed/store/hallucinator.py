"""Items as bases that a few shared hallucinators turn into many rows.

Liu et al., Dataset Distillation via Factorization (HaBa), NeurIPS 2022.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.errors import ConfigError
from ddfed.seeds import Streams
from ddfed.store.base import UNSEEDED, Store
from ddfed.store.cells import Grid, along, resizing

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


class Hallucinators(Store):
    """Each item is a base z; hallucinator h makes the row ``decoder(scale_h * encoder(z) + shift_h)`` of it.

    Encoder and decoder are one convolution each and shared, scale and shift are maps of each hallucinator's
    own. Every base meets every hallucinator, so an item gives as many rows as there are hallucinators. The
    convolutions have no bias; the shift holds it.

    `fill` starts near the identity: the decoder undoes the encoder, and hallucinators differ from each other
    by noise alone. With random weights, as HaBa starts, initial rows tell nothing of the real ones.

    Args:
        hallucinators: how many.
        channels: of the encoded base; at least those of an item.
        kernel: cells along each axis that a convolution sees, odd.
        share: values along each axis that bases and maps have, as a part of the axis, up to 1; what comes out
            is upsampled linearly. 1 in HaBa; less where a base of full size is the whole budget.
        spread: deviation of the noise that tells hallucinators apart at the start.

    Raises:
        ConfigError: the task's items have no cell axes or more than three, or an option is out of range.
    """

    name = "hallucinator"
    defaults = {"hallucinators": 5, "channels": 3, "kernel": 3, "share": 1.0, "spread": 0.1}
    shared = frozenset({"encoder", "scale", "shift", "decoder"})

    @cached_property
    def _grid(self) -> Grid:
        return Grid(self.info, self.name)

    @property
    def rows_per_item(self) -> int:
        return self.whole("hallucinators", 1)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        channels, small = self._grid.channels, self._small
        inner = self.whole("channels", channels)
        taps = [self._kernel] * len(small)
        self.number("spread")
        return {
            "bases": (self.items, channels, *small),
            "encoder": (inner, channels, *taps),
            "scale": (self.rows_per_item, inner, *small),
            "shift": (self.rows_per_item, inner, *small),
            "decoder": (channels, inner, *taps),
        }

    def decode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        encoded = self._convolve(self.params["bases"][items], "encoder").unsqueeze(1)
        varied = self.params["scale"] * encoded + self.params["shift"]  # (k, hallucinators, inner, *small)
        rows = along(self._convolve(varied.flatten(0, 1), "decoder"), self._resizers[1])
        return self._grid.join(rows), torch.arange(len(items)).repeat_interleave(self.rows_per_item)

    def fill(self, rows: Tensor, streams: Streams = UNSEEDED) -> None:
        inner, channels = self.params["encoder"].shape[:2]
        # Orthonormal columns: the transpose undoes them.
        mixed = torch.linalg.qr(torch.randn(inner, channels, generator=streams.torch("encoder"))).Q
        taps = torch.zeros(self.params["encoder"].shape[2:])
        taps[tuple(self._kernel // 2 for _ in self._small)] = 1.0
        with torch.no_grad():
            self.params["bases"].copy_(along(self._grid.split(rows[:, 0]), self._resizers[0]))
            for name, matrix in (("encoder", mixed), ("decoder", mixed.T)):
                self.params[name].copy_(torch.tensordot(matrix, taps, 0))
            for name, middle in (("scale", 1.0), ("shift", 0.0)):
                noise = torch.randn(self.params[name].shape, generator=streams.torch(name))
                self.params[name].copy_(middle + self.options["spread"] * noise)

    def constrain(self) -> None:
        """Nothing: bases are no rows, and the range of rows says nothing of them."""

    def _convolve(self, x: Tensor, name: str) -> Tensor:
        return _CONVOLUTIONS[len(self._small) - 1](x, self.params[name], padding="same")

    @property
    def _kernel(self) -> int:
        kernel = self.whole("kernel", 1)
        if kernel % 2 == 0:
            raise ConfigError(f"store {self.name!r}: kernel must be odd, so that it has a centre; got {kernel}")
        return kernel

    @cached_property
    def _small(self) -> tuple[int, ...]:
        """Values of a base along each axis."""
        lengths = self._grid.lengths
        if len(lengths) > len(_CONVOLUTIONS):
            raise ConfigError(f"store {self.name!r} takes up to {len(_CONVOLUTIONS)} cell axes, got {len(lengths)}")
        return tuple(max(1, round(self.share("share") * length)) for length in lengths)

    @cached_property
    def _resizers(self) -> tuple[list[Tensor], list[Tensor]]:
        pairs = list(zip(self._grid.lengths, self._small))
        return [resizing(*pair) for pair in pairs], [resizing(small, length) for length, small in pairs]
