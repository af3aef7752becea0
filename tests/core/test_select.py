"""Selectors against versions with plain loops."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddfed.central import check_parts
from ddfed.data import RealData
from ddfed.domain import Network
from ddfed.errors import BudgetError, ConfigError, DivergedError
from ddfed.gate import PlainGate
from ddfed.pool import PoolContext, Training, trained_network
from ddfed.seeds import Streams
from ddfed.select import (
    DQ,
    EL2N,
    FORGETTING,
    GRAND,
    HERDING,
    KCENTER,
    KMEANS,
    RANDOM,
    Selector,
    check_budget,
    choose_by_difficulty,
    choose_from_bins,
    choose_herding,
    choose_kcenter,
    choose_kmeans,
    choose_random,
    el2n_scores,
    forgetting_scores,
    grand_scores,
    graph_cut_bins,
    head_gradient_norm,
    select_rows,
    times_forgotten,
)
from ddfed.settings import PartSettings
from ddfed.testing import TwinDomain, twin_task
from ddfed.testing.twin import TwinNet

TASK = twin_task()
RULES = [choose_random, choose_herding, choose_kcenter, choose_kmeans, choose_from_bins]
#: every selector with options that make it a matter of a moment
SELECTORS: list[tuple[Selector, dict[str, Any]]] = [
    (RANDOM, {}),
    (HERDING, {"train_steps": 3}),
    (KCENTER, {"train_steps": 3}),
    (KMEANS, {"train_steps": 3}),
    (DQ, {"train_steps": 3}),
    (FORGETTING, {"epochs": 3}),
    (EL2N, {"networks": 2, "epochs": 1}),
    (GRAND, {"networks": 2, "epochs": 1}),
]
every_selector = pytest.mark.parametrize(("selector", "options"), SELECTORS, ids=[s.name for s, _ in SELECTORS])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(n: int, width: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=generator(seed))


def context(data: RealData = TASK.train, classes: tuple[int, ...] = (0, 1, 2), seed: int = 0) -> PoolContext:
    return PoolContext(lambda: TwinDomain().network("small", TASK.info), PlainGate(data), Streams(seed), classes)


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


@every_selector
def test_rows_come_class_by_class_and_repeat(selector: Selector, options: dict[str, Any]):
    rows = select_rows(TASK.train, selector, 4, context(), options, top_up=False)
    assert TASK.train.labels[rows].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(set(rows.tolist())) == 12
    assert torch.equal(rows, select_rows(TASK.train, selector, 4, context(), options, top_up=False))


@every_selector
def test_one_class_alone_can_be_chosen_from(selector: Selector, options: dict[str, Any]):
    rows = select_rows(TASK.train, selector, 3, context(classes=(1,)), options, top_up=False)
    assert TASK.train.labels[rows].tolist() == [1] * 3 and len(set(rows.tolist())) == 3


def test_a_class_is_chosen_alike_whoever_else_is_chosen():
    rows = select_rows(TASK.train, RANDOM, 4, context(), top_up=False)
    assert torch.equal(rows[4:8], select_rows(TASK.train, RANDOM, 4, context(classes=(1,)), top_up=False))


def test_a_trained_selector_trains_through_the_gate_and_a_random_one_asks_nothing():
    ctx = context()
    select_rows(TASK.train, RANDOM, 2, ctx, top_up=False)
    assert not ctx.gate.ledger.counts
    select_rows(TASK.train, HERDING, 2, ctx, {"train_steps": 3}, top_up=False)
    assert [(e.query, n) for e, n in ctx.gate.ledger.counts.items()] == [("training gradient", 3)]


def test_a_budget_larger_than_the_class_says_what_to_lower():
    data = TASK.train.subset(
        torch.cat([TASK.train.class_index[0], TASK.train.class_index[1][:3], TASK.train.class_index[2][:5]])
    )
    with pytest.raises(BudgetError, match="6 real items.*'blob 1' has 3. Lower ipc to 3"):
        select_rows(data, RANDOM, 6, context(data), top_up=False)


@every_selector
def test_topping_up_keeps_every_row_and_repeats_some(selector: Selector, options: dict[str, Any]):
    data = few(3)
    rows = select_rows(data, selector, 5, context(data), options, top_up=True)
    for c in range(3):
        part = rows[5 * c : 5 * c + 5]
        assert set(part.tolist()) == set(data.class_index[c].tolist())


# --- options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "options", "words"),
    [
        (RANDOM, {"train_steps": 3}, "'random' has no option 'train_steps'.*it takes none"),
        (EL2N, {"networs": 3}, "no option 'networs'.*it knows 'networks', 'epochs', 'direction', 'skip'.*'networks'"),
        (HERDING, {"top_up": True}, "no option 'top_up'"),
        (EL2N, {"direction": "esy"}, "must be one of 'hard', 'easy', 'window'; got 'esy'.*'el2n'.*'easy'"),
        (GRAND, {"networks": 0}, "'networks' must be at least 1; got 0"),
        (FORGETTING, {"epochs": 0}, "'epochs' must be at least 1"),
        (KMEANS, {"train_steps": "many"}, "'train_steps' must be a whole number; got 'many'"),
        (EL2N, {"skip": 1.0, "direction": "window"}, "'skip' must be less than 1"),
        (EL2N, {"skip": 0.2}, "skip = 0.2 belongs to direction 'window'; got direction 'hard'"),
        (DQ, {"bins": 0}, "'bins' must be at least 1"),
        (KCENTER, {"first": "last"}, "'first' must be one of 'middle', 'random'"),
    ],
)
def test_a_wrong_option_is_refused_before_a_network_is_trained(selector, options, words):
    ctx = context()
    with pytest.raises(ConfigError, match=words):
        select_rows(TASK.train, selector, 2, ctx, options, top_up=False)
    assert not ctx.gate.ledger.counts
    with pytest.raises(ConfigError, match=words):
        check_parts(PartSettings(init=selector.name, init_options=options), TwinDomain(), TASK.info)


def test_options_are_the_parameters_of_the_two_functions():
    assert RANDOM.defaults == {}
    assert GRAND.defaults == {"networks": 10, "epochs": 20, "gradient": "head", "direction": "hard", "skip": 0.0}


# --- scores ----------------------------------------------------------------------------------------------------


def trained(*names: str | int, steps: int, ctx: PoolContext, **watch: Any) -> Network:
    return trained_network(ctx, Training(steps), *names, **watch)


def test_forgetting_counts_a_history_made_by_hand():
    right = torch.tensor(
        [[0, 1, 1, 0, 0, 1], [0, 1, 0, 1, 0, 0], [0, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 0]], dtype=torch.bool
    )
    assert times_forgotten(right).tolist() == [math.inf, 0, 2, 0, 0, 1]


def test_one_look_forgets_nothing():
    assert times_forgotten(torch.tensor([[True, False]])).tolist() == [0, math.inf]


def test_forgetting_is_counted_after_every_pass_over_the_data():
    data = twin_task(noise=1.0).train  # hard enough for something to be forgotten
    rows, batch, looks = torch.arange(len(data)), data.all(), []

    def watch(step: int, net: Network) -> None:
        if step:  # 120 rows are one batch, so every step is a pass
            looks.append([bool(net(x[None]).argmax() == y) for x, y in zip(batch.inputs, batch.classes)])

    trained("selection", steps=10, ctx=context(data, seed=1), on_step=watch)
    counted = []
    for row in range(len(rows)):
        events, was_right, ever = 0, False, False
        for looked in looks:
            events += was_right and not looked[row]
            was_right, ever = looked[row], ever or looked[row]
        counted.append(float(events) if ever else math.inf)
    found = forgetting_scores(data, context(data, seed=1), epochs=10)(rows)
    assert found[:, 0].tolist() == counted
    assert {0.0, 1.0, math.inf} <= set(counted)


def test_only_whole_passes_are_looked_at_and_nothing_before_the_first(monkeypatch: pytest.MonkeyPatch):
    """What an untrained network happens to get right is not learned, so it cannot be forgotten."""
    data = twin_task(classes=1, per_class=300).train  # two batches a pass
    right_at = {0: True, 1: True, 2: False, 3: True, 4: True, 5: True, 6: False, 7: False, 8: True}

    class Scripted(TwinNet):
        def __init__(self, step: int) -> None:
            super().__init__(TASK.info, 4)
            self.right = right_at[step]

        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[1.0, 0.0]]).expand(len(x), 2) * (1 if self.right else -1)

    def script(ctx: PoolContext, training: Training, *names: str, on_step: Any) -> None:
        for step in range(training.steps + 1):
            on_step(step, Scripted(step))

    monkeypatch.setattr("ddfed.select.evidence.trained_network", script)
    found = forgetting_scores(data, context(data, (0,)), epochs=4)(torch.arange(300))
    assert found.unique().tolist() == [1.0]  # right after pass 2, wrong after pass 3


def test_el2n_is_the_mean_length_of_the_error_vector():
    rows = torch.tensor([5, 50, 100])
    found = el2n_scores(TASK.train, context(), networks=3, epochs=2)(rows)[:, 0]
    naive = torch.zeros(3, dtype=torch.float64)
    for number in range(3):
        net = trained("selection", number, steps=2, ctx=context()).double()
        for i, row in enumerate(rows):
            batch = TASK.train.batch(row[None])
            p = net(batch.inputs.double())[0].exp()
            p = p / p.sum()
            naive[i] += math.sqrt(sum((float(p[c]) - (c == int(batch.classes))) ** 2 for c in range(3))) / 3
    assert torch.allclose(found.double(), naive, atol=1e-6)


@pytest.mark.parametrize("gradient", ["head", "full"])
def test_grand_is_the_norm_of_each_row_s_own_gradient(gradient: str):
    rows = torch.tensor([7, 45, 110])
    found = grand_scores(TASK.train, context(), networks=2, epochs=1, gradient=gradient)(rows)[:, 0]
    naive = torch.zeros(3, dtype=torch.float64)
    for number in range(2):
        net = trained("selection", number, steps=1, ctx=context()).double().requires_grad_(True)
        weights = list(net.parameters() if gradient == "full" else net.head.parameters())
        for i, row in enumerate(rows):
            batch = TASK.train.batch(row[None])
            grads = torch.autograd.grad(F.cross_entropy(net(batch.inputs.double()), batch.classes), weights)
            naive[i] += torch.cat([g.flatten() for g in grads]).norm() / 2
    assert torch.allclose(found.double(), naive, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_the_head_s_gradient_norm_is_exact_with_and_without_bias(bias: bool):
    head = nn.Linear(5, 4, bias=bias).double()
    features, classes = points(6, 5).double(), torch.arange(6) % 4
    exact = []
    for f, c in zip(features, classes):
        grads = torch.autograd.grad(F.cross_entropy(head(f[None]), c[None]), list(head.parameters()))
        exact.append(torch.cat([g.flatten() for g in grads]).norm())
    assert torch.allclose(head_gradient_norm(features, head(features), classes, bias), torch.stack(exact))


def test_scores_of_untrained_networks_ask_the_gate_nothing():
    ctx = context()
    grand_scores(TASK.train, ctx, networks=2, epochs=0)
    assert not ctx.gate.ledger.counts


class TwoLayered(Network):
    """A network whose head is not one linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(32, 4), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))

    def embed(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_a_head_of_several_layers_is_refused_the_closed_form():
    ctx = PoolContext(TwoLayered, PlainGate(TASK.train), Streams(0), (0, 1, 2))
    with pytest.raises(ConfigError, match="one linear map, got Sequential.*'full'"):
        grand_scores(TASK.train, ctx, networks=1, epochs=0)
    assert bool(grand_scores(TASK.train, ctx, networks=1, epochs=0, gradient="full")(torch.arange(3)).isfinite().all())


def test_networks_that_diverge_are_said_to():
    class Broken(TwoLayered):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * math.nan

    ctx = PoolContext(Broken, PlainGate(TASK.train), Streams(0), (0, 1, 2))
    with pytest.raises(DivergedError, match="not numbers"):
        el2n_scores(TASK.train, ctx, networks=1, epochs=0)


# --- choices by difficulty -------------------------------------------------------------------------------------

HARDNESS = torch.tensor([3.0, 0.0, math.inf, 1.0, 5.0, 2.0, 4.0, 6.0, 7.0, 8.0])[:, None]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"direction": "hard"}, [2, 9, 8]),
        ({"direction": "easy"}, [1, 3, 5]),
        ({"direction": "window"}, [2, 9, 8]),
        ({"direction": "window", "skip": 0.2}, [8, 7, 4]),
        ({"direction": "window", "skip": 0.9}, [5, 3, 1]),
    ],
)
def test_directions(options, expected):
    assert choose_by_difficulty(HARDNESS, 3, generator(), **options).tolist() == expected


@pytest.mark.parametrize("direction", ["hard", "easy"])
def test_equal_scores_come_in_random_order_and_repeat(direction: str):
    scores = torch.tensor([1.0] * 9 + [2.0 if direction == "hard" else 0.0])[:, None]
    picks = [tuple(choose_by_difficulty(scores, 4, generator(s), direction=direction).tolist()) for s in range(20)]
    assert all(pick[0] == 9 and len(set(pick)) == 4 for pick in picks)
    assert len(set(picks)) > 10
    assert picks[3] == tuple(choose_by_difficulty(scores, 4, generator(3), direction=direction).tolist())


def test_kcenter_may_start_anywhere():
    starts = {int(choose_kcenter(points(15), 1, generator(s), first="random")) for s in range(30)}
    assert len(starts) > 5


# --- bins ------------------------------------------------------------------------------------------------------


def greedy_bins(features: Tensor, bins: int) -> list[list[int]]:
    """The algorithm as it is written down: every distance, every gain."""
    f = features.double()

    def d2(a: int, b: int) -> float:
        return float((f[a] - f[b]).square().sum())

    free, found = list(range(len(f))), []
    sizes = [len(f) // bins + (b < len(f) % bins) for b in range(bins)]
    for size in sizes:
        pile: list[int] = []
        for _ in range(size):
            gains = {x: sum(d2(p, x) for p in pile) - sum(d2(p, x) for p in free) for x in free}
            best = max(gains, key=gains.__getitem__)
            pile.append(best)
            free.remove(best)
        found.append(pile)
    return found


@pytest.mark.parametrize(("n", "bins"), [(12, 3), (13, 4), (7, 7), (6, 1)])
def test_bins_are_the_greedy_graph_cut(n: int, bins: int):
    for seed in range(3):
        features = points(n, 4, seed) + 5  # off the origin, where sums of squares cancel
        assert [pile.tolist() for pile in graph_cut_bins(features, bins)] == greedy_bins(features, bins)


def test_bins_share_out_every_row_and_the_first_do_not_depend_on_the_rest():
    piles = graph_cut_bins(points(23), 10)
    assert [len(pile) for pile in piles] == [3, 3, 3] + [2] * 7
    assert sorted(torch.cat(piles).tolist()) == list(range(23))
    first = graph_cut_bins(points(23), 10, at_most=2)
    assert len(first) == 2 and all(torch.equal(a, b) for a, b in zip(first, piles))


def test_every_bin_gives_its_share():
    features = points(30)
    bin_of = {row: number for number, pile in enumerate(graph_cut_bins(features, 5)) for row in pile.tolist()}
    for k, expected in ((10, [2] * 5), (12, [3, 3, 2, 2, 2]), (3, [1, 1, 1, 0, 0])):
        picks = [bin_of[row] for row in choose_from_bins(features, k, generator(), bins=5).tolist()]
        assert [picks.count(number) for number in range(5)] == expected


def test_a_class_smaller_than_the_bins_gives_all_it_has():
    assert sorted(choose_from_bins(points(4), 4, generator(), bins=10).tolist()) == [0, 1, 2, 3]


def test_a_budget_that_needs_several_items_for_one_names_the_budget_that_fits():
    """Bug: auto-palette at ipc 50 wants 350 rows of a class of 139, and was told to lower ipc to 139."""
    data = twin_task(per_class=139).train
    with pytest.raises(BudgetError, match="350 real items.*has 139. Lower ipc to 19 or less, start"):
        check_budget(data, 350, (0, 1), ipc=50)
    with pytest.raises(BudgetError, match="has 139. Not even ipc 1 fits .ipc is 1.: start from noise"):
        check_budget(data, 140, (0, 1), ipc=1)
