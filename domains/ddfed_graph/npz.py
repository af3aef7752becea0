"""Graphs in npz files: CitationFull and Amazon, and the sparse matrices of others. No pickle is read."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddfed.errors import DataError, one_of
from ddfed.sources import first_line
from ddfed_graph.catalog import DATASETS
from ddfed_graph.raw import Options, RawGraph, assembled, located, pitfalls_split

#: Classes of ``cora-full`` with fewer nodes are left out, as by Shchur et al. 2018, appendix A (50 nodes or less).
SMALLEST = {"cora-full": 51}

Arrays = Mapping[str, np.ndarray[Any, Any]]


def load_npz(name: str, root: Path | None, options: Options) -> RawGraph:
    """A set of CitationFull (Bojchevski and Günnemann 2018) or Amazon (Shchur et al. 2018).

    As in PyTorch Geometric the edges are made undirected and features above 0 become 1; rows are scaled to sum 1.
    """
    (file,) = DATASETS[name]["files"]
    stem = file.removesuffix(".npz")
    path = located(name, root, (file,), (stem, name.removeprefix("amazon-"))) / file
    csr = [f"{matrix}_{part}" for matrix in ("attr", "adj") for part in ("data", "indices", "indptr", "shape")]
    arrays = read_npz(path, [*csr, "labels"])
    features = dense(arrays, "attr_", path)
    labels, left_out = _large_classes(torch.from_numpy(arrays["labels"]).long(), SMALLEST.get(name, 1))
    classes = [str(label) for label in range(int(labels.max()) + 1)]
    return assembled(
        name,
        options,
        (features > 0).float(),
        entries(arrays, "adj_", path)[0],
        labels,
        pitfalls_split(labels, classes, options),
        f"{file}, {len(labels)} nodes",
        scaling="row",
        classes=classes,
        notes={"left_out": f"the labels of {left_out} classes with fewer than {SMALLEST[name]} nodes"}
        if left_out
        else {},
    )


def _large_classes(labels: Tensor, smallest: int) -> tuple[Tensor, int]:
    """Labels with the nodes of small classes unlabelled and the others renumbered, and how many were left out."""
    large = torch.bincount(labels) >= smallest
    renamed = torch.where(large, large.cumsum(0) - 1, -1)
    return renamed[labels], int((~large).sum())


def read_npz(path: Path, needed: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of an npz file by name, all when ``needed`` is empty.

    Raises:
        DataError: truncated or no npz file, an array is absent, or holds Python objects, which are pickled.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if isinstance(file, np.ndarray):
                raise DataError(f"{path} is an npy file with one array, expected npz with {one_of(needed)}")
            lost = [key for key in needed if key not in file.files]
            if lost:
                raise DataError(f"{path} lacks the arrays {one_of(lost)}; it holds {one_of(file.files)}")
            return {key: file[key] for key in needed or file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        if isinstance(error, DataError):
            raise
        raise unreadable(path, error) from None


def read_npy(path: Path) -> Tensor:
    """One array of numbers. Raises `DataError` when truncated, or pickled."""
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: BaseException) -> DataError:
    if "allow_pickle" in str(error):
        return DataError(
            f"{path} holds Python objects, which are pickled or truncated arrays; loading a pickle can run any code, "
            f"so it is refused. Save arrays of numbers."
        )
    return DataError(f"{path} is truncated or damaged: {first_line(error)}. Fetch it again.")


def entries(arrays: Arrays, prefix: str, path: Path) -> tuple[Tensor, Tensor]:
    """Places (2, entries) and values of a sparse matrix stored as CSR or COO, as SciPy names the parts.

    Raises:
        DataError: the parts do not fit each other.
    """
    rows, columns = (int(size) for size in arrays[f"{prefix}shape"])
    values = torch.from_numpy(arrays[f"{prefix}data"])
    if f"{prefix}row" in arrays:
        index = torch.from_numpy(np.stack([arrays[f"{prefix}row"], arrays[f"{prefix}col"]])).long()
    else:
        pointers = torch.from_numpy(arrays[f"{prefix}indptr"]).long()
        counts = pointers.diff()
        column = torch.from_numpy(arrays[f"{prefix}indices"]).long()
        if len(pointers) != rows + 1 or bool((counts < 0).any()) or int(counts.sum()) != len(column):
            raise DataError(f"{path}: {prefix}indptr does not describe {rows} rows with {len(column)} entries")
        index = torch.stack([torch.arange(rows).repeat_interleave(counts), column])
    size = torch.tensor([[rows], [columns]])
    if index.shape[1] != len(values) or bool((index < 0).any()) or bool((index >= size).any()):
        raise DataError(f"{path}: {len(values)} values of {prefix}data do not lie in a matrix of {rows}x{columns}")
    return index, values


def dense(arrays: Arrays, prefix: str, path: Path) -> Tensor:
    """A sparse matrix as a dense one, float32; repeated entries add up."""
    index, values = entries(arrays, prefix, path)
    matrix = torch.zeros(tuple(int(size) for size in arrays[f"{prefix}shape"]))
    return matrix.index_put_((index[0], index[1]), values.float(), accumulate=True)
