"""The noisy gate: how much noise, what one record can do, and what it never gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("opacus")
pytest.importorskip("scipy")

from ddfed.data import RealData
from ddfed.distill import distill
from ddfed.errors import ConfigError, GateError
from ddfed.gate import PlainGate, Query
from ddfed.ledger import Ledger
from ddfed.seeds import Streams, isolated
from ddfed.settings import PartSettings
from ddfed.testing import TwinDomain, twin_task
from ddfed_privacy.accounting import GAUSSIAN, SAMPLED, Budget, gaussian_epsilon, guarantees
from ddfed_privacy.gate import GaussianGate, clipped

TASK = twin_task()
DATA, INFO = TASK.train, TASK.info
CLASSES = tuple(range(INFO.num_classes))
ALL = Query("class means", CLASSES)
GENERATOR = torch.Generator().manual_seed(0)


def gate(data: RealData = DATA, **options) -> GaussianGate:
    return GaussianGate(data, **{"clip": 1.0, "noise": 2.0, "nominal": 40, **options})


def flat(batch) -> Tensor:
    return batch.inputs.flatten(1)


def network(seed: int = 0) -> nn.Module:
    with isolated(seed):
        return TwinDomain().network("small", INFO)


def losses(net: nn.Module):
    return lambda batch: nn.functional.cross_entropy(net(batch.inputs), batch.classes, reduction="none")


def without(data: RealData, row: int) -> RealData:
    return data.subset(torch.tensor([i for i in range(len(data)) if i != row]))


# --- noise -------------------------------------------------------------------------------------------------------


def test_noise_has_the_variance_that_is_accounted_for():
    found = gate(clip=0.5, noise=3.0).sums(ALL, lambda b: torch.zeros(len(b.classes), 100_000), GENERATOR).sums
    assert float(found.std()) == pytest.approx(0.5 * 3.0, rel=0.01)
    assert abs(float(found.mean())) < 5 * 1.5 / math.sqrt(found.numel())
    # The sum of squares of n standard normal values lies within five deviations, sqrt(2 n), of n.
    squares = float((found.double() / 1.5).square().sum())
    assert abs(squares - found.numel()) < 5 * math.sqrt(2 * found.numel())


def test_noise_is_new_in_every_answer_and_in_every_run():
    one, two = gate(), gate()
    answers = [g.sums(ALL, flat, torch.Generator().manual_seed(0)).sums for g in (one, one, two)]
    assert not torch.allclose(answers[0], answers[1])
    assert not torch.allclose(answers[0], answers[2])


def test_noise_from_a_known_seed_is_no_privacy():
    open_gate = gate(insecure_seed=3)
    again = gate(insecure_seed=3)
    assert torch.equal(open_gate.sums(ALL, flat, GENERATOR).sums, again.sums(ALL, flat, GENERATOR).sums)
    assert open_gate.ledger.statement() == "No formal privacy guarantee: its noise came from a known seed."
    with pytest.raises(GateError, match="'insecure', which bounds nothing"):
        guarantees(open_gate.ledger, 1e-5)


# --- one record --------------------------------------------------------------------------------------------------


def contribution_of(scale: float):
    return lambda batch: scale * torch.sin(17 * batch.inputs.flatten(1))


@pytest.mark.parametrize("case", range(25))
def test_one_record_more_or_less_moves_a_sum_by_no_more_than_the_clip(case):
    """Over random records, contributions of any size and directions, with and without one of them."""
    draw = torch.Generator().manual_seed(case)
    row, other = torch.randint(len(DATA), (2,), generator=draw).tolist()
    clip, scale = (10 ** float(torch.empty(1).uniform_(-2, 2, generator=draw)) for _ in range(2))
    options = {"clip": clip, "noise": 1e-6, "insecure_seed": 5}
    whole = gate(DATA, **options).sums(ALL, contribution_of(scale), GENERATOR).sums.double()
    less = gate(without(DATA, row), **options).sums(ALL, contribution_of(scale), GENERATOR).sums.double()
    assert float((whole - less).norm()) <= clip * (1 + 1e-4)
    swapped = DATA.subset(torch.tensor([other if i == row else i for i in range(len(DATA))]))
    moved = gate(swapped, **options).sums(ALL, contribution_of(scale), GENERATOR).sums.double()
    assert float((whole - moved).norm()) <= 2 * clip * (1 + 1e-4)


@pytest.mark.parametrize("case", range(5))
def test_one_record_more_or_less_moves_gradients_by_no_more_than_the_clip(case):
    net, row = network(case), 7 * case
    options = {"clip": 0.03, "noise": 1e-6, "insecure_seed": 5}

    def asked(data: RealData, how: str) -> Tensor:
        grads, _ = getattr(gate(data, **options), how)(ALL, list(net.parameters()), losses(net), GENERATOR)
        return torch.cat([g.flatten() for g in grads]).double()

    for how in ("gradient", "class_gradients"):
        apart = asked(DATA, how) - asked(without(DATA, row), how)
        assert float(apart.norm()) <= 0.03 * (1 + 1e-3)
        assert float(apart.norm()) > 0.01  # the record takes part


def test_clipping_keeps_directions_and_drops_what_is_not_finite():
    values = torch.tensor([[3.0, 4.0], [0.3, 0.4], [float("nan"), 1.0], [float("inf"), 0.0], [0.0, 0.0]])
    found = clipped(values, 1.0)
    torch.testing.assert_close(
        found, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]).double(), atol=1e-7, rtol=0
    )


def test_a_record_that_is_not_finite_leaves_the_answer_finite():
    broken = gate()
    found = broken.sums(ALL, lambda b: flat(b) / (b.classes != 0)[:, None], GENERATOR).sums
    assert bool(torch.isfinite(found).all())


# --- the same as the plain gate but for clip and noise -------------------------------------------------------------


def faint(**options) -> GaussianGate:
    """So little noise, and so far a clip, that the answer is that of the plain gate."""
    return gate(clip=1e3, noise=1e-9, **options)


def test_without_clip_and_noise_the_sums_are_exact():
    found, plain = faint().sums(ALL, flat, GENERATOR), PlainGate(DATA).sums(ALL, flat, GENERATOR)
    torch.testing.assert_close(found.sums, plain.sums, atol=1e-4, rtol=1e-4)
    assert found.counts.tolist() == [40.0] * len(CLASSES)


def test_a_network_that_mixes_rows_cannot_mix_them_here():
    """Batch norm in training sees each row alone: refused by torch, where it would have coupled records in silence."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        faint().gradient(ALL, list(net.parameters()), losses(net), GENERATOR)


def test_without_clip_and_noise_gradients_are_exact():
    net = network()
    weights = list(net.parameters())
    asked = (ALL, weights, losses(net), GENERATOR)
    for a, b in zip(faint().gradient(*asked)[0], PlainGate(DATA).gradient(*asked)[0]):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    found, counts = faint().class_gradients(*asked)
    for a, b in zip(found, PlainGate(DATA).class_gradients(*asked)[0]):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert counts.tolist() == [40.0] * len(CLASSES)


def test_how_rows_are_cut_into_passes_changes_nothing():
    few, many = (
        gate(chunk=chunk, insecure_seed=1).sums(ALL, contribution_of(3.0), GENERATOR).sums for chunk in (7, 999)
    )
    torch.testing.assert_close(few, many, atol=1e-5, rtol=0)
    net = network()
    asked = (ALL, list(net.parameters()), losses(net), GENERATOR)
    few, many = (gate(chunk=chunk, insecure_seed=1).gradient(*asked)[0] for chunk in (7, 999))
    for a, b in zip(few, many):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


# --- samples -----------------------------------------------------------------------------------------------------


def test_every_record_takes_part_with_the_public_rate_and_denominators_do_not_tell_how_many_did():
    sampled, seen = gate(nominal=40), torch.zeros(len(DATA))
    query = Query("class means", CLASSES, rows=10)
    sizes = set()

    def contribution(batch):
        sizes.add(len(batch.classes))
        # Rows tell who they are by what is in them.
        for row in batch.inputs:
            seen[int((DATA.batch(torch.arange(len(DATA))).inputs - row).flatten(1).abs().sum(1).argmin())] += 1
        return flat(batch)

    for _ in range(60):
        assert sampled.sums(query, contribution, GENERATOR).counts.tolist() == [10.0] * len(CLASSES)
    assert len(sizes) > 3
    share = seen / 60
    assert float(share.mean()) == pytest.approx(0.25, abs=0.03)
    assert float(share.max()) < 0.6  # .25 and seven deviations
    [(event, count)] = sampled.ledger.counts.items()
    assert (event.mechanism, count, dict(event.parameters)["rate"]) == (SAMPLED, 60, 0.25)


def test_a_sample_without_records_is_answered_with_noise_and_accounted():
    empty = gate(nominal=10**9)
    found = empty.sums(Query("class means", CLASSES, rows=1), flat, GENERATOR)
    assert found.sums.shape == (len(CLASSES), 32) and float(found.sums.std()) > 0.5
    net = network()
    grads, count = empty.gradient(Query("gradient", CLASSES, rows=1), list(net.parameters()), losses(net), GENERATOR)
    assert [g.shape for g in grads] == [p.shape for p in net.parameters()]
    assert count == 3 and sum(empty.ledger.counts.values()) == 2


def test_rows_over_all_classes_together_have_the_rate_of_all():
    one = gate(nominal=40)
    one.sums(Query("gradient", CLASSES, rows=12, per_class=False), flat, GENERATOR)
    [event] = one.ledger.counts
    assert dict(event.parameters)["rate"] == pytest.approx(12 / 120)


# --- the ledger, and what is refused ----------------------------------------------------------------------------


def test_all_classes_are_one_answer_as_a_record_has_one_class():
    one, net = gate(), network()
    one.sums(ALL, flat, GENERATOR)
    one.class_gradients(ALL, list(net.parameters()), losses(net), GENERATOR)
    assert sum(one.ledger.counts.values()) == 2
    told = guarantees(one.ledger, 1e-5)["dataset"]
    assert told.epsilon == pytest.approx(gaussian_epsilon(2.0 / math.sqrt(2), 1e-5))
    assert {event.mechanism for event in one.ledger.counts} == {GAUSSIAN}


def test_what_would_exceed_the_budget_is_refused_before_anything_is_looked_at():
    looked = []
    one = gate(noise=4.0, budget=Budget(2.0, 1e-5))
    for _ in range(3):
        one.sums(ALL, lambda b: looked.append(1) or flat(b), GENERATOR)
    before, written = len(looked), sum(one.ledger.counts.values())
    with pytest.raises(GateError, match="'class means' would exceed epsilon 2"):
        while True:
            before, written = len(looked), sum(one.ledger.counts.values())
            one.sums(ALL, lambda b: looked.append(1) or flat(b), GENERATOR)
    assert (len(looked), sum(one.ledger.counts.values())) == (before, written)
    assert guarantees(one.ledger, 1e-5)["dataset"].epsilon <= 2.0


@pytest.mark.parametrize(
    "asked",
    [
        lambda g: g.raw("initialisation by random"),
        lambda g: g.counts(),
        lambda g: g.fingerprint(),
        lambda g: g.each(ALL, flat, GENERATOR),
        lambda g: g.sums(Query("q", CLASSES, among=torch.tensor([0])), flat, GENERATOR),
    ],
)
def test_what_is_no_noisy_sum_is_refused_and_nothing_is_written(asked):
    one = gate()
    with pytest.raises(GateError):
        asked(one)
    assert not one.ledger.counts


def test_classes_are_public_whatever_the_records_have():
    assert gate(DATA.subset((DATA.labels != 1).nonzero().flatten())).held(10) == CLASSES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": float("inf")}, "clip must be"),
        ({"clip": 0.0}, "clip must be"),
        ({"noise": 0.0}, "without noise there is no privacy"),
        ({"nominal": 0}, "nominal"),
    ],
)
def test_no_bound_no_noise_no_constant_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        gate(**options)


# --- engines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [{"objective": "mean"}, {"objective": "gradient"}])
def test_engines_distil_behind_it_as_they_are(parts):
    """Distribution and gradient matching, unchanged."""
    one = gate(clip=20.0, noise=0.05, nominal=40)
    settings = PartSettings(**{"ipc": 2, "steps": 5, "init": "noise", "network": "small", "lr": 0.5, **parts})
    syn = distill(one, TwinDomain(), settings, Streams(0))
    x, y = syn.decoded()
    assert x.shape == (2 * len(CLASSES), *INFO.shape) and bool(torch.isfinite(x).all())
    assert {e.mechanism for e in one.ledger.counts} <= {GAUSSIAN, SAMPLED}
    assert sum(one.ledger.counts.values()) >= 5
    assert guarantees(Ledger.from_json(one.ledger.to_json()), 1e-5)["dataset"].queries >= 5


def test_an_engine_that_starts_from_real_rows_is_refused():
    settings = PartSettings(ipc=2, steps=1, init="random", network="small")
    with pytest.raises(GateError, match="distill.init = 'noise'"):
        distill(gate(), TwinDomain(), settings, Streams(0))
