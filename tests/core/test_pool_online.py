"""QS: ages, replacement, what a step of a network's own is, and resuming."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from ddfed.errors import ConfigError
from ddfed.gate import PlainGate
from ddfed.pool import OnlinePool, PoolContext
from ddfed.seeds import Streams
from ddfed.store import VectorLabels
from ddfed.testing import TwinDomain, twin_task

TASK = twin_task(per_class=10)


def context() -> PoolContext:
    return PoolContext(
        lambda: TwinDomain().network("small", TASK.info), PlainGate(TASK.train), Streams(3), classes=(0, 1, 2)
    )


def syn() -> tuple[Tensor, Tensor]:
    batch = TASK.train.batch(torch.arange(0, 30, 3))
    return batch.inputs, VectorLabels(batch.classes, 3).targets(torch.arange(10)).detach()


def vector(net: torch.nn.Module) -> Tensor:
    return torch.nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def lived(pool: OnlinePool, steps: range) -> list[Tensor]:
    """Weights of the judge of each step."""
    found = []
    for step in steps:
        found.append(vector(pool.draw(step)))
        pool.advance(step, syn, VectorLabels.loss)
    return found


def ages(pool: OnlinePool) -> list[int]:
    return [member["age"] for member in pool.state()["members"]]


def test_ages_are_spread_and_no_network_lives_beyond_the_greatest():
    pool = OnlinePool(context(), networks=4, max_age=8)
    assert ages(pool) == [0, 2, 4, 6]
    lived(pool, range(60))
    numbers = [member["number"] for member in pool.state()["members"]]
    assert max(ages(pool)) <= 8 and len(set(numbers)) == 4
    # Each of 60 steps made one network older; those that left had made nine steps less their head start.
    born = pool.state()["born"]
    assert born > 4 and max(numbers) == born - 1
    assert sum(ages(pool)) + 9 * (born - 4) == 60 + 12


def test_only_the_judge_of_a_step_is_trained_by_one_step_of_adam():
    pool = OnlinePool(context(), networks=3, max_age=50, lr=0.01)
    before = [copy.deepcopy(member["net"]) for member in pool.state()["members"]]
    judge = pool.draw(0)
    assert judge.training and not any(p.requires_grad for p in judge.parameters())
    twin = copy.deepcopy(judge).requires_grad_(True)
    pool.advance(0, syn, VectorLabels.loss)
    x, y = syn()
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.01)
    (0.5 * (twin(x) - y).square().sum(1)).mean().backward()
    optimizer.step()
    assert torch.allclose(vector(judge), vector(twin), atol=1e-6)
    changed = [
        any(not torch.equal(old[name], new["net"][name]) for name in old)
        for old, new in zip(before, pool.state()["members"])
    ]
    assert sum(changed) == 1


def test_a_step_takes_no_more_rows_than_asked(monkeypatch: pytest.MonkeyPatch):
    pool, seen = OnlinePool(context(), networks=1, rows=4), []

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        seen.append(len(logits))
        return VectorLabels.loss(logits, targets)

    pool.draw(0)
    pool.advance(0, syn, loss)
    assert seen == [4]


def test_resuming_goes_on_as_if_nothing_had_happened():
    options: dict[str, Any] = {"networks": 3, "max_age": 3, "lr": 0.01}
    whole = OnlinePool(context(), **options)
    lived(whole, range(7))
    kept = copy.deepcopy(whole.state())
    wanted = lived(whole, range(7, 16))
    again = OnlinePool(context(), **options)
    again.load(kept)
    for mine, theirs in zip(lived(again, range(7, 16)), wanted):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("option", ["networks", "max_age", "rows"])
def test_numbers_below_one_are_refused(option: str):
    with pytest.raises(ConfigError, match=f"pool 'QS': {option} must be at least 1"):
        OnlinePool(context(), **{option: 0})
