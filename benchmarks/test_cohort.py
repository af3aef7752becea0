"""Small clients trained in cohorts against each alone, as a ratio in one process."""

from __future__ import annotations

import importlib.util
import time

import pytest
import torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("flwr") is None, reason="needs ddfed[federated]"),
]


@pytest.mark.parametrize(("clients", "least"), [(500, 1.5), (100, 1.0)])
def test_local_training_of_many_small_clients(benchmark, clients: int, least: float) -> None:
    from ddfed.config import Layer
    from ddfed.seeds import Streams
    from ddfed_federated.cohort import Member, train_cohort
    from ddfed_federated.parts.local import train_on_records
    from ddfed_federated.settings import resolve_simulate
    from ddfed_federated.worker import load_share, load_task

    base = {"method": "fedavg", "federation": {"clients": clients, "partition": "iid"}, "local": {"epochs": 3}}
    s = resolve_simulate([Layer("benchmark", base)]).settings
    domain, task = load_task(s)
    torch.set_num_threads(1)
    members = [Member(k, load_share(s, k), Streams(0).child("client", k)) for k in range(clients)]
    size = 256 // max(len(m.data) for m in members)

    def network():
        torch.manual_seed(0)
        return domain.network("convnet-d2-w16", task.info)

    def alone() -> None:
        for m in members[: 2 * size]:
            train_on_records(network(), m.data, s.local, m.streams, torch.device("cpu"))

    def together() -> None:
        for begun in (0, size):
            train_cohort(network(), members[begun : begun + size], s.local)

    alone(), together()
    begun = time.perf_counter()
    alone()
    each = time.perf_counter() - begun
    benchmark.pedantic(together, rounds=3)
    benchmark.extra_info["speedup"] = each / benchmark.stats.stats.min
    assert each / benchmark.stats.stats.min > least
