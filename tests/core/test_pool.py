"""Pools: the same step gives the same network, also after a restart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddfed.data import TaskInfo
from ddfed.domain import Network
from ddfed.errors import ConfigError
from ddfed.files import read_state, write_state
from ddfed.gate import PlainGate
from ddfed.pool import (
    BallPool,
    ExactPool,
    ModelPool,
    PoolContext,
    QueuePool,
    RandomPool,
    RealTrainedPool,
    SynTrainedPool,
)
from ddfed.seeds import Streams
from ddfed.store import HardLabels
from ddfed.testing import TwinDomain, twin_task
from ddfed.testing.twin import TwinShift

TASK = twin_task()
QUEUE = {"start": 2, "grow_every": 2, "capacity": 3, "visits": 2, "steps": 2, "batch": 32}


class NormNet(Network):
    """A network with buffers."""

    def __init__(self, info: TaskInfo) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 40))
        self.head = nn.Linear(40, 3)

    def embed(self, x: Tensor) -> Tensor:
        return self.body(x)


def context(center: Mapping[str, Tensor] | None = None, norm: bool = False, **changes: Any) -> PoolContext:
    def build() -> Network:
        return NormNet(TASK.info) if norm else TwinDomain().network("small", TASK.info)

    values: dict[str, Any] = {"gate": PlainGate(TASK.train), "streams": Streams(3), "classes": (0, 1, 2)}
    return PoolContext(build, **{**values, "center": center, **changes})


def weights(net: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def syn() -> tuple[Tensor, Tensor]:
    batch = TASK.train.batch(torch.arange(0, 120, 10))
    return batch.inputs, batch.classes


def advance(pool: ModelPool, step: int) -> None:
    pool.advance(step, syn, HardLabels.loss)


def test_a_redrawn_network_equals_a_fresh_one():
    ctx = context()
    pool = RandomPool(ctx)
    drawn = [weights(pool.draw(step)) for step in (0, 5, 1)]
    for found, step in zip(drawn, (0, 5, 1)):
        assert torch.equal(found, weights(ctx.fresh(step)))
    assert not torch.equal(drawn[0], drawn[1])


def test_the_same_step_gives_the_same_network_in_any_order():
    pool = RandomPool(context())
    first = weights(pool.draw(7))
    pool.draw(3)
    assert torch.equal(first, weights(pool.draw(7)))


def test_a_random_network_may_stay_for_several_steps():
    pool = RandomPool(context(), every=3)
    drawn = [weights(pool.draw(step)) for step in range(4)]
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[2], drawn[3])


def test_drawing_and_training_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    for pool in (RandomPool(context()), QueuePool(context(), **QUEUE), SynTrainedPool(context(), epochs=1)):
        pool.draw(0)
        advance(pool, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_drawn_networks_are_frozen():
    center = context().fresh("c").state_dict()
    pools = [RandomPool(context()), SynTrainedPool(context(), epochs=1), RealTrainedPool(context(), steps=1),
             QueuePool(context(), **QUEUE), ExactPool(context(center)), BallPool(context(center))]  # fmt: skip
    for pool in pools:
        for step in range(3):
            assert not any(p.requires_grad for p in pool.draw(step).parameters()), pool.name
            advance(pool, step)


@pytest.mark.parametrize("rho", [1e-3, 0.5, 5.0])
def test_the_ball_draws_at_distance_rho(rho: float):
    center = context(norm=True).fresh("w").state_dict()
    pool = BallPool(context(center, norm=True), rho=rho)
    middle = nn.utils.parameters_to_vector(
        [center[n] for n, _ in context(norm=True).fresh(0).named_parameters()]
    ).double()
    assert middle.numel() ** 0.5 > rho
    for step in range(5):
        assert float((weights(pool.draw(step)).double() - middle).norm()) == pytest.approx(
            rho, rel=1e-5 if rho > 0.1 else 1e-3
        )


def test_the_ball_of_radius_zero_gives_the_centre_itself():
    center = context().fresh("w").state_dict()
    net = BallPool(context(center), rho=0.0).draw(3)
    assert all(torch.equal(net.state_dict()[k], v) for k, v in center.items())


def test_a_huge_radius_leaves_the_gaussian_unclipped():
    center = context().fresh("w").state_dict()
    middle = weights(ExactPool(context(center)).draw(0))
    step = weights(BallPool(context(center), rho=1e6).draw(0)) - middle
    assert float(step.norm()) == pytest.approx(middle.numel() ** 0.5, rel=0.2)


def test_the_ball_draws_afresh_at_each_step_and_repeats_itself():
    center = context().fresh("w").state_dict()
    pool = BallPool(context(center), rho=1.0)
    one, two = weights(pool.draw(0)), weights(pool.draw(1))
    assert not torch.equal(one, two) and torch.equal(one, weights(pool.draw(0)))


def test_the_ball_leaves_buffers_and_the_given_weights_unchanged():
    center = context(norm=True).fresh("w").state_dict()
    center = {k: v + 3 if "running" in k else v.clone() for k, v in center.items()}
    before = {k: v.clone() for k, v in center.items()}
    pool = BallPool(context(center, norm=True))
    for step in range(3):
        net = pool.draw(step)
        assert not net.training
        net(syn()[0])
    for name, value in net.named_buffers():
        assert torch.equal(value, before[name]), name
    assert all(torch.equal(center[k], v) for k, v in before.items())


def test_the_radius_can_scale_with_the_network():
    center = context().fresh("w").state_dict()
    pool = BallPool(context(center), rho_per_sqrt_param=0.1)
    count = weights(ExactPool(context(center)).draw(0)).numel()
    assert pool.rho == pytest.approx(0.1 * count**0.5)
    with pytest.raises(ConfigError, match="rho must not be negative, got -1"):
        BallPool(context(center), rho=-1.0)


def test_exact_gives_the_weights_themselves_and_needs_them():
    center = context().fresh("w").state_dict()
    pool = ExactPool(context(center))
    for step in (0, 4):
        net = pool.draw(step)
        assert not net.training and all(torch.equal(net.state_dict()[k], v) for k, v in center.items())
    for kind in (ExactPool, BallPool):
        with pytest.raises(ConfigError, match="none were given; central recipes use 'R'"):
            kind(context())


TRAINED = {
    "RS": (SynTrainedPool, {"length": 3, "epochs": 2, "batch": 5, "momentum": 0.5}),
    "RT": (RealTrainedPool, {"length": 3, "steps": 2, "batch": 32}),
    "Q": (QueuePool, QUEUE),
}


def run(pool: ModelPool, steps: range) -> list[Tensor]:
    found = []
    for step in steps:
        found.append(weights(pool.draw(step)))
        found.append(torch.tensor(pool.skill))
        advance(pool, step)
    return found


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_resumed_pool_equals_the_uninterrupted_one(name: str, cut: int, tmp_path: Path):
    kind, options = TRAINED[name]
    whole = run(kind(context(augmentation=TwinShift()), **options), range(7))
    first = kind(context(augmentation=TwinShift()), **options)
    run(first, range(cut))
    write_state(tmp_path / "pool", first.state())
    second = kind(context(augmentation=TwinShift()), **options)
    second.load(read_state(tmp_path / "pool"))
    again = run(second, range(cut, 7))
    assert all(torch.equal(a, b) for a, b in zip(whole[2 * cut :], again))


@pytest.mark.parametrize("name", TRAINED)
def test_drawing_a_step_twice_gives_the_same_network(name: str):
    """Bug found by this test: the queue grew at every draw of a growing step."""
    kind, options = TRAINED[name]
    pool = kind(context(), **options)
    for step in range(5):
        first = weights(pool.draw(step))
        assert torch.equal(first, weights(pool.draw(step)))
        advance(pool, step)


@pytest.mark.parametrize("name", ["RS", "RT"])
def test_a_trained_pool_learns_and_then_starts_afresh(name: str):
    kind, options = TRAINED[name]
    ctx = context()
    pool = kind(ctx, **{**options, "lr": 0.1})
    x, y = syn()
    losses = []
    for step in range(3):
        losses.append(float(HardLabels.loss(pool.draw(step)(x), y).mean()))
        advance(pool, step)
    assert losses[2] < losses[1] < losses[0]
    assert torch.equal(weights(pool.draw(3)), weights(ctx.fresh(1)))


def test_training_on_the_synthetic_set_asks_nothing_of_real_data():
    ctx = context()
    pool = SynTrainedPool(ctx, epochs=1)
    pool.draw(0)
    advance(pool, 0)
    assert not ctx.gate.ledger.counts


def test_the_queue_grows_drops_the_oldest_and_reports_skill_in_percent():
    pool = QueuePool(context(), **{**QUEUE, "lr": 0.1})
    assert pool.skill == 0.0
    sizes, skills = [], []
    for step in range(9):
        net = pool.draw(step)
        assert not net.training
        sizes.append(len(pool.state()["members"]))
        skills.append(pool.skill)
        advance(pool, step)
    assert sizes == [2, 2, 3, 3, 3, 3, 3, 3, 3] and pool.state()["born"] == 6
    assert min(skills) >= 0.0 and max(skills) <= 100.0 and max(skills) > 1.0


def test_training_on_real_rows_equals_a_step_of_plain_sgd():
    pool = RealTrainedPool(context(), steps=1, batch=10**6, momentum=0.0, weight_decay=0.0, lr=0.1)
    net = context().fresh(0)
    pool.draw(0)
    advance(pool, 0)
    batch = TASK.train.all()
    HardLabels.loss(net(batch.inputs), batch.classes).mean().backward()
    with torch.no_grad():
        for p in net.parameters():
            p -= 0.1 * p.grad
    assert torch.allclose(weights(net), weights(pool.draw(1)), atol=1e-6)
