"""The Laplacian energy distribution, its transport, and the generator of SGDD."""

from __future__ import annotations

import pytest
import torch
from graph_runs import communities, hidden_labels_do_not_matter, run, training_nodes

from ddfed.data import TaskInfo
from ddfed.errors import ConfigError
from ddfed.gate import PlainGate
from ddfed.match.base import Judgement
from ddfed.seeds import Streams
from ddfed.space import Space
from ddfed_graph.domain import condensed
from ddfed_graph.energy import LaplacianEnergy, Masses, energy_of, graph_energy, to_real, transport
from ddfed_graph.facts import symmetric_normalised
from ddfed_graph.graph import Graph
from ddfed_graph.stores import Graphon, PairwiseMLP

INFO = TaskInfo("graph", "file", (5,), ("a", "b", "c"), Space(low=float("-inf"), high=float("inf")))


def masses(atoms, seed=0):
    g = torch.Generator().manual_seed(seed)
    at, mass = (torch.rand(atoms, generator=g, dtype=torch.float64) for _ in range(2))
    return Masses(2 * at.sort().values, mass / mass.sum())


def dense_energy(graph):
    """By all eigenvectors of the whole graph."""
    values, vectors = torch.linalg.eigh(torch.eye(len(graph)).double() - graph.normalised.to_dense().double())
    energy = (vectors.T @ graph.features.double()).square().sum(1)
    return Masses(values, energy / energy.sum())


def condensed_graph(nodes=6, width=4):
    g = torch.Generator().manual_seed(3)
    a, x = torch.rand(nodes, nodes, generator=g), torch.rand(nodes, width, generator=g)
    return ((a + a.T) / 2).fill_diagonal_(0).double(), x.double()


# --- transport ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "two"), ((7, 9), (9, 7), (1, 5), (5, 1)))
def test_cost_is_that_of_the_linear_programme(one, two):
    scipy = pytest.importorskip("scipy.optimize")
    own, other = masses(one, 1), masses(two, 2)
    cost = (own.at[:, None] - other.at).square()
    leaving = torch.eye(one).repeat_interleave(two, 1)
    arriving = torch.eye(two).repeat(1, one)
    given, wanted = torch.cat([leaving, arriving]), torch.cat([own.mass, other.mass])
    found = scipy.linprog(cost.flatten().numpy(), A_eq=given.numpy(), b_eq=wanted.numpy())
    assert float(transport(own, other).cost) == pytest.approx(found.fun, abs=1e-9)


def test_equal_masses_are_moved_in_their_order():
    other = Masses(masses(8, 2).at, torch.full((8,), 1 / 8).double())
    own = Masses(masses(8, 1).at, other.mass)
    assert float(transport(own, other).cost) == pytest.approx(float((own.at - other.at).square().mean()))


def test_nothing_is_moved_to_itself_and_atoms_without_mass_do_not_matter():
    own = masses(6)
    assert float(transport(own, own).cost) == pytest.approx(0, abs=1e-12)
    more = Masses(
        torch.cat([own.at[:3], own.at[3:4], own.at[3:]]), torch.cat([own.mass[:3], torch.zeros(1), own.mass[3:]])
    )
    found, plain = transport(more, masses(4, 2)), transport(own, masses(4, 2))
    assert float(found.cost) == pytest.approx(float(plain.cost)) and bool(found.slope.isfinite().all())


# --- the real side -----------------------------------------------------------------------------------------------


def test_energy_of_a_graph_is_that_of_all_its_eigenvectors():
    graph, _ = communities()
    exact, found = dense_energy(graph), graph_energy(graph, 44)
    assert float(found.mass.sum()) == pytest.approx(1, abs=1e-9)
    assert float(transport(found, exact).cost) < 1e-6  # rounding lets Lanczos find an eigenvalue twice


def test_few_steps_give_the_low_moments_exactly():
    graph, _ = communities()
    exact, found = dense_energy(graph), graph_energy(graph, 3)
    for power in range(6):
        wanted = float((exact.mass * exact.at**power).sum())
        assert float((found.mass * found.at**power).sum()) == pytest.approx(wanted, rel=1e-5)
    assert float((found.mass * found.at**6).sum()) != pytest.approx(float((exact.mass * exact.at**6).sum()), rel=1e-5)


def test_an_exhausted_column_gives_no_mass_elsewhere():
    """Constant features on a complete graph are an eigenvector: one step tells all."""
    graph = Graph.of(torch.ones(4, 2), torch.combinations(torch.arange(4)).T)
    found = graph_energy(graph, 5)
    assert float((found.mass * found.at.abs()).sum()) == pytest.approx(0, abs=1e-6)


def test_blocks_of_features_change_nothing(monkeypatch):
    graph, _ = communities()
    whole = graph_energy(graph, 6)
    monkeypatch.setattr("ddfed_graph.energy._BLOCK", 2 * len(graph))
    assert float(transport(graph_energy(graph, 6), whole).cost) == pytest.approx(0, abs=1e-12)


def test_features_of_zeros_are_refused():
    with pytest.raises(ConfigError, match="zero"):
        graph_energy(Graph.of(torch.zeros(3, 2), torch.tensor([[0], [1]])), 3)


# --- the condensed side ------------------------------------------------------------------------------------------


def test_derivative_is_that_of_autograd_through_the_eigenvectors():
    (a, x), real = condensed_graph(), masses(9, 2)
    a.requires_grad_()
    values, vectors = torch.linalg.eigh(torch.eye(6).double() - symmetric_normalised(a))
    energy = (vectors.T @ x).square().sum(1)
    naive = transport(Masses(values, energy / energy.sum()), real).cost
    found = to_real(a, x, real)
    assert float(found.detach()) == pytest.approx(float(naive.detach()))
    got, want = (torch.autograd.grad(loss, a)[0] for loss in (found, naive))
    assert torch.allclose(got + got.T, want + want.T, atol=1e-9) and float(got.abs().max()) > 1e-3


def repeated():
    """A condensed graph whose Laplacian has eigenvalues of higher multiplicity: autograd divides by zero there."""
    a = (1 - torch.eye(5).double()) * 0.4
    x = torch.tensor([[1.0, 0.2], [0.7, 0.2], [1.0, 0.5], [0.3, 1.0], [0.4, 0.8]]).double()
    assert float(energy_of(a, x)[0].at.diff().min()) < 1e-9
    return a.requires_grad_(), x


def along(loss, a, i, j):
    found = torch.autograd.grad(loss, a)[0]
    return float(found[i, j] + found[j, i])


def moved(a, x, real, i, j, by):
    move = torch.zeros_like(a)
    move[i, j] = move[j, i] = by
    return float(to_real(a.detach() + move, x, real))


@pytest.mark.parametrize(("i", "j"), ((0, 1), (0, 4), (3, 4)))
def test_derivative_is_that_of_differences_where_eigenvalues_repeat(i, j):
    (a, x), real = repeated(), Masses(torch.tensor([0.3]).double(), torch.ones(1).double())
    slope = along(to_real(a, x, real), a, i, j)
    assert slope == pytest.approx((moved(a, x, real, i, j, 1e-5) - moved(a, x, real, i, j, -1e-5)) / 2e-5, rel=1e-4)


@pytest.mark.parametrize(("i", "j"), ((0, 1), (0, 4), (3, 4)))
def test_at_a_kink_the_derivative_is_a_supergradient(i, j):
    (a, x), real = repeated(), masses(9, 2)
    cost = to_real(a, x, real)
    slope = along(cost, a, i, j)
    for by in (1e-5, -1e-5):
        assert moved(a, x, real, i, j, by) <= float(cost.detach()) + by * slope + 1e-9


def judged(data, store, **options):
    x = store.decode(torch.arange(store.items))[0].detach().requires_grad_()
    y = store.classes
    return LaplacianEnergy(**options)(
        Judgement(
            net=None, x=x, y=y, row_class=y, classes=(0, 1, 2), gate=PlainGate(data), augmentation=None,
            label_loss=None, skill=0.0, step=0, streams=Streams(0), coupled=store.coupled,
        )
    )  # fmt: skip


def test_the_term_moves_the_adjacency_alone():
    data, store = training_nodes(*communities()), filled()
    found = judged(data, store, depth=44)
    rows = store.decode(torch.arange(6))[0].detach()
    assert found.loss == pytest.approx(float(to_real(rows[:, 5:], rows[:, :5], dense_energy(data.graph))), abs=1e-6)
    assert not bool(found.x[:, :5].any()) and bool(found.x[:, 5:].any()) and found.y is None


def test_following_the_term_brings_the_distributions_together():
    data, store = training_nodes(*communities()), filled()
    outer = torch.optim.Adam([store.params[name] for name in sorted(store.structure)], 1e-2)
    losses = []
    for _ in range(40):
        found = judged(data, store)
        losses.append(found.loss)
        outer.zero_grad()
        store.decode(torch.arange(6))[0].backward(found.x)
        outer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_rows_without_an_adjacency_are_refused():
    from ddfed.store import Pixels

    data = training_nodes(*communities())
    store = Pixels(data.info, torch.arange(3).repeat_interleave(2))
    store.fill(torch.rand(6, 1, 5))
    with pytest.raises(ConfigError, match="distill.store = 'graphon'"):
        judged(data, store)


@pytest.mark.parametrize("depth", (0, 2.5, True, "deep"))
def test_a_depth_that_means_nothing_is_refused(depth):
    with pytest.raises(ConfigError, match="depth"):
        LaplacianEnergy(depth=depth)


# --- the generator -----------------------------------------------------------------------------------------------


def filled(seed=0, classes=None, **options):
    store = Graphon(INFO, torch.arange(3).repeat_interleave(2) if classes is None else classes, hidden=8, **options)
    x = torch.rand(store.items, 1, 5, generator=torch.Generator().manual_seed(1))
    store.fill(x, Streams(seed))
    return store


def linear(p, name, h):
    return torch.nn.functional.linear(h, p[name], p[f"{name}_b"])


def test_adjacency_is_that_of_the_layers_applied_to_every_pair():
    store = filled(mix=0.3)
    p, z = store.params, store.buffers["point"]
    pairs = [(i, j) for i in range(6) for j in range(6)]
    seen = torch.stack([torch.cat([p["x"][i], p["x"][j]]) for i, j in pairs])
    placed = torch.stack([torch.cat([z[i], z[j]]) for i, j in pairs])
    for name, norm in (("first", "norm1"), ("second", "norm2")):
        after = [
            torch.relu(torch.nn.functional.batch_norm(linear(p, prefix + name, h), None, None, *p[prefix + norm], True))
            for prefix, h in (("", seen), ("grid_", placed))
        ]
        seen, placed = after[0], after[1] * after[0]
    logits = (0.7 * linear(p, "grid_third", placed) + 0.3 * linear(p, "third", seen)).view(6, 6)
    wanted = torch.sigmoid((logits + logits.T) / 2).fill_diagonal_(0)
    found = store.decode(torch.arange(6))[0][:, 5:]
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(found, found.T, atol=1e-6) and not bool(found.diagonal().any())
    assert bool((found >= 0).all()) and bool((found <= 1).all())


def test_with_features_alone_it_is_the_pairwise_mlp():
    store = filled(mix=1.0)
    plain = PairwiseMLP(INFO, store.classes, hidden=8)
    plain.load({name: store.tensors()[name] for name in plain.params})
    every = torch.arange(6)
    assert torch.equal(store.decode(every)[0], plain.decode(every)[0])


def test_points_are_noise_within_the_stretch_of_the_class_whatever_the_order():
    point = filled(classes=torch.tensor([2, 0, 1, 0, 2, 1])).buffers["point"][:, 0]
    stretch = torch.tensor([2, 0, 1, 0, 2, 1])
    assert bool((point >= 2 * stretch / 3 - 1).all()) and bool((point <= 2 * (stretch + 1) / 3 - 1).all())
    assert torch.equal(filled(0).buffers["point"], filled(0).buffers["point"])
    assert not torch.equal(filled(0).buffers["point"], filled(1).buffers["point"])


@pytest.mark.parametrize("mix", (0.0, 1.5, "half"))
def test_a_mix_that_means_nothing_is_refused(mix):
    with pytest.raises(ConfigError, match="mix"):
        filled(mix=mix)


# --- the recipe --------------------------------------------------------------------------------------------------

SMALL = {"store_options": {"hidden": 8, "turns": [2, 2]}, "pool_options": {"epochs": 2}}


def test_the_term_has_a_part_in_what_is_learned():
    data = training_nodes(*communities())
    with_term, without = (condensed(run("sgdd", data, steps=6, **SMALL, **parts)) for parts in ({}, {"terms": []}))
    assert not torch.equal(with_term[1], without[1])


def test_hidden_labels_do_not_matter():
    assert hidden_labels_do_not_matter("sgdd", steps=4, **SMALL)
