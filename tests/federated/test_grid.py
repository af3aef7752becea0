"""The local grid: serial and worker processes agree, failures stay where they happen, bytes are counted."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import rounds
import torch
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_to_proto

from ddfed.errors import ConfigError
from ddfed_federated.flower import backends, client_app, loop, wire
from ddfed_federated.flower.grid import LocalGrid
from ddfed_federated.flower.pool import exit_code

APP = backends.APP


def hello_map(grid, clients):
    return loop.wait_for_nodes(grid, clients, timeout=60)


def test_serial_and_worker_processes_give_the_same_bytes():
    deeds = {2: {1: "raise", 2: "decline", 3: "exit"}}
    serial = backends.run_inprocess(rounds.play(3, 4, deeds), 4)
    pooled = backends.run_inprocess(rounds.play(3, 4, deeds), 4, workers=2)
    assert serial == pooled
    assert serial[1][1:] == (
        [0],
        {
            1: serial[1][2][1],
            2: "ConfigError: nothing to do here",
            3: serial[1][2][3],
        },
    )
    assert serial[1][2][1].startswith("ValueError: boom of client 1 (toy_worker.py:")
    assert [good for _, good, _ in serial] == [[0, 1, 2, 3], [0], [0, 1, 2, 3]]


def test_a_failed_call_leaves_the_stored_state_alone():
    with LocalGrid(client_app.app, 1) as grid:
        nodes = hello_map(grid, 1)
        calls = []
        for r, deed in enumerate(["", "raise", ""], start=1):
            replies, _ = loop.collect(grid, rounds.messages(nodes, r, {0: deed}))
            good, _ = rounds.split_replies(replies, nodes)
            calls += [good[0].metrics["calls"]] if good else []
    assert calls == [1, 2]


def test_a_process_that_dies_costs_one_message():
    told = backends.run_inprocess(rounds.play(3, 5, {2: {0: "die", 3: "die"}}), 5, workers=2)
    assert [good for _, good, _ in told] == [[0, 1, 2, 3, 4], [1, 2, 4], [0, 1, 2, 3, 4]]
    assert told[1][2] == dict.fromkeys((0, 3), "the client's process ended with exit code 7")


def test_a_client_that_never_answers_costs_the_deadline_and_its_process():
    with LocalGrid(APP, 3, workers=2) as grid:
        nodes = hello_map(grid, 3)
        begun = time.monotonic()
        replies, missing = loop.collect(grid, rounds.messages(nodes, 1, {0: "hang"}), timeout=2)
        assert time.monotonic() - begun < 4
        assert list(missing.values()) == [nodes[0]]
        assert len(replies) == 2
        # The stuck process was replaced: everybody answers, although two had been stuck with two workers.
        replies, missing = loop.collect(grid, rounds.messages(nodes, 2, {1: "hang", 2: "hang"}), timeout=2)
        assert len(missing) == 2
        replies, missing = loop.collect(grid, rounds.messages(nodes, 3), timeout=60)
        assert (len(replies), missing) == (3, {})
        begun = time.monotonic()
        list(grid.push_messages(rounds.messages(nodes, 4, {0: "hang", 1: "hang"})))
    assert time.monotonic() - begun < 4


def test_late_replies_do_not_disturb_the_next_round():
    with LocalGrid(APP, 2, workers=2) as grid:
        nodes = hello_map(grid, 2)
        replies, missing = loop.collect(grid, rounds.messages(nodes, 1, {1: "slow"}), timeout=60, enough=1)
        assert len(replies) == len(missing) == 1
        assert loop.still_out(grid, missing) == {}
        time.sleep(1.2)
        replies, missing = loop.collect(grid, rounds.messages(nodes, 2), timeout=60)
        good, _ = rounds.split_replies(replies, nodes)
    assert missing == {}
    assert {p: r.round for p, r in good.items()} == {0: 2, 1: 2}
    # What was given up does not count as done: the state is that of before.
    assert good[1].metrics["calls"] == 1


def test_offline_nodes_are_missing_and_nobody_waits_for_them():
    with LocalGrid(client_app.app, 3) as grid:
        nodes = hello_map(grid, 3)
        grid.offline = {nodes[1]}
        begun = time.monotonic()
        replies, missing = loop.collect(grid, rounds.messages(nodes, 1), timeout=30)
        assert time.monotonic() - begun < 5
        assert (len(replies), list(missing.values())) == (2, [nodes[1]])
        assert list(grid.get_node_ids()) == [nodes[0], nodes[2]]
        grid.offline = set()
        assert len(loop.collect(grid, rounds.messages(nodes, 2))[0]) == 3


def test_offline_nodes_with_workers_cost_the_deadline():
    with LocalGrid(APP, 2, workers=1) as grid:
        nodes = hello_map(grid, 2)
        grid.offline = {nodes[0]}
        replies, missing = loop.collect(grid, rounds.messages(nodes, 1), timeout=1)
    assert (len(replies), list(missing.values())) == (1, [nodes[0]])


def test_bytes_are_those_that_are_serialised():
    with LocalGrid(client_app.app, 3) as grid:
        nodes = hello_map(grid, 3)
        grid.sent_bytes = grid.recv_bytes = 0
        messages = rounds.messages(nodes, 1)
        replies, _ = loop.collect(grid, messages)
        assert grid.sent_bytes == sum(message_to_proto(m).ByteSize() for m in messages)
        assert grid.recv_bytes == pytest.approx(sum(message_to_proto(m).ByteSize() for m in replies), rel=0.01)
        payload = sum(sum(wire.payload_bytes(m.content).values()) for m in replies)
        # The rest is metadata: ids, times, types.
        assert 0 < grid.recv_bytes - payload < 300 * len(replies)


def test_serially_one_client_works_per_look():
    seen = []
    with LocalGrid(client_app.app, 4) as grid:
        nodes = hello_map(grid, 4)
        replies, missing = loop.collect(
            grid, rounds.messages(nodes, 1), enough=2, on_reply=lambda done, total, reply: seen.append((done, total))
        )
        good, _ = rounds.split_replies(replies, nodes)
    assert seen == [(1, 4), (2, 4)]
    assert list(good) == [0, 1]
    assert list(missing.values()) == [nodes[2], nodes[3]]


def test_an_app_that_returns_nothing_is_a_client_that_does_not_answer():
    app = ClientApp()

    @app.train()
    def train(message, context):
        return None if context.node_config["partition-id"] == 0 else Message(RecordDict(), reply_to=message)

    with LocalGrid(app, 3) as grid:
        messages = [Message(RecordDict(), node, "train") for node in grid.get_node_ids()]
        replies, missing = loop.collect(grid, messages, timeout=30)
    assert len(replies) == 2
    assert list(missing.values()) == [1000]


def test_two_messages_to_one_node_run_in_order():
    with LocalGrid(APP, 2, workers=2) as grid:
        nodes = hello_map(grid, 2)
        twice = rounds.messages(nodes, 1, {0: "slow"}, only=[0]) + rounds.messages(nodes, 2, only=[0])
        replies, _ = loop.collect(grid, twice, timeout=60)
        calls = {wire.decode_release(r.content).round: wire.decode_release(r.content).metrics["calls"] for r in replies}
    assert calls == {1: 1, 2: 2}


def test_threads_are_set_in_the_client_and_put_back():
    torch.set_num_threads(1)
    with LocalGrid(client_app.app, 1) as grid:
        nodes = hello_map(grid, 1)
        replies, _ = loop.collect(grid, rounds.messages(nodes, 1, threads=2))
        assert wire.decode_release(replies[0].content).metrics["threads"] == 2
    assert torch.get_num_threads() == 1


def test_a_simulated_client_can_be_given_its_state_back():
    def ask(grid, nodes, kind, content):
        replies, _ = loop.collect(grid, [Message(content, nodes[0], kind)])
        return replies[0]

    def first(grid):
        nodes = hello_map(grid, 1)
        loop.collect(grid, rounds.messages(nodes, 1))
        return RecordDict({"state": grid.context(nodes[0]).state["state"]})

    def second(grid):
        nodes = hello_map(grid, 1)
        assert not ask(grid, nodes, "query.set_state", kept).has_error()
        return rounds.split_replies(loop.collect(grid, rounds.messages(nodes, 2))[0], nodes)[0][0].metrics["calls"]

    kept = backends.run_inprocess(first, 1)
    assert backends.run_inprocess(second, 1) == 2
    with LocalGrid(client_app.app, 1) as grid:
        reply = ask(grid, hello_map(grid, 1), "query.set_state", kept)
    assert "simulations only" in wire.error_text(reply)


def test_a_client_runs_only_what_its_machine_allows(monkeypatch):
    monkeypatch.setenv("DDFED_WORKERS", "")
    with LocalGrid(client_app.app, 1) as grid:
        nodes = hello_map(grid, 1)
        _, bad = rounds.split_replies(loop.collect(grid, rounds.messages(nodes, 1))[0], nodes)
    assert "'toy_worker:answer' is not allowed" in bad[0]


def test_a_message_for_another_client_is_refused():
    with LocalGrid(client_app.app, 2) as grid:
        nodes = hello_map(grid, 2)
        swapped = {0: nodes[1], 1: nodes[0]}
        replies, _ = loop.collect(grid, rounds.messages(swapped, 1))
        assert all("a message for client" in wire.error_text(r) for r in replies)


@pytest.mark.parametrize(
    ("app", "clients", "workers", "message"),
    [
        (client_app.app, 0, 0, "at least 1 client"),
        (client_app.app, 1, 1, "'module:attribute'"),
        (APP, 1, -1, "use 0"),
    ],
)
def test_wrong_numbers_say_what_is_possible(app, clients, workers, message):
    with pytest.raises(ConfigError, match=message):
        LocalGrid(app, clients, workers=workers)


def test_an_app_that_cannot_be_imported_is_an_error_reply():
    with LocalGrid("no_such_module:app", 1, workers=1) as grid:
        replies, _ = loop.collect(grid, [Message(RecordDict(), 1000, "train")], timeout=60)
    assert "no_such_module" in wire.error_text(replies[0])


SCRIPT = """
from ddfed_federated.flower import backends
import rounds
print(backends.run_inprocess(rounds.play(1, 2), 2, workers=1)[0][2][0])
"""


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=100)
    assert done.returncode != 0
    assert "ended with exit code 1 while it started. A script must start the run under" in done.stderr


class Reaped:
    """A process that is gone, and whose code another thread knows only after it has been asked a few times."""

    def __init__(self, asked: int) -> None:
        self.asked = asked

    def join(self, timeout: float) -> None:
        """Returns at once, as for any process that is gone."""

    @property
    def exitcode(self) -> int | None:
        self.asked -= 1
        return 7 if self.asked < 0 else None


def test_an_exit_code_that_another_thread_reaped_is_waited_for():
    """A fresh clone said once that a process ended with exit code None."""
    assert exit_code(Reaped(asked=5), patience=2) == 7
    begun = time.monotonic()
    assert exit_code(Reaped(asked=10**6), patience=0.1) is None and time.monotonic() - begun < 1
