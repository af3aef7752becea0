"""A synthetic set in the forms that image tools read: class folders of PNG, and Hugging Face parquet.

Pictures are what `SyntheticSet.natural` gives, clamped and rounded to 8 bits: for looking at and for
training elsewhere. The exact values, and what was learned beside them, stay in the artifact, whose card is
copied along.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddfed.errors import ConfigError, DataError
from ddfed.files import write_bytes, write_json
from ddfed_image.render import to_bytes

if TYPE_CHECKING:
    from ddfed.artifact import SyntheticSet

PARQUET = "distilled.parquet"


def class_folders(names: tuple[str, ...]) -> list[str]:
    """One folder name per class, unique, in label order when sorted, safe on every file system.

    Example:
        >>> class_folders(("ankle boot", "../x"))
        ['0_ankle_boot', '1_x']
    """
    digits = len(str(len(names) - 1))
    safe = [re.sub(r"[^A-Za-z0-9-]+", "_", name).strip("_")[:60] or "class" for name in names]
    return [f"{label:0{digits}d}_{name}" for label, name in enumerate(safe)]


def write_folders(syn: SyntheticSet, folder: Path) -> list[Path]:
    """Write ``folder/CLASS/00000.png`` for every decoded row.

    Raises:
        ConfigError: a class folder already holds files; an old and a new set would mix.
        DataError: the set is empty or its items are no pictures.
        RunFolderError: a file cannot be written.
    """
    pictures, labels = _pictures(syn)
    names = class_folders(syn.info.classes)
    for name in names:
        if (folder / name).is_dir() and any((folder / name).iterdir()):
            raise ConfigError(
                f"{folder / name} already holds files, which would mix with the export; choose another folder"
            )
    written, counts = [], dict.fromkeys(names, 0)
    for picture, label in zip(pictures, labels):
        name = names[label]
        path = folder / name / f"{counts[name]:05d}.png"
        write_bytes(path, picture)
        counts[name] += 1
        written.append(path)
    return written


def write_parquet(syn: SyntheticSet, folder: Path) -> list[Path]:
    """Write one parquet file with the columns ``img`` (struct of bytes and path) and ``label``.

    Learned labels are kept in a third column ``target``, a list of numbers as the label store gives them (see
    the card for the loss that takes them). The schema metadata holds the features as Hugging Face reads
    them, class names included.

    Raises:
        DataError: the set is empty or its items are no pictures.
        RunFolderError: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures, labels = _pictures(syn)
    images = [{"bytes": picture, "path": f"{row:06d}.png"} for row, picture in enumerate(pictures)]
    columns: dict[str, Any] = {
        "img": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "label": pa.array(labels, pa.int64()),
    }
    features: dict[str, Any] = {
        "img": {"_type": "Image"},
        "label": {"names": list(syn.info.classes), "_type": "ClassLabel"},
    }
    targets = syn.decoded()[1]
    if targets.is_floating_point():
        columns["target"] = pa.array(targets.flatten(1).tolist(), pa.list_(pa.float32()))
        features["target"] = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    buffer = BytesIO()
    pq.write_table(table, buffer)
    write_bytes(folder / PARQUET, buffer.getvalue())
    return [folder / PARQUET]


def write_card(syn: SyntheticSet, folder: Path) -> Path:
    """Copy the card beside the export."""
    path = folder / "card.json"
    write_json(path, syn.card(syn.content_hash))
    return path


def _pictures(syn: SyntheticSet) -> tuple[list[bytes], list[int]]:
    """Every decoded row as a PNG file, and its class."""
    natural, classes = syn.natural()
    if not len(natural):
        raise DataError("an empty set cannot be exported; it holds no items")
    pixels = to_bytes(natural)
    grey = natural.shape[1] == 1
    return [_png(tile[:, :, 0] if grey else tile) for tile in pixels], classes.tolist()


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


FORMATS: dict[str, Callable[[SyntheticSet, Path], list[Path]]] = {
    "png": write_folders,
    "parquet": write_parquet,
}
