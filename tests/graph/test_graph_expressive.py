"""The adjacency in closed form, and what its prior counts (GCSR)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from graph_runs import communities, hidden_labels_do_not_matter, run, training_nodes

from ddfed.errors import ConfigError, DataError
from ddfed_graph.domain import condensed
from ddfed_graph.expressive import SelfExpressive, _likeness, _linked_share, expressed
from ddfed_graph.graph import Graph


def drawn(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_closed_form_is_the_least_squares_solution():
    x, prior, ridge = drawn(5, 4), drawn(5, 5, seed=1), 0.3
    stacked = torch.cat([x.T, ridge**0.5 * torch.eye(5, dtype=torch.float64)])
    z = torch.linalg.lstsq(stacked, torch.cat([x.T, ridge**0.5 * prior])).solution.abs()
    expected = (z + z.T) / 2
    assert torch.allclose(expressed(x, prior, ridge), expected - expected.diag().diag(), atol=1e-8)


def test_features_get_its_derivative():
    x = drawn(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: expressed(v, drawn(4, 4, seed=1), 0.5), x)


def test_prior_counts_edges_between_training_nodes_only():
    graph, labels = communities()
    data = training_nodes(graph, labels)
    counts, own = torch.zeros(3, 3), data.inputs.tolist()
    for a, b in graph.edges.T.tolist():
        if a in own and b in own:
            counts[labels[a], labels[b]] += 1
    share = counts / (36 - 6 * torch.eye(3))
    assert torch.allclose(_linked_share(data, (0, 1, 2)).float(), share / share.max())
    kept = torch.isin(graph.edges, data.inputs).all(0)
    alone = replace(data, graph=Graph(graph.features, graph.edges[:, kept], graph.weights[kept]))
    assert torch.equal(_linked_share(alone, (0, 1, 2)), _linked_share(data, (0, 1, 2)))


def test_without_such_edges_there_is_an_error_and_a_way_out():
    data = training_nodes(*communities())
    bare = replace(data, graph=Graph(data.graph.features, torch.empty(2, 0, dtype=torch.int64), torch.empty(0)))
    parts = {"steps": 0, "ipc": 2}
    with pytest.raises(DataError, match="prior = 'cosine'"):
        run("gcsr", bare, **parts)
    a = condensed(run("gcsr", bare, init_options={"prior": "cosine"}, **parts))[1]
    assert a is not None and torch.allclose(a, a.T)


def test_likeness_of_a_class_with_itself_is_one():
    data = training_nodes(*communities())
    found = _likeness(data, (0, 2), 2)
    assert torch.allclose(found.diagonal(), torch.ones(2).double()) and 0 <= float(found[0, 1]) < 1


def test_scale_of_features_does_not_matter():
    data = training_nodes(*communities())
    adjacencies = []
    for scale in (1.0, 0.01):
        store = SelfExpressive(data.info, torch.arange(3))
        rows = torch.cat([scale * drawn(3, 5).float(), drawn(3, 3, seed=2).float()], 1)
        store.fill(rows[:, None])
        adjacencies.append(store.decode(torch.arange(3))[0][:, 5:])
    assert torch.allclose(*adjacencies, atol=1e-5)


def test_released_is_the_adjacency_above_the_threshold():
    data = training_nodes(*communities())
    store = SelfExpressive(data.info, torch.arange(3), threshold=0.2)
    store.fill(torch.cat([drawn(3, 5).float(), drawn(3, 3, seed=2).float()], 1)[:, None])
    a = store.decode(torch.arange(3))[0][:, 5:].detach()
    assert torch.equal(store.released().tensors()["a"], torch.where(a >= 0.2, a, 0.0))


def test_a_prior_without_weight_is_refused():
    with pytest.raises(ConfigError, match="alpha"):
        SelfExpressive(training_nodes(*communities()).info, torch.arange(3), alpha=0.0)


def test_recipe_learns_features_alone_and_hidden_labels_do_not_matter():
    make = {"epochs": 4, "batch": 256, "lr": 0.4, "weight_decay": 5e-4, "passes": 2}
    small = {
        "steps": 2,
        "lr": 1e-2,
        "pool_options": {"buffer": "", "experts": 1, "span": 1, "max_start": 1, "make": make},
    }
    assert hidden_labels_do_not_matter("gcsr", **small)
    data = training_nodes(*communities())
    assert not torch.equal(condensed(run("gcsr", data, **small))[0], condensed(run("gcsr", data, steps=0))[0])
