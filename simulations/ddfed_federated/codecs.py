"""How synthetic items travel: float32, float16, or 8 bits with a range per set and channel.

Encode before the server trains *and* before any local evaluation, so that both see what was sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ddfed.errors import ReleaseError, UnknownNameError, one_of, suggest

#: Largest finite float16.
FLOAT16_MAX = 65504.0


def _channels(x: Tensor) -> tuple[int, ...]:
    """Shape that lets one value per channel broadcast against items (m, channels, ...)."""
    return (1, x.shape[1], *(1,) * (x.ndim - 2)) if x.ndim >= 2 else (1,) * x.ndim


def _to_float32(x: Tensor) -> dict[str, Tensor]:
    return {"x": x}


def _to_float16(x: Tensor) -> dict[str, Tensor]:
    if x.numel() and float(x.abs().max()) > FLOAT16_MAX:
        raise ReleaseError(
            f"codec 'float16' holds values up to {FLOAT16_MAX:.0f}, the set reaches {float(x.abs().max()):.4g}; "
            f"use 'uint8' or 'float32', or lower the learning rate of the items"
        )
    return {"x": x.to(torch.float16)}


def _to_uint8(x: Tensor) -> dict[str, Tensor]:
    shape = _channels(x)
    width = shape[1] if x.ndim >= 2 else 1
    if x.numel() == 0:
        return {"x": x.to(torch.uint8), "x_low": torch.zeros(width), "x_high": torch.zeros(width)}
    axes = [a for a in range(x.ndim) if a != 1 or x.ndim < 2]
    # float64: high - low of two extreme float32 values overflows float32.
    low, high = x.amin(dim=axes), x.amax(dim=axes)
    span = (high.double() - low.double()).view(shape)
    steps = (x.double() - low.double().view(shape)) / torch.where(span > 0, span, torch.ones_like(span)) * 255
    return {"x": steps.round().to(torch.uint8), "x_low": low.reshape(width), "x_high": high.reshape(width)}


def _from_float(parts: Mapping[str, Tensor]) -> Tensor:
    return parts["x"].to(torch.float32)


def _from_uint8(parts: Mapping[str, Tensor]) -> Tensor:
    x, low, high = parts["x"], parts["x_low"], parts["x_high"]
    shape = _channels(x)
    width = shape[1] if x.ndim >= 2 else 1
    if low.shape != (width,) or high.shape != (width,):
        shapes = f"{tuple(low.shape)}, {tuple(high.shape)}"
        raise ReleaseError(f"codec 'uint8': {width} channels but ranges of shape {shapes}")
    if not bool((torch.isfinite(low) & torch.isfinite(high) & (low <= high)).all()):
        raise ReleaseError("codec 'uint8': the range of a channel is not finite or runs backwards")
    low, high = low.double().view(shape), high.double().view(shape)
    return (low + x.double() / 255 * (high - low)).to(torch.float32)


_Codec = tuple[Callable[[Tensor], dict[str, Tensor]], Callable[[Mapping[str, Tensor]], Tensor], dict[str, torch.dtype]]

#: name -> (encoder, decoder, dtype of each part)
_CODECS: dict[str, _Codec] = {
    "float32": (_to_float32, _from_float, {"x": torch.float32}),
    "float16": (_to_float16, _from_float, {"x": torch.float16}),
    "uint8": (
        _to_uint8,
        _from_uint8,
        {"x": torch.uint8, "x_low": torch.float32, "x_high": torch.float32},
    ),
}

#: The specification's long name for the same thing.
_ALIASES = {"uint8_affine": "uint8"}

CODECS = tuple(_CODECS)


def codec_name(codec: str) -> str:
    """The canonical name of a codec.

    Raises:
        UnknownNameError: no such codec; the near name is in the message.
    """
    name = _ALIASES.get(codec, codec)
    if name not in _CODECS:
        hint = suggest(str(codec), [*_CODECS, *_ALIASES])
        raise UnknownNameError(f"unknown codec {codec!r}.{hint} Possible: {one_of(_CODECS)}")
    return name


def encode(x: Tensor, codec: str) -> dict[str, Tensor]:
    """What travels instead of ``x``.

    ``uint8`` stores the lowest and highest value of each channel (8 bytes per channel) and is off by at most
    (high - low) / 510 per value, plus float32 rounding; a constant channel comes back exactly.

    Args:
        x: items, shape (m, channels, ...), floating, finite; ``m = 0`` is allowed.
        codec: one of `CODECS`.

    Returns:
        Tensors on the CPU: ``x`` in the codec's dtype and the shape of the input, and for ``uint8`` also
        ``x_low`` and ``x_high``, shape (channels,), float32.

    Raises:
        UnknownNameError: no such codec.
        ReleaseError: values are not floats, not finite, or do not fit in float16.
    """
    name = codec_name(codec)
    if not x.is_floating_point():
        raise ReleaseError(f"codec {name!r} takes floating items, got {x.dtype}")
    x = x.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(x).all()):
        raise ReleaseError(
            f"codec {name!r}: the set holds values that are not finite; lower the learning rate of the items"
        )
    return _CODECS[name][0](x)


def parts_of(codec: str) -> tuple[str, ...]:
    """Names of the tensors that `encode` returns."""
    return tuple(_CODECS[codec_name(codec)][2])


def decode(parts: Mapping[str, Tensor], codec: str) -> Tensor:
    """The items as they were sent, float32.

    Args:
        parts: what `encode` returned, perhaps after a journey; nothing about it is trusted.
        codec: the codec it was made with.

    Raises:
        UnknownNameError: no such codec.
        ReleaseError: a part is missing or of another dtype or shape.
    """
    name = codec_name(codec)
    _, decoder, dtypes = _CODECS[name]
    for part, dtype in dtypes.items():
        if part not in parts:
            raise ReleaseError(f"codec {name!r} needs {one_of(dtypes)}, got {one_of(sorted(parts))}")
        if parts[part].dtype != dtype:
            raise ReleaseError(f"codec {name!r}: {part!r} must be {dtype}, got {parts[part].dtype}")
    return decoder(parts)
