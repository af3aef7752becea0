"""Sets of graphs in the text files of the TU collection. Nothing is downloaded, and nothing is written beside them.

NAME_A.txt has a line for each edge, the numbers of two nodes; NAME_graph_indicator.txt one for each node, the number
of its graph; NAME_graph_labels.txt one for each graph, its class; NAME_node_labels.txt and NAME_node_attributes.txt one
for each node. Numbers begin at 1. Labels and attributes of edges are not read: the networks have no use for them.

Source: Morris et al., TUDataset: A collection of benchmark datasets for learning with graphs, 2020.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddfed.errors import ConfigError, DataError, one_of, suggest
from ddfed.sources import first_line
from ddfed_graph.raw import Options, located
from ddfed_graph.set_catalog import SETS
from ddfed_graph.sets import RawSet

#: What the features of a node are made of, and the file it is in.
FEATURES = {"labels": "node_labels", "attributes": "node_attributes", "degrees": ""}


def load(name: str, root: Path | None, options: Options) -> RawSet:
    """One of the TU sets.

    Args:
        name: of the set.
        root: the folder with the files, or one above it (``raw``, NAME, NAME/raw).
        options: ``node_features``: ``labels``, one-hot, a block for each column; ``attributes``, as they are; or
            ``degrees``, one-hot.
    """
    files = SETS[name]["files"]
    prefix = files[0].removesuffix("_A.txt")
    kind = options.get("node_features") or SETS[name]["node_features"]
    if kind not in FEATURES:
        raise ConfigError(
            f"unknown option node_features = {kind!r}.{suggest(str(kind), FEATURES)} Possible: {one_of(FEATURES)}"
        )
    needed = [f"{prefix}_{stem}.txt" for stem in ("A", "graph_indicator", "graph_labels", FEATURES[kind]) if stem]
    folder = located(name, root, needed, (prefix.lower(),))
    return read(folder, prefix, kind)


def read(folder: Path, prefix: str, kind: str) -> RawSet:
    """Graphs of the files PREFIX_*.txt.

    Args:
        folder: that holds them.
        prefix: of their names.
        kind: of features, one of `FEATURES`.

    Raises:
        DataError: a file is no table of numbers, or files do not fit each other; names the file and the line.
    """
    indicator_file, labels_file, edges_file = (
        folder / f"{prefix}_{stem}.txt" for stem in ("graph_indicator", "graph_labels", "A")
    )
    values, labels = torch.unique(_numbers(labels_file, 1)[:, 0], return_inverse=True)
    graph = _numbers(indicator_file, 1)[:, 0] - 1
    _within(graph, len(labels), indicator_file, "graph", labels_file.name)
    sizes = torch.bincount(graph, minlength=len(labels))
    if bool((sizes == 0).any()):
        raise DataError(f"{indicator_file}: graph {int((sizes == 0).nonzero()[0]) + 1} of {len(labels)} has no node")
    edges = (_numbers(edges_file, 2) - 1).T.contiguous()
    _within(edges, len(graph), edges_file, "node", indicator_file.name)
    across = (graph[edges[0]] != graph[edges[1]]).nonzero().flatten()
    if len(across):
        line = int(across[0])
        ends = (edges[:, line] + 1).tolist()
        raise DataError(f"line {line + 1} of {edges_file}: nodes {ends[0]} and {ends[1]} are of different graphs")
    features_file = folder / f"{prefix}_{FEATURES[kind]}.txt"
    x = _degrees(edges, len(graph)) if kind == "degrees" else _of_nodes(features_file, kind)
    if len(x) != len(graph):
        raise DataError(f"{features_file} has {len(x)} lines, and {indicator_file.name} has {len(graph)}")
    return RawSet(
        graph,
        x,
        edges,
        labels,
        tuple(str(value) for value in values.tolist()),
        f"{prefix} of the TU collection, {len(labels)} graphs",
        notes={"node_features": {"labels": "one-hot labels", "degrees": "one-hot degrees"}.get(kind, kind)},
    )


def _of_nodes(path: Path, kind: str) -> Tensor:
    if kind == "attributes":
        return _numbers(path, None, np.float64).float()
    return torch.cat([one_hot(column) for column in _numbers(path, None).T], 1)


def one_hot(values: Tensor) -> Tensor:
    """(n,) whole numbers -> (n, distinct values) float32, columns in ascending order."""
    distinct, place = torch.unique(values, return_inverse=True)
    return torch.nn.functional.one_hot(place, len(distinct)).float()


def _degrees(edges: Tensor, nodes: int) -> Tensor:
    """One-hot numbers of neighbours, (nodes, distinct ones)."""
    both = torch.cat([edges, edges.flip(0)], 1)
    both = torch.unique(both[:, both[0] != both[1]], dim=1)
    return one_hot(torch.bincount(both[0], minlength=nodes))


def _numbers(path: Path, columns: int | None, dtype: Any = np.int64) -> Tensor:
    """A table of numbers between commas, (lines, columns)."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        found = np.loadtxt(lines, delimiter=",", dtype=dtype, ndmin=2, comments=None) if any(lines) else None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no table of {np.dtype(dtype).name} numbers: {first_line(error)}") from None
    if found is None:
        raise DataError(f"{path} is empty")
    if columns is not None and found.shape[1] != columns:
        raise DataError(f"{path} has {found.shape[1]} numbers a line, expected {columns}")
    if not np.isfinite(found).all():
        raise DataError(f"line {int(np.argwhere(~np.isfinite(found))[0, 0]) + 1} of {path} is not finite")
    return torch.from_numpy(found)


def _within(numbers: Tensor, count: int, path: Path, what: str, other: str) -> None:
    """Refuse numbers (..., lines), 0-based, that name nothing."""
    wrong = ((numbers < 0) | (numbers >= count)).reshape(-1, numbers.shape[-1])
    if bool(wrong.any()):
        line = int(wrong.any(0).nonzero()[0])
        given = int(numbers.reshape(-1, numbers.shape[-1])[wrong[:, line], line][0]) + 1
        raise DataError(f"line {line + 1} of {path}: there is no {what} {given}, {other} counts {count}")
