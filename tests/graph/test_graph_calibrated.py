"""Condensed nodes from calibrated clusters (CGC)."""

from __future__ import annotations

import pytest
import torch
from graph_runs import communities, hidden_labels_do_not_matter, run, training_nodes

from ddfed_graph import calibrated
from ddfed_graph.calibrated import calibration, cosines, unpropagated, weighted_mean
from ddfed_graph.domain import condensed
from ddfed_graph.facts import symmetric_normalised

pytest.importorskip("sklearn")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linked(k: int) -> torch.Tensor:
    a = (drawn(k, k, seed=1) > 0.6).double().triu(1)
    return a + a.T


@pytest.mark.parametrize("alpha", (0.3, 7.0))
def test_features_solve_the_least_squares_problem(alpha):
    h, a = drawn(7, 4), linked(7)
    s = symmetric_normalised(a)
    # |L^T X|^2 with I - A^' = L L^T is the smoothness term: one stacked least squares problem.
    values, vectors = torch.linalg.eigh(torch.eye(7, dtype=torch.float64) - s)
    root = values.clamp(min=0).sqrt()[:, None] * vectors.T
    stacked = torch.cat([alpha**0.5 * s @ s, root])
    target = torch.cat([alpha**0.5 * h, torch.zeros_like(h)])
    expected = torch.linalg.lstsq(stacked, target).solution
    assert torch.allclose(unpropagated(h, a, alpha).double(), expected, atol=1e-5)


def test_without_edges_features_are_the_means():
    h = drawn(5, 3)
    assert torch.allclose(unpropagated(h, torch.zeros(5, 5), 7.0).double(), h, atol=1e-6)


def test_answers_of_the_calibration_are_fits_without_the_row():
    h, label = drawn(9, 4), torch.arange(9) % 3
    y = torch.nn.functional.one_hot(label).double()
    ridge = 1e-2 * float((h @ h.T).diagonal().mean()) + 1e-12
    answers = []
    for i in range(9):
        rest = torch.arange(9) != i
        x = h[rest]
        answers.append(h[i] @ torch.linalg.solve(x.T @ x + ridge * torch.eye(4).double(), x.T @ y[rest]))
    answers = torch.stack(answers)
    sure, f1 = calibration(h, label)
    assert torch.allclose(sure, answers.softmax(1)[torch.arange(9), label], atol=1e-8)
    guess = answers.argmax(1)
    for c in range(3):
        hits = float(((guess == c) & (label == c)).sum())
        assert float(f1[c]) == pytest.approx(2 * hits / float((guess == c).sum() + (label == c).sum()))


def test_sure_rows_weigh_more():
    h, sure = torch.tensor([[0.0], [1.0]]), torch.tensor([0.1, 0.9], dtype=torch.float64)
    assert float(weighted_mean(h, sure, 0.1)) > float(weighted_mean(h, sure, 10.0)) > 0.5


def test_cosine_of_a_zero_row_is_zero():
    assert torch.equal(cosines(torch.tensor([[0.0, 0.0], [1.0, 0.0]])), torch.tensor([[0.0, 0.0], [0.0, 1.0]]).double())


def test_a_graph_links_means_that_are_alike():
    data = training_nodes(*communities())
    plain = condensed(run("cgc-x", data))[0]
    x, a, y = condensed(run("cgc", data, init_options={"threshold": 0.97}))
    expected = (cosines(plain) > 0.97).float().fill_diagonal_(0)
    assert torch.equal(a, expected) and 0 < float(a.sum()) < 30
    assert torch.allclose(x, unpropagated(plain, a, 7.0)) and y.tolist() == [0, 0, 1, 1, 2, 2]


def test_without_augmentation_an_easy_class_keeps_its_mean():
    data = training_nodes(*communities())
    options = {"augment": 0.0, "temperature": 1e6}
    x = condensed(run("cgc-x", data, ipc=1, init_options=options))[0]
    h = data.graph.hop(2)[data.inputs]
    expected = torch.stack([h[data.labels == c].mean(0) for c in range(3)])
    assert torch.allclose(x, expected, atol=1e-5)


def test_no_extra_rows_where_every_class_is_all_right():
    extra = calibrated._drawn_extra(torch.arange(4) % 2, torch.ones(2).double(), 3, torch.Generator())
    assert len(extra) == 0


def test_hard_classes_get_the_extra_rows():
    label = torch.arange(40) % 2
    extra = calibrated._drawn_extra(label, torch.tensor([1.0, 0.5]).double(), 30, torch.Generator().manual_seed(0))
    assert len(extra) == 30 and bool((label[extra] == 1).all())


@pytest.mark.parametrize("method", ("cgc", "cgc-x"))
def test_hidden_labels_do_not_matter(method):
    assert hidden_labels_do_not_matter(method)
