"""A graph of one's own: tables of nodes and edges, an npz or safetensors file, or a PyTorch Geometric `Data`."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddfed.errors import ConfigError, DataError, MissingDependencyError, one_of, suggest
from ddfed.sources import data_folder, first_line, missing
from ddfed_graph.catalog import DATASETS
from ddfed_graph.npz import dense, entries, read_npz
from ddfed_graph.raw import Options, RawGraph, Split, assembled, pitfalls_split

NODES, EDGES, CLASSES = "nodes.csv", "edges.csv", "classes.csv"
#: Cells of the column ``split``, and the part they mean; an empty one means no part.
PARTS = {"train": 0, "validation": 1, "valid": 1, "val": 1, "test": 2}
MASKS = ("train_mask", "val_mask", "test_mask")


@dataclass(frozen=True)
class _Own:
    """What a reader found; ``part`` holds 0, 1, 2 or -1 for each node, None without a split."""

    features: Tensor
    edges: Tensor
    weights: Tensor | None
    labels: Tensor
    part: Tensor | None
    classes: tuple[str, ...]


def load_file(root: Path | None, options: Options) -> RawGraph:
    """A graph of one's own; edges are made undirected, features stay as they are unless the options say otherwise.

    Args:
        root: a folder with ``nodes.csv`` (id, label, optionally split, and a column a feature) and ``edges.csv``
            (source, target, optionally weight), or with one file of the kinds below; or such a file itself.
            ``.npz``: x, or its CSR parts x_data, x_indices, x_indptr, x_shape; edge_index (2, entries), edge_attr, or
            adj_data, adj_indices, adj_indptr, adj_shape; y; optionally train_mask, val_mask, test_mask, classes.
            ``.safetensors``: x, edge_index, y; optionally edge_attr and the masks.
            ``.pt``: a `Data`, or a dict of its tensors, by `torch.save`.
        options: per_class, validation and split_seed make a split where the data has none.

    Raises:
        MissingDataError: no such file.
        DataError: something in the files is wrong; with the line for tables.
    """
    path = Path(root) if root is not None and Path(root).is_file() else _found(root)
    own = _from_tables(path) if path.is_dir() else _READERS[_suffix(path)](path)
    split = pitfalls_split(own.labels, own.classes, options) if own.part is None else _given(own.part, path, options)
    return assembled(
        "file",
        options,
        own.features,
        own.edges,
        own.labels,
        split,
        f"own graph {path.name!r}, {len(own.labels)} nodes",
        scaling="raw",
        classes=own.classes,
        weights=own.weights,
    )


def _found(root: Path | None) -> Path:
    """The folder if it holds tables, else the one file in it."""
    expected = DATASETS["file"]["files"]
    folder = data_folder(root, "graph/file", expected)
    tables = [name for name in (NODES, EDGES) if (folder / name).is_file()]
    if len(tables) == 2:
        return folder
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _READERS)
    if tables or not files:
        raise missing(
            "graph/file", folder, [name for name in (NODES, EDGES) if name not in tables] if tables else expected
        )
    if len(files) > 1:
        raise DataError(f"{folder} holds several graphs, {one_of(p.name for p in files)}; name the one file")
    return files[0]


def _suffix(path: Path) -> str:
    if path.suffix not in _READERS:
        raise DataError(
            f"{path} is no file of a known kind.{suggest(path.suffix, _READERS)} Possible: {one_of(_READERS)}, or a "
            f"folder with {NODES} and {EDGES}"
        )
    return path.suffix


def _given(part: Tensor, path: Path, options: Options) -> Split:
    idle = [key for key in ("per_class", "validation", "split_seed") if options.get(key) is not None]
    if idle:
        raise ConfigError(f"{path} has a split of its own, which option {idle[0]!r} would not change; leave it out")
    return Split.of(((part == kind).nonzero().flatten() for kind in range(3)), "split as given")


# --- tables -------------------------------------------------------------------------------------------------


def _from_tables(folder: Path) -> _Own:
    places, features, labels, part, classes = _read_nodes(folder)
    path = folder / EDGES
    ends: list[tuple[int, int]] = []
    weights: list[float] = []
    header, rows = _table(path, ("source", "target"))
    odd = [name for name in header if name not in ("source", "target", "weight")]
    if odd:
        raise DataError(f"{path} has the columns {one_of(odd)}; possible are 'source', 'target' and 'weight'")
    for line, row in rows:
        for key in ("source", "target"):
            if row[key] not in places:
                raise DataError(f"line {line} of {path}: {key} {row[key]!r} is no id of {NODES}")
        ends.append((places[row["source"]], places[row["target"]]))
        if "weight" in header:
            weights.append(_number(row["weight"], f"line {line} of {path}: weight"))
            if weights[-1] <= 0:
                raise DataError(f"line {line} of {path}: weight {row['weight']} is not above 0; leave the edge out")
    edges = torch.tensor(ends, dtype=torch.int64).reshape(-1, 2).T
    return _Own(features, edges, torch.tensor(weights) if "weight" in header else None, labels, part, classes)


def _read_nodes(folder: Path) -> tuple[dict[str, int], Tensor, Tensor, Tensor | None, tuple[str, ...]]:
    """Place of each id, features, labels, parts and class names."""
    path = folder / NODES
    header, rows = _table(path, ("id", "label"))
    columns = [name for name in header if name not in ("id", "label", "split")]
    if not columns:
        raise DataError(f"{path} has no feature columns, only {one_of(header)}; every other column is a feature")
    places: dict[str, int] = {}
    features: list[list[float]] = []
    labels: list[str] = []
    lines: list[int] = []
    parts: list[int] = []
    for line, row in rows:
        where = f"line {line} of {path}"
        if row["id"] in places:
            raise DataError(f"{where}: id {row['id']!r} was given before, on line {lines[places[row['id']]]}")
        part = row.get("split", "train").lower()
        if part and part not in PARTS:
            raise DataError(f"{where}: unknown split {part!r}. Possible: {one_of(PARTS)}, or nothing")
        if part and not row["label"]:
            raise DataError(
                f"{where}: the label is empty. A node without a label belongs to no part: leave its cell in the "
                f"column 'split' empty too"
            )
        places[row["id"]] = len(places)
        features.append([_number(row[name], f"{where}: feature {name!r}") for name in columns])
        labels.append(row["label"])
        lines.append(line)
        parts.append(PARTS.get(part, -1))
    if not places:
        raise DataError(f"{path} holds no nodes, only its header")
    classes = _class_names(folder, labels)
    number = {"": -1} | {name: label for label, name in enumerate(classes)}
    for line, label in zip(lines, labels):
        if label not in number:
            raise DataError(f"line {line} of {path}: label {label!r} is none of {CLASSES}: {one_of(classes)}")
    return (
        places,
        torch.tensor(features),
        torch.tensor([number[label] for label in labels]),
        torch.tensor(parts) if "split" in header else None,
        classes,
    )


def _class_names(folder: Path, labels: Sequence[str]) -> tuple[str, ...]:
    """In the order of ``classes.csv`` if there is one, else sorted, numbers as such."""
    path = folder / CLASSES
    if not path.is_file():
        found = set(labels) - {""}
        whole = all(name.isdecimal() for name in found)
        return tuple(sorted(found, key=lambda name: (int(name), name) if whole else (0, name)))
    names: dict[str, int] = {}
    for line, row in _table(path, ("name",))[1]:
        if row["name"] in names or not row["name"]:
            raise DataError(f"line {line} of {path}: name {row['name']!r} is empty or was given before")
        names[row["name"]] = line
    return tuple(names)


def _table(path: Path, needed: Sequence[str]) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """The header, and the line number and cells of each row."""
    lines = _lines(path)
    _, header = next(lines, (0, []))
    lost = [name for name in needed if name not in header]
    if lost:
        raise DataError(f"{path} lacks the columns {one_of(lost)}; its first line has {one_of(header) or 'nothing'}")
    twice = [name for name in set(header) if header.count(name) > 1]
    if twice or "" in header:
        raise DataError(f"{path} has columns without a name or of the same name: {one_of(sorted(twice) or [''])}")

    def rows() -> Iterator[tuple[int, dict[str, str]]]:
        for line, cells in lines:
            if len(cells) != len(header):
                raise DataError(f"line {line} of {path} has {len(cells)} cells, expected {len(header)}")
            yield line, dict(zip(header, cells))

    return header, rows()


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and stripped cells of every line that is not blank."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                if cells:
                    yield reader.line_num, [cell.strip() for cell in cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no readable CSV file in UTF-8: {first_line(error)}") from None


def _number(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise DataError(f"{where} is {cell!r}, which is no number") from None
    if not math.isfinite(value):
        raise DataError(f"{where} is {cell!r}, which is not finite")
    return value


# --- arrays and tensors -------------------------------------------------------------------------------------


def _from_npz(path: Path) -> _Own:
    arrays = read_npz(path, [])
    found: dict[str, Any] = {}
    for key, array in arrays.items():
        if array.dtype.kind in "biuf":
            found[key] = torch.from_numpy(array)
    _need_csr(arrays, "x", path)
    if "x_data" in arrays:
        found["x"] = dense(arrays, "x_", path)
    if "edge_index" not in arrays:
        _need_csr(arrays, "adj", path, instead="edge_index")
        found["edge_index"], found["edge_attr"] = entries(arrays, "adj_", path)
    return _from_tensors(found, path, tuple(str(name) for name in arrays.get("classes", np.empty(0))))


def _need_csr(arrays: Mapping[str, Any], prefix: str, path: Path, instead: str = "x") -> None:
    parts = [f"{prefix}_{part}" for part in ("data", "indices", "indptr", "shape")]
    lost = [part for part in parts if part not in arrays]
    if lost and instead not in arrays:
        raise DataError(f"{path} has neither {instead!r} nor all of {one_of(parts)}; it holds {one_of(arrays)}")


def _from_safetensors(path: Path) -> _Own:
    return _from_tensors(*read_safetensors(path))


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Path, tuple[str, ...]]:
    """Tensors of a safetensors file, its path, and the class names if its metadata has some.

    Raises:
        DataError: not readable, truncated or another kind of file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = json.loads((file.metadata() or {}).get("classes", "[]"))
            return {key: file.get_tensor(key) for key in file.keys()}, path, tuple(map(str, names))  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise DataError(f"{path} is absent, truncated or no safetensors file: {first_line(error)}") from None


def _from_pyg(path: Path) -> _Own:
    """A saved `Data`, a dict of tensors, or what the data sets of PyTorch Geometric keep in ``processed``."""
    try:
        from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
        from torch_geometric.data.storage import GlobalStorage
    except ImportError:
        raise MissingDependencyError(
            f'{path} needs torch_geometric, which is not installed: pip install "ddfed[graph]"'
        ) from None
    try:
        # PyTorch Geometric allows its Data, and forgets the plain records that every Data holds.
        with torch.serialization.safe_globals([DataEdgeAttr, DataTensorAttr, GlobalStorage]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise DataError(
            f"{path} holds more than tensors and a PyTorch Geometric Data, and opening that can run any code, so it "
            f"is refused: {_refused(error)}. Save tensors alone: torch.save(Data(x=x, edge_index=e, y=y), path)."
        ) from None
    except Exception as error:  # a damaged archive can raise anything
        raise DataError(f"{path} is truncated or damaged: {first_line(error)}") from None
    if isinstance(found, tuple):  # (content, slices, class)
        if len(found) > 1 and found[1]:
            raise DataError(f"{path} holds several graphs; expected one")
        found = found[0]
    if not isinstance(found, dict):
        if not hasattr(found, "to_dict"):
            raise DataError(
                f"{path} holds {type(found).__name__}, expected a PyTorch Geometric Data or a dict of tensors"
            )
        found = found.to_dict()
    return _from_tensors({k: v for k, v in found.items() if isinstance(v, Tensor)}, path, ())


def _refused(error: BaseException) -> str:
    """The line of torch's long message that names what it found."""
    told = [line.strip() for line in str(error).splitlines() if "nsupported" in line or "GLOBAL" in line]
    return (told or [first_line(error)])[0].partition(". ")[0]


def _from_tensors(found: Mapping[str, Tensor], path: Path, classes: tuple[str, ...]) -> _Own:
    lost = [key for key in ("x", "edge_index", "y") if key not in found]
    if lost:
        raise DataError(f"{path} lacks {one_of(lost)}; it holds {one_of(found)}")
    x, edges, labels = found["x"], found["edge_index"], found["y"]
    x = x.to_dense() if x.layout != torch.strided else x
    n = len(x) if x.ndim == 2 else -1
    if n < 0 or edges.ndim != 2 or len(edges) != 2 or edges.is_floating_point() or labels.numel() != n:
        raise DataError(
            f"{path}: expected x (n, features), edge_index (2, entries) of whole numbers and y (n,), got "
            f"x {tuple(x.shape)}, edge_index {tuple(edges.shape)} {edges.dtype}, y {tuple(labels.shape)}"
        )
    labels = labels.flatten()
    if labels.is_floating_point() or (n and int(labels.min()) < -1):
        raise DataError(f"{path}: y must hold class numbers from 0, or -1 for no label, got {labels.dtype} values")
    if not classes:
        classes = tuple(str(c) for c in range(int(labels.max()) + 1)) if n else ()
    return _Own(x, edges.long(), _weights(found, edges.shape[1], path), labels, _parts(found, n, path), classes)


def _weights(found: Mapping[str, Tensor], entries: int, path: Path) -> Tensor | None:
    weights = found.get("edge_attr", found.get("edge_weight"))
    if weights is None:
        return None
    if weights.numel() != entries:
        raise DataError(f"{path}: {entries} edges need one weight each, got {tuple(weights.shape)}; leave them out")
    weights = weights.flatten().float()
    if not bool(((weights > 0) & weights.isfinite()).all()):
        raise DataError(f"{path}: weights of edges must be finite and above 0; leave out edges without weight")
    return weights


def _parts(found: Mapping[str, Tensor], n: int, path: Path) -> Tensor | None:
    part = torch.full((n,), -1)
    masks = {kind: found[key] for kind, key in enumerate(MASKS) if key in found}
    for kind, mask in masks.items():
        if mask.shape != (n,) or mask.dtype != torch.bool:
            raise DataError(
                f"{path}: {MASKS[kind]} must be ({n},) of true and false, got {tuple(mask.shape)} {mask.dtype}; "
                f"of several splits keep one column"
            )
        if bool((part[mask] >= 0).any()):
            raise DataError(f"{path}: {int((part[mask] >= 0).sum())} nodes of {MASKS[kind]} are in another mask too")
        part[mask] = kind
    return part if masks else None


_READERS = {".npz": _from_npz, ".safetensors": _from_safetensors, ".pt": _from_pyg, ".pth": _from_pyg}
