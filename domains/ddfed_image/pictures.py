"""Decoding encoded pictures with PIL, with errors that name them."""

from __future__ import annotations

import zlib
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddfed.errors import DataError
from ddfed.sources import first_line

if TYPE_CHECKING:
    import PIL.Image

#: Raster formats that are decoded. PIL knows more, some of which start other programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")


def opened(file: Path | BytesIO, where: str) -> PIL.Image.Image:
    from PIL import Image

    try:
        return Image.open(file, formats=FORMATS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} is no readable image ({first_line(error)}); repair or remove it") from None


def decoded(file: Path | BytesIO, where: str, channels: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """(height, width, channels) uint8, resized bilinearly if ``size`` asks for it."""
    from PIL import Image, ImageOps

    with opened(file, where) as picture:
        if picture.mode.startswith(("I", "F")):
            raise DataError(f"{where} has pixels of mode {picture.mode!r}; convert it to 8 bits per channel")
        try:
            upright = ImageOps.exif_transpose(picture)
            plain = upright.convert("L" if channels == 1 else "RGB")
            if size is not None and (plain.height, plain.width) != size:
                plain = plain.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            return np.asarray(plain).reshape(plain.height, plain.width, channels)
        except (OSError, ValueError, SyntaxError, zlib.error, Image.DecompressionBombError) as error:
            raise DataError(f"{where} is no readable image ({first_line(error)}); repair or remove it") from None
