"""A picture of a synthetic set: one row per class, its name at the left."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ddfed.errors import ConfigError, DataError
from ddfed.files import write_bytes

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from ddfed.artifact import SyntheticSet

TILE = 48  # smallest side of a tile, pixels
GAP = 2
NAME_LENGTH = 16


def to_bytes(natural: torch.Tensor) -> np.ndarray:
    """(rows, C, H, W) pixels in [0, 1] -> (rows, H, W, 3) uint8; one grey channel is repeated.

    Raises:
        DataError: neither 1 nor 3 channels.
    """
    if natural.ndim != 4 or natural.shape[1] not in (1, 3):
        raise DataError(f"a picture needs items of 1 or 3 channels, got rows of shape {tuple(natural.shape[1:])}")
    pixels = (natural.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()


def grid(syn: SyntheticSet, path: Path, per_class: int = 10) -> Path:
    """Write a PNG with up to ``per_class`` decoded rows of every class held.

    Tiles are enlarged by a whole factor without smoothing, so that single pixels stay visible.

    Raises:
        ConfigError: ``per_class`` below 1.
        DataError: the set is empty, or its items are no pictures.
        RunFolderError: the file cannot be written.
    """
    if per_class < 1:
        raise ConfigError(f"per_class must be at least 1, got {per_class}")
    natural, classes = syn.natural()
    if not len(natural):
        raise DataError("an empty set cannot be shown; it holds no items")
    pixels = to_bytes(natural)
    rows = [(int(label), pixels[(classes == label).numpy()][:per_class]) for label in classes.unique()]
    buffer = BytesIO()
    _paint(rows, syn.info.classes).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
    return path


def _paint(rows: list[tuple[int, np.ndarray]], names: tuple[str, ...]) -> Picture:
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default()
    texts = [name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 3] + "..." for name in names]
    left = max(int(font.getlength(_drawable(texts[label]))) for label, _ in rows) + 4 * GAP
    height, width = rows[0][1].shape[1:3]
    factor = -(-TILE // min(height, width))
    high, wide = height * factor + GAP, width * factor + GAP
    canvas = Image.new(
        "RGB", (left + wide * max(len(tiles) for _, tiles in rows) + GAP, high * len(rows) + GAP), "white"
    )
    pen = ImageDraw.Draw(canvas)
    for line, (label, tiles) in enumerate(rows):
        top = GAP + line * high
        pen.text((2 * GAP, top + high // 2), _drawable(texts[label]), fill="black", font=font, anchor="lm")
        for column, tile in enumerate(tiles):
            enlarged = Image.fromarray(tile).resize((width * factor, height * factor), Image.Resampling.NEAREST)
            canvas.paste(enlarged, (left + column * wide, top))
    return canvas


def _drawable(text: str) -> str:
    """The built-in bitmap font knows Latin-1 only."""
    return text.replace("\n", " ").encode("latin-1", "replace").decode("latin-1")
