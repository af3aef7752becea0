"""Contraction of the real graph, and means of raw features."""

from __future__ import annotations

import pytest
import torch
from graph_runs import communities, hidden_labels_do_not_matter, run, training_nodes

from ddfed.errors import ConfigError
from ddfed_graph.coarsening import contracted, majority, merges, quotient
from ddfed_graph.domain import condensed
from ddfed_graph.selectors import graph_of

pytest.importorskip("sklearn")


def variance_added(h, members, a, b):
    """What Ward's criterion gives for two clusters, by definition."""

    def spread(nodes):
        return float((h[nodes] - h[nodes].mean(0)).square().sum())

    return spread(members[a] + members[b]) - spread(members[a]) - spread(members[b])


def test_merges_are_along_links_and_the_first_is_the_cheapest():
    graph, _ = communities()
    part = graph.induced(torch.arange(42))
    h = part.hop(2).double()
    members = {i: [i] for i in range(42)}
    linked = {frozenset(edge) for edge in part.edges.T.tolist()}
    pairs = merges(part, part.hop(2))
    cheapest = min(variance_added(h, members, *pair) for pair in map(tuple, linked))
    assert variance_added(h, members, *pairs[0].tolist()) == pytest.approx(cheapest)
    for a, b in pairs.tolist():
        (a,), (b,) = ([c for c, nodes in members.items() if node in nodes] for node in (a, b))
        assert frozenset((a, b)) in linked
        members[a] += members.pop(b)
        linked = {frozenset(a if end == b else end for end in pair) for pair in linked} - {frozenset((a,))}
    assert len(members) == 1


def test_components_are_never_merged():
    graph, labels = communities()
    pairs = merges(graph, graph.hop(2))
    assert len(pairs) == 44 - 2
    part = contracted(pairs, torch.full((44,), -1).index_fill_(0, torch.tensor([0]), 0), 0)
    assert part.max() == 1 and part[42] == part[43] != part[0] and len(labels) == 44


def test_every_class_keeps_enough_and_no_coarser_partition_on_the_way_does():
    graph, labels = communities()
    data = training_nodes(graph, labels)
    label = torch.full((44,), -1)
    label[data.inputs] = data.labels
    pairs = merges(graph, graph.hop(2))
    part = contracted(pairs, label, 3)
    held = torch.bincount(majority(part, label) + 1, minlength=4)[1:]
    assert bool((held >= 3).all())
    for more in range(44 - 1 - int(part.max()), len(pairs)):
        root = list(range(44))
        for a, b in pairs[: more + 1].tolist():
            root = [root[a] if r == root[b] else r for r in root]
        coarser = torch.tensor(root).unique(return_inverse=True)[1]
        assert bool((torch.bincount(majority(coarser, label) + 1, minlength=4)[1:] < 3).any())


def test_a_class_is_that_of_most_training_nodes():
    part, label = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([1, 1, 0, -1, 2, 0])
    assert majority(part, label).tolist() == [1, -1, 0]


def test_quotient_is_p_a_pt():
    graph, _ = communities()
    part = torch.arange(44) % 7
    kept = torch.tensor([5, 2, 6])
    p = torch.nn.functional.one_hot(part).T.float()
    p = (p / p.sum(1, keepdim=True).sqrt())[kept]
    dense = graph.dense(torch.arange(44))
    expected = (p @ dense @ p.T).fill_diagonal_(0)
    x, a = quotient(graph, part, kept)
    assert torch.allclose(p @ p.T, torch.eye(3), atol=1e-6) and torch.allclose(a, expected, atol=1e-5)
    assert torch.allclose(x, torch.stack([graph.features[part == j].mean(0) for j in kept]), atol=1e-6)


def test_a_repeated_super_node_is_linked_as_the_first():
    graph, _ = communities()
    a = quotient(graph, torch.arange(44) % 7, torch.tensor([1, 3, 1]))[1]
    assert torch.equal(a[0], a[2]) and torch.equal(a, a.T) and float(a[0, 2]) == 0


def test_budget_is_exact_and_weights_are_not_cut():
    data = training_nodes(*communities())
    x, a, y = condensed(run("coarsening", data, ipc=4))
    assert x.shape == (12, 5) and y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(a, a.T) and float(a.diagonal().abs().sum()) == 0 and float(a.sum()) > 0


def test_averaging_keeps_means_of_raw_features():
    data = training_nodes(*communities())
    x, a, _ = condensed(run("averaging", data, ipc=1))
    assert a is None
    raw = data.graph.features[data.inputs]
    assert torch.allclose(x, torch.stack([raw[data.labels == c].mean(0) for c in range(3)]))


def test_other_data_is_refused():
    class Other:
        info = training_nodes(*communities()).info

    with pytest.raises(ConfigError, match="no graph"):
        graph_of(Other())  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ("coarsening", "averaging"))
def test_hidden_labels_do_not_matter(method):
    assert hidden_labels_do_not_matter(method)
