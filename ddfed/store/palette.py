"""Items as a few colours and, for each position, the number of its colour.

The storage of Yuan et al., AutoPalette, NeurIPS 2024, without the network that assigns colours.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from ddfed.errors import ArtifactError, ConfigError
from ddfed.seeds import Streams
from ddfed.store.base import UNSEEDED, Store

_LLOYD_ITERATIONS = 20


class Palette(Store):
    """Each item is a palette of its own and an index into it for every position.

    A colour is the vector of values along the first axis of an item (its channels); with one channel it is a
    grey level. `fill` quantises its rows by k-means over their positions; an item with no more different
    values than colours is kept exactly. Colours are learned, indices stay.

    Stored: colours (items, colours, channels) and the indices packed at 1, 2, 4 or 8 bits, (items, bytes).

    Args:
        colours: of each item, 2 to 256.

    Raises:
        ConfigError: items have one axis only, or the number is out of range.
    """

    name = "palette"
    defaults = {"colours": 64}

    @property
    def _colours(self) -> int:
        return self.whole("colours", 2, 256)

    @property
    def _positions(self) -> int:
        if len(self.info.shape) < 2:
            raise ConfigError(
                f"store {self.name!r} needs items of channels over positions, got shape {self.info.shape}. Use 'basis'."
            )
        return math.prod(self.info.shape[1:])

    @cached_property
    def bits(self) -> int:
        """Bits of an index."""
        return next(bits for bits in (1, 2, 4, 8) if 2**bits >= self._colours)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"colours": (self.items, self._colours, self.info.shape[0])}

    def buffer_shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"indices": ((self.items, -(-self._positions * self.bits // 8)), torch.uint8)}

    def decode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        indices = unpacked(self.buffers["indices"][items], self.bits)[:, : self._positions]
        channels = self.info.shape[0]
        values = self.params["colours"][items].gather(1, indices[..., None].expand(-1, -1, channels))
        return values.mT.reshape(len(items), *self.info.shape), torch.arange(len(items))

    def fill(self, rows: Tensor, streams: Streams = UNSEEDED) -> None:
        colours, indices = quantised(rows[:, 0].flatten(2).mT, self._colours)
        self.buffers["indices"].copy_(packed(indices, self.bits))
        with torch.no_grad():
            self.params["colours"].copy_(colours)

    def constrain(self) -> None:
        with torch.no_grad():
            colours = self.params["colours"]
            colours.copy_(self.info.space.clamp(colours.mT).mT)

    def check_buffers(self) -> None:
        found = unpacked(self.buffers["indices"], self.bits)
        if found.numel() and int(found.max()) >= self._colours:
            raise ArtifactError(f"stored indices leave the palette of {self._colours} colours")


def quantised(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The colours of each item by k-means, and the number of the nearest for each position.

    Starts at positions far from each other, so that as many colours as different values are exact.

    Args:
        values: (items, positions, channels).
        count: colours of each item.

    Returns:
        Colours (items, count, channels), a colour that nothing uses being a copy of some value, and numbers
        (items, positions) int64.
    """
    item = torch.arange(len(values))
    picks = [torch.zeros(len(values), dtype=torch.int64)]
    distance = torch.full(values.shape[:2], torch.inf)
    while len(picks) < count:
        distance = torch.minimum(distance, (values - values[item, picks[-1]][:, None]).square().sum(2))
        picks.append(distance.argmax(1))
    colours = torch.stack([values[item, pick] for pick in picks], 1)
    for _ in range(_LLOYD_ITERATIONS):
        member = torch.nn.functional.one_hot(_nearest(values, colours), count).to(values)
        sizes = member.sum(1)[..., None]
        colours = torch.where(sizes > 0, member.mT @ values / sizes.clamp(min=1), colours)
    return colours, _nearest(values, colours)


def _nearest(values: Tensor, colours: Tensor) -> Tensor:
    # Not `cdist`, whose product form loses the zeros of equal values.
    return torch.stack([(values - c[:, None]).square().sum(2) for c in colours.unbind(1)], 2).argmin(2)


def packed(numbers: Tensor, bits: int) -> Tensor:
    """Numbers below 2^bits along the last axis, as many as fit in a byte, the first in the lowest bits."""
    each = 8 // bits
    padded = torch.nn.functional.pad(numbers, (0, -numbers.shape[-1] % each)).unflatten(-1, (-1, each))
    return (padded << torch.arange(0, 8, bits)).sum(-1).to(torch.uint8)


def unpacked(stored: Tensor, bits: int) -> Tensor:
    """Inverse of `packed`, with its padding, int64."""
    return ((stored.long()[..., None] >> torch.arange(0, 8, bits)) & (2**bits - 1)).flatten(-2)
