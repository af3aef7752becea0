"""Trajectory matching against the unrolled graph, in float64; the student's step size; what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ddfed.domain import Network
from ddfed.errors import ConfigError, DivergedError
from ddfed.gate import PlainGate
from ddfed.match import Judgement, TrajectoryMatching
from ddfed.match.lessons import Lessons, shuffled
from ddfed.match.trajectory import kept_weights
from ddfed.seeds import Streams
from ddfed.store import LogitLabels
from ddfed.testing import TwinDomain, twin_task
from ddfed.testing.twin import TwinNet, TwinShift

TASK = twin_task()
ROWS = 6


def net(seed: int) -> Network:
    torch.manual_seed(seed)
    made = TwinNet(TASK.info, 5).double()
    made.body[2] = nn.Softplus()  # smooth, so that the comparison holds to rounding
    return made


def judgement(learned: bool = True, augment: bool = True, step: int = 0, **changes: Any) -> Judgement:
    torch.manual_seed(1)
    x = torch.randn(ROWS, *TASK.info.shape, dtype=torch.float64).requires_grad_()
    classes = torch.arange(3).repeat_interleave(2)
    y = torch.randn(ROWS, 3, dtype=torch.float64).requires_grad_() if learned else classes
    given: dict[str, Any] = {
        "net": net(0),
        "x": x,
        "y": y,
        "row_class": classes,
        "classes": (0, 1, 2),
        "gate": PlainGate(TASK.train),
        "augmentation": TwinShift() if augment else None,
        "label_loss": LogitLabels.loss if learned else lambda z, t: F.cross_entropy(z, t, reduction="none"),
        "skill": 0.0,
        "step": step,
        "streams": Streams(5),
        "expert": net(2),
    }
    return Judgement(**{**given, **changes})


def flat(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def unrolled(j: Judgement, steps: int, lr: Tensor, batch: int = ROWS) -> list[Tensor]:
    """Weights after each step in one graph, written without the adjoint."""
    streams = j.streams.child("inner", j.step)
    lessons = Lessons(shuffled(ROWS, batch, streams), j.augmentation, streams)
    shapes = {name: p.shape for name, p in j.net.named_parameters()}
    found = [flat(j.net).requires_grad_()]
    for t in range(steps):
        lesson = lessons(t)
        x = j.x[lesson.rows]
        if j.augmentation is not None:
            x = j.augmentation(x, lesson.draw, torch.arange(len(x)))
        parts = found[-1].split([s.numel() for s in shapes.values()])
        named = {n: part.view(s) for (n, s), part in zip(shapes.items(), parts)}
        loss = j.label_loss(functional_call(j.net, named, (x,)), j.y[lesson.rows]).mean()
        found.append(found[-1] - lr * torch.autograd.grad(loss, found[-1], create_graph=True)[0])
    return found


def ratio(j: Judgement, end: Tensor, kept: Tensor | float = 1.0) -> Tensor:
    target = flat(j.expert)
    return (kept * (end - target)).square().sum() / (kept * (flat(j.net) - target)).square().sum()


@pytest.mark.parametrize("learned", [True, False], ids=["learned", "hard"])
@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("mask", ["none", "depth", "largest"])
def test_the_engine_equals_the_unrolled_graph(learned: bool, batch: int | None, mask: str):
    j = judgement(learned)
    share = 0.0 if mask == "none" else 0.3
    engine = TrajectoryMatching(steps=5, batch=batch, lr=0.1, lr_lr=0.01, mask=mask, mask_share=share)
    found = engine(j)
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    end = unrolled(j, 5, lr, batch or ROWS)[-1]
    kept = kept_weights((end - flat(j.expert)).detach(), mask, share)
    loss = ratio(j, end, kept)
    x, by_lr, *y = torch.autograd.grad(loss, [j.x, lr, *([j.y] if learned else [])])
    assert found.loss == pytest.approx(loss.item(), rel=1e-10)
    assert torch.allclose(found.x, x, rtol=1e-9, atol=1e-12)
    assert engine.lr == pytest.approx(0.1 - 0.01 * float(by_lr), rel=1e-9)
    assert (found.y is None) is not learned
    if learned:
        assert torch.allclose(found.y, y[0], rtol=1e-9, atol=1e-12)


def test_att_judges_the_step_of_least_absolute_distance():
    j = judgement()
    # A target near the third step, so that the student goes past it.
    lr = torch.tensor(0.2, dtype=torch.float64)
    near = unrolled(j, 3, lr)[-1] + 0.002 * torch.randn(len(flat(j.net)), dtype=torch.float64)
    with torch.no_grad():
        j.expert.load_state_dict(dict(zip(j.expert.state_dict(), _shaped(near.detach(), j.expert))))
    found = TrajectoryMatching(steps=6, lr=0.2, best=True)(j)
    path = unrolled(j, 6, lr)
    distances = [float((w - flat(j.expert)).abs().sum().detach()) for w in path[1:]]
    nearest = distances.index(min(distances)) + 1
    assert nearest == 3
    loss = ratio(j, path[nearest])
    assert found.loss == pytest.approx(loss.item(), rel=1e-9)
    assert torch.allclose(found.x, torch.autograd.grad(loss, j.x)[0], rtol=1e-8, atol=1e-12)


def _shaped(vector: Tensor, network: nn.Module) -> list[Tensor]:
    parts = vector.split([p.numel() for p in network.parameters()])
    return [part.view(p.shape) for part, p in zip(parts, network.parameters())]


def test_tesla_is_its_published_formula_and_equals_mtt_for_one_step_only():
    j = judgement()
    steps, b = 4, 0.3
    found = TrajectoryMatching(steps=steps, lr=b, adjoint="truncated", lr_lr=1.0)(j)
    path = [w.detach() for w in unrolled(j, steps, torch.tensor(b, dtype=torch.float64))]
    start, target = path[0], flat(j.expert)
    total = (start - path[-1]) / b
    streams = j.streams.child("inner", 0)
    lessons = Lessons(shuffled(ROWS, ROWS, streams), j.augmentation, streams)
    shapes = {name: p.shape for name, p in j.net.named_parameters()}
    # (2 / D) d<b (th* - th_0) + b^2 G, g_i> / dx_i with the weights of g_i held fixed.
    lead = b * (target - start) + b**2 * total
    want = torch.zeros_like(j.x)
    for t in range(steps):
        lesson = lessons(t)
        w = path[t].clone().requires_grad_()
        x = j.augmentation(j.x[lesson.rows], lesson.draw, torch.arange(ROWS))
        named = {n: p.view(s) for (n, s), p in zip(shapes.items(), w.split([s.numel() for s in shapes.values()]))}
        loss = j.label_loss(functional_call(j.net, named, (x,)), j.y).mean()
        g = torch.autograd.grad(loss, w, create_graph=True)[0]
        want += 2 / (start - target).square().sum() * torch.autograd.grad((lead * g).sum(), j.x)[0]
    assert torch.allclose(found.x, want, rtol=1e-8, atol=1e-12)
    exact = TrajectoryMatching(steps=steps, lr=b)(j)
    assert not torch.allclose(found.x, exact.x, rtol=1e-3)
    one = [TrajectoryMatching(steps=1, lr=b, adjoint=kind)(j).x for kind in ("exact", "truncated")]
    assert torch.allclose(one[0], one[1], rtol=1e-9, atol=1e-12)


def test_the_step_size_is_learned_by_sgd_with_momentum_and_never_falls_below_its_floor():
    engine = TrajectoryMatching(steps=3, lr=0.1, lr_lr=0.02, lr_momentum=0.5)
    leaf = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([leaf], lr=0.02, momentum=0.5)
    for step in range(3):
        j = judgement(step=step)
        optimizer.zero_grad()
        ratio(j, unrolled(j, 3, leaf)[-1]).backward()
        optimizer.step()
        engine(j)
        assert engine.lr == pytest.approx(float(leaf.detach()), rel=1e-9)
    assert engine.training() == {"lr": engine.lr}
    floored = TrajectoryMatching(steps=3, lr=0.1, lr_lr=1e6)
    losses = [floored(judgement(step=step)).loss for step in range(2)]
    assert floored.lr >= 1e-6 and all(loss == loss for loss in losses)
    fixed = TrajectoryMatching(steps=3, lr=0.1, lr_lr=0.0)
    fixed(judgement())
    assert fixed.lr == 0.1


def test_the_state_is_the_step_size_and_its_momentum():
    one = TrajectoryMatching(steps=3, lr=0.1, lr_lr=0.02)
    one(judgement())
    two = TrajectoryMatching(steps=3, lr=0.1, lr_lr=0.02)
    two.load(one.state())
    for engine in (one, two):
        engine(judgement(step=1))
    assert one.state() == two.state() and one.lr != 0.1


def test_datm_rejects_a_bad_step_and_learns_nothing_from_it():
    j = judgement()
    loss = TrajectoryMatching(steps=3, lr=0.1, lr_lr=0.01)(j).loss
    for threshold, skipped in ((loss * 0.99, True), (loss * 1.01, False)):
        engine = TrajectoryMatching(steps=3, lr=0.1, lr_lr=0.01, threshold=threshold)
        found = engine(j)
        assert found.skip is skipped and found.loss == pytest.approx(loss)
        assert (engine.lr == 0.1) is skipped and bool(found.x.any()) is not skipped


def test_labels_of_the_expert_are_its_answers_and_are_not_learned():
    j = judgement()
    found = TrajectoryMatching(steps=3, lr=0.1, labels="expert")(j)
    assert found.y is not None and not found.y.any()
    with torch.no_grad():
        probabilities = j.expert(j.x).softmax(1)
    other = judgement(y=probabilities.log(), x=j.x)  # softmax of the logarithm is the probability
    assert torch.allclose(found.x, TrajectoryMatching(steps=3, lr=0.1)(other).x, rtol=1e-9)


def test_masks_keep_what_they_say():
    error = torch.tensor([3.0, -1.0, 0.5, 2.0])
    assert kept_weights(error, "none", 0.0).tolist() == [1, 1, 1, 1]
    assert kept_weights(error, "depth", 0.5).tolist() == [0, 0, 1, 1]
    assert kept_weights(error, "largest", 0.5).tolist() == [1, 0, 0, 1]


def test_lessons_are_chunks_of_shuffled_passes_and_the_same_again():
    lessons = Lessons(shuffled(5, 2, Streams(0)), TwinShift(), Streams(0))
    assert [len(lessons(t).rows) for t in range(6)] == [2, 2, 1] * 2
    for epoch in range(2):
        seen = torch.cat([lessons(3 * epoch + t).rows for t in range(3)])
        assert seen.sort().values.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(lessons(4).rows, lessons(4).rows) and torch.equal(lessons(4).draw.u, lessons(4).draw.u)
    assert not torch.equal(lessons(0).draw.u, lessons(1).draw.u)
    assert lessons(0).draw.u.unique().numel() > 1  # a draw of its own for each row
    assert Lessons(shuffled(3, 9, Streams(0)), None, Streams(0))(1).rows.tolist() == [0, 1, 2]


def test_what_cannot_be_followed_is_refused():
    with pytest.raises(ConfigError, match="Use pool 'X'"):
        TrajectoryMatching()(judgement(expert=None))
    dropping = net(0)
    dropping.body.append(nn.Dropout(0.5))
    for refuse in (lambda: TrajectoryMatching()(judgement(net=dropping)), lambda: TrajectoryMatching().check(dropping)):
        with pytest.raises(ConfigError, match="drops units at random"):
            refuse()
    with pytest.raises(ConfigError, match="nothing to match"):
        TrajectoryMatching(steps=2)(judgement(expert=net(0)))
    with pytest.raises(DivergedError, match="student's step size is nan"):
        TrajectoryMatching(steps=2)._learn(float("nan"), 1.0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adjoint": "exakt"}, "Did you mean 'exact'"),
        ({"mask": "deep"}, "Did you mean 'depth'"),
        ({"labels": "teacher"}, "Possible: 'own', 'expert'"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": None}, "steps must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"mask_share": 0.5}, "got 0.5 with mask 'none'"),
        ({"mask": "depth", "mask_share": 1.0}, "from 0 to below 1"),
        ({"window": 3}, "has no option 'window'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        TrajectoryMatching(**options)


def test_a_class_by_class_scope_is_refused():
    from ddfed.distill import distill
    from ddfed.settings import PartSettings

    parts = PartSettings(
        ipc=1,
        steps=1,
        scope="sequential",
        objective="trajectory",
        pool="X",
        pool_options={"experts": 1, "span": 1, "max_start": 1, "make": {"epochs": 1}},
    )
    with pytest.raises(ConfigError, match="judges all classes together"):
        distill(PlainGate(TASK.train), TwinDomain(), parts, Streams(0))
