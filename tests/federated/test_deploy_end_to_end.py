"""A SuperLink, its door and three SuperNodes on loopback, with TLS and keys: one deployment for all that needs one.

Starting takes many seconds and so does every message, so the rounds of one run carry the whole story: one as it
should be, one in which a SuperNode is killed, and one with another in its place.
"""

from __future__ import annotations

import datetime
import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddfed.artifact import SyntheticSet
from ddfed.config import Layer, to_toml
from ddfed.runs import RunFolder
from ddfed_federated.cli import carried_out
from ddfed_federated.rounds import RoundRow
from ddfed_federated.settings import resolve_simulate
from ddfed_federated.simulate import simulate

pytest.importorskip("flwr")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="counts what is left of processes in /proc"),
]

BASE = {
    "baselines": [],
    "data": {"train_limit": 300, "test_limit": 100},
    "distill": {"ipc": 2, "steps": 3, "network": "convnet-d2-w16", "min_count": 1},
    "server": {"epochs": 5},
}
#: Of a call that Flower's own command line would make.
HEADERS = {"Content-Type": "application/protobuf"}
ROUNDS, KILLED_IN = 3, 2


def settings(**federation):
    layers = [Layer("test", BASE), Layer("case", {"federation": {"clients": 3, "rounds": ROUNDS, **federation}})]
    return resolve_simulate(layers).settings


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The same run in this process, with the client that will be killed rehearsed as a drop-out."""
    chosen = settings(faults=[f"{KILLED_IN}:2:raise"])
    with RunFolder.create(tmp_path_factory.mktemp("reference"), "run", to_toml(chosen)) as folder:
        return simulate(chosen, folder)


def mark_of(program) -> bytes:
    environ = Path(f"/proc/{program.pid}/environ").read_bytes().split(b"\0")
    return next(line for line in environ if line.startswith(b"DDFED_DEPLOYMENT="))


def alive(mark: bytes) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return found


class Story:
    """What happens beside the run: looked at once a second."""

    def __init__(self, federation, sites):
        self.federation, self.sites, self.killed_at = federation, sites, None

    def tend(self):
        node = self.federation.nodes["site-2"]
        if self.killed_at is None and f"ROUND {KILLED_IN}]" in node.log.read_text():
            node.when_it_ends = "go on"
            os.kill(node.pid, signal.SIGKILL)
            self.killed_at = time.monotonic()
            self.federation.control.register(self.sites / "substitute/node.key.pub", "substitute")
            self.federation.join("substitute", 2, self.sites / "substitute", again=False)
        return self.federation.tend()


def ask(port: int, authority: Path, path: str) -> int:
    context = ssl.create_default_context(cafile=str(authority))
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
    connection.request("POST", path, b"", HEADERS)
    status = connection.getresponse().status
    connection.close()
    return status


def activation(deployment, site: Path, ahead: float, monkeypatch) -> int:
    """HTTP status that a node gets whose clock is ahead, through the door."""
    import httpx
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    from flwr.proto.fleet_pb2 import ActivateNodeRequest
    from flwr.supercore.date import now
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes
    from flwr.supernode import node_auth_http_interceptor as signing
    from flwr.supernode.fleet_http_client import FleetHttpClient

    key = load_ssh_private_key((site / "node.key").read_bytes(), password=None)
    monkeypatch.setattr(signing, "now", lambda: now() + datetime.timedelta(seconds=ahead))
    interceptors = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        signing.NodeAuthHttpInterceptor(key, key.public_key()),
    ]
    address = f"127.0.0.1:{deployment.port}"
    with FleetHttpClient.from_server_address(address, False, str(deployment.authority), interceptors) as client:
        public = public_key_to_bytes(key.public_key())
        try:
            client.ActivateNode(ActivateNodeRequest(public_key=public, heartbeat_interval=30))
        except httpx.HTTPStatusError as error:
            return error.response.status_code
    return 200


def test_a_deployed_run_gives_the_numbers_of_a_simulation_and_outlives_a_node(tmp_path, reference, monkeypatch):
    from ddfed_federated.deploy import certificates
    from ddfed_federated.deploy.checks import check_server
    from ddfed_federated.deploy.local import LocalFederation, make_local
    from ddfed_federated.deploy.running import run

    sites = tmp_path / "sites"
    deployment = make_local(tmp_path / "deployment", 3)
    for name in ("stranger", "early", "substitute"):
        certificates.make_node_key(sites / name / "node.key")
        (sites / name / "ca.crt").write_bytes(deployment.authority.read_bytes())
    # Everybody must have answered by then on a busy machine too; only the killed one has not.
    chosen, notes = settings(deadline_s=25, backend="deployed"), []
    folder = RunFolder.create(tmp_path, "run", to_toml(chosen))
    with LocalFederation(deployment, tmp_path / "scratch") as federation:
        mark = mark_of(federation.nodes["site-0"])
        # A key that was never registered, and one whose clock is a minute ahead though it was.
        stranger = federation.join("stranger", 1, sites / "stranger", again=False)
        federation.control.register(sites / "early/node.key.pub", "early")
        assert activation(deployment, sites / "early", 60, monkeypatch) == 401
        for path in ("/v1/control/list-runs", "/v1/runtime/acquire-task"):
            # Behind the door whoever comes is answered: that is what it is for.
            assert ask(deployment.link_port, deployment.authority, path) == 200
            assert ask(deployment.port, deployment.authority, path) == 403
        assert ask(deployment.port, deployment.authority, "/v1/fleet/pull-messages") == 401
        assert all(row.fine for row in check_server(f"127.0.0.1:{deployment.port}", deployment.authority))
        story = Story(federation, sites)

        def hold(watching, note):
            told = lambda text: (notes.append(text), note(text))  # noqa: E731
            return run(federation.control, deployment.app, folder, watching, told, story.tend)

        summary = carried_out(chosen, folder, True, hold, "ddfed deploy up")
        assert story.killed_at is not None
        assert len(alive(mark)) > 5
    assert alive(mark) == []

    # Refused, and it says so; it took no part under anybody's name.
    assert stranger.process.returncode not in (0, None)
    assert re.search(r"305|Failed to (activate|initialize)", stranger.log.read_text()), stranger.log.read_text()
    assert "[/v1/fleet/activate-node]" in (tmp_path / "scratch/logs/superlink.log").read_text()

    same = ("round", "accuracy", "releases", "items", "bytes_up", "real_seeds", "missing_classes", "ledger")
    expected, found = (s["methods"]["feddm"]["rows"] for s in (reference, summary))
    rows = [RoundRow.from_json(row) for row in found]
    # Through JSON, as the summary of the one was read back and that of the other was not.
    expected = json.loads(json.dumps(expected))
    assert found == [{**row, **{k: found[i][k] for k in row if k not in same}} for i, row in enumerate(expected)]
    assert [row.releases for row in rows] == [3, 2, 3]
    assert [bool(row.lost) for row in rows] == [False, True, False]
    assert rows[1].lost[0].startswith("client 2: ")
    assert any(re.search("before round 3: client 2 (is another node now|has joined)", note) for note in notes), notes
    assert summary["artifact"] == reference["artifact"] == SyntheticSet.load(folder.path).content_hash
    assert (folder.path / "report.html").stat().st_size > 10_000
    assert [e["round"] for e in folder.events() if e["kind"] == "round"] == [1, 2, 3]


# --- the command --------------------------------------------------------------------------------------------------


def up(*words: str, cwd: Path) -> subprocess.Popen:
    """`ddfed deploy up` in a session of its own, as from a terminal."""
    command = [sys.executable, "-m", "ddfed.cli", "deploy", "up", "--local", "1", *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, start_new_session=True
    )


def wait_for(condition, process, seconds: float = 120.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None and time.monotonic() < end, process.communicate(timeout=30)
        time.sleep(0.1)
    return found


def processes_of(folder: Path) -> list[int]:
    """Those of a deployment, by the files that they were started with."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (entry / "environ").read_bytes().split(b"FLWR_HOME=")[-1]:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def superlink(folder: Path) -> int | None:
    for pid in processes_of(folder):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if any(word.endswith(b"flower-superlink") for word in command):
            return pid
    return None


def test_a_killed_superlink_fails_the_command_and_its_checkpoint_goes_on(tmp_path):
    from ddfed_federated.flower.grid import LocalGrid
    from ddfed_federated.flower.server_app import hold

    config = tmp_path / "small.toml"
    chosen = settings(clients=1, rounds=2)
    config.write_text(to_toml(chosen))
    process = up("place", "--config", str(config), "--out", "runs", cwd=tmp_path)
    try:
        events = lambda: [p for p in tmp_path.glob("runs/*/events.jsonl") if '"round": 1' in p.read_text()]  # noqa: E731
        [written] = wait_for(events, process)
        os.kill(superlink(tmp_path / "place"), signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1, errors
    assert "superlink ended with signal 9" in errors and "--resume" in errors
    assert processes_of(tmp_path / "place") == []

    # What the server would do in the next run, with a client in this process.
    with LocalGrid("ddfed_federated.flower.client_app:app", 1) as grid:
        said = hold(grid, str(written.parent))
    with RunFolder.create(tmp_path, "here", to_toml(chosen)) as folder:
        here = simulate(chosen, folder)
    rows = [e for e in RunFolder.open(written.parent).events() if e["kind"] == "round"]
    assert [row["accuracy"] for row in rows] == [row["accuracy"] for row in here["methods"]["feddm"]["rows"]]
    assert said["artifact"] == here["artifact"] and len(rows) == 2


def test_ctrl_c_ends_every_program(tmp_path):
    process = up("place", "--out", "runs", "--set", "data.train_limit=300", "--baselines", "none", cwd=tmp_path)
    try:
        wait_for(lambda: superlink(tmp_path / "place"), process)
        wait_for(lambda: len(processes_of(tmp_path / "place")) > 3, process)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "ddfed deploy up --local 1 --resume" in errors
    assert processes_of(tmp_path / "place") == []
