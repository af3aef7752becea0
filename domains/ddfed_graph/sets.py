"""Sets of graphs: an item, and a row, is one whole graph with a class.

A graph is a dense row (m, 1 + d + m), where m is the size of the largest graph that is kept: for each node its
presence, its d features, and its links to the m nodes. Places without a node are zero throughout. Presence is said
apart, as real nodes may have features that are all zero. `unpack` is the one reader of this form: whatever an engine
makes of a row, it is seen as a graph without loops, undirected, with presence and links in [0, 1].

Rows are independent, so every engine of the core takes them as it takes images.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ddfed.data import RealData, Task, TaskInfo
from ddfed.errors import ConfigError, DataError, MissingDependencyError, one_of, suggest
from ddfed.seeds import Streams
from ddfed.sources import SPLIT_SEED
from ddfed.space import Space
from ddfed_graph.raw import Options, Split, whole
from ddfed_graph.set_catalog import SETS

if TYPE_CHECKING:
    from ddfed.artifact import SyntheticSet

#: Graphs of so many nodes are kept when nobody says otherwise ...
SMALL = 64
#: ... and larger ones up to the size that this share of the graphs does not exceed ...
KEPT = 0.95
#: ... but none above this, as a row grows with the square of its nodes.
LARGEST = 256


class Graphs(NamedTuple):
    """Some graphs as networks see them.

    Args:
        present: share of each node that is there, (rows, m), in [0, 1].
        x: features, (rows, m, d).
        adjacency: weights of links in [0, 1], symmetric, without diagonal, and of a node that is not there 0,
            (rows, m, m).
    """

    present: Tensor
    x: Tensor
    adjacency: Tensor


def unpack(rows: Tensor) -> Graphs:
    """What rows (rows, m, 1 + d + m) say, differentiable."""
    m = rows.shape[-2]
    present = rows[..., 0].clamp(0, 1)
    links = rows[..., -m:]
    links = ((links + links.mT) / 2).clamp(0, 1) * (1 - torch.eye(m, dtype=rows.dtype, device=rows.device))
    return Graphs(present, rows[..., 1:-m], links * present[..., :, None] * present[..., None, :])


def pack(present: Tensor, x: Tensor, adjacency: Tensor) -> Tensor:
    """Inverse of `unpack`."""
    return torch.cat([present[..., None], x, adjacency], -1)


def is_set(info: TaskInfo) -> bool:
    """Whether the items of a task of this domain are graphs, not nodes."""
    return len(info.shape) == 2


def width(info: TaskInfo) -> int:
    """Features d of a node.

    Raises:
        ConfigError: the items are no graphs.
    """
    if not is_set(info) or info.shape[1] < info.shape[0] + 2:
        raise ConfigError(
            f"a graph is an item of shape (m, 1 + features + m), and {info.dataset!r} has {info.shape}. Load a set "
            f"of graphs: {one_of(SETS)}."
        )
    return info.shape[1] - info.shape[0] - 1


def densities(graphs: Graphs) -> Tensor:
    """Links of each graph in parts of those that its nodes could have, (rows,); 0 below two nodes."""
    nodes = graphs.present.sum(-1)
    return graphs.adjacency.sum((-2, -1)) / (nodes * (nodes - 1)).clamp(min=1)


def condensed(syn: SyntheticSet) -> tuple[Graphs, Tensor]:
    """The graphs of a set, and their classes (rows,)."""
    with torch.no_grad():
        rows, origin = syn.store.decode(torch.arange(len(syn)))
    return unpack(rows), syn.labels.classes[origin]


# --- loading -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RawSet:
    """Graphs as loaded: one after another, nodes numbered through.

    Args:
        graph: of each node the number of its graph, (nodes,) int64.
        x: features, (nodes, d).
        edges: node numbers, in any order and direction, (2, entries); ends are in one graph.
        labels: class of each graph, (graphs,) int64.
        classes: class names.
        source: what was read, in words for the card.
        notes: what a reader of results should know.
    """

    graph: Tensor
    x: Tensor
    edges: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    source: str
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sizes(self) -> Tensor:
        """Nodes of each graph, (graphs,)."""
        return torch.bincount(self.graph, minlength=len(self.labels))


def load(name: str, root: Path | None, options: Options, domain: str = "graph") -> Task:
    """A set of graphs by name.

    Args:
        name: one of `set_catalog.SETS`.
        root: the folder that holds the files; None for ``digit-graphs``.
        options: None stands for not given.
            max_nodes: larger graphs are left out, and counted in the notes; when not given the 95 % quantile of the
                sizes, but not below 64 and not above 256.
            split_seed: of the split; constant by default, whatever the seed of the run.
            node_features: of the TU sets: ``labels``, ``attributes`` or ``degrees``; see `tu`.
            ink: a pixel of ``digit-graphs`` is a node from this ink on, of 16 (8).
        domain: name of the domain, for the card.

    Raises:
        ConfigError: an option is unknown, out of range or of no use here, or a class has too few graphs.
        MissingDependencyError: a package is not installed; with the pip line.
        MissingDataError: a file is absent; says which is expected where.
        DataError: a file is damaged.
    """
    from ddfed_graph import tu

    _check_options(name, options)
    absent = [module for module in SETS[name]["modules"] if importlib.util.find_spec(module) is None]
    if absent:
        raise MissingDependencyError(
            f"data set 'graph/{name}' needs {', '.join(absent)}, which is not installed: pip install \"ddfed[graph]\""
        )
    reader: Callable[..., RawSet] = load_digits if name == "digit-graphs" else tu.load
    raw = reader(name, root, options)
    kept, told = _kept(raw, options)
    inputs = dense(raw, kept)
    info = TaskInfo(
        domain=domain,
        dataset=name,
        shape=tuple(inputs.shape[1:]),
        classes=raw.classes,
        space=Space(low=-math.inf, high=math.inf),
        licence=SETS[name]["licence"],
        source=raw.source,
    )
    labels = raw.labels[kept]
    split = stratified(labels, raw.classes, whole(options, "split_seed", SPLIT_SEED, least=0))
    train, test, validation = (
        RealData(inputs[rows], labels[rows], info) for rows in (split.train, split.test, split.validation)
    )
    nodes = raw.sizes[kept].double().mean()
    notes = {"level": "graph", "graphs": len(kept), "mean_nodes": round(float(nodes), 2), "split": split.told}
    return Task(info, train, test, validation, {**notes, **told, **raw.notes})


def _check_options(name: str, options: Options) -> None:
    mine = SETS[name]["options"]
    for key in (key for key, value in options.items() if value is not None and key not in mine):
        raise ConfigError(
            f"data set 'graph/{name}' has no option {key!r}.{suggest(key, mine)} Possible: {one_of(mine)}"
        )


def _kept(raw: RawSet, options: Options) -> tuple[Tensor, dict[str, Any]]:
    """Numbers of the graphs that are not too large, and what is said of the others."""
    sizes = raw.sizes
    usual = min(LARGEST, max(SMALL, int(torch.quantile(sizes.double(), KEPT, interpolation="higher"))))
    most = whole(options, "max_nodes", usual)
    kept = torch.nonzero(sizes <= most).flatten()
    if not len(kept):
        raise ConfigError(
            f"{raw.source}: no graph has {most} nodes or fewer, the smallest has {int(sizes.min())}. Raise max_nodes."
        )
    return kept, {"max_nodes": most, "left_out": f"{len(sizes) - len(kept)} of {len(sizes)} graphs, which are larger"}


def dense(raw: RawSet, kept: Tensor) -> Tensor:
    """Rows (kept, m, 1 + d + m) of some graphs, in the smallest type that is exact.

    Args:
        raw: the set.
        kept: numbers of graphs, without repeats.
    """
    place = torch.full((len(raw.labels),), -1)
    place[kept] = torch.arange(len(kept))
    first = raw.sizes.cumsum(0) - raw.sizes
    order = torch.argsort(raw.graph, stable=True)
    within = torch.empty_like(order)
    within[order] = torch.arange(len(order)) - first[raw.graph[order]]
    m, d = int(raw.sizes[kept].max()), raw.x.shape[1]
    rows = torch.zeros(len(kept), m, 1 + d + m, dtype=_smallest(raw.x))
    nodes = torch.nonzero(place[raw.graph] >= 0).flatten()
    at = place[raw.graph[nodes]], within[nodes]
    rows[..., 0][at] = 1
    rows[..., 1 : 1 + d][at] = raw.x[nodes].to(rows.dtype)
    links = raw.edges[:, place[raw.graph[raw.edges[0]]] >= 0]
    for source, target in (links, links.flip(0)):
        rows[place[raw.graph[source]], within[source], 1 + d + within[target]] = 1
    rows[..., 1 + d :].diagonal(dim1=1, dim2=2).zero_()
    return rows


def _smallest(values: Tensor) -> torch.dtype:
    """The smallest of three types that holds all values exactly, else float32."""
    if bool(((values >= 0) & (values <= 255) & (values == values.round())).all()):
        return torch.uint8
    return torch.float16 if bool((values.half().to(values) == values).all()) else torch.float32


def stratified(labels: Tensor, classes: tuple[str, ...], seed: int = SPLIT_SEED) -> Split:
    """80 % of every class for training, 10 % for validation and for testing each, drawn with a fixed seed.

    Raises:
        DataError: a class has fewer than three graphs.
    """
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    streams = Streams(seed).child("split of graphs")
    for label, name in enumerate(classes):
        rows = torch.nonzero(labels == label).flatten()
        if len(rows) < 3:
            raise DataError(
                f"class {name!r} has {len(rows)} graph(s) of the size that is kept, and the three parts of the split "
                f"need one each. Raise max_nodes."
            )
        rows = rows[torch.randperm(len(rows), generator=streams.torch(label))]
        tenth = max(1, round(len(rows) / 10))
        for part, drawn in zip(parts, (rows[2 * tenth :], rows[:tenth], rows[tenth : 2 * tenth])):
            part.append(drawn)
    told = f"80/10/10 of every class, drawn here with the fixed seed {seed}"
    return Split.of((torch.cat(part).sort().values for part in parts), told)


def load_digits(name: str, root: Path | None, options: Options) -> RawSet:
    """scikit-learn's 1,797 digits of 8 x 8 pixels: pixels with ink are nodes, linked to the up to 8 around them.

    Features: ink, row and column around the middle: (ink - 12) / 4, (2 row - 7) / 4 and (2 column - 7) / 4.
    """
    from sklearn.datasets import load_digits as embedded

    if root is not None:
        raise ConfigError(
            f"data set 'graph/{name}' is embedded and reads no folder, got {root}. For another set give its name; "
            f"`ddfed datasets list` shows them."
        )
    ink = whole(options, "ink", 8)
    if ink > 16:
        raise ConfigError(f"option 'ink' is from 1 to 16, the ink of a black pixel; got {ink}")
    found = embedded()
    pixels, labels = torch.from_numpy(found.data).long(), torch.from_numpy(found.target).long()
    inked = pixels >= ink
    if not bool(inked.any(1).all()):
        raise ConfigError(f"option 'ink' = {ink} leaves a digit without a node; lower it")
    graph, pixel = inked.nonzero().T
    number = torch.full(pixels.shape, -1)
    number[graph, pixel] = torch.arange(len(graph))
    row, column = pixel // 8, pixel % 8
    grid = torch.stack([torch.arange(64) // 8, torch.arange(64) % 8], 1)
    around = (grid[:, None] - grid).abs().amax(-1) == 1
    of, one, other = (inked[:, :, None] & inked[:, None, :] & around).nonzero().T
    return RawSet(
        graph,
        torch.stack([pixels[graph, pixel] - 12, 2 * row - 7, 2 * column - 7], 1) / 4,
        torch.stack([number[of, one], number[of, other]]),
        labels,
        tuple(str(digit) for digit in range(10)),
        "UCI optical recognition of handwritten digits (test part, 1,797 images) as embedded in scikit-learn; pixels "
        f"with ink of at least {ink} of 16 are nodes, linked to those around them",
        notes={"node_features": "ink, row, column"},
    )
