"""The round loop against a scripted grid: order, deadlines, quorum, cancellation, resent messages."""

from __future__ import annotations

import threading
import time

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import ddfed
from ddfed.errors import FederationError
from ddfed_federated.flower import client_app, loop
from ddfed_federated.flower.grid import LocalGrid
from ddfed_federated.flower.loop import Cancelled, collect, still_out, wait_for_nodes


class Scripted:
    """A grid whose replies are given per look: ``script[look]`` lists positions of messages that answer."""

    poll = 0.001

    def __init__(self, script, answer=None, omit=()):
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
        self.script, self.answer, self.omit = list(script), answer, set(omit)
        self.sent, self.looks = [], 0

    def push_messages(self, messages):
        out = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"m{len(self.sent)}"
            self.sent.append(message)
            if len(self.sent) - 1 not in self.omit:
                out.append(message.metadata.message_id)
        return out

    def pull_messages(self, ids):
        now = self.script[self.looks] if self.looks < len(self.script) else []
        self.looks += 1
        return [self._reply(i) for i in now if f"m{i}" in set(ids)]

    def _reply(self, position):
        message = self.sent[position]
        return self.answer(position, message) if self.answer else Message(RecordDict(), reply_to=message)


def to_nodes(*nodes):
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
    return [Message(RecordDict({"c": ConfigRecord({"node": n})}), n, "train", group_id="7") for n in nodes]


def test_replies_come_in_any_order_and_name_their_node():
    grid = Scripted([[2], [], [0, 1]])
    replies, missing = collect(grid, to_nodes(10, 11, 12))
    assert [r.metadata.src_node_id for r in replies] == [12, 10, 11]
    assert missing == {}


def test_errors_made_on_a_nodes_behalf_are_mapped_to_the_node():
    def by_link(position, message):
        reply = Message(Error(3, "message unavailable"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 1
        return reply

    replies, _ = collect(Scripted([[0, 1]], by_link), to_nodes(10, 11))
    assert [r.metadata.src_node_id for r in replies] == [10, 11]


def test_the_deadline_returns_what_came():
    begun = time.monotonic()
    replies, missing = collect(Scripted([[0]]), to_nodes(10, 11), timeout=0.2)
    assert 0.15 < time.monotonic() - begun < 5
    assert (len(replies), missing) == (1, {"m1": 11})


def test_a_quorum_is_enough():
    replies, missing = collect(Scripted([[1], [0]]), to_nodes(10, 11, 12), enough=1)
    assert (len(replies), sorted(missing.values())) == (1, [10, 12])


def test_messages_without_a_node_are_told_apart():
    # Flower's in-memory grid leaves them out of its answer.
    replies, missing = collect(Scripted([[0, 2]], omit=[1]), to_nodes(10, 11, 12))
    assert [r.metadata.src_node_id for r in replies] == [10, 12]
    assert missing == {"refused-1": 11}
    assert still_out(Scripted([]), missing) == {}


def test_unknown_nodes_of_a_local_grid_are_refused():
    with LocalGrid(client_app.app, 1) as grid:
        replies, missing = collect(grid, to_nodes(5))
    assert (replies, missing) == ([], {"refused-0": 5})


def test_no_messages_is_no_round():
    assert collect(Scripted([]), []) == ([], {})


@pytest.mark.parametrize("own", [True, False])
def test_cancelling_ends_the_wait(own):
    grid, event = Scripted([]), threading.Event()
    if own:
        grid.cancel = event
    threading.Timer(0.1, event.set).start()
    begun = time.monotonic()
    with pytest.raises(Cancelled):
        collect(grid, to_nodes(10), cancel=None if own else event)
    assert time.monotonic() - begun < 5


def test_handlers_of_failed_rounds_do_not_swallow_a_cancellation():
    assert not issubclass(Cancelled, Exception)


def test_messages_that_met_a_worker_being_replaced_are_sent_again(monkeypatch):
    monkeypatch.setattr(loop, "_RESEND_AFTER_S", 0.01)

    def restarting(position, message):
        if position == 0:
            return Message(Error(0, "ActorUnavailableError: ... IOError: The actor is restarting.. "), reply_to=message)
        return Message(message.content, reply_to=message)

    # Message 0 meets the restart; its second copy is message 2. Asked once more for message 0, a real grid
    # answers that there is no such message.
    grid = Scripted([[0, 1], *[[0, 2]] * 500], restarting)
    replies, missing = collect(grid, to_nodes(10, 11), timeout=20)
    assert missing == {}
    assert {r.metadata.src_node_id: r.content["c"]["node"] for r in replies} == {10: 10, 11: 11}
    assert grid.sent[2].metadata.group_id == "7"
    assert len(grid.sent) == 3


def test_a_worker_that_never_returns_is_given_up(monkeypatch):
    monkeypatch.setattr(loop, "_RESEND_AFTER_S", 0.0)
    monkeypatch.setattr(loop, "_RESENDS", 3)
    error = Error(0, "The actor is restarting")
    grid = Scripted([[i] for i in range(50)], lambda p, m: Message(error, reply_to=m))
    replies, missing = collect(grid, to_nodes(10), timeout=20)
    assert (len(replies), missing, len(grid.sent)) == (1, {}, 4)


def test_late_replies_free_their_node():
    grid = Scripted([[], [1]])
    _, missing = collect(grid, to_nodes(10, 11), timeout=0.0)
    assert still_out(grid, missing) == {"m0": 10}


class Nodes(Scripted):
    """A grid whose nodes appear over time."""

    def __init__(self, growth, answer):
        super().__init__([[0, 1, 2, 3]] * 3, answer)
        self.growth = list(growth)

    def get_node_ids(self):
        return self.growth.pop(0) if len(self.growth) > 1 else self.growth[0]


def says(partitions, version=ddfed.__version__):
    def answer(position, message):
        number = MetricRecord({"partition": partitions[message.metadata.dst_node_id]})
        return Message(RecordDict({"hello": number, "about": ConfigRecord({"version": version})}), reply_to=message)

    return answer


def test_nodes_are_awaited_and_known_by_partition():
    grid = Nodes([[], [77], [77, 5]], says({77: 0, 5: 1}))
    assert list(wait_for_nodes(grid, 2, timeout=5).items()) == [(0, 77), (1, 5)]


def test_too_few_nodes_are_an_error_that_counts_them():
    with pytest.raises(FederationError, match="1 of 3 clients came within 0.1 s"):
        wait_for_nodes(Nodes([[4]], says({4: 0})), 3, timeout=0.1)


def test_two_nodes_with_one_number_are_an_error():
    with pytest.raises(FederationError, match="both say they are client 0"):
        wait_for_nodes(Nodes([[4, 5]], says({4: 0, 5: 0})), 2, timeout=5)


def test_a_client_of_another_version_is_refused():
    with pytest.raises(FederationError, match=r"client 3 runs ddfed 0\.0\.9 and the server .* one everywhere"):
        wait_for_nodes(Nodes([[4]], says({4: 3}, "0.0.9")), 1, timeout=5)


def test_a_client_that_fails_to_say_hello_is_an_error():
    def broken(position, message):
        return Message(Error(1001, "FederationError: no partition id"), reply_to=message)

    with pytest.raises(FederationError, match="before the first round: FederationError: no partition id"):
        wait_for_nodes(Nodes([[4]], broken), 1, timeout=5)


def test_a_client_that_does_not_say_hello_is_an_error():
    grid = Nodes([[4, 5]], says({4: 0, 5: 1}))
    grid.script = [[0]]
    with pytest.raises(FederationError, match="1 of 2 clients answered"):
        wait_for_nodes(grid, 2, timeout=0.3)


def test_waiting_for_nodes_can_be_cancelled():
    event = threading.Event()
    event.set()
    with pytest.raises(Cancelled):
        wait_for_nodes(Nodes([[]], says({})), 1, cancel=event, timeout=60)
