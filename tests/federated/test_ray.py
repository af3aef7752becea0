"""Ray, and the ends of runs: the same numbers as without it, dead and stuck clients, Ctrl-C, missing packages.

The processes that are sent signals are started by the tests, in sessions of their own, so that what they
leave behind can be counted.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rounds

from ddfed.errors import ConfigError, FederationError, MissingDependencyError
from ddfed_federated.flower import backends, loop

RUN = """
import sys, time
import torch
from ddfed_federated.flower import backends, loop
import rounds

def main(grid):
    nodes = loop.wait_for_nodes(grid, 3, timeout=120)
    print("ready", flush=True)
    if sys.argv[2] == "server":
        while True:
            sum(range(10_000))
    loop.collect(grid, rounds.messages(nodes, 1, {0: "hang", 1: "hang"}))

if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        if sys.argv[1] == "ray":
            backends.run_ray(main, 3, num_cpus=2)
        else:
            backends.run_inprocess(main, 3, workers=2)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def start(path: Path, *arguments: str) -> subprocess.Popen:
    """A run in a session of its own."""
    command = [sys.executable, str(path), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def session_members(session: int) -> list[str]:
    """Command lines of the living processes of a session, and of Ray processes that left it."""
    listing = subprocess.run(["ps", "-eo", "sess=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listing.splitlines()]
    return [row[2] for row in rows if int(row[0]) == session and not row[1].startswith("Z")]


def ray_processes() -> set[str]:
    listing = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in listing.splitlines() if "raylet" in line or "gcs_server" in line}


@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
@pytest.mark.skipif(sys.platform != "linux", reason="counts processes with ps")
@pytest.mark.parametrize(
    ("backend", "busy", "wait", "group"),
    [
        # Every pair of two of the three, not every triple: Ray starts for ten seconds each time.
        ("pool", "clients", "ready", True), ("pool", "clients", "ready", False), ("ray", "clients", "ready", False),
        ("ray", "server", "ready", True), ("ray", "clients", 4.0, True), ("ray", "clients", 4.0, False),
    ],
)  # fmt: skip
def test_ctrl_c_ends_the_run_and_leaves_nothing(tmp_path, backend, busy, wait, group):
    path = tmp_path / "run.py"
    path.write_text(RUN)
    before = ray_processes()
    process = start(path, backend, busy)
    try:
        if wait == "ready":
            assert b"ready" in process.stdout.readline(), process.stderr.read()
            time.sleep(0.5)
        else:
            time.sleep(wait)
        begun = time.monotonic()
        # A terminal sends Ctrl-C to every process of the group; a supervisor to one.
        (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        took = time.monotonic() - begun
        # Early in its start-up the interpreter itself ends by the signal; during imports nothing of ours runs yet.
        assert process.returncode in ((130,) if wait == "ready" else (130, -signal.SIGINT)), errors.decode()[-2000:]
        assert took < 10
        deadline = time.monotonic() + 5
        while (session_members(process.pid) or ray_processes() - before) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert session_members(process.pid) == []
        assert ray_processes() <= before
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.mark.slow
def test_a_parent_that_is_killed_takes_its_workers_along(tmp_path):
    path = tmp_path / "run.py"
    path.write_text(RUN)
    process = start(path, "pool", "clients")
    assert b"ready" in process.stdout.readline()
    assert len(session_members(process.pid)) > 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while session_members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert session_members(process.pid) == []


@pytest.mark.usefixtures("one_ray")
@pytest.mark.slow
def test_ray_gives_the_bytes_of_a_serial_run_and_survives_dead_clients():
    deeds = {2: {0: "die", 1: "raise", 2: "decline", 3: "exit"}}
    before = {k: os.environ.get(k) for k in ("PYTHONPATH", "DDFED_SIMULATION")}
    on_ray = backends.run_ray(rounds.play(3, 4, deeds), 4, num_cpus=2)
    assert {k: os.environ.get(k) for k in before} == before
    # A serial run cannot lose a process; that client's round simply fails there.
    serial = backends.run_inprocess(rounds.play(3, 4, {2: {**deeds[2], 0: "raise"}}), 4)
    assert [(d, good) for d, good, _ in on_ray] == [(d, good) for d, good, _ in serial]
    assert on_ray[1][2].pop(0).startswith("the client's process ended")
    serial[1][2].pop(0)
    assert on_ray[1][2] == serial[1][2]


@pytest.mark.usefixtures("one_ray")
@pytest.mark.slow
def test_ray_ends_although_a_client_never_answers():
    def main(grid):
        nodes = loop.wait_for_nodes(grid, 3, timeout=120)
        begun = time.monotonic()
        replies, missing = loop.collect(grid, rounds.messages(nodes, 1, {0: "hang"}), timeout=2)
        took = time.monotonic() - begun
        out = loop.still_out(grid, missing)
        others = {p: n for p, n in nodes.items() if n not in out.values()}
        again, _ = loop.collect(grid, rounds.messages(others, 2), timeout=60)
        return len(replies), list(missing.values()) == [nodes[0]], len(again), took, time.monotonic()

    first, right_one, again, took, finished = backends.run_ray(main, 3, num_cpus=2)
    assert (first, right_one, again) == (2, True, 2)
    assert took < 4
    assert time.monotonic() - finished < 15


@pytest.mark.usefixtures("one_ray")
@pytest.mark.slow
def test_ray_replaces_a_client_that_takes_longer_than_its_limit():
    def main(grid):
        nodes = loop.wait_for_nodes(grid, 2, timeout=120)
        # One worker only: were it not replaced, nobody would answer any more.
        replies, _ = loop.collect(grid, rounds.messages(nodes, 1, {0: "hang"}, limit_s=1.0), timeout=60)
        again, missing = loop.collect(grid, rounds.messages(nodes, 2), timeout=60)
        return rounds.split_replies(replies, nodes), len(again), missing

    (good, bad), again, missing = backends.run_ray(main, 2, num_cpus=1)
    assert list(good) == [1]
    assert bad[0].startswith("the client's process ended")
    assert (again, missing) == (2, {})


@pytest.fixture
def cluster(tmp_path, one_ray):
    """A Ray cluster of somebody's, started as its guide says: its address."""
    ray = Path(sys.executable).with_name("ray")
    if not ray.exists():
        pytest.skip("the command 'ray' is not beside this Python")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Sockets below it have paths of at most 107 characters.
    home = Path("/tmp") / f"ray-{os.getpid()}"
    environment = {**os.environ, "RAY_TMPDIR": str(home)}
    words = ["--head", "--node-ip-address", "127.0.0.1", "--port", str(port), "--num-cpus", "2"]
    command = [str(ray), "start", "--block", *words, "--include-dashboard=false"]
    log = (tmp_path / "head.log").open("w+")
    head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in (tmp_path / "head.log").read_text():
            assert head.poll() is None and time.monotonic() < deadline, (tmp_path / "head.log").read_text()
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
        assert head.poll() is None, "the run ended a cluster that is not its own"
    finally:
        head.send_signal(signal.SIGINT)
        try:
            head.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
        log.close()
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Ray's command line as on servers")
def test_a_cluster_that_is_there_is_joined_gives_the_same_bytes_and_stays(cluster):
    joined = backends.run_ray(rounds.play(2, 3), 3, address=cluster)
    serial = backends.run_inprocess(rounds.play(2, 3), 3)
    assert joined == serial


@pytest.mark.usefixtures("one_ray")
@pytest.mark.slow
def test_what_the_server_raises_on_ray_is_raised_here():
    class Odd(Exception):
        pass

    def main(grid):
        raise Odd("this very object")

    with pytest.raises(Odd, match="this very object"):
        backends.run_ray(main, 1, num_cpus=1)


def test_what_the_server_raises_in_process_is_raised_here():
    def main(grid):
        raise KeyError("this very object")

    with pytest.raises(KeyError, match="this very object"):
        backends.run_inprocess(main, 1)


@pytest.mark.parametrize("module", ["ray", "flwr"])
def test_missing_packages_are_named_with_the_pip_line(monkeypatch, module):
    real = backends.importlib.util.find_spec
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None if name == module else real(name))
    with pytest.raises(MissingDependencyError, match=rf'needs {module}.*pip install "ddfed\[federated\]"'):
        backends.run_ray(lambda grid: None, 1)


def test_an_address_where_nobody_answers_is_told_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begun = time.monotonic()
    with pytest.raises(FederationError, match="no Ray cluster answers"):
        backends.run_ray(lambda grid: None, 1, address=f"127.0.0.1:{port}")
    assert time.monotonic() - begun < 10


def test_an_address_on_the_command_line_means_ray(tmp_path, monkeypatch, capsys):
    from ddfed.cli import main

    monkeypatch.chdir(tmp_path)
    small = ["--clients", "2", "--set", "data.train_limit=100", "--set", "distill.min_count=1", "-q"]
    with pytest.raises(SystemExit) as ended:
        main(["simulate", *small, "--ray-address", "127.0.0.1:1"])
    assert ended.value.code == 1
    assert "no Ray cluster answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients": 0}, "at least 1 client"),
        ({"client_threads": 0}, "at least 1 thread"),
        ({"num_cpus": 1, "client_threads": 2}, "lower client_threads"),
        ({"num_cpus": 1, "address": "127.0.0.1:6379"}, "leave it out"),
        ({"address": "auto"}, "'local' or HOST:PORT"),
    ],
)
def test_wrong_numbers_say_what_is_possible(options, message):
    with pytest.raises(ConfigError, match=message):
        backends.run_ray(lambda grid: None, **{"clients": 1, **options})


def test_the_package_sets_the_environment_and_imports_nothing_heavy():
    code = (
        "import os, sys; import ddfed_federated.flower; "
        "assert not {'flwr', 'ray', 'torch', 'numpy'} & set(sys.modules); "
        "print(*(os.environ[k] for k in ('FLWR_TELEMETRY_ENABLED', 'RAY_USAGE_STATS_ENABLED', 'RAY_worker_niceness')))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "RAY_"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["0", "0", "0"]


def test_every_module_is_below_the_package_that_sets_the_environment():
    folder = Path(backends.__file__).parent.parent
    outside = [p for p in folder.rglob("*.py") if p.parent.name != "flower"]
    importing = [
        p.name
        for p in outside
        if any(line.startswith(("import flwr", "from flwr", "import ray")) for line in p.read_text().splitlines())
    ]
    assert importing == []
