"""A derivative through twenty steps of training: the adjoint against one graph over all steps.

ConvNet-3-128 on rows of CIFAR's shape, both in one process in turn; memory in a process of its own for each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_steps import against
from unrolled import by_adjoint, by_graph, setting

from ddfed.devices import keep_memory

ROWS, STEPS = 50, 20
#: What the adjoint may take: part of the graph's memory, multiple of its own at twenty steps, multiple of its time.
MEMORY, FLAT, TIME = 1 / 5, 1.5, 1.5


def grown(how: str, steps: int) -> float:
    script = Path(__file__).with_name("unrolled.py")
    done = subprocess.run(
        [sys.executable, str(script), how, str(steps), str(ROWS)], capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout)["grown_mb"])


def test_memory_is_that_of_one_step(capsys: pytest.CaptureFixture[str]) -> None:
    graph, short, long = grown("graph", STEPS), grown("adjoint", STEPS), grown("adjoint", 10 * STEPS)
    with capsys.disabled():
        print(f"\npeak memory grows by {graph:.0f} MB: graph, {STEPS} steps")
        print(f"{short:.0f} MB: adjoint, {STEPS} steps; {long:.0f} MB: adjoint, {10 * STEPS} steps")
    assert short <= MEMORY * graph and long <= FLAT * short


def test_time(benchmark, table: list) -> None:
    keep_memory()
    given = setting(ROWS)
    mine, theirs = by_adjoint(*given, STEPS), by_graph(*given, STEPS)
    assert float(torch.nn.functional.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0)) > 0.9999
    against(
        benchmark, table, f"{STEPS} steps of training",
        lambda: by_adjoint(*given, STEPS), lambda: by_graph(*given, STEPS),
    )  # fmt: skip
