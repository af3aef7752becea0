"""A Flower grid without Ray and without sockets: clients run in this process or in worker processes.

Messages, replies and contexts pass through protobuf as they would on a wire, so sizes are real and nothing
is shared by accident. A given run gives the same bytes here, in worker processes and on Ray.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import context_from_proto, context_to_proto, message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from ddfed.errors import ConfigError
from ddfed_federated.flower.pool import Job, WorkerPool, handle

_RUN_ID = 1
#: Node ids must not look like partition ids: code that mixes them up should fail at once.
_FIRST_NODE = 1000
#: Messages with the pool for each worker: one that it works on and the next. More would only fill the memory.
_QUEUED = 2


@dataclass
class _Open:
    """A message without an answer yet.

    Args:
        node: whom it was sent to.
        message: as sent; serialised when its turn comes, since arrays are shared among messages and bytes are not.
        job: the pool's, once it is there.
        reply: serialised, once there is one.
        silent: nothing will ever come.
    """

    node: int
    message: Message
    job: Job | None = None
    reply: bytes | None = None
    silent: bool = False


class LocalGrid(Grid):
    """Clients in this process (``workers = 0``) or in worker processes.

    Serially, `pull_messages` lets one client work per call, in the order of the messages, so progress shows,
    a deadline is looked at between clients, and a quorum is the first clients asked. Use as a context manager,
    or call `close`.

    Flower keeps its task identity in a class attribute: one grid at a time per process.

    Args:
        app: client app; with workers it must be ``"module:attribute"``.
        clients: number of nodes; partition ids run from 0.
        workers: number of processes; 0 for none.
        client_threads: torch and OpenMP threads of a worker process.
        cancel: when set, `loop.collect` stops.

    Raises:
        ConfigError: no clients, a negative number of workers, or workers with an app object.

    Attributes:
        offline: nodes that get messages and never answer; for tests and drop-out studies.
        sent_bytes: serialised messages that clients were given, metadata included.
        recv_bytes: serialised replies pulled.
        poll: seconds between two looks that `loop.collect` should leave.
    """

    def __init__(
        self,
        app: ClientApp | str,
        clients: int,
        *,
        workers: int = 0,
        client_threads: int = 1,
        cancel: threading.Event | None = None,
    ) -> None:
        if clients < 1:
            raise ConfigError(f"clients = {clients}: a federation needs at least 1 client")
        if workers < 0:
            raise ConfigError(f"workers = {workers}: use 0 to work in this process, or a number of processes")
        if workers and not isinstance(app, str):
            raise ConfigError("worker processes import the client app; give it as 'module:attribute', not as an object")
        # `Message` reads these when it is made.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = _RUN_ID, 1, SUPERLINK_NODE_ID
        self.cancel = cancel or threading.Event()
        self.offline: set[int] = set()
        self.sent_bytes = self.recv_bytes = 0
        self.poll = 0.005
        self._app = app
        self._pool = WorkerPool(str(app), min(workers, clients), client_threads) if workers else None
        self._workers = min(workers, clients)
        self._run = Run.create_empty(_RUN_ID)
        self._contexts = {_FIRST_NODE + i: self._fresh(i, clients) for i in range(clients)}
        self._ids = itertools.count(1)
        self._open: dict[str, _Open] = {}

    @staticmethod
    def _fresh(partition: int, clients: int) -> bytes:
        context = Context(
            run_id=_RUN_ID,
            node_id=_FIRST_NODE + partition,
            node_config={"partition-id": partition, "num-partitions": clients},
            state=RecordDict(),
            run_config={},
        )
        return context_to_proto(context).SerializeToString()

    # -- Flower's interface ------------------------------------------------------------------------------

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        return [node for node in self._contexts if node not in self.offline]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send; a message to a node that does not exist gets an empty id, as from a SuperLink."""
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node not in self._contexts:
                ids.append("")
                continue
            message_id = f"m{next(self._ids)}"
            message.metadata.__dict__["_message_id"] = message_id
            self._open[message_id] = _Open(node, message, silent=node in self.offline)
            ids.append(message_id)
        self._advance()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies that are there; serially, let the next client of ``message_ids`` work first."""
        if self._pool is None:
            replied = self._work_one(message_ids)
        else:
            self._advance()
            replied = [i for i in message_ids if i in self._open and self._open[i].reply is not None]
        replies = []
        for message_id in replied:
            data = self._open.pop(message_id).reply or b""
            self.recv_bytes += len(data)
            replies.append(message_from_proto(ProtoMessage.FromString(data)))
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        from ddfed_federated.flower.loop import collect

        return collect(self, messages, timeout=timeout)[0]

    # -- ours --------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Nothing will come however long one waits: every open message is one that nobody answers.

        True only without workers, where no work goes on between two calls.
        """
        return self._pool is None and all(entry.silent for entry in self._open.values())

    def expects(self, message_id: str) -> bool:
        """Whether an answer to a message may still come."""
        return message_id in self._open

    def discard(self, message_ids: Iterable[str]) -> None:
        """Forget messages and stop whoever works on them; their replies never come, states stay as they were.

        On a real federation a late client works on; here its process is needed for the next round.
        """
        for message_id in message_ids:
            entry = self._open.pop(message_id, None)
            if entry is not None and entry.job is not None and self._pool is not None:
                self._pool.cancel(entry.job)
        self._advance()

    def context(self, node: int) -> Context:
        """A copy of what the node remembers."""
        return context_from_proto(ProtoContext.FromString(self._contexts[node]))

    def close(self) -> None:
        """End all worker processes, busy or not."""
        if self._pool is not None:
            self._pool.close()

    def __enter__(self) -> LocalGrid:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work_one(self, message_ids: Iterable[str]) -> list[str]:
        """The first of the messages that gets an answer, looked for no further than there."""
        for message_id in message_ids:
            entry = self._open.get(message_id)
            # An app that returns nothing leaves the next client's turn to this same call.
            if entry is not None and not entry.silent:
                self._store(entry, *handle(self._app, self._serialised(entry), self._contexts[entry.node]))
                if entry.reply is not None:
                    return [message_id]
        return []

    def _serialised(self, entry: _Open) -> bytes:
        data = message_to_proto(entry.message).SerializeToString()
        self.sent_bytes += len(data)
        return data

    def _advance(self) -> None:
        """Take in what the pool has finished and hand it what may start."""
        if self._pool is None:
            return
        for entry in self._open.values():
            if entry.job is not None and entry.job.done and entry.reply is None and not entry.silent:
                job = entry.job
                if job.failure:
                    self._store(entry, self._failed(entry, job.failure), b"")
                else:
                    self._store(entry, job.reply, job.new_context)
        busy = {e.node for e in self._open.values() if e.job is not None and not e.job.done}
        for entry in self._open.values():
            if len(busy) >= _QUEUED * self._workers:
                break
            # Two messages to one node run one after the other, or the later would overwrite its state.
            if entry.job is None and not entry.silent and entry.reply is None and entry.node not in busy:
                busy.add(entry.node)
                entry.job = self._pool.submit(self._serialised(entry), self._contexts[entry.node])

    def _store(self, entry: _Open, reply: bytes, context: bytes) -> None:
        if context:
            self._contexts[entry.node] = context
        entry.reply, entry.silent = (reply, False) if reply else (None, True)

    @staticmethod
    def _failed(entry: _Open, reason: str) -> bytes:
        reply = Message(Error(ErrorCode.UNKNOWN, reason), reply_to=entry.message)
        reply.metadata.__dict__["_message_id"] = f"reply-{entry.message.metadata.message_id}"
        return message_to_proto(reply).SerializeToString()
