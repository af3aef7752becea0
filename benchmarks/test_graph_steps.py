"""One outer step of GCond against the naive reference: a graph of Cora's shape, 70 condensed nodes.

2,708 nodes with 1,433 words, 18 of them each, 5,278 edges, seven classes of 20 training nodes. As in `test_steps`
repetitions alternate. The network is a fresh one at every step and is not trained between them, which both would do
alike; features and structure learn at every step.

Tolerances: `LOSS` and `GRADIENT` below, relative; the gradient in the Euclidean norm.
"""

from __future__ import annotations

import pytest
import reference_graph
import torch
from test_steps import STREAMS, against

from ddfed.data import TaskInfo
from ddfed.devices import keep_memory
from ddfed.distill import outer_step
from ddfed.gate import PlainGate
from ddfed.kit import assemble
from ddfed.seeds import isolated
from ddfed.settings import PartSettings
from ddfed.space import Space
from ddfed_graph.domain import GraphDomain
from ddfed_graph.graph import Graph, GraphData
from ddfed_graph.recipes import GCOND

NODES, FEATURES, WORDS, EDGES, CLASSES, TRAIN, IPC = 2708, 1433, 18, 5278, 7, 20, 10
LOSS, GRADIENT = 1e-4, 5e-3
#: What the step must be faster by than the published way.
LEAST = 3.0


def cora_like() -> GraphData:
    """Words and edges that mostly stay within a class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(NODES) % CLASSES
    own = torch.rand(NODES, WORDS, generator=generator) < 0.6
    anywhere = torch.randint(FEATURES, (NODES, WORDS), generator=generator)
    # A class has every seventh word.
    words = torch.where(own, anywhere // CLASSES * CLASSES + labels[:, None], anywhere).clamp(max=FEATURES - 1)
    features = torch.zeros(NODES, FEATURES).scatter_(1, words, 1.0)
    source = torch.randint(NODES, (EDGES,), generator=generator)
    target = torch.randint(NODES, (EDGES,), generator=generator)
    same = (target // CLASSES * CLASSES + labels[source]).clamp(max=NODES - 1)
    target = torch.where(torch.rand(EDGES, generator=generator) < 0.8, same, target)
    graph = Graph.of(features / features.sum(1, keepdim=True), torch.stack([source, target]))
    info = TaskInfo(
        "graph", "benchmark", (FEATURES,), tuple(map(str, range(CLASSES))), Space(low=-torch.inf, high=torch.inf)
    )
    train = torch.arange(TRAIN * CLASSES)
    return GraphData(train, labels[train], info, graph=graph)


class Ours:
    """Outer steps of ddfed with the parts of the recipe, as `ddfed.distill` makes them."""

    def __init__(self, data: GraphData) -> None:
        changes = {"ipc": IPC, "pool_options": {"length": 1}, "store_options": {"turns": None}}
        self.parts = PartSettings(**{**GCOND.defaults, **changes})
        self.gate = PlainGate(data, chunk=self.parts.chunk)
        self.kit = assemble(self.gate, GraphDomain(), self.parts, STREAMS)
        self.steps = 0

    def __call__(self) -> float:
        self.steps += 1
        return outer_step(self.kit, self.parts, self.gate, STREAMS, self.steps - 1, "benchmark")


class Naive:
    """Outer steps of the reference with the same random numbers."""

    def __init__(self, ours: Ours, data: GraphData, anew: bool) -> None:
        values = {name: value.detach().clone() for name, value in ours.kit.store.tensors().items()}
        self.x = values["x"].requires_grad_()
        self.pge = reference_graph.PairMLP(FEATURES, len(values["first"]), len(self.x))
        reference_graph.take_weights(self.pge, values)
        self.optimizers = [torch.optim.Adam([self.x], 1e-4), torch.optim.Adam(self.pge.parameters(), 1e-4)]
        self.features, self.adjacency = data.graph.features, data.graph.normalised.to_sparse_coo()
        self.members = [data.inputs[rows] for rows in data.class_index]
        self.steps, self.anew = 0, anew

    def __call__(self) -> float:
        step, self.steps = self.steps, self.steps + 1
        with isolated(STREAMS.seed("network", step)):
            net = reference_graph.LinearGNN(FEATURES, CLASSES)
        return reference_graph.gcond_step(
            net, self.features, self.adjacency, self.members, self.x, self.pge, self.optimizers, anew=self.anew
        )


def assert_equal(ours: Ours, naive: Naive) -> None:
    """The first step of both: the loss, and the gradients by features and by what the structure is made of."""
    mine, theirs = ours(), naive()
    assert mine == pytest.approx(theirs, rel=LOSS)
    params = ours.kit.store.params
    pairs = [(params["x"].grad, naive.x.grad)]
    pairs += [(params[n].grad, layer.weight.grad) for n, layer in zip(("first", "second", "third"), naive.pge.layers)]
    pairs += [(params[f"norm{i}"].grad[0], norm.weight.grad) for i, norm in enumerate(naive.pge.norms, 1)]
    for gradient, wanted in pairs:
        assert float((gradient - wanted).norm() / wanted.norm()) < GRADIENT


@pytest.mark.parametrize("anew", [False, True], ids=["structure once", "structure for each class"])
def test_step(benchmark, table: list, anew: bool) -> None:
    keep_memory()
    data = cora_like()
    ours = Ours(data)
    naive = Naive(ours, data, anew)
    assert_equal(ours, naive)
    against(benchmark, table, f"GCond, {'anew' if anew else 'once'}", ours, naive)
    assert table[-1][1] >= LEAST
