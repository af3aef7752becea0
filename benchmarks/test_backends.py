"""What it costs to start a federation: the Ray back end against this process."""

from __future__ import annotations

import importlib.util

import pytest

CLIENTS = 2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("flwr") is None, reason="needs ddfed[federated]"),
]


def main(grid: object) -> str:
    """A server that asks its clients for nothing."""
    return type(grid).__name__


def test_inprocess(benchmark) -> None:
    from ddfed_federated.flower.backends import run_inprocess

    assert benchmark.pedantic(run_inprocess, args=(main, CLIENTS), rounds=3, warmup_rounds=1) == "LocalGrid"


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")
def test_ray(benchmark) -> None:
    """One round: Ray, its workers and their imports start anew each time."""
    from ddfed_federated.flower.backends import run_ray

    assert benchmark.pedantic(run_ray, args=(main, CLIENTS), kwargs={"num_cpus": 2}, rounds=1)
