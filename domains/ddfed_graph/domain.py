"""The graph domain: classification of the nodes of one graph, and of whole graphs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddfed.data import Task, TaskInfo
from ddfed.domain import Augmentation, Capabilities, Domain, Network
from ddfed.errors import ConfigError
from ddfed.space import Space
from ddfed_graph import models, set_files, set_models, sets
from ddfed_graph.catalog import DATASETS
from ddfed_graph.graph import Graph, GraphData
from ddfed_graph.set_catalog import SETS

if TYPE_CHECKING:
    from ddfed.artifact import SyntheticSet

#: Weights below it are no edges in what is written for other programs.
_THRESHOLD = 1e-6


class GraphDomain(Domain):
    """Nodes of a graph as feature vectors (d,), seen in the graph they belong to; or whole graphs, see `sets`.

    A row of real data is a node with all that surrounds it (`Nodes`), so rows are not independent. Condensed nodes
    are rows (k, d) without structure, or (k, d + k) with the adjacency among them.

    Options of `load`: for a set of graphs those of `ddfed_graph.sets.load`; else those of
    `ddfed_graph.datasets.load`, and
        fanouts: neighbours drawn of a node at each hop, such as [10, 5], for graphs too large to be seen whole.
    """

    name = "graph"
    capabilities = Capabilities(independent_rows=False)
    models = models.MODELS
    export_formats = ("pyg", "graphml", "csv", "npz")
    baselines = ("random", "mean-a2x:1", "full")

    def load(self, dataset: str, root: Path | None, options: Mapping[str, Any]) -> Task:
        from ddfed_graph import datasets

        self.check_name("data set", dataset, (*DATASETS, *SETS))
        if dataset in SETS:
            return sets.load(dataset, Path(root) if root is not None else None, options)
        self.check_options(options, ("fanouts", *datasets.OPTIONS))
        given = dict(options)
        fanouts = _fanouts(given.pop("fanouts", None))
        raw = datasets.load(dataset, Path(root) if root is not None else None, given)
        info = TaskInfo(
            domain=self.name,
            dataset=dataset,
            shape=(raw.graph.features.shape[1],),
            classes=raw.classes,
            space=Space(low=-math.inf, high=math.inf),
            licence=raw.licence,
            source=raw.source,
        )

        def rows(nodes: Tensor) -> GraphData:
            # Inductive: what is not in a split is not there at all.
            graph, ids = (raw.graph.induced(nodes), torch.arange(len(nodes))) if raw.inductive else (raw.graph, nodes)
            return GraphData(ids, raw.labels[nodes], info, graph=graph, fanouts=fanouts)

        return Task(
            info, rows(raw.train), rows(raw.test), rows(raw.validation) if len(raw.validation) else None,
            {"nodes": len(raw.graph), "links": raw.graph.links, "inductive": raw.inductive, **raw.notes},
        )  # fmt: skip

    def network(self, name: str, info: TaskInfo) -> Network:
        return set_models.build(name, info) if sets.is_set(info) else models.build(name, info)

    def default_network(self, info: TaskInfo) -> str:
        return set_models.MODELS[0] if sets.is_set(info) else self.models[0]

    def default_judge(self, info: TaskInfo) -> str:
        """GCN with dropout, by which the field reports; engines look through SGC, which has neither."""
        return "gcn"

    def default_baselines(self, info: TaskInfo) -> tuple[str, ...]:
        return ("random", "full") if sets.is_set(info) else self.baselines

    def coupling(self, info: TaskInfo) -> str:
        """Nodes are seen through their neighbours; whole graphs are records of their own."""
        if sets.is_set(info):
            return ""
        return (
            "its rows are coupled, and with K rounds of message passing one node influences the gradients of all nodes "
            "up to K hops away, so clipping each of them does not bound what one node does. Add noise to the class "
            "sums of propagated features instead, with their rows and the degrees of nodes bounded."
        )

    def augmentation(self, name: str, info: TaskInfo) -> Augmentation | None:
        self.check_name("augmentation", name, self.augmentations)
        return None

    def facts(self, syn: SyntheticSet, task: Task) -> dict[str, Any]:
        """Nodes, both ratios, bytes beside those of the sparse original, edges and homophily."""
        if sets.is_set(syn.info):
            return set_files.facts(*sets.condensed(syn), task.train)
        from ddfed_graph.facts import density, homophily, sizes, weighted_edges

        assert isinstance(task.train, GraphData)
        x, adjacency, y = condensed(syn)
        edges, weights = weighted_edges(adjacency, _THRESHOLD)
        found: dict[str, Any] = dict(sizes(x, adjacency, task.train.graph, len(task.train), _THRESHOLD))
        found |= {"edges": edges.shape[1] // 2, "density": density(edges, len(x))}
        return found | ({"homophily": homophily(edges, y, weights)} if edges.shape[1] else {})

    def render(self, syn: SyntheticSet, path: Path, per_class: int = 10) -> Path:
        if sets.is_set(syn.info):
            return set_files.draw(*sets.condensed(syn), syn.info.classes, Path(path), per_class)
        from ddfed_graph.render import draw

        x, adjacency, y = condensed(syn)
        return draw(x, adjacency, y, syn.info.classes, Path(path), threshold=_THRESHOLD)

    def export(self, syn: SyntheticSet, folder: Path, fmt: str) -> list[Path]:
        from ddfed_graph.export import write

        self.check_name("export format", fmt, self.export_formats)
        if sets.is_set(syn.info):
            card = syn.card(syn.content_hash)
            return set_files.write(fmt, Path(folder), *sets.condensed(syn), syn.info.classes, card)
        return write(fmt, Path(folder), *condensed(syn), syn.info.classes, _THRESHOLD, syn.card(syn.content_hash))


def condensed(syn: SyntheticSet) -> tuple[Tensor, Tensor | None, Tensor]:
    """Features (k, d), adjacency (k, k) or None for nodes without structure, and classes (k,)."""
    with torch.no_grad():
        rows, origin = syn.store.decode(torch.arange(len(syn)))
    d = syn.info.shape[0]
    return rows[:, :d].clone(), rows[:, d:].clone() if rows.shape[1] > d else None, syn.labels.classes[origin]


def _fanouts(given: Any) -> tuple[int, ...] | None:
    if given is None:
        return None
    if not (isinstance(given, (list, tuple)) and given and all(isinstance(n, int) and n >= 1 for n in given)):
        raise ConfigError(f"option fanouts lists the neighbours drawn at each hop, such as [10, 5]; got {given!r}")
    return tuple(given)


__all__ = ["Graph", "GraphDomain", "condensed"]
