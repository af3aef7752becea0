"""MNIST and Fashion-MNIST from IDX files, each gzipped or plain."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from ddfed.errors import DataError
from ddfed.sources import check_labels, data_folder, missing
from ddfed_image.names import FASHION
from ddfed_image.raw import Options, RawImages

_IDX_STEMS = {"train": "train", "test": "t10k"}
_IDX_IMAGES, _IDX_LABELS = 0x00000803, 0x00000801


def load_mnist(root: Path | None, options: Options) -> RawImages:
    """MNIST from its four IDX files, each gzipped or plain."""
    return _load_idx(
        root,
        "mnist",
        ("", "raw", "MNIST/raw"),
        tuple(str(digit) for digit in range(10)),
        (0.1307,),
        (0.3081,),
        False,
    )


def load_fashion(root: Path | None, options: Options) -> RawImages:
    """Fashion-MNIST from its four IDX files, each gzipped or plain."""
    return _load_idx(root, "fashion", ("", "raw", "FashionMNIST/raw"), FASHION, (0.2861,), (0.3530,), True)


def _load_idx(
    root: Path | None,
    name: str,
    places: tuple[str, ...],
    classes: tuple[str, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    mirrors: bool,
) -> RawImages:
    stems = [
        f"{prefix}-{kind}" for prefix in _IDX_STEMS.values() for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    root = data_folder(root, f"image/{name}", [f"{stem} or {stem}.gz" for stem in stems])
    files: dict[str, Path] = {}
    for stem in stems:
        # Some unpackers turn the last dash but one into a dot.
        spellings = (stem, stem.replace("-idx", ".idx"))
        tried = [root / place / f"{s}{end}" for place in places for s in spellings for end in ("", ".gz")]
        found = next((path for path in tried if path.is_file()), None)
        if found is None:
            raise missing(f"image/{name}", root, [f"{stem} or {stem}.gz"])
        files[stem] = found
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    for split, prefix in _IDX_STEMS.items():
        image_file, label_file = files[f"{prefix}-images-idx3-ubyte"], files[f"{prefix}-labels-idx1-ubyte"]
        inputs, labels = read_idx(image_file, _IDX_IMAGES), read_idx(label_file, _IDX_LABELS)
        if len(inputs) != len(labels):
            raise DataError(
                f"{image_file} holds {len(inputs)} images but {label_file} {len(labels)} labels; "
                f"the files belong to different sets"
            )
        check_labels(labels, len(classes), str(label_file))
        parts[split] = inputs[:, None], labels.long()
    if parts["train"][0].shape[1:] != parts["test"][0].shape[1:]:
        raise DataError(
            f"{name}: training images are {tuple(parts['train'][0].shape[2:])} pixels, "
            f"test images {tuple(parts['test'][0].shape[2:])}; the files belong to different sets"
        )
    return RawImages(
        *parts["train"],
        *parts["test"],
        classes,
        source=f"{name}, IDX files, official split ({len(parts['train'][1])} train, {len(parts['test'][1])} test)",
        mean=mean,
        std=std,
        mirrors=mirrors,
    )


def read_idx(path: Path, magic: int) -> Tensor:
    """One IDX file of unsigned bytes, gzipped if its first two bytes say so.

    Args:
        path: the file.
        magic: 0x803 for images (rows, height, width), 0x801 for labels (rows,).

    Raises:
        DataError: another magic number, no rows, fewer or more bytes than the header announces,
            or damaged gzip.
    """
    axes = magic & 0xFF
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            head = file.read(4 + 4 * axes)
            if len(head) < 4 + 4 * axes:
                raise DataError(f"{path} is truncated: {len(head)} bytes are too few for an IDX header")
            found, *shape = (int.from_bytes(head[i : i + 4], "big") for i in range(0, len(head), 4))
            if found != magic:
                raise DataError(
                    f"{path} has the magic number {found:#010x}, expected {magic:#010x} "
                    f"({'images' if magic == _IDX_IMAGES else 'labels'} as unsigned bytes); is it another "
                    f"file renamed?"
                )
            size = math.prod(shape)
            content = file.read(size + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is truncated or damaged: {error}. Fetch it again.") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    if len(content) != size or size == 0:
        state = "empty" if size == 0 else "truncated" if len(content) < size else "too long"
        raise DataError(
            f"{path} is {state}: its header announces {size} values {tuple(shape)}, "
            f"{'more follow' if len(content) > size else f'{len(content)} follow'}. Fetch it again."
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(*shape)
