"""Mean matching against a version with two loops in float64, and the symmetries it must have."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from ddfed.data import RealData
from ddfed.domain import Augmentation, Network
from ddfed.errors import ConfigError
from ddfed.gate import Answer, PlainGate, Query
from ddfed.match import Cotangent, Judgement, MeanMatching, Precision
from ddfed.match.moments import class_means, mean_distance
from ddfed.seeds import Streams, isolated
from ddfed.store import HardLabels, LogitLabels
from ddfed.testing import TwinDomain, twin_task
from ddfed.testing.twin import TwinShift

TASK = twin_task(per_class=15)
ALL = (0, 1, 2)


class Remembering(PlainGate):
    """A gate that keeps the rows it drew, for the version by hand."""

    def _draw(self, query: Query, generator: torch.Generator) -> Tensor:
        self.drawn = super()._draw(query, generator)
        return self.drawn


def judgement(
    classes: tuple[int, ...] = ALL,
    ipc: int = 3,
    augmentation: Augmentation | None = None,
    skill: float = 0.0,
    learned: bool = False,
    data: RealData = TASK.train,
    **changes: Any,
) -> Judgement:
    with isolated(0):
        net: Network = TwinDomain().network("small", TASK.info).requires_grad_(False)
    # Uneven and interleaved: class c has ipc + c rows.
    row_class = torch.tensor([c for i in range(ipc + max(classes)) for c in classes if i < ipc + c])
    x = torch.randn(len(row_class), *TASK.info.shape, generator=torch.Generator().manual_seed(2))
    labels = LogitLabels(row_class, 3, strength=2.0) if learned else HardLabels(row_class, 3)
    y = labels.targets(torch.arange(len(row_class))).detach().requires_grad_(learned)
    values: dict[str, Any] = {
        "net": net, "x": x.requires_grad_(), "y": y, "row_class": row_class, "classes": classes,
        "gate": Remembering(data), "augmentation": augmentation, "label_loss": labels.loss, "skill": skill,
        "step": 4, "streams": Streams(1),
    }  # fmt: skip
    return Judgement(**{**values, **changes})


def by_hand(j: Judgement, logits: bool = False, ce_weight: float = 0.0) -> tuple[float, Tensor, Tensor | None]:
    """Class by class, row by row, in float64, from the rows that the gate drew."""
    net = copy.deepcopy(j.net).double()
    x = j.x.detach().double().requires_grad_()
    y = j.y.detach().double().requires_grad_() if j.y.requires_grad else j.y
    scope = () if len(j.classes) > 1 else (j.classes[0],)
    draw = j.augmentation.draw(3, j.streams.torch("siamese", j.step, *scope)) if j.augmentation else None

    def values(row: Tensor, c: int) -> tuple[Tensor, Tensor]:
        if draw is not None and j.augmentation is not None:
            row = j.augmentation(row[None], draw, torch.tensor([c]))[0]
        features = net.embed(row[None])[0]
        z = net.head(features[None])[0]
        return (torch.cat([features, z]) if logits else features), z

    assert isinstance(j.gate, Remembering)
    total = torch.zeros((), dtype=torch.float64)
    for c in j.classes:
        real = [
            values(j.gate.data.batch(r[None]).inputs[0].double(), c)[0]
            for r in j.gate.drawn
            if j.gate.data.labels[r] == c
        ]
        mine = [i for i in range(len(x)) if j.row_class[i] == c]
        syn = [values(x[i], c) for i in mine]
        gap = sum(real) / len(real) - sum(s for s, _ in syn) / len(syn)
        total = total + sum(g * g for g in gap)
        if ce_weight and j.skill:
            rows = [j.label_loss(z[None], y[i][None])[0] for i, (_, z) in zip(mine, syn)]
            total = total + ce_weight * j.skill * sum(rows) / len(rows)
    leaves = [x, y] if y.requires_grad else [x]
    grads = torch.autograd.grad(total, leaves, allow_unused=True)
    grad_y = None if len(grads) == 1 else torch.zeros_like(y) if grads[1] is None else grads[1]
    return float(total.detach()), grads[0], grad_y


@pytest.mark.parametrize("augmented", [False, True], ids=["plain", "siamese"])
@pytest.mark.parametrize("learned", [False, True], ids=["hard", "learned"])
@pytest.mark.parametrize("classes", [ALL, (2, 0), (1,)], ids=str)
@pytest.mark.parametrize(
    ("options", "skill"),
    [
        ({}, 0.0),
        ({"logits": True}, 0.0),
        ({"ce_weight": 0.5}, 40.0),
        ({"ce_weight": 0.5}, 0.0),
        ({"logits": True, "ce_weight": 0.1, "syn_chunk": 1}, 70.0),
        ({"syn_chunk": 7}, 0.0),
    ],
    ids=str,
)
def test_loss_and_cotangent_equal_the_version_by_hand(
    options: dict[str, Any], skill: float, classes: tuple[int, ...], learned: bool, augmented: bool
):
    j = judgement(classes, augmentation=TwinShift() if augmented else None, skill=skill, learned=learned)
    found = MeanMatching(rows=6, **options)(j)
    loss, grad, grad_y = by_hand(j, options.get("logits", False), options.get("ce_weight", 0.0))
    assert found.loss == pytest.approx(loss, rel=1e-4)
    assert torch.allclose(found.x.double(), grad, rtol=1e-3, atol=1e-5 * float(grad.abs().max()))
    assert (found.y is None) == (not learned)
    if found.y is not None and grad_y is not None:
        assert torch.allclose(found.y.double(), grad_y, rtol=1e-3, atol=1e-6)
        assert bool((grad_y != 0).any()) == bool(options.get("ce_weight") and skill)


@pytest.mark.parametrize("options", [{}, {"logits": True}, {"ce_weight": 0.5}], ids=str)
def test_joint_equals_the_sum_over_classes(options: dict[str, Any]):
    joint = MeanMatching(rows=None, **options)(judgement(skill=30.0))
    total, grad = 0.0, torch.zeros_like(joint.x)
    for c in ALL:
        whole = judgement(skill=30.0)
        rows = torch.nonzero(whole.row_class == c).flatten()
        one = MeanMatching(rows=None, **options)(
            judgement(
                (c,),
                skill=30.0,
                x=whole.x.detach()[rows].requires_grad_(),
                y=whole.y[rows],
                row_class=whole.row_class[rows],
            )
        )
        total += one.loss
        grad[rows] = one.x
    assert joint.loss == pytest.approx(total, rel=1e-5)
    assert torch.allclose(joint.x, grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 4, 5, 9, 1000])
def test_the_synthetic_chunk_does_not_matter(chunk: int):
    whole = MeanMatching(rows=6, logits=True, ce_weight=0.5)(judgement(skill=10.0, learned=True))
    parts = MeanMatching(rows=6, logits=True, ce_weight=0.5, syn_chunk=chunk)(judgement(skill=10.0, learned=True))
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert torch.allclose(parts.x, whole.x, rtol=1e-4, atol=1e-6)
    assert parts.y is not None and whole.y is not None and torch.allclose(parts.y, whole.y, atol=1e-6)


def test_permuting_rows_permutes_the_cotangent():
    j = judgement(augmentation=TwinShift(), skill=20.0)
    order = torch.randperm(len(j.x), generator=torch.Generator().manual_seed(0))
    permuted = judgement(
        augmentation=TwinShift(), skill=20.0,
        x=j.x.detach()[order].requires_grad_(), y=j.y[order], row_class=j.row_class[order],
    )  # fmt: skip
    one, two = MeanMatching(ce_weight=0.5)(j), MeanMatching(ce_weight=0.5)(permuted)
    assert one.loss == pytest.approx(two.loss, rel=1e-5)
    assert torch.allclose(one.x[order], two.x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("augmentation", [None, TwinShift()], ids=["plain", "siamese"])
def test_a_set_that_is_the_data_has_zero_loss_and_gradient(augmentation: Augmentation | None):
    data = TASK.train.all()
    j = judgement(
        augmentation=augmentation, x=data.inputs.clone().requires_grad_(), y=data.classes, row_class=data.classes
    )
    found = MeanMatching(rows=None, logits=True)(j)
    assert found.loss < 1e-9
    assert float(found.x.abs().max()) < 1e-5


def test_repeating_every_row_changes_neither_means_nor_loss():
    j = judgement()
    doubled = judgement(
        x=j.x.detach().repeat(2, 1, 1, 1).requires_grad_(), y=j.y.repeat(2), row_class=j.row_class.repeat(2)
    )
    one, two = MeanMatching()(j), MeanMatching()(doubled)
    assert one.loss == pytest.approx(two.loss, rel=1e-5)
    assert torch.allclose(one.x, 2 * two.x[: len(j.x)], rtol=1e-4, atol=1e-6)


def test_loss_sums_over_classes_and_dimensions():
    # Published step sizes assume the sum: a mean here would be 6 times smaller.
    assert float(mean_distance(torch.zeros(2, 3), torch.full((2, 3), 2.0))) == 24.0
    values = torch.tensor([[1.0], [3.0], [10.0]])
    assert class_means(values, torch.tensor([1, 1, 0]), 2).tolist() == [[10.0], [2.0]]


def test_means_of_different_widths_are_refused():
    with pytest.raises(ConfigError, match=r"\(2, 3\) and \(2, 1\)"):
        mean_distance(torch.zeros(2, 3), torch.zeros(2, 1))


def test_a_network_that_mixes_rows_is_refused_for_several_classes_only():
    j = judgement()
    j.net.mixes_rows = True
    with pytest.raises(ConfigError, match="BatchNorm.*instance norm"):
        MeanMatching()(j)
    one = judgement((1,))
    one.net.mixes_rows = True
    assert MeanMatching()(one).loss > 0


def test_neither_network_nor_rows_are_changed_by_judging():
    j = judgement(augmentation=TwinShift())
    before = [t.clone() for t in (*j.net.state_dict().values(), j.x.detach())]
    MeanMatching()(j)
    assert all(torch.equal(a, b) for a, b in zip(before, (*j.net.state_dict().values(), j.x.detach())))
    assert j.x.grad is None and all(p.grad is None for p in j.net.parameters())


def test_every_step_and_class_draws_its_own_real_rows():
    def drawn(**changes: Any) -> list[int]:
        j = judgement(**changes)
        MeanMatching(rows=4)(j)
        assert isinstance(j.gate, Remembering)
        return j.gate.drawn.tolist()

    assert drawn() == drawn() != drawn(step=5)
    assert drawn(classes=(0,)) == drawn(classes=(0,))
    assert [r - 15 for r in drawn(classes=(1,))] != drawn(classes=(0,))


def test_unknown_options_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="'mean' has no option 'row'.*'rows'"):
        MeanMatching(row=3)


def test_a_cotangent_is_the_gradient_of_a_scalar():
    x, y = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    found = Cotangent.of((3 * x + y * y).sum(), x, y)
    assert found.x.tolist() == [3.0, 3.0] and found.loss == 8.0
    assert found.y is not None and found.y.tolist() == [2.0, 2.0]
    assert Cotangent.of((3 * x).sum(), x).y is None


def means(precision: Precision, options: dict[str, Any]) -> Tensor:
    class Telling(PlainGate):
        def sums(self, *asked: Any) -> Answer:
            self.answer = super().sums(*asked)
            return self.answer

    gate = Telling(TASK.train)
    MeanMatching(precision, rows=None, **options)(judgement(gate=gate))
    return gate.answer.means


@pytest.mark.parametrize("options", [{}, {"logits": True}], ids=str)
def test_a_bfloat16_real_side_stays_within_two_percent_and_sums_in_float32(options: dict[str, Any]):
    exact, cheap = means(Precision(), options), means(Precision(bf16=True), options)
    assert cheap.dtype == torch.float32
    assert float((cheap - exact).norm() / exact.norm()) < 2e-2
    assert not torch.equal(cheap, exact)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_a_compiled_real_side_equals_eager_to_rounding_also_after_a_redraw():
    objective = MeanMatching(Precision(compiled=True), rows=None)
    j = judgement()
    for seed in range(2):
        with isolated(seed), torch.no_grad():
            for p in j.net.parameters():
                p.copy_(torch.randn(p.shape) * 0.2)
        eager = MeanMatching(rows=None)(j)
        found = objective(j)
        assert found.loss == pytest.approx(eager.loss, rel=1e-4)
        assert torch.allclose(found.x, eager.x, rtol=1e-3, atol=1e-5)
