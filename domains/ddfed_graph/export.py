"""A condensed graph in the forms that graph tools read. No pickle is written.

Nodes keep their order; edges are the entries of the adjacency above the threshold, the diagonal left out (networks
add self-loops of their own). A graph without structure has no edges.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from ddfed.errors import DataError, UnknownNameError, one_of, suggest
from ddfed.files import write_bytes, write_json, write_text
from ddfed_graph.facts import weighted_edges
from ddfed_graph.own import CLASSES, EDGES, NODES, read_safetensors

if TYPE_CHECKING:
    from torch_geometric.data import Data

TENSORS, GRAPHML, ARRAYS = "graph.safetensors", "graph.graphml", "graph.npz"
#: GraphML spells every number out; with more features than these it holds the structure and the labels only.
GRAPHML_FEATURES = 64


@dataclass(frozen=True, eq=False)
class _Condensed:
    x: Tensor  # (n', d) float32
    edges: Tensor  # (2, entries)
    weights: Tensor  # (entries,)
    y: Tensor  # (n',) int64
    classes: tuple[str, ...]


def write(
    fmt: str,
    folder: Path,
    x: Tensor,
    adjacency: Tensor | None,
    y: Tensor,
    classes: tuple[str, ...],
    threshold: float = 0.0,
    card: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write a condensed graph.

    Args:
        fmt: ``pyg``: tensors that `load_pyg` makes a PyTorch Geometric `Data` of. ``graphml``: for Gephi, Cytoscape,
            networkx; more than `GRAPHML_FEATURES` features are left out, and its description says so. ``csv``:
            ``nodes.csv``, ``edges.csv`` and ``classes.csv``, and ``npz``, CSR arrays: both read by the data set
            ``file``.
        folder: made if absent.
        x: X', (n', d).
        adjacency: A', (n', n') weights; None for the identity.
        y: class numbers, (n',).
        classes: their names.
        threshold: weights above it are edges, at least 0.
        card: written beside as ``card.json``.

    Raises:
        UnknownNameError: no such format.
        DataError: shapes do not fit, or nothing to write.
        RunFolderError: a file cannot be written.
    """
    if fmt not in FORMATS:
        raise UnknownNameError(f"unknown export format {fmt!r}.{suggest(fmt, FORMATS)} Possible: {one_of(FORMATS)}")
    edges, weights = weighted_edges(adjacency, threshold)
    n = len(y)
    if x.ndim != 2 or len(x) != n or (adjacency is not None and len(adjacency) != n):
        given = ", ".join(str(tuple(part.shape)) for part in (x, adjacency, y) if part is not None)
        raise DataError(f"expected x (n, d), adjacency (n, n) or None, and y (n,), got {given}")
    if not n or int(y.min()) < 0 or int(y.max()) >= len(classes):
        raise DataError(f"{n} nodes with labels out of the {len(classes)} classes; an empty graph cannot be exported")
    graph = _Condensed(x.detach().float().cpu(), edges, weights, y.detach().long().cpu(), classes)
    written = FORMATS[fmt](graph, Path(folder))
    if card is not None:
        written.append(Path(folder) / "card.json")
        write_json(written[-1], dict(card))
    return written


def load_pyg(path: Path) -> Data:
    """A graph written as ``pyg`` as a PyTorch Geometric `Data`.

    It has x, edge_index, edge_attr (entries,), y and train_mask (all true), and the names of the classes as
    ``class_names``. Give ``edge_attr`` to layers as ``edge_weight``.

    Raises:
        DataError: no such file, or a damaged one.
    """
    from torch_geometric.data import Data

    tensors, _, names = read_safetensors(Path(path))
    return Data(**tensors, class_names=list(names))


def _write_pyg(graph: _Condensed, folder: Path) -> list[Path]:
    from safetensors.torch import save

    tensors = {
        "x": graph.x.contiguous(),
        "edge_index": graph.edges,
        "edge_attr": graph.weights,
        "y": graph.y,
        "train_mask": torch.ones(len(graph.y), dtype=torch.bool),
    }
    write_bytes(folder / TENSORS, save(tensors, {"classes": json.dumps(graph.classes)}))
    return [folder / TENSORS]


def _write_csv(graph: _Condensed, folder: Path) -> list[Path]:
    columns = [f"x{i}" for i in range(graph.x.shape[1])]
    nodes = (
        [row, graph.classes[label], "train", *features]
        for row, (label, features) in enumerate(zip(graph.y.tolist(), graph.x.tolist()))
    )
    edges = ([a, b, weight] for (a, b), weight in zip(graph.edges.T.tolist(), graph.weights.tolist()) if a < b)
    write_csv_table(folder / NODES, ["id", "label", "split", *columns], nodes)
    write_csv_table(folder / EDGES, ["source", "target", "weight"], edges)
    write_csv_table(folder / CLASSES, ["name"], ([name] for name in graph.classes))
    return [folder / NODES, folder / EDGES, folder / CLASSES]


def write_csv_table(path: Path, header: list[str], rows: Iterable[list[Any]]) -> None:
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _write_npz(graph: _Condensed, folder: Path) -> list[Path]:
    n = len(graph.y)
    counts = torch.bincount(graph.edges[0], minlength=n)
    buffer = BytesIO()
    np.savez(
        buffer,
        x=graph.x.numpy(),
        y=graph.y.numpy(),
        train_mask=np.ones(n, bool),
        classes=np.array(graph.classes, np.str_),
        adj_data=graph.weights.numpy(),
        adj_indices=graph.edges[1].numpy(),
        adj_indptr=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).numpy(),
        adj_shape=np.array([n, n]),
    )
    write_bytes(folder / ARRAYS, buffer.getvalue())
    return [folder / ARRAYS]


def write_graph(
    path: Path, x: Tensor, adjacency: Tensor, y: Tensor, classes: tuple[str, ...], threshold: float = 0.0
) -> None:
    """Write one graph as GraphML to a file; see `write`."""
    edges, weights = weighted_edges(adjacency, threshold)
    _write_graphml_file(_Condensed(x.detach().float().cpu(), edges, weights, y, classes), path)


def _write_graphml(graph: _Condensed, folder: Path) -> list[Path]:
    _write_graphml_file(graph, folder / GRAPHML)
    return [folder / GRAPHML]


def _write_graphml_file(graph: _Condensed, path: Path) -> None:
    """GraphML (Brandes et al. 2002): keys are declared first, then nodes and edges give their values."""
    width = graph.x.shape[1] if graph.x.shape[1] <= GRAPHML_FEATURES else 0
    root = ElementTree.Element("graphml", xmlns="http://graphml.graphdrawing.org/xmlns")
    keys = [("node", "label", "string"), ("node", "class", "long"), ("edge", "weight", "double")]
    for owner, name, kind in keys + [("node", f"x{i}", "double") for i in range(width)]:
        ElementTree.SubElement(root, "key", {"id": name, "for": owner, "attr.name": name, "attr.type": kind})
    body = ElementTree.SubElement(root, "graph", id="condensed", edgedefault="undirected")
    if not width:
        told = f"The {graph.x.shape[1]} features of each node are left out; export csv, npz or pyg for them."
        ElementTree.SubElement(body, "desc").text = told
    for row, (label, features) in enumerate(zip(graph.y.tolist(), graph.x[:, :width].tolist())):
        node = ElementTree.SubElement(body, "node", id=f"n{row}")
        _values(node, {"label": graph.classes[label], "class": label, **{f"x{i}": v for i, v in enumerate(features)}})
    for (a, b), weight in zip(graph.edges.T.tolist(), graph.weights.tolist()):
        if a < b:
            _values(ElementTree.SubElement(body, "edge", source=f"n{a}", target=f"n{b}"), {"weight": weight})
    ElementTree.indent(root)
    write_bytes(path, ElementTree.tostring(root, "utf-8", xml_declaration=True) + b"\n")


def _values(element: ElementTree.Element, values: Mapping[str, object]) -> None:
    for key, value in values.items():
        # XML has no way to write control characters.
        text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "\ufffd", str(value))
        ElementTree.SubElement(element, "data", key=key).text = text


FORMATS: dict[str, Callable[[_Condensed, Path], list[Path]]] = {
    "pyg": _write_pyg,
    "csv": _write_csv,
    "npz": _write_npz,
    "graphml": _write_graphml,
}
