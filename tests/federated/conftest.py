"""Shared by the federation tests: the toy worker is importable everywhere and allowed as a worker."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
TOY = "toy_worker:answer"


@pytest.fixture
def one_ray(tmp_path_factory):
    """One Ray at a time on this machine, whichever process of the suite runs it: some tests count its processes."""
    fcntl = pytest.importorskip("fcntl")
    # The parent is shared by the processes of a parallel run.
    with (tmp_path_factory.getbasetemp().parent / "ray.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(autouse=True)
def toy_worker(monkeypatch):
    """Worker processes inherit the environment; this process has its path already."""
    monkeypatch.setenv("DDFED_WORKERS", TOY)
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), *filter(None, sys.path)]))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield TOY
    torch.set_num_threads(before)


@pytest.fixture
def run(tmp_path):
    """``run(settings, name, **options)``: a whole run in a folder of that name, (summary, folder)."""
    from ddfed.config import to_toml
    from ddfed.runs import RunFolder
    from ddfed_federated.simulate import check_simulate, simulate

    def go(s, name="run", **options):
        check_simulate(s)
        with RunFolder.create(tmp_path, name, to_toml(s)) as folder:
            return simulate(s, folder, **options), folder

    return go
