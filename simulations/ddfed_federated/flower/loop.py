"""Sending a round and collecting what comes: progress, deadline, quorum and cancellation.

Replaces Flower's blocking `send_and_receive`, which has none of them. Works on any `Grid`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

import ddfed
from ddfed.errors import FederationError
from ddfed_federated.flower.wire import error_text

OnReply = Callable[[int, int, Message], None]

#: Ray answers so for an actor whose process has died and is being started again: the message never ran.
_RESTARTING = "The actor is restarting"
#: Seconds before such a message is sent again, and how often: a minute covers a slow import of torch.
_RESEND_AFTER_S = 0.5
_RESENDS = 120


class Cancelled(BaseException):
    """The run was stopped from outside. Not an `Exception`, so that no handler of failed rounds swallows it."""


def _check(*events: threading.Event | None) -> None:
    if any(event is not None and event.is_set() for event in events):
        raise Cancelled("the run was cancelled")


def collect(
    grid: Grid,
    messages: Iterable[Message],
    *,
    cancel: threading.Event | None = None,
    timeout: float | None = None,
    poll: float | None = None,
    enough: int | None = None,
    on_reply: OnReply | None = None,
    keep: bool = True,
    stop_late: bool = True,
) -> tuple[list[Message], dict[str, int]]:
    """Send messages and gather the replies as they come.

    Error replies count as replies; look at ``has_error()``. Each reply's ``metadata.src_node_id`` is the node
    that was asked, also for errors that Flower made on a node's behalf. The order of arrival means nothing:
    sort by partition id before using it.

    Args:
        grid: any grid; its own ``cancel`` event, if it has one, is obeyed too.
        messages: one per node. Never send to a node that has not answered yet; see `still_out`.
        cancel: stops the wait when set.
        timeout: seconds after which what came is returned; None waits for ever.
        poll: seconds between two looks; None asks the grid, else 0.1.
        enough: return once so many replies are there.
        on_reply: called as ``(replies so far, messages sent, reply)``.
        keep: whether replies are returned; without it ``on_reply`` must take all it needs, and memory stays small.
        stop_late: a `LocalGrid` stops clients that are late; else they work on, as real ones do.

    Returns:
        The replies, and ``{message id: node id}`` of those that did not come. A message that no node could
        be found for has an id starting with ``"refused-"``.

    Raises:
        Cancelled: ``cancel`` was set.
    """
    sent = list(messages)
    own = getattr(grid, "cancel", None)
    pause = float(getattr(grid, "poll", 0.1)) if poll is None else poll
    signal = cancel or own or threading.Event()
    end = None if timeout is None else time.monotonic() + timeout
    _check(cancel, own)
    waiting, refused = _push(grid, sent)
    resend = _Resend(grid, sent)
    replies: list[Message] = []
    came_in = 0
    try:
        while waiting and not (enough is not None and came_in >= enough):
            waiting = resend.due(waiting)
            came = list(grid.pull_messages(resend.asked(waiting)))
            for reply in came:
                node = waiting.get(reply.metadata.reply_to_message_id)
                if node is None or resend.takes(reply):
                    continue
                del waiting[reply.metadata.reply_to_message_id]
                # An error made by the link on a node's behalf names the link as its source.
                reply.metadata.__dict__["_src_node_id"] = node
                came_in += 1
                if keep:
                    replies.append(reply)
                if on_reply is not None:
                    on_reply(came_in, len(sent), reply)
            _check(cancel, own)
            if end is not None and time.monotonic() >= end:
                break
            if not came:
                if getattr(grid, "idle", False):
                    break
                signal.wait(pause)
    finally:
        discard = getattr(grid, "discard", None)
        if waiting and discard is not None and stop_late:
            discard(list(waiting))
    return replies, {**waiting, **refused}


def _push(grid: Grid, messages: list[Message]) -> tuple[dict[str, int], dict[str, int]]:
    """Ids of accepted messages, and made-up ids of those that were not."""
    given = list(grid.push_messages(messages))
    waiting, refused = {}, {}
    accepted = set(given)
    for position, message in enumerate(messages):
        # Flower's in-memory grid leaves refused messages out of its answer, a SuperLink gives them no id.
        message_id = given[position] if len(given) == len(messages) else message.metadata.message_id
        node = message.metadata.dst_node_id
        if message_id and message_id in accepted:
            waiting[message_id] = node
        else:
            refused[f"refused-{position}"] = node
    return waiting, refused


class _Resend:
    """Messages that met a worker which was just being replaced, and are to be sent once more."""

    def __init__(self, grid: Grid, messages: list[Message]) -> None:
        self._grid = grid
        self._messages = {m.metadata.message_id: m for m in messages}
        self._times: dict[str, int] = {}
        self._when: dict[str, float] = {}

    def takes(self, reply: Message) -> bool:
        """Whether the reply only says that the worker was not there; it is then dealt with."""
        message_id = reply.metadata.reply_to_message_id
        if not reply.has_error() or _RESTARTING not in (reply.error.reason or ""):
            return False
        if message_id not in self._messages or self._times.get(message_id, 0) >= _RESENDS:
            return False
        self._when[message_id] = time.monotonic() + _RESEND_AFTER_S
        return True

    def asked(self, waiting: dict[str, int]) -> Iterable[str]:
        """The ids to look for: one that is to be sent again has been answered, asking for it is an error."""
        return [i for i in waiting if i not in self._when] if self._when else waiting

    def due(self, waiting: dict[str, int]) -> dict[str, int]:
        """``waiting`` with the ids of the messages that were sent again just now replaced."""
        now = time.monotonic()
        for old in [i for i, when in self._when.items() if when <= now]:
            del self._when[old]
            message = self._messages.pop(old)
            about = message.metadata
            fresh = Message(message.content, about.dst_node_id, about.message_type, group_id=about.group_id)
            for new in self._grid.push_messages([fresh]):
                self._messages[new] = fresh
                self._times[new] = self._times.pop(old, 0) + 1
                waiting = {new if i == old else i: node for i, node in waiting.items()}
        return waiting


def still_out(
    grid: Grid, missing: dict[str, int], on_late: Callable[[str, Message], object] | None = None
) -> dict[str, int]:
    """Of the messages that went unanswered, those whose client may still be working.

    Late replies are taken off the grid. Two messages to one node may run at once, and the last
    to write its state wins, so a node that is still out must not be asked again.

    Args:
        grid: the grid they were sent on.
        missing: ``{message id: node id}`` from `collect`, of one or several rounds.
        on_late: called with the message's id and the late reply, which is dropped otherwise.

    Returns:
        The part that has not come; of a `LocalGrid` without the clients that it stopped.
    """
    goes_on = getattr(grid, "expects", lambda _: True)
    out = {i: node for i, node in missing.items() if not i.startswith("refused-") and goes_on(i)}
    for reply in grid.pull_messages(list(out)) if out else ():
        message_id = reply.metadata.reply_to_message_id
        if out.pop(message_id, None) is not None and on_late is not None:
            on_late(message_id, reply)
    return out


def wait_for_nodes(
    grid: Grid,
    clients: int,
    *,
    cancel: threading.Event | None = None,
    timeout: float | None = 120.0,
    hello: RecordDict | None = None,
    heard: Callable[[int, Message], None] = lambda *_: None,
) -> dict[int, int]:
    """Wait until all clients are there and ask each who it is; also starts the workers.

    Flower's server begins before its nodes are registered, and node ids are random in each run: only
    partition ids may be sampled, sorted or stored.

    Args:
        grid: any grid.
        clients: how many must be there.
        cancel: stops the wait when set.
        timeout: seconds for both steps together; None waits for ever.
        hello: what else is asked.
        heard: called with each partition id and its answer.

    Returns:
        ``{partition id: node id}``, sorted by partition id.

    Raises:
        FederationError: too few came in time, one failed or runs another version, or two have the same partition id.
        Cancelled: ``cancel`` was set.
    """
    end = None if timeout is None else time.monotonic() + timeout
    signal = cancel or getattr(grid, "cancel", None) or threading.Event()
    while len(nodes := sorted(grid.get_node_ids())) < clients:
        _check(cancel, getattr(grid, "cancel", None))
        if end is not None and time.monotonic() > end:
            raise FederationError(
                f"{len(nodes)} of {clients} clients came within {timeout:g} s; start the others, or ask for fewer"
            )
        signal.wait(min(0.05, float(getattr(grid, "poll", 0.05))))
    left = None if end is None else max(0.1, end - time.monotonic())
    hellos = [Message(hello or RecordDict(), node, "query.hello", group_id="0") for node in nodes]
    replies, missing = collect(grid, hellos, cancel=cancel, timeout=left)
    found: dict[int, int] = {}
    for reply in replies:
        node, partition = reply.metadata.src_node_id, introduced(reply)
        if partition in found:
            raise FederationError(f"nodes {found[partition]} and {node} both say they are client {partition}")
        heard(partition, reply)
        found[partition] = node
    if len(found) < clients:
        raise FederationError(f"{len(found)} of {clients} clients answered within {timeout} s; {len(missing)} did not")
    return dict(sorted(found.items()))


def introduced(reply: Message) -> int:
    """The partition id in an answer to "hello".

    Raises:
        FederationError: the client failed, or runs another version of ddfed.
    """
    if reply.has_error():
        raise FederationError(f"a client failed before the first round: {error_text(reply)}")
    partition = int(reply.content["hello"]["partition"])  # type: ignore[arg-type]
    about = reply.content.get("about")
    version = about.get("version") if about is not None else "of an unknown version"
    if version != ddfed.__version__:
        raise FederationError(
            f"client {partition} runs ddfed {version!s} and the server {ddfed.__version__}; messages and numbers "
            f"differ between versions, so install one everywhere"
        )
    return partition
