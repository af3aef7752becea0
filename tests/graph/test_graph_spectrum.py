"""Eigenpairs, the eigenbasis store and its engine (GDEM)."""

from __future__ import annotations

import pytest
import torch
from graph_runs import communities, hidden_labels_do_not_matter, run, training_nodes

from ddfed.data import TaskInfo
from ddfed.errors import ConfigError, DataError
from ddfed.space import Space
from ddfed_graph import eigenbasis
from ddfed_graph.domain import condensed
from ddfed_graph.eigenbasis import Eigenbasis, signed_adjacency, spectrum
from ddfed_graph.facts import symmetric_normalised, weighted_edges
from ddfed_graph.spectrum import SpectrumMatching
from ddfed_graph.stores import Induced

pytest.importorskip("scipy")

INFO = TaskInfo("graph", "file", (3,), ("a", "b"), Space(low=float("-inf"), high=float("inf")))


def laplacian(graph, nodes):
    return torch.eye(len(nodes), dtype=torch.float64) - graph.normalised.to_dense().double()[nodes][:, nodes]


@pytest.mark.parametrize("dense", (True, False))
@pytest.mark.parametrize(("count", "low", "smallest"), ((6, 0.5, 3), (5, 0.8, 4), (4, 1.0, 4), (4, 0.0, 0)))
def test_eigenpairs_are_those_of_the_dense_laplacian(monkeypatch, dense, count, low, smallest):
    if not dense:
        monkeypatch.setattr(eigenbasis, "_DENSE", 0)
    graph, _ = communities()
    found = spectrum(graph, count, low)
    assert found.nodes.tolist() == list(range(42))  # the pair apart is left out
    matrix = laplacian(graph, found.nodes)
    values, vectors = torch.linalg.eigh(matrix)
    taken = torch.tensor([*range(smallest), *range(42 - count + smallest, 42)])
    assert torch.allclose(found.values, values[taken], atol=1e-6)
    assert torch.allclose((found.vectors * vectors[:, taken]).sum(0).abs(), torch.ones(count).double(), atol=1e-5)
    assert spectrum(graph, count, low) is found


def test_more_eigenvectors_than_nodes_are_refused():
    with pytest.raises(ConfigError, match="largest component has 42 nodes"):
        spectrum(communities()[0], 43, 0.5)


def naive_terms(x, u, values, label, along, means):
    """The three terms with every d x d matrix made."""
    projected = torch.nn.functional.normalize(u.T @ x, dim=1)
    first = torch.stack([(z[:, None] * z - w[:, None] * w).square().sum() for z, w in zip(along, projected)]).mean()
    filtered = u @ torch.diag(1 - values) @ u.T @ x
    own = torch.stack([filtered[label == c].mean(0) for c in range(int(label.max()) + 1)])
    own = own / own.norm(dim=1, keepdim=True)
    second = (means @ own.T - torch.eye(len(own))).square().mean()
    return first, second, (u.T @ u - torch.eye(u.shape[1])).square().mean()


def judged(data, store, **options):
    """Loss and cotangent of what a store holds, and the engine."""
    from ddfed.gate import PlainGate
    from ddfed.match.base import Judgement
    from ddfed.seeds import Streams

    x = store.decode(torch.arange(store.items))[0].detach().requires_grad_()
    engine = SpectrumMatching(**options)
    y = store.classes
    judgement = Judgement(
        net=None, x=x, y=y, row_class=y, classes=(0, 1, 2), gate=PlainGate(data), augmentation=None,
        label_loss=None, skill=0.0, step=0, streams=Streams(0), coupled=True,
    )  # fmt: skip
    return engine(judgement), engine


def filled(data, low=0.5):
    store = Eigenbasis(data.info, torch.arange(3).repeat_interleave(2))
    g = torch.Generator().manual_seed(2)
    u = torch.linalg.qr(torch.rand(6, 6, generator=g))[0] + 0.05 * torch.rand(6, 6, generator=g)
    values = spectrum(data.graph, 6, low).values.float().expand(6, -1)
    store.fill(torch.cat([torch.rand(6, 5, generator=g), u, values], 1)[:, None])
    return store


@pytest.mark.parametrize("name", ("alpha", "beta", "gamma"))
def test_terms_are_those_of_the_paper(name):
    data = training_nodes(*communities())
    store = filled(data)
    x, u = (store.params[key].detach().clone().requires_grad_() for key in ("x", "u"))
    found = spectrum(data.graph, 6, 0.5)
    along = torch.nn.functional.normalize(found.vectors.T.float() @ data.graph.features[found.nodes], dim=1)
    h = (data.graph.normalised @ data.graph.features)[data.inputs]
    means = torch.nn.functional.normalize(torch.stack([h[data.labels == c].mean(0) for c in range(3)]), dim=1)
    terms = naive_terms(x, u, found.values.float(), store.classes, along, means)
    expected = terms[("alpha", "beta", "gamma").index(name)]
    weights = {"alpha": 0.0, "beta": 0.0, "gamma": 0.0, "low": 0.5, name: 2.0}
    cotangent, _ = judged(data, store, **weights)
    assert cotangent.loss == pytest.approx(2 * float(expected), rel=1e-4)
    wanted = torch.autograd.grad(2 * expected, [x, u], allow_unused=True)
    for got, want in zip((cotangent.x[:, :5], cotangent.x[:, 11:]), wanted):
        assert torch.allclose(got, torch.zeros_like(got) if want is None else want, atol=1e-5)
    assert float(cotangent.x[:, 5:11].abs().sum()) == 0


def test_other_eigenvalues_than_the_engine_takes_are_refused():
    data = training_nodes(*communities())
    with pytest.raises(ConfigError, match="alike"):
        judged(data, filled(data, low=0.5), low=1.0)


def test_an_adjacency_without_eigenvectors_is_refused():
    data = training_nodes(*communities())
    with pytest.raises(ConfigError, match="eigenbasis"):
        judged(data, Induced(data.info, torch.arange(3).repeat_interleave(2)))


@pytest.mark.parametrize("options", ({"alpha": -1.0}, {"low": 1.5}, {"beta": "much"}))
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        SpectrumMatching(**options)


def test_networks_see_the_propagation_but_for_a_factor_of_each_node():
    g = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.rand(5, 5, generator=g))[0]
    values = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.5])
    s = torch.eye(5) - u @ torch.diag(values) @ u.T
    ratio = symmetric_normalised(signed_adjacency(u, values)) / s
    factor = ratio.diagonal().sqrt()
    assert torch.allclose(ratio, factor[:, None] * factor, atol=1e-4)


def test_what_is_released_is_a_signed_graph_without_a_threshold():
    store = filled(training_nodes(*communities()))
    kept = store.released()
    assert isinstance(kept, Induced) and bool((kept.buffers["a"] < 0).any())
    assert torch.equal(kept.buffers["a"], store.decode(torch.arange(6))[0][:, 5:11].detach())
    edges, weights = weighted_edges(kept.buffers["a"])
    assert edges.shape[1] == int((kept.buffers["a"] != 0).sum()) and bool((weights < 0).any())


def test_items_are_taken_with_their_coordinates():
    store = filled(training_nodes(*communities()))
    some = torch.tensor([4, 1])
    taken = store.take(some)
    rows, again = store.decode(some)[0], taken.decode(torch.arange(2))[0]
    assert torch.equal(rows, again) and taken.params["u"].shape == (2, 6)


def test_structure_and_features_take_turns():
    store = Eigenbasis(INFO, torch.arange(2), turns=[2, 3])
    assert [sorted(store.learns(step)) for step in range(6)] == [["u"]] * 2 + [["x"]] * 3 + [["u"]]


def test_another_start_is_refused():
    data = training_nodes(*communities())
    with pytest.raises(ConfigError, match="init 'eigenbasis'"):
        run("gdem", data, init="random", steps=1)
    with pytest.raises(ConfigError, match="rank"):
        run("gdem", data, init_options={"rank": 7}, steps=1)


def test_networks_refuse_rows_that_carry_coordinates():
    data = training_nodes(*communities())
    with pytest.raises(DataError, match="rows"):
        run("gdem", data, objective="moments", objective_options={"rows": None}, steps=1)


def test_learning_moves_eigenvectors_and_features():
    data = training_nodes(*communities())
    (x, a, _), (first, begun, _) = (condensed(run("gdem", data, steps=steps)) for steps in (25, 0))
    assert not torch.equal(x, first) and not torch.equal(a, begun)


def test_a_smaller_rank_holds():
    data = training_nodes(*communities())
    syn = run("gdem", data, steps=3, init_options={"rank": 4}, store_options={"rank": 4})
    assert condensed(syn)[1].shape == (6, 6)


def test_hidden_labels_do_not_matter():
    assert hidden_labels_do_not_matter("gdem", steps=4)
