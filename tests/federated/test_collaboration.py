"""Whole runs of the methods in which clients remember: what a checkpoint holds is enough to go on from."""

from __future__ import annotations

import pytest

from ddfed.config import Layer, to_toml
from ddfed.runs import RunFolder
from ddfed_federated.rounds import Progressing
from ddfed_federated.settings import resolve_simulate
from ddfed_federated.simulate import simulate

TINY = {
    "baselines": [],
    "data": {"train_limit": 120, "test_limit": 50},
    "distill": {"network": "convnet-d2-w16", "steps": 2, "ipc": 1, "min_count": 1},
    "local": {"epochs": 1},
    "federation": {"clients": 3, "rounds": 2},
}


class _Stop(Exception):
    pass


@pytest.mark.parametrize("method", ["desa", "fedcache", "fedsynth", "hfldd", "dcfl"])
def test_a_run_that_was_cut_off_goes_on_to_the_same_end(tmp_path, method):
    options = {"fedcache": {"options": {"warmup": 1, "least": 0.0}}}.get(method, {})
    s = resolve_simulate([Layer("test", {**TINY, "method": method, **options})]).settings

    def stop(row):
        if row.round == 2:
            raise _Stop

    def rows(summary):
        timed = ("seconds", "client_seconds", "bytes_up")  # the time that a client took is in its reply
        return [{k: v for k, v in row.items() if k not in timed} for row in summary["methods"][method]["rows"]]

    with RunFolder.create(tmp_path, "straight", to_toml(s)) as folder:
        whole = simulate(s, folder)
    broken = RunFolder.create(tmp_path, "broken", to_toml(s))
    with pytest.raises(_Stop), broken:
        simulate(s, broken, Progressing(finished=stop))
    with RunFolder.open(broken.path, writable=True) as again:
        assert rows(simulate(s, again, resume=True)) == rows(whole)
    assert [row["round"] for row in rows(whole)] == [0, 1, 2][-len(rows(whole)) :]
    assert not any(row["note"] or row["lost"] for row in rows(whole))
