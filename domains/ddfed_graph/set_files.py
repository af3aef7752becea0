"""What is said, drawn and written of a set of condensed graphs. No pickle is written.

A node is there if it is by half or more; links are weights above `THRESHOLD`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ddfed.data import RealData
from ddfed.errors import DataError, UnknownNameError, one_of, suggest
from ddfed.files import tensors_from_bytes, write_bytes, write_json
from ddfed_graph.export import GRAPHML, write_csv_table, write_graph
from ddfed_graph.facts import weighted_edges
from ddfed_graph.own import CLASSES, EDGES, NODES
from ddfed_graph.render import bare, class_colours, short, springs
from ddfed_graph.sets import Graphs, densities, unpack

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch_geometric.data import Data

THRESHOLD = 1e-6
TENSORS, ARRAYS, GRAPHS = "graphs.safetensors", "graphs.npz", "graphs.csv"
SIDE, DOTS = 1.7, 120  # of a panel in inches, dots an inch
ABREAST = 6  # panels that stand in a row even where classes have fewer graphs


class _One(NamedTuple):
    """A graph by itself: features (k, d) of its nodes, and adjacency (k, k)."""

    x: Tensor
    adjacency: Tensor


def single(graphs: Graphs) -> list[_One]:
    """Graphs one by one, each with its own nodes only."""
    found = []
    for present, x, adjacency in zip(*(part.detach().float().cpu() for part in graphs)):
        nodes = torch.nonzero(present >= 0.5).flatten()
        found.append(_One(x[nodes], adjacency[nodes][:, nodes]))
    return found


# --- facts -------------------------------------------------------------------------------------------------------


def facts(graphs: Graphs, y: Tensor, real: RealData) -> dict[str, Any]:
    """Graphs, nodes, links, density and bytes, beside those of the real ones.

    Args:
        graphs: the condensed ones.
        y: their classes.
        real: the training data.
    """
    own, other = _counted(graphs), torch.zeros(4, dtype=torch.float64)
    for rows in real.passes(torch.arange(len(real)), 256):
        other += _counted(unpack(real.batch(rows).inputs))
    names = ("nodes", "links", "density")
    found: dict[str, Any] = {"graphs": len(y), "ratio_of_graphs": len(y) / len(real)}
    for prefix, sums, count in (("mean_", own, len(y)), ("real_mean_", other, len(real))):
        found |= {prefix + name: float(value) / count for name, value in zip(names, sums)}
    return found | {"bytes": int(own[3]), "real_bytes": int(other[3]), "ratio_of_bytes": float(own[3] / other[3])}


def _counted(graphs: Graphs) -> Tensor:
    """Sums over graphs of nodes, links, densities and bytes, (4,) float64.

    Bytes when only what is not zero is stored: 16 bits of index and 4 bytes of value a feature, two indices of 16
    bits a link, and 4 bytes more where its weight is not 1.
    """
    there, links = graphs.present >= 0.5, graphs.adjacency.triu(1) > THRESHOLD
    weighted = links & (graphs.adjacency != 1)
    size = 6 * ((graphs.x != 0) & there[..., None]).sum() + 4 * links.sum() + 4 * weighted.sum()
    return torch.stack([there.sum(), links.sum(), densities(graphs).sum(), size]).double()


# --- a drawing ---------------------------------------------------------------------------------------------------


def draw(graphs: Graphs, y: Tensor, classes: tuple[str, ...], path: Path, per_class: int = 10) -> Path:
    """Write one PNG: class by class the graphs by springs; links are as opaque as they are heavy.

    Nodes are as large as their first feature is, of those of all graphs that are drawn.

    Args:
        graphs: of the set.
        y: their classes.
        classes: names.
        path: of the picture.
        per_class: most graphs of a class.

    Raises:
        DataError: there is no graph.
        RunFolderError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not len(y):
        raise DataError("a drawing needs at least one graph")
    held = y.unique().tolist()
    rows = [torch.nonzero(y == label).flatten()[:per_class].tolist() for label in held]
    longest, ones, shades = max(map(len, rows)), single(graphs), class_colours(len(classes))
    # Classes of few graphs stand side by side.
    beside = min(len(held), max(1, ABREAST // longest))
    wide, high = beside * longest, -(-len(held) // beside)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(SIDE * wide + 0.4, (SIDE + 0.25) * high), dpi=DOTS, layout="constrained")
        FigureCanvasAgg(figure)
        for row, (label, items) in enumerate(zip(held, rows)):
            for column, item in enumerate(items):
                axes = figure.add_subplot(high, wide, row * longest + column + 1)
                one = ones[item]
                links = weighted_edges(one.adjacency, THRESHOLD)[0].shape[1] // 2
                _drawn(axes, one, shades[label])
                bare(axes, f"{short(classes[label])}: {len(one.x)} nodes, {links} links")
                axes.title.set_fontsize(7)
        buffer = BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
    return path


def _drawn(axes: Axes, one: _One, colour: str) -> None:
    from matplotlib.collections import LineCollection

    if not len(one.x):
        return
    places = springs(one.adjacency, torch.zeros(len(one.x), dtype=torch.int64))
    edges, weights = weighted_edges(one.adjacency.triu(1) + one.adjacency.triu(1).T, THRESHOLD)
    shades = [(0.2, 0.2, 0.2, 0.7 * float(w)) for w in weights]
    axes.add_collection(LineCollection(list(places[edges.T].numpy()), colors=shades, linewidths=0.7))
    first = one.x[:, 0]
    sizes = 6 + 20 * (first - first.min()) / (first.max() - first.min()).clamp(min=1e-9)
    axes.scatter(places[:, 0].numpy(), places[:, 1].numpy(), c=colour, s=sizes.numpy(), linewidths=0, zorder=2)


# --- files -------------------------------------------------------------------------------------------------------


def write(
    fmt: str, folder: Path, graphs: Graphs, y: Tensor, classes: tuple[str, ...], card: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write a set of graphs.

    Args:
        fmt: ``pyg``: one file of tensors that `load_pyg` makes a list of PyTorch Geometric `Data` of. ``npz``: arrays
            x (graphs, m, d), adjacency (graphs, m, m), present (graphs, m), y and classes. ``graphml``: a file for
            each graph. ``csv``: ``graphs.csv``, ``nodes.csv``, ``edges.csv`` and ``classes.csv``.
        folder: made if absent.
        graphs: of the set.
        y: their classes.
        classes: names.
        card: written beside as ``card.json``.

    Raises:
        UnknownNameError: no such format.
        DataError: there is no graph.
        RunFolderError: a file cannot be written.
    """
    if fmt not in FORMATS:
        raise UnknownNameError(f"unknown export format {fmt!r}.{suggest(fmt, FORMATS)} Possible: {one_of(FORMATS)}")
    if not len(y):
        raise DataError("an empty set of graphs cannot be exported")
    written = FORMATS[fmt](Path(folder), graphs, y.detach().long().cpu(), classes)
    if card is not None:
        written.append(Path(folder) / "card.json")
        write_json(written[-1], dict(card))
    return written


def load_pyg(path: Path) -> list[Data]:
    """Graphs written as ``pyg``, each as a `Data` with x, edge_index, edge_attr (entries,) and y (1,).

    Give ``edge_attr`` to layers as ``edge_weight``.

    Raises:
        DataError: no such file.
        ArtifactError: a damaged one.
    """
    from torch_geometric.data import Data

    try:
        tensors = tensors_from_bytes(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    nodes, entries = tensors["nodes"].tolist(), tensors["entries"].tolist()
    parts = zip(
        tensors["x"].split(nodes),
        tensors["edge_index"].split(entries, 1),
        tensors["edge_attr"].split(entries),
        tensors["y"].split(1),
    )
    return [Data(x=x, edge_index=edges, edge_attr=weights, y=y) for x, edges, weights, y in parts]


def _write_pyg(folder: Path, graphs: Graphs, y: Tensor, classes: tuple[str, ...]) -> list[Path]:
    from safetensors.torch import save

    ones = single(graphs)
    edges, weights = zip(*(weighted_edges(one.adjacency, THRESHOLD) for one in ones))
    tensors = {
        "x": torch.cat([one.x for one in ones]),
        "edge_index": torch.cat(edges, 1),
        "edge_attr": torch.cat(weights),
        "y": y,
        "nodes": torch.tensor([len(one.x) for one in ones]),
        "entries": torch.tensor([len(part) for part in weights]),
    }
    write_bytes(folder / TENSORS, save(tensors, {"classes": json.dumps(classes)}))
    return [folder / TENSORS]


def _write_npz(folder: Path, graphs: Graphs, y: Tensor, classes: tuple[str, ...]) -> list[Path]:
    import numpy as np

    buffer = BytesIO()
    arrays = {name: part.detach().float().cpu().numpy() for name, part in graphs._asdict().items()}
    np.savez(buffer, **arrays, y=y.numpy(), classes=np.array(classes, np.str_))
    write_bytes(folder / ARRAYS, buffer.getvalue())
    return [folder / ARRAYS]


def _write_graphml(folder: Path, graphs: Graphs, y: Tensor, classes: tuple[str, ...]) -> list[Path]:
    ones = single(graphs)
    digits = len(str(len(ones) - 1))
    written = []
    for number, (one, label) in enumerate(zip(ones, y)):
        # Every node has the class of its graph.
        path = folder / f"{number:0{digits}d}-{GRAPHML}"
        write_graph(path, one.x, one.adjacency, label.expand(len(one.x)), classes, THRESHOLD)
        written.append(path)
    return written


def _write_csv(folder: Path, graphs: Graphs, y: Tensor, classes: tuple[str, ...]) -> list[Path]:
    ones = single(graphs)
    nodes, edges = [], []
    for number, one in enumerate(ones):
        nodes += [[number, node, *features] for node, features in enumerate(one.x.tolist())]
        ends, weights = weighted_edges(one.adjacency, THRESHOLD)
        edges += [[number, a, b, weight] for (a, b), weight in zip(ends.T.tolist(), weights.tolist()) if a < b]
    columns = [f"x{i}" for i in range(graphs.x.shape[-1])]
    labels = [[number, classes[label]] for number, label in enumerate(y.tolist())]
    write_csv_table(folder / GRAPHS, ["graph", "label"], labels)
    write_csv_table(folder / NODES, ["graph", "node", *columns], nodes)
    write_csv_table(folder / EDGES, ["graph", "source", "target", "weight"], edges)
    write_csv_table(folder / CLASSES, ["name"], ([name] for name in classes))
    return [folder / name for name in (GRAPHS, NODES, EDGES, CLASSES)]


FORMATS: dict[str, Callable[[Path, Graphs, Tensor, tuple[str, ...]], list[Path]]] = {
    "pyg": _write_pyg,
    "graphml": _write_graphml,
    "csv": _write_csv,
    "npz": _write_npz,
}
