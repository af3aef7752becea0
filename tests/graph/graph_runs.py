"""A small graph with communities, and runs of a recipe on it."""

from __future__ import annotations

from typing import Any

import torch

from ddfed.artifact import SyntheticSet
from ddfed.config import Layer
from ddfed.data import TaskInfo
from ddfed.distill import distill
from ddfed.gate import PlainGate
from ddfed.seeds import Streams
from ddfed.settings import resolve_distill
from ddfed.space import Space
from ddfed_graph.domain import GraphDomain
from ddfed_graph.graph import Graph, GraphData

CLASSES, NODES, TRAINED, WIDTH = 3, 14, 6, 5


def communities() -> tuple[Graph, torch.Tensor]:
    """Three communities of 14 nodes and a pair apart, with features around a centre each; and all labels."""
    g = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(CLASSES).repeat_interleave(NODES), torch.tensor([0, 0])])
    chance = torch.where(labels[:, None] == labels, 0.4, 0.06)
    chance[-2:] = chance[:, -2:] = 0
    chance[-1, -2] = 1
    linked = (torch.rand(len(labels), len(labels), generator=g) < chance).tril(-1)
    centres = torch.rand(CLASSES, WIDTH, generator=g)
    features = centres[labels] + 0.3 * torch.rand(len(labels), WIDTH, generator=g)
    return Graph.of(features, linked.nonzero().T), labels


def training_nodes(graph: Graph, labels: torch.Tensor) -> GraphData:
    """The first six nodes of each community are labelled."""
    nodes = torch.cat([torch.arange(TRAINED) + NODES * c for c in range(CLASSES)])
    info = TaskInfo("graph", "file", (WIDTH,), tuple("abc"), Space(low=float("-inf"), high=float("inf")))
    return GraphData(nodes, labels[nodes], info, graph=graph)


def run(method: str, data: GraphData, **parts: Any) -> SyntheticSet:
    """What a recipe makes of the labelled nodes, two of each class."""
    layers = [
        Layer("method", {"method": method, "data": {"domain": "graph", "dataset": "file"}}),
        Layer("test", {"distill": {"ipc": 2, "keep": {"every": 0}, **parts}}),
    ]
    return distill(PlainGate(data), GraphDomain(), resolve_distill(layers).settings.distill, Streams(0))


def hidden_labels_do_not_matter(method: str, **parts: Any) -> bool:
    """Whether other labels of all nodes that are not for training leave every stored value as it is, bit by bit."""
    graph, labels = communities()
    data = training_nodes(graph, labels)
    other = (labels + 1) % CLASSES
    other[data.inputs] = labels[data.inputs]
    one, two = (run(method, training_nodes(*pair), **parts) for pair in ((graph, labels), (graph, other)))
    same = all(torch.equal(value, two.store.tensors()[name]) for name, value in one.store.tensors().items())
    return same and torch.equal(one.labels.classes, two.labels.classes)
