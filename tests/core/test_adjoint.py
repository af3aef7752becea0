"""The adjoint against the unrolled graph, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddfed.domain import Augmentation, Draw, Network
from ddfed.match import adjoint
from ddfed.match.adjoint import SGD, Adam, Minibatch, Rule, Student, Unrolled, flat_weights


class Net(Network):
    def __init__(self) -> None:
        super().__init__()
        # A bias before the norm would have no gradient but rounding, which Adam turns into steps.
        conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.body = nn.Sequential(conv, nn.GroupNorm(4, 4), nn.Softplus(), nn.Flatten())
        self.head = nn.Linear(4 * 16, 3)

    def embed(self, x: Tensor) -> Tensor:
        return self.body(x)


class Shift(Augmentation):
    """Adds and multiplies by the draw's numbers."""

    name = "shift"

    def draw(self, groups: int, generator: torch.Generator, one_op: bool = False) -> Draw:
        return Draw(torch.zeros(groups, dtype=torch.int64), torch.rand(groups, 2, generator=generator))

    def __call__(self, x: Tensor, draw: Draw, groups: Tensor) -> Tensor:
        u = draw.u[groups].to(x)[:, :, None, None, None]
        return x * (1 + u[:, 0]) + u[:, 1]


def soft(logits: Tensor, y: Tensor) -> Tensor:
    return -(y.softmax(1) * logits.log_softmax(1)).sum(1)


def hard(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def lesson(t: int) -> Minibatch:
    generator = torch.Generator().manual_seed(t)
    return Minibatch(torch.randperm(6, generator=generator)[:4], Shift().draw(4, generator))


def setting(steps: int, learned: bool = True, seed: int = 0):
    torch.manual_seed(seed)
    net = Net().double()
    x = torch.randn(6, 2, 4, 4, dtype=torch.float64)
    y = torch.randn(6, 3, dtype=torch.float64) if learned else torch.randint(3, (6,))
    lrs = 0.05 + 0.1 * torch.rand(steps, dtype=torch.float64)
    target = torch.randn(sum(p.numel() for p in net.parameters()), dtype=torch.float64)
    return net, x, y, lrs, target


def by_autograd(net: Net, rule: Rule, x: Tensor, y: Tensor, lrs: Tensor, target: Tensor, first: int = 0):
    """One graph over all steps, with nothing of the code under test but the rule."""
    names = [name for name, _ in net.named_parameters()]
    shapes = [p.shape for p in net.parameters()]
    x, lrs = x.clone().requires_grad_(), lrs.clone().requires_grad_()
    y = y.clone().requires_grad_(y.is_floating_point())
    row_loss = soft if y.is_floating_point() else hard
    state = rule.begin(flat_weights(net).requires_grad_())
    for t in range(len(lrs)):
        batch = lesson(t)
        weights = state[0]
        parts = weights.split([s.numel() for s in shapes])
        named = {n: p.view(s) for n, p, s in zip(names, parts, shapes)}
        seen = Shift()(x[batch.rows], batch.draw, torch.arange(4))
        loss = row_loss(torch.func.functional_call(net, named, (seen,)), y[batch.rows]).mean()
        gradient = torch.autograd.grad(loss, weights, create_graph=True)[0]
        state = rule.step(state, gradient, lrs[t], t)
        if t < first:
            state = tuple(s.detach().requires_grad_() for s in state)
    value = (state[0] - target).square().sum()
    leaves = [x, lrs, *([y] if y.is_floating_point() else [])]
    return value, torch.autograd.grad(value, leaves, materialize_grads=True)


def by_adjoint(net: Net, rule: Rule, x: Tensor, y: Tensor, lrs: Tensor, target: Tensor, first: int = 0, **how):
    student = Student(net, soft if y.is_floating_point() else hard, Shift())
    run = Unrolled(student, rule, x, y, lrs, lesson, first)
    end = run.forward(student.weights)
    rest = [torch.zeros_like(s) for s in end[1:]]
    return (end[0] - target).square().sum(), run.backward([2 * (end[0] - target), *rest], **how)


@pytest.mark.parametrize("rule", [SGD(), SGD(momentum=0.9), Adam()], ids=["sgd", "momentum", "adam"])
@pytest.mark.parametrize("learned", [True, False], ids=["learned", "hard"])
def test_the_adjoint_equals_the_unrolled_graph(rule: Rule, learned: bool):
    given = setting(5, learned)
    value, (x, lrs, *y) = by_autograd(given[0], rule, *given[1:])
    found, pulled = by_adjoint(given[0], rule, *given[1:])
    assert torch.allclose(found, value, rtol=1e-12)
    assert torch.allclose(pulled.x, x, rtol=1e-9, atol=1e-12)
    assert torch.allclose(pulled.lrs, lrs, rtol=1e-9, atol=1e-12)
    assert (pulled.y is None) is not learned
    if learned:
        assert torch.allclose(pulled.y, y[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", [SGD(), Adam()], ids=["sgd", "adam"])
def test_states_that_were_not_kept_are_made_again(rule: Rule, monkeypatch: pytest.MonkeyPatch):
    given = setting(7)
    whole = by_adjoint(given[0], rule, *given[1:])[1]
    monkeypatch.setattr(adjoint, "KEEP_BYTES", 0)
    student = Student(given[0], soft, Shift())
    run = Unrolled(student, rule, given[1], given[2], given[3], lesson)
    run.forward(student.weights)
    assert run._stride == 3 and len(run._kept) == 3
    part = by_adjoint(given[0], rule, *given[1:])[1]
    assert torch.equal(part.x, whole.x) and torch.equal(part.lrs, whole.lrs)


@pytest.mark.parametrize("first", [2, 4])
def test_only_a_window_is_differentiated(first: int):
    given = setting(5)
    _, (x, lrs, y) = by_autograd(given[0], Adam(), *given[1:], first=first)
    pulled = by_adjoint(given[0], Adam(), *given[1:], first=first)[1]
    assert torch.allclose(pulled.x, x, rtol=1e-9, atol=1e-12) and torch.allclose(pulled.y, y, rtol=1e-9, atol=1e-12)
    assert bool((pulled.lrs[:first] == 0).all()) and torch.allclose(pulled.lrs[first:], lrs[first:], rtol=1e-9)


def test_steps_after_the_judged_one_get_nothing():
    net, x, y, lrs, target = setting(5)
    _, (want, _, _) = by_autograd(net, SGD(), x, y, lrs[:3], target)
    student = Student(net, soft, Shift())
    run, seen = Unrolled(student, SGD(), x, y, lrs, lesson), {}
    run.forward(student.weights, on_step=lambda t, weights: seen.__setitem__(t, weights))
    pulled = run.backward([2 * (seen[3] - target)], last=3)
    assert sorted(seen) == [1, 2, 3, 4, 5]
    assert torch.allclose(pulled.x, want, rtol=1e-9, atol=1e-12) and bool((pulled.lrs[3:] == 0).all())


def test_truncated_is_equal_for_one_step_and_for_one_step_only():
    for steps, equal in ((1, True), (4, False)):
        given = setting(steps)
        exact = by_adjoint(given[0], SGD(), *given[1:])[1]
        short = by_adjoint(given[0], SGD(), *given[1:], truncated=True)[1]
        assert torch.allclose(exact.x, short.x, rtol=1e-9, atol=1e-12) is equal


def test_adam_is_that_of_torch():
    weights, gradients = torch.randn(5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    theirs = weights.clone().requires_grad_()
    optimizer, state = torch.optim.Adam([theirs], lr=0.01), Adam().begin(weights)
    for t, gradient in enumerate(gradients):
        theirs.grad = gradient.clone()
        optimizer.step()
        state = Adam().step(state, gradient, torch.tensor(0.01, dtype=torch.float64), t)
    assert torch.allclose(state[0], theirs.detach(), rtol=1e-7)


def test_adam_of_a_weight_without_gradient_stays_finite():
    given = setting(3)
    with torch.no_grad():
        given[0].body[1].weight.zero_()
        given[0].body[1].bias.fill_(-1e4)  # softplus of it is flat: nothing before it has a gradient
    pulled = by_adjoint(given[0], Adam(), *given[1:])[1]
    assert bool(torch.isfinite(pulled.x).all()) and bool(torch.isfinite(pulled.lrs).all())


def test_a_student_leaves_its_network_alone():
    net = Net()
    net.body[1] = nn.BatchNorm2d(4)
    student, before = Student(net.train(), hard), net.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    student.gradient(student.weights, torch.randn(4, 2, 4, 4), torch.tensor([0, 1, 2, 0]))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    student.put(torch.arange(len(student.weights)).float())
    assert torch.equal(student.weights, torch.arange(len(student.weights)).float())
