"""Writers of tiny files in the real formats."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def idx_bytes(values: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes."""
    head = (0x0800 + values.ndim).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in values.shape)
    return head + values.astype(np.uint8).tobytes()


def write_idx_set(folder: Path, train: int = 20, test: int = 10, zipped: bool = False) -> dict[str, np.ndarray]:
    """The four files of an MNIST-like set; returns the arrays by stem."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    arrays = {}
    for prefix, rows in (("train", train), ("t10k", test)):
        arrays[f"{prefix}-images-idx3-ubyte"] = random.integers(0, 256, (rows, 28, 28), np.uint8)
        arrays[f"{prefix}-labels-idx1-ubyte"] = (np.arange(rows) % 10).astype(np.uint8)
    for stem, array in arrays.items():
        content = idx_bytes(array)
        if zipped:
            (folder / f"{stem}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / stem).write_bytes(content)
    return arrays


def cifar_records(rows: int, classes: int, label_bytes: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Records of the binary version, and the images and labels in them."""
    random = np.random.default_rng(rows)
    images = random.integers(0, 256, (rows, 3, 32, 32), np.uint8)
    labels = (np.arange(rows) % classes).astype(np.uint8)
    lead = np.full((rows, label_bytes), 7, np.uint8)  # the coarse label, to be ignored
    lead[:, -1] = labels
    return np.concatenate([lead, images.reshape(rows, -1)], 1).tobytes(), images, labels


def cifar_files(name: str) -> dict[str, bytes]:
    if name == "cifar10":
        names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
        return {file: cifar_records(10 + i, 10, 1)[0] for i, file in enumerate(names)}
    return {file: cifar_records(100 + i, 100, 2)[0] for i, file in enumerate(("train.bin", "test.bin"))}


def tar_gz(files: dict[str, bytes], inside: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{inside}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(
    path: Path, images: np.ndarray, labels: np.ndarray, column: str = "label", names: list[str] | None = None
) -> None:
    """Images (rows, H, W, 3) in the Hugging Face form."""
    rows = [{"bytes": png(image), "path": None} for image in images]
    table = pa.table({"img": rows, column: pa.array(labels, pa.int64())})
    if names:
        features = {"img": {"_type": "Image"}, column: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
