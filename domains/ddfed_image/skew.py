"""Feature skew of images: what a client's camera does to its pictures.

Each is a function ``(rows, client, clients, streams, *, options) -> rows`` of pixels in [0, 1], (k, C, H, W) float32,
of kind ``skew``. Clients are spread evenly over a range, in the order of their numbers, except where it says otherwise.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.errors import ConfigError
from ddfed.seeds import Streams
from ddfed_image import augment


def rotation(rows: Tensor, client: int, clients: int, streams: Streams, *, degrees: float = 30.0) -> Tensor:
    """Turned by an angle from -degrees for the first client to degrees for the last; bilinear, filled with black."""
    if not 0 <= degrees <= 180:
        raise ConfigError(f"skew 'rotation': degrees must be from 0 to 180; got {degrees}")
    return augment.rotate(rows, torch.full((len(rows), 1), _position(client, clients)), degrees)


def channel_gain(rows: Tensor, client: int, clients: int, streams: Streams, *, factor: float = 1.5) -> Tensor:
    """Each channel times a number of the client's, log-uniform in [1 / factor, factor], clipped to [0, 1].

    A white balance that is off; of grey images the exposure. The numbers are drawn, so that clients are not in order.
    """
    _check_factor("channel-gain", factor)
    u = torch.rand(rows.shape[1], generator=streams.torch("gains"))
    return (rows * (factor ** (2 * u - 1)).view(1, -1, 1, 1)).clamp(0, 1)


def contrast(rows: Tensor, client: int, clients: int, streams: Streams, *, factor: float = 2.0) -> Tensor:
    """Distance of the pixels from the image's mean, times 1 / factor for the first client to factor for the last.

    Even steps on a log scale; clipped to [0, 1].
    """
    _check_factor("contrast", factor)
    gain = factor ** (2 * _position(client, clients) - 1)
    mean = rows.mean((1, 2, 3), keepdim=True)
    return (mean + gain * (rows - mean)).clamp(0, 1)


def blur(rows: Tensor, client: int, clients: int, streams: Streams, *, sigma: float = 1.0) -> Tensor:
    """Gaussian blur of deviation sigma k / K pixels for client k = 1 to K, border pixels repeated outwards."""
    if not 0 <= sigma <= 10:
        raise ConfigError(f"skew 'blur': sigma must be a number of pixels from 0 to 10; got {sigma}")
    deviation = sigma * (client + 1) / clients
    if not deviation:
        return rows
    radius = math.ceil(3 * deviation)
    offsets = torch.arange(-radius, radius + 1, dtype=rows.dtype)
    kernel = torch.exp(-0.5 * (offsets / deviation) ** 2)
    kernel = kernel / kernel.sum()
    flat = rows.flatten(0, 1)[:, None]
    padded = F.pad(flat, (radius,) * 4, mode="replicate")
    wide = F.conv2d(padded, kernel.view(1, 1, 1, -1))
    return F.conv2d(wide, kernel.view(1, 1, -1, 1)).view_as(rows)


def _position(client: int, clients: int) -> float:
    """From 0 for the first client to 1 for the last; the middle for a single one."""
    return client / (clients - 1) if clients > 1 else 0.5


def _check_factor(name: str, factor: float) -> None:
    if not (math.isfinite(factor) and factor >= 1):
        raise ConfigError(
            f"skew {name!r}: factor must be a finite number of at least 1 (1 changes nothing); got {factor}"
        )
