"""What noisy answers cost: (epsilon, delta) of Gaussian releases, of sampled ones, and of a ledger.

A release of full data is accounted exactly (the Gaussian trade-off; releases compose by their squared 1/noise). Sampled
ones go to Opacus: PRV for the figure that is told, RDP to cross-check it. Noise is in units of the sensitivity, natural
logarithms, delta as a probability.

Sources: Balle and Wang, Improving the Gaussian Mechanism for Differential Privacy, ICML 2018 (equation 6, exact delta);
Dong, Roth and Su, Gaussian Differential Privacy, 2022 (composition of full releases is exact; for sampled ones it is a
central-limit approximation that tells too little, so it is refused here); Gopi, Lee and Wutschitz, Numerical
Composition of Differential Privacy, NeurIPS 2021 (PRV); Mironov, Talwar and Zhang, Renyi Differential Privacy of the
Sampled Gaussian Mechanism, 2019.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ddfed.errors import ConfigError, GateError, one_of
from ddfed.ledger import Ledger, PrivacyEvent

#: Names under which the gate writes its events.
GAUSSIAN, SAMPLED = "gaussian", "sampled gaussian"
ACCOUNTANTS = ("prv", "rdp")
#: Opacus stops at order 63, which tells too much where epsilon is small.
_ORDERS = [1 + x / 10 for x in range(1, 100)] + list(range(12, 64)) + list(range(64, 2001, 4))
#: Whole orders are a hundred times as fast and tell a little more, which is all that a cross-check needs.
_WHOLE_ORDERS = [*range(2, 64), *range(64, 512, 16), *range(512, 2001, 128)]
#: Less noise than this is not looked for.
_LEAST = 1e-2
#: PRV's figure has an error of .01, so the bound by RDP may lie that little below it.
_SLACK = 0.02


@dataclass(frozen=True)
class Spent:
    """Equal releases.

    Args:
        noise: standard deviation of the noise in units of the sensitivity, above 0.
        rate: probability with which each record takes part in one release, in (0, 1].
        count: releases.
    """

    noise: float
    rate: float = 1.0
    count: int = 1

    def __post_init__(self) -> None:
        if not (self.noise > 0 and math.isfinite(self.noise)):
            raise ConfigError(f"noise must be a number above 0, got {self.noise!r}: without noise there is no privacy")
        if not 0 < self.rate <= 1:
            raise ConfigError(f"a sampling rate lies above 0 and up to 1, got {self.rate!r}")
        if self.count < 0:
            raise ConfigError(f"releases are counted from 0, got {self.count!r}")


def gaussian_delta(epsilon: float, noise: float) -> float:
    """Exact delta at an epsilon of one Gaussian release of full data."""
    from scipy.stats import norm

    mu = 1 / noise
    # e^eps Phi(..) underflows and overflows apart; together it is a small number.
    second = math.exp(min(epsilon + norm.logcdf(-epsilon / mu - mu / 2), 0.0))
    return max(0.0, float(norm.cdf(-epsilon / mu + mu / 2)) - second)


def gaussian_epsilon(noise: float, delta: float) -> float:
    """Exact epsilon at a delta of one Gaussian release of full data; 0 where its delta at 0 is small enough."""
    from scipy.optimize import brentq

    check_delta(delta)
    if gaussian_delta(0.0, noise) <= delta:
        return 0.0
    high = 1.0
    while gaussian_delta(high, noise) > delta:
        high *= 2
    return float(brentq(lambda epsilon: gaussian_delta(epsilon, noise) - delta, 0.0, high, xtol=1e-10))


def spent_epsilon(spent: Sequence[Spent], delta: float, accountant: str = "prv") -> float:
    """Epsilon of releases that may each depend on the answers before, under adding or removing one record.

    Args:
        spent: the releases.
        delta: the probability with which more may be told.
        accountant: for sampled releases, ``prv`` or ``rdp``.

    Raises:
        ConfigError: an accountant that is no bound, or a delta that is no small probability.
        GateError: the two accountants contradict each other.
    """
    check_delta(delta)
    if accountant not in ACCOUNTANTS:
        gdp = " GDP is an approximation that tells too little under sampling." if accountant == "gdp" else ""
        raise ConfigError(
            f"accountant {accountant!r} gives no bound that may be claimed.{gdp} {one_of(ACCOUNTANTS)} do."
        )
    spent = [one for one in spent if one.count]
    if not spent:
        return 0.0
    if all(one.rate == 1 for one in spent):
        return gaussian_epsilon(sum(one.count / one.noise**2 for one in spent) ** -0.5, delta)
    if accountant == "rdp":
        return _rdp(spent, delta, _ORDERS)
    found, bound = _prv(spent, delta), _rdp(spent, delta, _WHOLE_ORDERS)
    if bound < found - _SLACK:
        raise GateError(
            f"two accountants disagree about {spent}: RDP, an upper bound, says epsilon {bound:.4f}, PRV {found:.4f}. "
            f"Nothing can be claimed."
        )
    return found


def _prv(spent: Sequence[Spent], delta: float) -> float:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = _history(spent)
    return float(accountant.get_epsilon(delta))


def _rdp(spent: Sequence[Spent], delta: float, orders: Sequence[float]) -> float:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = _history(spent)
    with warnings.catch_warnings():
        # That the best order is the last one of a list makes the bound no less of one.
        warnings.filterwarnings("ignore", "Optimal order is the", UserWarning)
        return float(accountant.get_epsilon(delta, alphas=list(orders)))


def _history(spent: Sequence[Spent]) -> list[tuple[float, float, int]]:
    return [(one.noise, one.rate, one.count) for one in spent]


def noise_for(epsilon: float, delta: float, rate: float = 1.0, count: int = 1, accountant: str = "prv") -> float:
    """The least noise with which equal releases cost no more than epsilon, by the accountant that will report it.

    Raises:
        ConfigError: an epsilon that is none, or one that no noise reaches.
    """
    from scipy.optimize import brentq

    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ConfigError(f"epsilon must be a number above 0, got {epsilon!r}")
    check_delta(delta)
    if rate == 1:
        one = brentq(lambda s: gaussian_epsilon(s, delta) - epsilon, _LEAST, 1e6, xtol=1e-10, rtol=1e-12)
        return float(one) * math.sqrt(count)

    def excess(noise: float) -> float:
        return spent_epsilon([Spent(noise, rate, count)], delta, accountant) - epsilon

    high = 1.0
    while excess(high) > 0:
        high *= 2
        if high > 1e6:
            raise ConfigError(f"no noise up to 1e6 makes {count} releases at rate {rate} cost {epsilon} or less")
    low = high / 2
    while excess(low) <= 0:
        low, high = low / 2, low
        if low < _LEAST:
            return high
    return _rounded_up(float(brentq(excess, low, high, rtol=1e-3)), excess)


def _rounded_up(noise: float, excess: Callable[[float], float]) -> float:
    """A root is known to a tolerance; what is returned must not cost more than was asked."""
    while excess(noise) > 0:
        noise *= 1 + 1e-3
    return noise


def check_delta(delta: float) -> None:
    """Raise `ConfigError` unless delta is a probability above 0 and below 1."""
    if not 0 < delta < 1:
        raise ConfigError(f"delta must lie above 0 and below 1, far below 1 over the number of records; got {delta!r}")


@dataclass(frozen=True)
class Guarantee:
    """What may be claimed about one scope.

    Args:
        epsilon, delta: of all that was answered.
        unit: what is protected: ``record``, ...
        adjacency: what neighbouring data sets are; here always ``add_remove``.
        accountant: that found epsilon.
        queries: answers that were given.
    """

    epsilon: float
    delta: float
    unit: str
    adjacency: str
    accountant: str
    queries: int


def spent_in(events: Iterable[tuple[PrivacyEvent, int]]) -> list[Spent]:
    """The releases behind events of the gate.

    Raises:
        GateError: an event without a mechanism that is known here: there is no guarantee.
    """
    found = []
    for event, count in events:
        facts = dict(event.parameters)
        if event.mechanism not in (GAUSSIAN, SAMPLED) or not {"noise", "rate"} <= set(facts):
            raise GateError(
                f"no formal privacy guarantee: {event.query!r} of {event.scope!r} was answered by the mechanism "
                f"{event.mechanism!r}, which bounds nothing"
            )
        found.append(Spent(facts["noise"], facts["rate"], count))
    return found


def guarantees(ledger: Ledger, delta: float, accountant: str = "prv") -> dict[str, Guarantee]:
    """What may be claimed about each scope that a ledger names.

    Scopes are told apart and never added up; whether records of two are disjoint is not the ledger's to know.

    Raises:
        GateError: something was answered without a mechanism, or under another adjacency or for another unit.
    """
    told = {}
    for scope in dict.fromkeys(event.scope for event in ledger.counts):
        events = [(event, n) for event, n in ledger.counts.items() if event.scope == scope]
        spent = spent_in(events)
        kinds = {(event.unit, event.adjacency) for event, _ in events}
        if len(kinds) > 1 or next(iter(kinds))[1] != "add_remove":
            raise GateError(
                f"events of {scope!r} differ in what they protect (unit, adjacency): {sorted(kinds)}; figures for one "
                f"say nothing about another, so they are not composed"
            )
        unit, adjacency = next(iter(kinds))
        epsilon = spent_epsilon(spent, delta, accountant)
        exact = all(one.rate == 1 for one in spent)
        name = "exact Gaussian" if exact else accountant
        told[scope] = Guarantee(epsilon, delta, unit, adjacency, name, sum(one.count for one in spent))
    return told


class Budget:
    """How much may be told; asked before every query, and answered without a new account for most of them.

    Args:
        epsilon, delta: the target.
        accountant: for sampled releases.
    """

    def __init__(self, epsilon: float, delta: float, accountant: str = "prv") -> None:
        if not (epsilon > 0 and math.isfinite(epsilon)):
            raise ConfigError(f"epsilon must be a number above 0, got {epsilon!r}")
        check_delta(delta)
        self.epsilon, self.delta, self.accountant = epsilon, delta, accountant
        #: the event asked about last, how many others there were beside it, and how many of it are known to fit
        self._fits: tuple[PrivacyEvent | None, int, int] = (None, 0, 0)

    def spend(self, ledger: Ledger, event: PrivacyEvent) -> None:
        """Raise `GateError` when one more such event would exceed the target; nothing is appended.

        Args:
            ledger: what was answered already.
            event: what is asked now.
        """
        before = [(e, n) for e, n in ledger.counts.items() if e.scope == event.scope]
        others, made = sum(n for e, n in before if e != event), ledger.counts[event] + 1
        known, beside, most = self._fits
        if (known, beside) == (event, others) and made <= most:
            return
        rest = spent_in((e, n) for e, n in before if e != event)
        [one] = spent_in([(event, 1)])

        def fits(count: int) -> bool:
            spent = [*rest, Spent(one.noise, one.rate, count)]
            return spent_epsilon(spent, self.delta, self.accountant) <= self.epsilon

        if not fits(made):
            told = spent_epsilon(spent_in(before), self.delta, self.accountant)
            raise GateError(
                f"one more answer to {event.query!r} would exceed epsilon {self.epsilon:g} (delta {self.delta:g}) for "
                f"{event.scope!r}: {sum(n for _, n in before)} answers cost {told:.4f} so far. Ask fewer times, add "
                f"more noise, or raise epsilon before the run begins."
            )
        # Twice as many while they fit, then exactly how many: a run of T queries asks the accountant about log T times.
        most, above = made, 2 * made
        if fits(above):
            most = above
        else:
            while above - most > 1:
                middle = (most + above) // 2
                most, above = (middle, above) if fits(middle) else (most, middle)
        self._fits = (event, others, most)
