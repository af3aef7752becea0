"""Pools with a bank and RA, against their formulas; what is trained once is never trained again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddfed.errors import ConfigError, UnknownNameError
from ddfed.files import read_state, write_state
from ddfed.gate import PlainGate
from ddfed.pool import AdaptivePool, ModelPool, NoisyPool, PathPool, PoolContext, TrainedPool, Training, trained_network
from ddfed.seeds import Streams
from ddfed.store import HardLabels
from ddfed.testing import TwinDomain, twin_task

TASK = twin_task()
TRAINING = {"steps": 6, "batch": 32, "lr": 0.1}
BANK: dict[str, Any] = {"networks": 3, "training": TRAINING}
INNER: dict[str, Any] = {"length": 3, "steps": 2, "batch": 16}
QUEUE = {"start": 2, "grow_every": 2, "capacity": 3, "visits": 1, "steps": 1, "batch": 16}
ADAPTIVE: dict[str, Any] = {"length": 6, "epochs": 4, "rows": 20, "window": 3, "batch": 8, "lr": 0.05}
CASES: dict[str, tuple[type[ModelPool], dict[str, Any]]] = {
    "T": (TrainedPool, BANK),
    "PI": (PathPool, BANK),
    "PI over R": (PathPool, {**BANK, "drawn": "R"}),
    "PI over Q": (PathPool, {**BANK, "drawn": "Q", "drawn_options": QUEUE}),
    "PW": (NoisyPool, {**BANK, **INNER}),
    "RA": (AdaptivePool, ADAPTIVE),
}


def context(**changes: Any) -> PoolContext:
    values: dict[str, Any] = {"gate": PlainGate(TASK.train), "streams": Streams(3), "classes": (0, 1, 2)}
    return PoolContext(lambda: TwinDomain().network("maps", TASK.info), **{**values, **changes})


def weights(net: nn.Module | None) -> Tensor:
    assert net is not None
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def advance(pool: ModelPool, step: int) -> None:
    batch = TASK.train.batch(torch.arange(0, 120, 10))
    pool.advance(step, lambda: (batch.inputs, batch.classes), HardLabels.loss)


def trained(number: int) -> Tensor:
    return weights(trained_network(context(), Training(**TRAINING), "bank", number))


def first(number: int) -> Tensor:
    return weights(context().fresh("bank", number))


def test_t_draws_networks_as_they_were_trained_and_they_are_their_own_experts():
    pool = TrainedPool(context(), **BANK)
    members = [trained(number) for number in range(3)]
    seen = set()
    for step in range(20):
        net = weights(pool.draw(step))
        found = [number for number, member in enumerate(members) if torch.equal(net, member)]
        assert len(found) == 1 and torch.equal(weights(pool.expert), net)
        seen.update(found)
    assert seen == {0, 1, 2}


def test_pi_draws_on_the_line_between_first_and_trained_weights():
    pool = PathPool(context(), **BANK)
    ends = [(first(number), trained(number)) for number in range(3)]
    shares = []
    for step in range(60):
        net, expert = weights(pool.draw(step)), weights(pool.expert)
        begin, end = next((b, e) for b, e in ends if torch.equal(e, expert))
        share = float((net - end) @ (begin - end) / (begin - end).square().sum())
        assert torch.allclose(net, share * begin + (1 - share) * end, atol=1e-5)
        shares.append(share)
    assert all(-1e-3 <= share <= 1 + 1e-3 for share in shares)
    # Uniform in [0, 1]: sixty draws reach both thirds and have a mean near a half (deviation 0.04).
    assert min(shares) < 1 / 3 and max(shares) > 2 / 3 and abs(sum(shares) / 60 - 0.5) < 0.1


def test_pi_may_draw_from_another_pool_and_keep_the_expert():
    pool = PathPool(context(), **BANK, drawn="R")
    assert torch.equal(weights(pool.draw(4)), weights(context().fresh(4)))
    assert any(torch.equal(weights(pool.expert), trained(number)) for number in range(3))
    queue = PathPool(context(), **BANK, drawn="Q", drawn_options=QUEUE)
    skills = []
    for step in range(6):
        queue.draw(step)
        skills.append(queue.skill)
        advance(queue, step)
    assert skills[0] == 0 and max(skills) > 0


def test_pw_adds_two_directions_with_the_norms_of_the_filters():
    options = {**BANK, **INNER, "networks": 1, "steps": 0, "length": 1}
    start = trained_network(context(), Training(**TRAINING), "bank", 0)
    for step in range(12):
        net = NoisyPool(context(), **options).draw(step)
        for (name, noisy), clean in zip(net.named_parameters(), start.parameters()):
            if clean.ndim < 2:
                assert torch.equal(noisy, clean), name
                continue
            for there, here in zip(noisy, clean):
                # |a d1 + b d2| <= |a| + |b| times the norm of the filter; 0.02 to 0.18 of it at most.
                assert float((there - here).norm()) <= 0.181 * float(here.norm()), name
    assert not torch.equal(weights(net), weights(start))


def test_pw_with_one_size_of_noise_has_exactly_that_size():
    """Both amounts are +-0.05, so a filter moves by 0.05 |+-d1 +- d2| with |d1| = |d2| = |filter|."""
    from ddfed.pool.bank import _directions

    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(5, 3, 2))
    one, two = _directions(weight, generator)
    for direction in (one, two):
        assert torch.allclose(direction.flatten(1).norm(dim=1), weight.detach().flatten(1).norm(dim=1), rtol=1e-5)
    assert not torch.allclose(one, two)
    assert all(not direction.any() for direction in _directions(nn.Parameter(torch.ones(4)), generator))
    pool = NoisyPool(context(), **{**BANK, **INNER, "networks": 1, "noise": [0.05, 0.05]})
    start = trained_network(context(), Training(**TRAINING), "bank", 0)
    ratios = []
    for step in range(0, 60, 3):
        moved = dict(pool.draw(step).named_parameters())["head.weight"] - start.head.weight
        ratios.extend((moved.norm(dim=1) / start.head.weight.norm(dim=1)).tolist())
    # Directions in 64 dimensions are nearly orthogonal: 0.05 * sqrt(2) on average.
    assert sum(ratios) / len(ratios) == pytest.approx(0.05 * 2**0.5, rel=0.1)


def test_pw_keeps_a_network_for_a_length_and_trains_it_on_real_data():
    pool = NoisyPool(context(), **BANK, **INNER)
    drawn = []
    for step in range(4):
        drawn.append(weights(pool.draw(step)))
        advance(pool, step)
    gaps = [float((a - b).norm()) for a, b in zip(drawn, drawn[1:])]
    assert all(gap > 0 for gap in gaps)
    quiet = NoisyPool(context(), **{**BANK, **INNER, "steps": 0})
    assert torch.equal(weights(quiet.draw(0)), drawn[0])
    advance(quiet, 0)
    assert torch.equal(weights(quiet.draw(1)), drawn[0])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cut", [1, 4])
def test_a_restored_pool_goes_on_without_training_again(case: str, cut: int, tmp_path: Path):
    kind, options = CASES[case]

    def run(pool: ModelPool, begin: int, end: int) -> list[tuple[Tensor, Tensor | None]]:
        found = []
        for step in range(begin, end):
            net = weights(pool.draw(step))
            found.append((net, weights(pool.expert) if pool.expert else None))
            advance(pool, step)
        return found

    whole = run(kind(context(), **options), 0, 8)
    pool = kind(context(), **options)
    run(pool, 0, cut)
    write_state(tmp_path / "state", pool.state())
    told: list[str] = []
    again = kind(context(report=lambda what, *_: told.append(what)), **options)
    again.load(read_state(tmp_path / "state"))
    held = set(pool.bank.state()) if hasattr(pool, "bank") else set()
    for (net, expert), (net2, expert2) in zip(whole[cut:], run(again, cut, 8)):
        assert torch.equal(net, net2)
        assert (expert is None) == (expert2 is None) and (expert is None or torch.equal(expert, expert2))
    assert bool(held) == ("networks" in options) and not {name.split()[-1] for name in told} & held


def test_members_are_trained_when_first_drawn_and_once():
    told: list[str] = []
    pool = TrainedPool(context(report=lambda what, *_: told.append(what)), **{**BANK, "networks": 50})
    assert told == []
    pool.draw(0)
    pool.draw(0)
    assert len(set(told)) == 1 and len(told) == TRAINING["steps"]


@pytest.mark.parametrize("case", CASES)
def test_drawn_networks_and_experts_are_frozen_and_the_global_generator_is_left_alone(case: str):
    before = torch.get_rng_state()
    kind, options = CASES[case]
    pool = kind(context(), **options)
    for step in range(4):
        assert not any(p.requires_grad for p in pool.draw(step).parameters())
        assert pool.expert is None or not any(p.requires_grad for p in pool.expert.parameters())
        advance(pool, step)
    assert torch.equal(before, torch.get_rng_state())


def test_wrong_settings_are_refused_with_what_is_possible():
    with pytest.raises(ConfigError, match=r"networks = 1 or more, got 0"):
        TrainedPool(context(), networks=0)
    with pytest.raises(ConfigError, match=r"no setting 'step'. Did you mean 'steps'"):
        TrainedPool(context(), training={"step": 3})
    with pytest.raises(UnknownNameError, match=r"unknown pool 'r' \(from pool_options.drawn"):
        PathPool(context(), **BANK, drawn="r")
    with pytest.raises(ConfigError, match="drawn is 'path'"):
        PathPool(context(), **BANK, drawn_options={"every": 2})
    with pytest.raises(ConfigError, match=r"noise must be \[least, greatest\]"):
        NoisyPool(context(), noise=[0.2, 0.1])


# --- RA: lengths decided as it goes -------------------------------------------------------------------------------


class Scripted(AdaptivePool):
    """Accuracies from a list; counts the passes over the set."""

    script: list[float] = []
    passes = 0

    def _accuracy(self, step: int, epoch: int) -> float:
        return self.script.pop(0)

    def _pass(self, *given: Any) -> None:
        self.passes += 1


def scripted(script: list[float], steps: int, **options: Any) -> tuple[list[int], list[int]]:
    """Which network each step had, and the passes after it."""
    pool = Scripted(context(), **{**ADAPTIVE, **options})
    pool.script, networks, passes = list(script), [], []
    for step in range(steps):
        before, net = pool.passes, weights(pool.draw(step))
        networks.append(next(n for n in range(9) if torch.equal(net, weights(context().fresh(n)))))
        advance(pool, step)
        passes.append(pool.passes - before)
    assert pool.script == []
    return networks, passes


def test_a_network_is_given_up_when_the_last_accuracies_are_close_together():
    # Each step: the accuracy after it, then those of its passes, which end once they span more than 0.03.
    script = [0.10, 0.2, 0.3] + [0.20, 0.2, 0.3] + [0.22, 0.2, 0.3] + [0.21] + [0.5, 0.1, 0.2]
    # Windows: (.10, .20, .22) spans .12; (.20, .22, .21) spans .02 < .04, so a fresh network begins.
    assert scripted(script, 5) == ([0, 0, 0, 0, 1], [2, 2, 2, 0, 2])


def test_both_loops_have_caps():
    far = [0.1, 0.9]
    step = [0.5, 0.5, 0.5, 0.5]
    script = [far[0], *step, far[1], *step, far[0], far[1], *step]
    assert scripted(script, 4, length=3) == ([0, 0, 0, 1], [4, 4, 0, 4])


def test_the_accuracy_is_that_of_real_rows():
    pool = AdaptivePool(context(), **{**ADAPTIVE, "rows": None})
    net = pool.draw(0)
    batch = TASK.train.all()
    right = float((net(batch.inputs).argmax(1) == batch.classes).float().mean())
    assert pool._accuracy(0, 0) == pytest.approx(right)
