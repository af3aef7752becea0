"""Worker processes that answer messages, one message at a time each.

Not a `ProcessPoolExecutor`: that one declares every pending message broken when one process dies, cannot say
which message killed it, and cannot stop a client that never answers. Here each process has its own pipe and
its own thread in the parent, so a death is an error reply for exactly one message, and a stuck process is
killed and replaced.

What crosses the pipe is protobuf bytes. A decorated client app cannot be pickled and is not: workers get
``"module:attribute"`` and import it.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import queue
import signal
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.clientapp import ClientApp

_SPAWN = multiprocessing.get_context("spawn")
_START_LOCK = threading.Lock()
#: Deaths before the first message after which a worker is given up.
_MAX_FAILED_STARTS = 3
_START_HINT = (
    "A script must start the run under `if __name__ == '__main__':`, because workers import it; "
    "a run with workers = 0 shows other causes"
)
#: Libraries read these when they are loaded, which is before a worker can call anything.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def join_bytes(*parts: bytes) -> bytes:
    """Several byte strings as one."""
    return b"".join(struct.pack("<Q", len(part)) + part for part in parts)


def split_bytes(data: bytes) -> list[bytes]:
    """The inverse of `join_bytes`."""
    parts, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        parts.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return parts


@cache
def load_app(target: str) -> ClientApp:
    """The client app called ``"module:attribute"``."""
    module, _, attribute = target.partition(":")
    app: ClientApp = getattr(importlib.import_module(module), attribute)
    return app


def handle(app: ClientApp | str, message: bytes, context: bytes) -> tuple[bytes, bytes]:
    """Answer one message; the one path of serial runs and of worker processes.

    Args:
        app: the client app, or where to import it from.
        message: serialised `Message`.
        context: serialised `Context` of the node.

    Returns:
        Serialised reply and serialised new context. An empty reply means that the app returned none; an
        empty context means that the call failed and the stored one stays.
    """
    from flwr.app import Error, Message
    from flwr.common.constant import ErrorCode
    from flwr.common.serde import context_from_proto, context_to_proto, message_from_proto, message_to_proto
    from flwr.proto.message_pb2 import Context as ProtoContext
    from flwr.proto.message_pb2 import Message as ProtoMessage

    request: Message = message_from_proto(ProtoMessage.FromString(message))
    try:
        loaded = load_app(app) if isinstance(app, str) else app
        state = context_from_proto(ProtoContext.FromString(context))
        reply = loaded(request, state)
        if reply is None:
            return b"", context_to_proto(state).SerializeToString()
        # Flower assigns ids on the way; a reply without one does not serialise into a valid message.
        reply.metadata.__dict__["_message_id"] = f"reply-{request.metadata.message_id}"
        return message_to_proto(reply).SerializeToString(), context_to_proto(state).SerializeToString()
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=request)
        return message_to_proto(reply).SerializeToString(), b""


_IN_WORKER = threading.Event()


def in_worker() -> bool:
    """Whether this process is a worker of a pool, which replaces it when it ends."""
    return _IN_WORKER.is_set()


def _worker_main(connection: Connection, app: str, threads: int) -> None:
    """Life of a worker process."""
    _IN_WORKER.set()
    # Ctrl-C reaches the whole foreground group; only the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    connection.send_bytes(b"ready")
    while True:
        try:
            message, context = split_bytes(connection.recv_bytes())
        except (EOFError, OSError):
            return
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        connection.send_bytes(join_bytes(*handle(app, message, context)))


def _end_with_parent() -> None:
    """A parent that is killed outright cannot clean up; no worker may outlive it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Job:
    """One message on its way through the pool."""

    def __init__(self, message: bytes, context: bytes) -> None:
        self.message, self.context = message, context
        self.reply, self.new_context = b"", b""
        #: Why there is no reply, or an empty string.
        self.failure = ""
        self.cancelled = False
        self._done = threading.Event()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def finish(self, reply: bytes = b"", new_context: bytes = b"", failure: str = "") -> None:
        self.reply, self.new_context, self.failure = reply, new_context, failure
        self._done.set()


class _Worker:
    """One process and the parent's thread that feeds it."""

    def __init__(self, app: str, threads: int, jobs: queue.SimpleQueue[Job | None]) -> None:
        self._app, self._threads, self._jobs = app, threads, jobs
        self._lock = threading.Lock()
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._current: Job | None = None
        self._failed_starts = 0
        self._closing = False
        self.thread = threading.Thread(target=self._drive, daemon=True, name="ddfed-pool")
        self.thread.start()

    def kill(self, job: Job | None = None) -> None:
        """End the process; with ``job``, only if that is what it is doing."""
        with self._lock:
            if job is None:
                self._closing = True
            elif self._current is not job:
                return
            if self._process is not None:
                self._process.kill()

    def _drive(self) -> None:
        while (job := self._jobs.get()) is not None and not self._closing:
            with self._lock:
                self._current = job
            if job.cancelled:
                job.finish(failure="given up")
                continue
            try:
                connection = self._ready()
                connection.send_bytes(join_bytes(job.message, job.context))
                reply, context = split_bytes(connection.recv_bytes())
                with self._lock:
                    self._current = None
                job.finish(reply, context)
            except Exception as error:
                # Whatever it is, the thread must live on: a message without an answer is waited for.
                job.finish(failure=self._bury(error))
        self._bury(None)

    def _ready(self) -> Connection:
        """The pipe to a living process."""
        if self._connection is not None:
            return self._connection
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise OSError(f"no worker process could be started in {_MAX_FAILED_STARTS} tries")
        self._failed_starts += 1
        here, there = _SPAWN.Pipe()
        with _START_LOCK, _environment(dict.fromkeys(_THREAD_VARIABLES, str(self._threads))):
            process = _SPAWN.Process(target=_worker_main, args=(there, self._app, self._threads), daemon=True)
            process.start()
        # Our copy of the far end must go, or the pipe never reports the death of the process.
        there.close()
        with self._lock:
            self._process, self._connection = process, here
            if self._closing:
                process.kill()
        here.recv_bytes()
        self._failed_starts = 0
        return here

    def _bury(self, error: Exception | None) -> str:
        """Forget the process and say why it ended."""
        with self._lock:
            process, connection = self._process, self._connection
            self._process = self._connection = self._current = None
        if connection is not None:
            connection.close()
        if process is None:
            return f"{' '.join(str(error).split())}. {_START_HINT}"
        code = exit_code(process, 2)
        if code is None:
            process.kill()
            code = exit_code(process, 5)
        if self._failed_starts:
            return f"a worker process ended with exit code {code} while it started. {_START_HINT}"
        return f"the client's process ended with exit code {code}" + (" (out of memory?)" if code == -9 else "")


def exit_code(process: BaseProcess, patience: float) -> int | None:
    """The exit code of a process, waited for up to ``patience`` seconds; None if it has none by then.

    Another thread that starts a process reaps all that have ended, and for a moment nobody knows their codes:
    `multiprocessing` then says None of a process that is gone, and joining it returns at once.
    """
    deadline = time.monotonic() + patience
    process.join(timeout=patience)
    while process.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return process.exitcode


class WorkerPool:
    """A fixed number of worker processes, started when first needed and replaced when they die.

    Args:
        app: client app as ``"module:attribute"``, importable in a fresh process.
        workers: number of processes, at least 1.
        threads: torch and OpenMP threads of each.
    """

    def __init__(self, app: str, workers: int, threads: int = 1) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._workers = [_Worker(app, threads, self._jobs) for _ in range(workers)]

    def submit(self, message: bytes, context: bytes) -> Job:
        """Queue a message; never blocks."""
        job = Job(message, context)
        self._jobs.put(job)
        return job

    def cancel(self, job: Job) -> None:
        """Give a message up: unqueue it, or kill the process that works on it."""
        job.cancelled = True
        for worker in self._workers:
            worker.kill(job)

    def close(self) -> None:
        """Kill every process, busy or not, and wait for their ends (at most a few seconds)."""
        for worker in self._workers:
            worker.kill()
            self._jobs.put(None)
        for worker in self._workers:
            worker.thread.join(timeout=5)
