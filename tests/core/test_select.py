"""Selectors against versions with plain loops."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from ddfed.data import RealData
from ddfed.errors import BudgetError
from ddfed.gate import PlainGate
from ddfed.pool import PoolContext
from ddfed.seeds import Streams
from ddfed.select import (
    HERDING,
    KCENTER,
    KMEANS,
    RANDOM,
    Selector,
    choose_herding,
    choose_kcenter,
    choose_kmeans,
    choose_random,
    select_rows,
)
from ddfed.testing import TwinDomain, twin_task

TASK = twin_task()
RULES = [choose_random, choose_herding, choose_kcenter, choose_kmeans]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(n: int, width: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=generator(seed))


def context(data: RealData = TASK.train, classes: tuple[int, ...] = (0, 1, 2)) -> PoolContext:
    return PoolContext(lambda: TwinDomain().network("small", TASK.info), PlainGate(data), Streams(0), classes)


def few(n: int) -> RealData:
    return TASK.train.subset(torch.cat([rows[:n] for rows in TASK.train.class_index]))


@pytest.mark.parametrize("choose", RULES)
@pytest.mark.parametrize("features", [points(12), torch.zeros(12, 3), points(12).round()], ids=["any", "equal", "tied"])
@pytest.mark.parametrize("k", [1, 5, 12])
def test_choices_are_distinct_positions(choose, features: Tensor, k: int):
    picks = choose(features, k, generator())
    assert picks.shape == (k,) and len(set(picks.tolist())) == k and set(picks.tolist()) <= set(range(12))
    assert torch.equal(picks, choose(features, k, generator()))


def test_herding_follows_the_mean_greedily():
    features = points(15)
    mean, chosen = features.mean(0), []
    for k in range(6):
        gaps = {
            i: float(((k + 1) * mean - sum((features[j] for j in chosen), torch.zeros(3)) - features[i]).norm())
            for i in range(15)
            if i not in chosen
        }
        chosen.append(min(gaps, key=gaps.__getitem__))
    assert choose_herding(features, 6, generator()).tolist() == chosen


def test_herding_approaches_the_mean_faster_than_chance():
    features = points(200)
    gap = (features[choose_herding(features, 10, generator())].mean(0) - features.mean(0)).norm()
    chance = [
        (features[choose_random(features, 10, generator(s))].mean(0) - features.mean(0)).norm() for s in range(20)
    ]
    assert float(gap) < 0.3 * float(torch.stack(chance).mean())


def test_kcenter_starts_at_the_middle_and_goes_where_it_is_farthest():
    features = points(15)
    chosen = [min(range(15), key=lambda i: float((features[i] - features.mean(0)).norm()))]
    while len(chosen) < 6:
        reach = {
            i: min(float((features[i] - features[j]).norm()) for j in chosen) for i in range(15) if i not in chosen
        }
        chosen.append(max(reach, key=reach.__getitem__))
    assert choose_kcenter(features, 6, generator()).tolist() == chosen


def test_kcenter_covers_within_twice_the_best_radius():
    features = points(10)

    def radius(chosen) -> float:
        return float(torch.cdist(features, features[list(chosen)]).min(1).values.max())

    best = min(radius(c) for c in combinations(range(10), 3))
    assert radius(choose_kcenter(features, 3, generator()).tolist()) <= 2 * best + 1e-6


def test_kmeans_takes_the_middle_of_each_clump():
    centres = 100 * torch.eye(4)
    features = torch.cat([c + points(9, 4, seed) for seed, c in enumerate(centres)])
    for seed in range(5):
        picks = choose_kmeans(features, 4, generator(seed))
        assert sorted((picks // 9).tolist()) == [0, 1, 2, 3]
        for pick in picks.tolist():
            clump = features[pick // 9 * 9 : pick // 9 * 9 + 9]
            assert int((clump - clump.mean(0)).norm(dim=1).argmin()) == pick % 9


@pytest.mark.parametrize("selector", [RANDOM, HERDING, KCENTER, KMEANS], ids=["random", "herding", "kcenter", "kmeans"])
def test_rows_come_class_by_class_and_repeat(selector: Selector):
    rows = select_rows(TASK.train, selector, 4, context(), top_up=False, train_steps=3)
    assert TASK.train.labels[rows].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(set(rows.tolist())) == 12
    assert torch.equal(rows, select_rows(TASK.train, selector, 4, context(), top_up=False, train_steps=3))


def test_a_class_is_chosen_alike_whoever_else_is_chosen():
    rows = select_rows(TASK.train, RANDOM, 4, context(), top_up=False)
    assert torch.equal(rows[4:8], select_rows(TASK.train, RANDOM, 4, context(classes=(1,)), top_up=False))


def test_a_trained_selector_trains_through_the_gate_and_a_random_one_asks_nothing():
    ctx = context()
    select_rows(TASK.train, RANDOM, 2, ctx, top_up=False)
    assert not ctx.gate.ledger.counts
    select_rows(TASK.train, HERDING, 2, ctx, top_up=False, train_steps=3)
    assert [(e.query, n) for e, n in ctx.gate.ledger.counts.items()] == [("training gradient", 3)]


def test_a_budget_larger_than_the_class_says_what_to_lower():
    data = TASK.train.subset(
        torch.cat([TASK.train.class_index[0], TASK.train.class_index[1][:3], TASK.train.class_index[2][:5]])
    )
    with pytest.raises(BudgetError, match="6 real items.*'blob 1' has 3. Lower ipc to 3"):
        select_rows(data, RANDOM, 6, context(data), top_up=False)


def test_topping_up_keeps_every_row_and_repeats_some():
    data = few(3)
    rows = select_rows(data, RANDOM, 5, context(data), top_up=True)
    for c in range(3):
        part = rows[5 * c : 5 * c + 5]
        assert set(part.tolist()) == set(data.class_index[c].tolist())
