"""What noise costs: the tables that were computed with other libraries, and rules of composition."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("opacus")
pytest.importorskip("scipy")

from ddfed.errors import ConfigError, GateError
from ddfed.ledger import Ledger, PrivacyEvent
from ddfed_privacy.accounting import (
    GAUSSIAN,
    SAMPLED,
    Budget,
    Spent,
    gaussian_delta,
    gaussian_epsilon,
    guarantees,
    noise_for,
    spent_epsilon,
)

DELTA = 1e-5


@pytest.mark.parametrize(
    ("epsilon", "noise"),
    [(0.1, 30.7496), (0.5, 7.0318), (1, 3.7306), (2, 1.9938), (4, 1.0812), (8, 0.6002), (10, 0.4999)],
)
def test_noise_of_one_release(epsilon, noise):
    assert noise_for(epsilon, DELTA) == pytest.approx(noise, abs=1e-3)
    assert gaussian_epsilon(noise_for(epsilon, DELTA), DELTA) == pytest.approx(epsilon, abs=1e-6)


def test_delta_of_one_release_is_the_area_between_two_normal_curves():
    """Against the definition, integrated: sup over sets of P(S) - e^eps Q(S) is the positive part's integral."""
    noise, epsilon, step = 0.8, 1.5, 1e-4

    def density(x: float, mean: float) -> float:
        return math.exp(-((x - mean) ** 2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))

    grid = (-8 + step * i for i in range(int(18 / step)))
    area = sum(max(0.0, density(x, 1.0) - math.exp(epsilon) * density(x, 0.0)) for x in grid) * step
    assert gaussian_delta(epsilon, noise) == pytest.approx(area, rel=1e-4)


# (noise, rate, count): epsilon by RDP, by PRV, and by privacy-loss distributions of a third library (an upper bound)
TABLE = [
    ((1.0, 0.00427, 1_000), 1.0979, 0.7377, 0.7276),
    ((1.0, 0.00427, 10_000), 2.5660, 2.3552, 2.3451),
    ((0.7, 0.00427, 10_000), 6.1634, 5.5011, 5.4908),
    ((1.5, 0.05, 1_000), 6.0189, 5.5451, 5.5348),
    ((4.3, 0.01, 10_000), 0.9547, 0.8824, 0.8725),
    ((1.0, 0.3, 20), 10.630, 9.528, 9.517),
]


@pytest.mark.parametrize(("release", "rdp", "prv", "reference"), TABLE)
def test_epsilon_of_sampled_releases(release, rdp, prv, reference):
    found = spent_epsilon([Spent(*release)], DELTA)
    assert found == pytest.approx(prv, abs=0.02)
    assert found == pytest.approx(reference, abs=0.02)
    assert spent_epsilon([Spent(*release)], DELTA, "rdp") == pytest.approx(rdp, abs=0.02)


@pytest.mark.parametrize(
    ("epsilon", "rate", "count", "noise"),
    [(1, 0.00512, 1000, 0.957), (1, 0.01, 1000, 1.4258)],
)
def test_noise_of_sampled_releases_is_that_of_the_accountant_that_reports(epsilon, rate, count, noise):
    found = noise_for(epsilon, DELTA, rate, count)
    assert found == pytest.approx(noise, rel=0.02)
    assert 0.99 * epsilon < spent_epsilon([Spent(found, rate, count)], DELTA) <= epsilon


@pytest.mark.parametrize(
    ("epsilon", "rate", "count", "noise"),
    [(10, 0.00512, 1000, 0.4695), (10, 0.01, 10_000, 0.8023), (1, 0.01, 10_000, 3.8672)],
)
def test_noise_of_the_table_costs_what_the_table_says(epsilon, rate, count, noise):
    assert spent_epsilon([Spent(noise, rate, count)], DELTA) == pytest.approx(epsilon, abs=0.02)


def test_releases_of_full_data_are_accounted_exactly():
    assert spent_epsilon([Spent(1.0)], DELTA) == pytest.approx(4.3772, abs=1e-4)
    assert spent_epsilon([Spent(20.0)], DELTA) == pytest.approx(0.1600, abs=1e-4)
    many = spent_epsilon([Spent(3.0, count=7), Spent(2.0, count=2)], DELTA)
    assert many == pytest.approx(gaussian_epsilon((7 / 9 + 2 / 4) ** -0.5, DELTA), abs=1e-9)
    assert noise_for(2.0, DELTA, count=9) == pytest.approx(3 * noise_for(2.0, DELTA), rel=1e-9)
    assert spent_epsilon([], DELTA) == spent_epsilon([Spent(1.0, count=0)], DELTA) == 0.0


def test_higher_orders_tell_less_where_epsilon_is_small():
    """100 times the sensitivity, ten times: .1344 with the library's orders, .1081 with more, .1070 by PRV."""
    assert spent_epsilon([Spent(100.0, 0.999999, 10)], DELTA, "rdp") == pytest.approx(0.1081, abs=2e-3)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (lambda: spent_epsilon([Spent(1.0)], DELTA, "gdp"), "GDP is an approximation"),
        (lambda: spent_epsilon([Spent(1.0)], DELTA, "pld"), "'prv'"),
        (lambda: spent_epsilon([Spent(1.0)], 0.0), "delta must lie above 0"),
        (lambda: Spent(0.0), "without noise there is no privacy"),
        (lambda: Spent(1.0, 1.5), "sampling rate"),
        (lambda: noise_for(0.0, DELTA), "epsilon must be a number above 0"),
        (lambda: noise_for(float("inf"), DELTA, 0.1, 10), "epsilon must be a number above 0"),
    ],
)
def test_what_gives_no_bound_is_refused(asked, message):
    with pytest.raises(ConfigError, match=message):
        asked()


# --- ledgers -----------------------------------------------------------------------------------------------------


def event(noise=1.0, rate=1.0, scope="dataset", mechanism=None, adjacency="add_remove", unit="record") -> PrivacyEvent:
    mechanism = mechanism or (GAUSSIAN if rate == 1 else SAMPLED)
    return PrivacyEvent(mechanism, "q", scope, unit, (("noise", noise), ("rate", rate)), adjacency)


def ledger(*events: PrivacyEvent) -> Ledger:
    found = Ledger()
    for one in events:
        found.append(one)
    return found


def test_scopes_are_told_apart_and_come_back_from_json():
    both = ledger(event(2.0, scope="client 0"), event(2.0, scope="client 0"), event(4.0, scope="client 1"))
    told = guarantees(Ledger.from_json(both.to_json()), DELTA)
    assert told["client 0"].epsilon == pytest.approx(gaussian_epsilon(2 / math.sqrt(2), DELTA))
    assert (told["client 0"].queries, told["client 1"].queries) == (2, 1)
    assert (told["client 1"].unit, told["client 1"].adjacency) == ("record", "add_remove")
    assert told["client 1"].accountant == "exact Gaussian"
    assert guarantees(ledger(event(1.0, 0.1)), DELTA)["dataset"].accountant == "prv"


def test_a_ledger_of_an_older_version_has_no_adjacency_and_no_guarantee():
    rows = ledger(event()).to_json()
    for row in rows:
        del row["adjacency"]
    with pytest.raises(GateError, match="differ in what they protect"):
        guarantees(Ledger.from_json(rows), DELTA)


@pytest.mark.parametrize("mechanism", ["none", "raw", "rows", "insecure"])
def test_one_answer_without_a_mechanism_voids_everything(mechanism):
    with pytest.raises(GateError, match=f"no formal privacy guarantee: .*{mechanism}"):
        guarantees(ledger(event(), event(mechanism=mechanism)), DELTA)


@pytest.mark.parametrize("other", [event(adjacency="replace_one"), event(unit="client")])
def test_unlike_events_are_not_composed(other):
    with pytest.raises(GateError, match="not composed"):
        guarantees(ledger(event(), other), DELTA)


def test_a_budget_ends_exactly_where_it_is_spent_and_asks_the_accountant_rarely(monkeypatch):
    from ddfed_privacy import accounting

    calls, whole = [], accounting.spent_epsilon
    monkeypatch.setattr(accounting, "spent_epsilon", lambda *a: calls.append(a) or whole(*a))
    budget, spent, one = Budget(1.0, DELTA), Ledger(), event(40.0)
    fitting = 0
    while whole([Spent(40.0, count=fitting + 1)], DELTA) <= 1.0:
        fitting += 1
    for _ in range(fitting):
        budget.spend(spent, one)
        spent.append(one)
    assert fitting == 114 and len(calls) < 25
    with pytest.raises(GateError, match=r"would exceed epsilon 1 .*114 answers cost 0.99"):
        budget.spend(spent, one)
    # What another scope was told is another's; a costlier question has a limit of its own.
    budget.spend(spent, event(40.0, scope="client 1"))
    with pytest.raises(GateError, match="would exceed"):
        budget.spend(spent, event(1.0))
