"""Feature skew: what each client's instrument makes of its rows, on top of any split.

A view is a function ``(rows, client, clients, streams, *, options) -> rows`` of natural values, (k, *item) float32. It
depends on the run's seed, the client and the row alone: neither the other rows nor the order of clients enter. Those of
a modality come from its plugin (kind ``skew``, with the fact ``domain``); `noise` suits every modality whose rows stand
alone. Views are applied where a client's share is loaded: nothing downstream can tell them from real instruments.

References:
    Li et al., Federated Learning on Non-IID Data Silos (NIID-Bench), ICDE 2022 (noise).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ddfed.data import RealData, TaskInfo
from ddfed.domain import Domain
from ddfed.errors import ConfigError, one_of
from ddfed.registry import registry
from ddfed.seeds import Streams
from ddfed_federated.partition import options_of
from ddfed_federated.settings import SimulateSettings

View = Callable[..., Tensor]

#: No skew: every client sees the rows as they are.
NONE = "none"


def noise(rows: Tensor, client: int, clients: int, streams: Streams, *, sigma: float = 0.3) -> Tensor:
    """Gaussian noise that grows with the client's number: N(0, sigma^2 k / K) for client k = 1 to K (NIID-Bench).

    The paper's sigma is a variance; this one is a deviation, so 0.3 is about the paper's 0.1. A row's noise hangs on
    its content: it is the same in every round, whoever else is there. Values are not clipped.

    Args:
        rows: natural values, (k, *item).
        client: 0 to ``clients`` - 1.
        clients: K.
        streams: the client's.
        sigma: deviation of the last client's noise, in natural units.

    Raises:
        ConfigError: sigma below 0 or not finite.
    """
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ConfigError(f"skew 'noise': sigma must be a finite number of at least 0; got {sigma}")
    deviation = sigma * math.sqrt((client + 1) / clients)
    drawn = [torch.randn(row.shape, generator=streams.torch(_content(row))) for row in rows]
    return rows + deviation * torch.stack(drawn)


def _content(row: Tensor) -> str:
    return hashlib.sha256(row.contiguous().numpy().tobytes()).hexdigest()


def check_skew(settings: SimulateSettings, domain: Domain, info: TaskInfo) -> None:
    """Find what can be known to be wrong before any client is asked.

    Raises:
        UnknownNameError: no such view.
        ConfigError: the domain's rows cannot be seen through it, or a wrong option.
    """
    federation = settings.federation
    if federation.skew == NONE:
        if federation.skew_options:
            raise ConfigError(
                f"federation.skew_options = {federation.skew_options} without a skew; set federation.skew to one of "
                f"{one_of(registry().names('skew'))}"
            )
        return
    component = registry().get("skew", federation.skew, "federation.skew")
    if not domain.capabilities.independent_rows:
        raise ConfigError(
            f"federation.skew = {federation.skew!r} changes rows one by one, and those of domain {domain.name!r} are "
            f"seen together. Set federation.skew = {NONE!r}."
        )
    own = component.facts.get("domain", domain.name)
    if own != domain.name:
        here = [c.name for c in registry().of_kind("skew") if c.facts.get("domain", domain.name) == domain.name]
        raise ConfigError(
            f"federation.skew = {federation.skew!r} is for domain {own!r}, and the data are of domain {domain.name!r}. "
            f"Possible here: {one_of([NONE, *here])}"
        )
    _view(settings)(torch.zeros(1, *info.shape), 0, federation.clients, Streams(0))


def _view(settings: SimulateSettings) -> View:
    """The view with its options, defaults filled in."""
    name = settings.federation.skew
    function = registry().load("skew", name, "federation.skew")
    return partial(function, **options_of(function, name, settings.federation.skew_options, "skew", {}))


def seen_by(client: int, data: RealData, settings: SimulateSettings) -> RealData:
    """Rows as a client sees them; the rows themselves where the federation has no feature skew.

    Args:
        client: partition id.
        data: its share, or test rows.
        settings: the run's.

    Raises:
        ConfigError: an unknown view or option.
        DataError: the view gives other shapes, or values that are not finite.
    """
    federation = settings.federation
    if federation.skew == NONE:
        return data
    streams = Streams(settings.run.seed).child("skew", federation.skew, client)
    view = _view(settings)
    return data.seen(lambda rows: view(rows, client, federation.clients, streams))


def pooled(shares: Sequence[RealData]) -> RealData:
    """What clients hold, in one place, as they see it."""
    inputs, labels = (torch.cat([getattr(data, name) for data in shares]) for name in ("inputs", "labels"))
    return replace(shares[0], inputs=inputs, labels=labels, groups=None)


def recorded(settings: SimulateSettings) -> dict[str, Any]:
    """The skew as a summary holds it; empty for none."""
    if settings.federation.skew == NONE:
        return {}
    view = _view(settings)
    assert isinstance(view, partial)
    return {"name": settings.federation.skew, "options": dict(view.keywords)}
