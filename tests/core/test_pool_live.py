"""How the pools RS and RT train their networks: augmentation, CutMix, and when not at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ddfed.domain import Augmentation, Draw
from ddfed.errors import UnknownNameError
from ddfed.gate import PlainGate
from ddfed.pool import ModelPool, PoolContext, RandomPool, RealTrainedPool, SynTrainedPool
from ddfed.seeds import Streams
from ddfed.store import HardLabels
from ddfed.testing import TwinDomain, twin_task
from ddfed.testing.twin import TwinShift

TASK = twin_task()


class Recording(TwinShift):
    """Keeps every draw it makes and every call."""

    def __init__(self) -> None:
        self.draws: list[tuple[int, bool]] = []
        self.calls: list[tuple[Draw, Tensor]] = []

    def draw(self, groups: int, generator: torch.Generator, one_op: bool = False) -> Draw:
        self.draws.append((groups, one_op))
        return super().draw(groups, generator, one_op)

    def __call__(self, x: Tensor, draw: Draw, groups: Tensor) -> Tensor:
        self.calls.append((draw, groups))
        return super().__call__(x, draw, groups)


def context(augmentation: Augmentation | None = None, **changes: Any) -> PoolContext:
    values: dict[str, Any] = {
        "gate": PlainGate(TASK.train, chunk=1000), "streams": Streams(3), "classes": (0, 1, 2),
        "augmentation_named": lambda name: TwinDomain().augmentation(name, TASK.info),
    }  # fmt: skip
    return PoolContext(
        lambda: TwinDomain().network("small", TASK.info), augmentation=augmentation, **{**values, **changes}
    )


def weights(pool: ModelPool, step: int) -> Tensor:
    return torch.nn.utils.parameters_to_vector(pool.draw(step).parameters()).detach().clone()


def syn() -> tuple[Tensor, Tensor]:
    batch = TASK.train.batch(torch.arange(0, 120, 10))
    return batch.inputs, batch.classes


@pytest.mark.parametrize(
    ("kind", "options"), [(SynTrainedPool, {"epochs": 1}), (RealTrainedPool, {"steps": 1})], ids=["RS", "RT"]
)
def test_nothing_is_trained_after_the_last_step_of_a_length(kind: type[ModelPool], options: dict[str, Any]):
    pool = kind(context(), length=2, lr=0.1, **options)
    first = weights(pool, 0)
    pool.advance(0, syn, HardLabels.loss)
    second = weights(pool, 1)
    pool.advance(1, syn, HardLabels.loss)
    assert not torch.equal(first, second) and torch.equal(second, weights(pool, 1))


def test_pools_tell_where_a_step_stands_in_the_double_loop():
    places = [(0, 0), (0, 1), (0, 2), (1, 0)]
    for pool in (SynTrainedPool(context(), length=3), RealTrainedPool(context(), length=3)):
        assert [pool.place(step) for step in range(4)] == places
    assert [RandomPool(context()).place(step) for step in (0, 7)] == [(0, 0), (7, 0)]
    assert RandomPool(context(), every=4).place(7) == (1, 3)


def test_a_network_is_trained_on_the_set_with_a_draw_for_each_row_and_one_operation_for_a_batch():
    """DSA's unshared mode: twelve rows in batches of five."""
    recording = Recording()
    pool = SynTrainedPool(context(recording), length=2, epochs=2, batch=5)
    pool.draw(0)
    pool.advance(0, syn, HardLabels.loss)
    assert recording.draws == [(5, True), (5, True), (2, True)] * 2
    for draw, groups in recording.calls:
        assert groups.tolist() == list(range(len(draw))) and len(draw.u.unique()) == len(draw)


def test_a_network_is_trained_on_real_rows_with_the_named_augmentation():
    recording = Recording()
    pool = RealTrainedPool(
        context(augmentation_named=lambda name: {"mine": recording}[name]), steps=3, batch=7, augment="mine"
    )
    pool.draw(0)
    pool.advance(0, syn, HardLabels.loss)
    assert recording.draws == [(7, True)] * 3
    with pytest.raises(UnknownNameError, match="Did you mean 'shift'"):
        RealTrainedPool(context(), augment="shfit")


def test_training_with_cutmix_is_a_step_of_sgd_on_the_mixed_rows_and_both_labels(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[Tensor, Tensor]] = []

    def halves(x: Tensor, order: Tensor, axes: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, float]:
        assert axes == TASK.info.cell_axes
        seen.append((x.clone(), order))
        return torch.cat([x[:, :1], x[order][:, 1:]], 1), 0.25

    monkeypatch.setattr("ddfed.pool.base.cutmix", halves)
    pool = RealTrainedPool(context(), steps=1, batch=10**6, momentum=0.0, weight_decay=0.0, lr=0.1, cutmix=1.0)
    pool.draw(0)
    pool.advance(0, syn, HardLabels.loss)
    ((x, order),) = seen
    classes = TASK.train.batch(torch.arange(len(TASK.train))).classes
    net = context().fresh(0)
    logits = net(torch.cat([x[:, :1], x[order][:, 1:]], 1))
    loss = 0.25 * HardLabels.loss(logits, classes).mean() + 0.75 * HardLabels.loss(logits, classes[order]).mean()
    loss.backward()
    with torch.no_grad():
        for p in net.parameters():
            p -= 0.1 * p.grad
    wanted = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
    assert sorted(order.tolist()) == list(range(len(x))) and torch.allclose(weights(pool, 1), wanted, atol=1e-6)


def test_cutmix_happens_as_often_as_asked(monkeypatch: pytest.MonkeyPatch):
    from ddfed.mixing import cutmix

    calls: list[int] = []

    def counted(*given: Any) -> Any:
        calls.append(1)
        return cutmix(*given)

    monkeypatch.setattr("ddfed.pool.base.cutmix", counted)
    for share, least, most in ((0.0, 0, 0), (0.5, 25, 75), (1.0, 100, 100)):
        calls.clear()
        pool = RealTrainedPool(context(), steps=100, batch=4, cutmix=share)
        pool.draw(0)
        pool.advance(0, syn, HardLabels.loss)
        assert least <= len(calls) <= most, share
