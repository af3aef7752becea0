"""CIFAR-10 and CIFAR-100: the binary archive, packed or not, or Hugging Face parquet. Never the pickles."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddfed.errors import DataError, MissingDataError, one_of
from ddfed.sources import check_labels, data_folder, first_line, missing
from ddfed_image import cache
from ddfed_image.names import CIFAR10, CIFAR100
from ddfed_image.pictures import decoded
from ddfed_image.raw import Options, RawImages


@dataclass(frozen=True)
class _Cifar:
    name: str
    classes: tuple[str, ...]
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    archive: str
    places: tuple[str, ...]
    label_bytes: int  # the class is the last of them
    label_column: str
    pickles: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


_CIFAR10 = _Cifar(
    name="cifar10",
    classes=CIFAR10,
    train_files=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test_files=("test_batch.bin",),
    archive="cifar-10-binary.tar.gz",
    places=("", "cifar-10-batches-bin"),
    label_bytes=1,
    label_column="label",
    pickles=("cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1", "test_batch"),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
)
_CIFAR100 = _Cifar(
    name="cifar100",
    classes=CIFAR100,
    train_files=("train.bin",),
    test_files=("test.bin",),
    archive="cifar-100-binary.tar.gz",
    places=("", "cifar-100-binary"),
    label_bytes=2,
    label_column="fine_label",
    pickles=("cifar-100-python", "cifar-100-python.tar.gz", "train", "test"),
    mean=(0.5071, 0.4866, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


def load_cifar10(root: Path | None, options: Options) -> RawImages:
    """CIFAR-10 from the binary archive (packed or not) or from Hugging Face parquet."""
    return _load_cifar(root, _CIFAR10)


def load_cifar100(root: Path | None, options: Options) -> RawImages:
    """CIFAR-100, fine labels, from the binary archive (packed or not) or from Hugging Face parquet."""
    return _load_cifar(root, _CIFAR100)


def _load_cifar(root: Path | None, kind: _Cifar) -> RawImages:
    expected = [
        f"{', '.join(kind.train_files + kind.test_files)} (the binary version, unpacked)",
        f"{kind.archive} (the same, packed)",
        "train.parquet and test.parquet, or train-00000-of-0000N.parquet ... (Hugging Face), here or below "
        f"{one_of(_PARQUET_PLACES[1:])}",
    ]
    root = data_folder(root, f"image/{kind.name}", expected)
    for place in kind.places:
        folder = root / place
        if (folder / kind.train_files[0]).is_file() or (folder / kind.test_files[0]).is_file():
            return _from_binary(folder, kind)
    if (root / kind.archive).is_file():
        return _from_archive(root / kind.archive, kind)
    files = _parquet_files(root)
    if files["train"] or files["test"]:
        return _from_parquet(root, files, kind)
    pickled = [name for name in kind.pickles if (root / name).exists()]
    if pickled:
        raise DataError(
            f"{root / pickled[0]} belongs to the Python version of {kind.name}, which is made of pickles; "
            f"loading a pickle can run any code, so it is refused. Use the binary version ({kind.archive}) "
            f"or the parquet files instead."
        )
    raise missing(f"image/{kind.name}", root, expected)


def _from_binary(folder: Path, kind: _Cifar) -> RawImages:
    def content(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except FileNotFoundError:
            raise missing(f"image/{kind.name}", folder, [name]) from None
        except OSError as error:
            raise DataError(f"cannot read {folder / name}: {error.strerror or error}") from None

    return _from_records(content, str(folder), kind, "binary version")


def _from_archive(path: Path, kind: _Cifar) -> RawImages:
    wanted = set(kind.train_files + kind.test_files)
    contents: dict[str, bytes] = {}
    try:
        # Streamed and read into memory: no member's path is ever used to write anything.
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if member.isfile() and name in wanted:
                    file = archive.extractfile(member)
                    contents[name] = file.read() if file else b""
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path} is truncated or no gzipped tar archive: {error}. Fetch it again.") from None

    def content(name: str) -> bytes:
        if name not in contents:
            raise DataError(f"{path} lacks {name}; it holds {one_of(sorted(contents)) or 'none of the expected files'}")
        return contents[name]

    return _from_records(content, str(path), kind, "binary archive")


def _from_records(content: Callable[[str], bytes], where: str, kind: _Cifar, form: str) -> RawImages:
    parts: list[Tensor] = []
    record = kind.label_bytes + 3 * 32 * 32
    for names in (kind.train_files, kind.test_files):
        inputs, labels = [], []
        for name in names:
            found = content(name)
            if not found or len(found) % record:
                raise DataError(
                    f"{name} of {where} is truncated or foreign: its {len(found)} bytes are no whole number "
                    f"of records of {record}. Fetch it again."
                )
            rows = torch.frombuffer(bytearray(found), dtype=torch.uint8).view(-1, record)
            label = rows[:, kind.label_bytes - 1].long()
            check_labels(label, len(kind.classes), f"{name} of {where}")
            inputs.append(rows[:, kind.label_bytes :].reshape(-1, 3, 32, 32))
            labels.append(label)
        parts += [torch.cat(inputs), torch.cat(labels)]
    return _cifar(parts, kind.classes, kind, form)


def _cifar(parts: list[Tensor], classes: tuple[str, ...], kind: _Cifar, form: str) -> RawImages:
    return RawImages(
        parts[0],
        parts[1],
        parts[2],
        parts[3],
        classes,
        source=f"{kind.name}, {form}, official split ({len(parts[1])} train, {len(parts[3])} test)",
        mean=kind.mean,
        std=kind.std,
    )


_PARQUET_PLACES = ("", "data", "plain_text", "cifar10", "cifar100")


def _parquet_files(root: Path) -> dict[str, list[Path]]:
    for place in _PARQUET_PLACES:
        folder = root / place
        found = {
            split: sorted([*folder.glob(f"{split}.parquet"), *folder.glob(f"{split}-*-of-*.parquet")])
            for split in ("train", "test")
        }
        if found["train"] or found["test"]:
            return found
    return {"train": [], "test": []}


def _from_parquet(root: Path, files: dict[str, list[Path]], kind: _Cifar) -> RawImages:
    for split, paths in files.items():
        if not paths:
            raise missing(f"image/{kind.name}", root, [f"{split}.parquet or {split}-00000-of-0000N.parquet"])
        _check_shards(paths)
    every = files["train"] + files["test"]
    names = _class_names(every[0], kind)

    def decode() -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for split, paths in files.items():
            shards = [_read_parquet(path, kind, len(names)) for path in paths]
            found[f"{split}_inputs"] = torch.cat([inputs for inputs, _ in shards])
            found[f"{split}_labels"] = torch.cat([labels for _, labels in shards])
        return found

    found = cache.remembered(f"{kind.name}-parquet-1", every, decode)
    parts = [found[f"{split}_{part}"] for split in ("train", "test") for part in ("inputs", "labels")]
    return _cifar(parts, names, kind, "Hugging Face parquet")


def _check_shards(paths: list[Path]) -> None:
    """Refuse an incomplete set of shards ``train-00000-of-00003.parquet``."""
    total = paths[0].stem.rpartition("-of-")[2]
    if total.isdigit() and len(paths) != int(total):
        raise MissingDataError(
            f"{paths[0].parent} holds {len(paths)} of {int(total)} shards: {one_of(p.name for p in paths)}. "
            f"Fetch the others."
        )


def _class_names(path: Path, kind: _Cifar) -> tuple[str, ...]:
    """Names from the schema metadata, whose order the labels follow; the usual ones if there are none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no readable parquet file: {first_line(error)}. Fetch it again.") from None
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][kind.label_column]["names"]
    except (KeyError, TypeError, ValueError):
        return kind.classes
    if not isinstance(names, list) or len(names) != len(kind.classes):
        raise DataError(
            f"{path} names {len(names)} classes for {kind.label_column!r}, {kind.name} has "
            f"{len(kind.classes)}; is it another set?"
        )
    return tuple(str(name) for name in names)


def _read_parquet(path: Path, kind: _Cifar, classes: int) -> tuple[Tensor, Tensor]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_schema(path).names
        image = next((name for name in ("img", "image") if name in columns), None)
        if image is None or kind.label_column not in columns:
            raise DataError(
                f"{path} has the columns {one_of(columns)}; {kind.name} needs 'img' (a struct with "
                f"'bytes') and {kind.label_column!r}"
            )
        table = pq.read_table(path, columns=[image, kind.label_column])
        kind_of_image = table.schema.field(image).type
        if not pa.types.is_struct(kind_of_image) or kind_of_image.get_field_index("bytes") < 0:
            raise DataError(f"column {image!r} of {path} is {kind_of_image}, expected a struct with the field 'bytes'")
        labels = torch.tensor(table[kind.label_column].to_pylist(), dtype=torch.int64)
        encoded = pa.chunked_array([chunk.field("bytes") for chunk in table[image].chunks]).to_pylist()
    except DataError:
        raise
    except (pa.ArrowException, OSError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no readable parquet file: {first_line(error)}. Fetch it again.") from None
    check_labels(labels, classes, str(path))
    inputs = np.empty((len(encoded), 32, 32, 3), np.uint8)
    for row, content in enumerate(encoded):
        picture = decoded(BytesIO(content or b""), f"row {row} of {path}", 3)
        if picture.shape != inputs.shape[1:]:
            raise DataError(f"row {row} of {path} is {picture.shape[1]}x{picture.shape[0]} pixels, expected 32x32")
        inputs[row] = picture
    return torch.from_numpy(inputs).permute(0, 3, 1, 2).contiguous(), labels
