"""Facts: each against counting by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ddfed.errors import DataError
from ddfed_graph.datasets import load
from ddfed_graph.facts import class_pairs, condensed_bytes, density, homophily, sizes, weighted_edges


def _adjacency(n: int = 7, seed: int = 0) -> torch.Tensor:
    a = torch.rand(n, n, generator=torch.Generator().manual_seed(seed))
    return ((a + a.T) / 2).fill_diagonal_(0)


def test_weighted_edges_are_the_entries_above_the_threshold():
    a = _adjacency()
    edges, weights = weighted_edges(a.clone().fill_diagonal_(9), 0.4)
    assert edges.T.tolist() == [[i, j] for i in range(7) for j in range(7) if a[i, j] > 0.4]
    assert torch.equal(weights, a[edges[0], edges[1]])
    assert weighted_edges(None)[0].shape == (2, 0)


def test_weighted_edges_have_both_directions_though_rounding_tells_them_apart():
    edges, weights = weighted_edges(torch.tensor([[0, 0.5], [0.5 + 1e-7, 0]]), 0.5)
    assert edges.shape[1] in (0, 2) and len(weights.unique()) <= 1


@pytest.mark.parametrize(
    ("adjacency", "threshold", "message"),
    [
        (torch.ones(2, 3), 0, "square"),
        (torch.tensor([[0.0, 1], [0, 0]]), 0, "symmetric"),
        (torch.full((2, 2), torch.nan), 0, "finite"),
        (torch.ones(2, 2), -1, "threshold"),
    ],
)
def test_what_is_no_adjacency_is_refused(adjacency, threshold, message):
    with pytest.raises(DataError, match=message):
        weighted_edges(adjacency, threshold)


def test_homophily_and_density_of_the_tiny_graph(tiny):
    labels = torch.tensor([0, 0, 1, 1, -1, 1])
    # Of 0-1, 1-2, 2-0, 2-3 two join one class; 3-4 ends at an unlabelled node.
    assert homophily(tiny.edges, labels) == 0.5
    heavy = torch.where((tiny.edges == 3).any(0), 3.0, 1.0)
    assert homophily(tiny.edges, labels, heavy) == pytest.approx(4 / 6)
    assert density(tiny.edges, 6) == pytest.approx(5 / 15)
    assert math.isnan(density(tiny.edges, 1)) and math.isnan(homophily(tiny.edges, torch.full((6,), -1)))


def test_homophily_equals_that_of_pyg(tiny):
    utils = pytest.importorskip("torch_geometric.utils")
    labels = torch.tensor([0, 0, 1, 1, 0, 1])
    assert homophily(tiny.edges, labels) == pytest.approx(utils.homophily(tiny.edges, labels, method="edge"))


@pytest.mark.parametrize("nodes", [None, torch.tensor([0, 2, 3, 4])])
def test_class_pairs_equal_a_loop_over_the_pairs(nodes):
    a, labels = _adjacency(), torch.tensor([0, 1, 1, 0, 1, -1, 2])
    edges, weights = weighted_edges(a, 0.3)
    kept = range(7) if nodes is None else nodes.tolist()
    found = class_pairs(edges, labels, 3, weights, nodes)
    for one in range(3):
        for two in range(3):
            pairs = [(i, j) for i in kept for j in kept if i != j and (labels[i], labels[j]) == (one, two)]
            each = [float(a[p]) if a[p] > 0.3 else 0.0 for p in pairs]
            want = sum(each) / len(each) if each else math.nan
            assert float(found[one, two]) == pytest.approx(want, nan_ok=True)
    assert torch.equal(found.nan_to_num(), found.T.nan_to_num())


def test_class_pairs_without_weights_are_probabilities(tiny):
    found = class_pairs(tiny.edges, torch.tensor([0, 0, 1, 1, 1, 1]), 2)
    assert found.tolist() == [[1.0, 2 / 8], [2 / 8, 2 / 6]]


def test_bytes_and_both_ratios(tiny):
    x, a = torch.rand(3, 4), torch.tensor([[0, 0.5, 0.01], [0.5, 0, 0], [0.01, 0, 0]])
    assert condensed_bytes(x, None) == 48
    assert condensed_bytes(x, a) == 48 + 2 * 8 and condensed_bytes(x, a, 0.1) == 48 + 8
    found = sizes(x, a, tiny, labelled=4, threshold=0.1)
    assert (found["nodes"], found["ratio_of_nodes"], found["ratio_of_labelled"]) == (3, 0.5, 0.75)
    assert found["bytes"] == 56 and found["real_bytes"] == tiny.sparse_bytes
    assert found["ratio_of_bytes"] == 56 / tiny.sparse_bytes


@pytest.mark.shared
def test_a_dense_condensed_cora_is_larger_than_cora(shared_graphs):
    pytest.importorskip("torch_geometric")
    raw = load("cora", shared_graphs, {})
    assert homophily(raw.graph.edges, raw.labels) == pytest.approx(0.81, abs=0.001)
    found = sizes(torch.rand(70, 1433), None, raw.graph, len(raw.train))
    assert found["ratio_of_labelled"] == 0.5 and found["ratio_of_nodes"] == pytest.approx(0.0258, abs=1e-4)
    assert 3 < found["ratio_of_bytes"] < 4
