"""A thousand clients in one process, within memory; nothing grows with clients times model."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict

from ddfed_federated.flower import client_app
from ddfed_federated.flower.grid import LocalGrid

resource = pytest.importorskip("resource")

RUN = """
import json, resource, sys
from pathlib import Path
from ddfed.config import Layer, to_toml
from ddfed.runs import RunFolder
from ddfed_federated.settings import resolve_simulate
from ddfed_federated.simulate import simulate
from ddfed_federated.worker import load_task

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e3 if sys.platform != "darwin" else 1e6)

base = {
    "method": "random-once", "baselines": ["fedavg"],
    "distill": {"ipc": 1, "min_count": 1, "network": "convnet-d2-w16"},
    "server": {"epochs": 1}, "local": {"epochs": 1},
    "federation": {"clients": 1000, "rounds": 1, "partition": "iid", "batched": True},
}
s = resolve_simulate([Layer("test", base)]).settings
load_task(s)
before = peak()
with RunFolder.create(Path(sys.argv[1]), "run", to_toml(s)) as folder:
    summary = simulate(s, folder)
rows = [m["rows"][0] for m in summary["methods"].values()]
print(json.dumps([[[r["asked"], r["releases"], len(r["lost"])] for r in rows], peak() - before]))
"""


@pytest.mark.slow
def test_a_thousand_clients_fit_into_a_few_hundred_megabytes(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path)], capture_output=True, text=True, timeout=300, check=True
    )
    rows, grown = json.loads(done.stdout.splitlines()[-1])
    assert rows == [[1000, 1000, 0]] * 2
    assert grown < 300


def test_messages_share_their_arrays_until_their_turn_comes():
    weights = ArrayRecord({"w": Array(np.zeros(250_000, dtype=np.float32))})
    with LocalGrid(client_app.app, 50) as grid:
        sent = [Message(RecordDict({"weights": weights}), n, "query.hello") for n in grid.get_node_ids()]
        ids = grid.push_messages(sent)
        assert grid.sent_bytes == 0
        assert len(grid.pull_messages(ids)) == 1
        assert 1_000_000 < grid.sent_bytes < 1_100_000
