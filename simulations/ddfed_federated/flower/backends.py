"""Where a federation runs: in this process, in worker processes, or on Ray.

Each back end takes ``main(grid) -> result``, gives it a grid with all clients behind it, hands back what it
returns, raises what it raises, and leaves no process behind, also after Ctrl-C.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from ddfed.errors import ConfigError, FederationError, MissingDependencyError

if TYPE_CHECKING:
    from flwr.serverapp import Grid

T = TypeVar("T")

APP = "ddfed_federated.flower.client_app:app"
#: Seconds a client may go on working after the server is done before its process is ended.
_GRACE_S = 2.5
#: Seconds the server's thread has to notice a cancellation by itself.
_NOTICE_S = 2.0


def _require(*modules: str) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f'this back end needs {", ".join(missing)}, which is not installed: pip install "ddfed[federated]"'
        )


@contextmanager
def _settings() -> Iterator[None]:
    """Quiet Flower, mark clients as simulated, and give back PYTHONPATH, which Flower's Ray back end grows."""
    log = logging.getLogger("flwr")
    level = log.level
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "DDFED_SIMULATION")}
    os.environ["DDFED_SIMULATION"] = "1"
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def run_inprocess(
    main: Callable[[Grid], T],
    clients: int,
    *,
    workers: int = 0,
    client_threads: int = 1,
    app: str = APP,
    cancel: threading.Event | None = None,
) -> T:
    """Run without Ray. ``main`` runs in the calling thread.

    Args:
        main: the server's part.
        clients: number of clients.
        workers: worker processes; 0 lets the clients work in this process, one after the other. A client
            that never answers can be stopped only in a worker process.
        client_threads: torch threads of one client.
        app: client app as ``"module:attribute"``.
        cancel: stops the run at its next look at the grid when set.

    Returns:
        What ``main`` returns.

    Raises:
        MissingDependencyError: Flower is not installed.
        ConfigError: nonsensical numbers.
        Exception: whatever ``main`` raises.
    """
    _require("flwr")
    _check_numbers(clients, client_threads)
    from ddfed_federated.flower.grid import LocalGrid

    with _settings(), LocalGrid(app, clients, workers=workers, client_threads=client_threads, cancel=cancel) as grid:
        return main(grid)


def run_ray(
    main: Callable[[Grid], T],
    clients: int,
    *,
    num_cpus: int | None = None,
    address: str = "local",
    client_threads: int = 1,
    startup_timeout: float = 180.0,
    app: str = APP,
    cancel: threading.Event | None = None,
) -> T:
    """Run on Ray through Flower's simulation engine. ``main`` runs in Flower's server thread.

    ``num_cpus // client_threads`` clients work at once. A client process that dies costs one message and is
    replaced. Ctrl-C ends the run within seconds.

    Args:
        main: the server's part. The grid has an attribute ``cancel``, which `loop.collect` obeys.
        clients: number of clients.
        num_cpus: CPUs Ray may use; None for those it finds. Must be None with an existing cluster.
        address: ``"local"`` for a fresh cluster of this run's own, or ``HOST:PORT`` of an existing one, which
            stays. Ray alone would join whatever cluster it finds traces of, also of one that is long gone.
        client_threads: torch threads of one client, and the CPUs it is given.
        startup_timeout: seconds for Ray to start and the first client to answer.
        app: client app as ``"module:attribute"``.
        cancel: stops the run at its next look at the grid when set.

    Returns:
        What ``main`` returns.

    Raises:
        MissingDependencyError: Flower or Ray is not installed.
        ConfigError: nonsensical numbers.
        FederationError: Ray did not start, or failed later.
        Exception: whatever ``main`` raises.
    """
    _require("flwr", "ray")
    _check_numbers(clients, client_threads)
    _check_cluster(num_cpus, address, client_threads)
    from flwr.app import Context
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    from ddfed_federated.flower.pool import load_app

    server = _Server(main, cancel or threading.Event(), startup_timeout)
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, _context: Context) -> None:
        server.run(grid)

    init_args: dict[str, Any] = {"address": address, "logging_level": "ERROR", "log_to_driver": False}
    if num_cpus is not None:
        init_args["num_cpus"] = num_cpus
    config: Any = {
        # Without restarts a dead actor goes back to the pool, answers instantly and attracts all the work.
        "client_resources": {"num_cpus": client_threads, "num_gpus": 0.0, "max_restarts": -1},
        "init_args": init_args,
    }
    crash: BaseException | None = None
    with _settings(), _actors() as actors, _first_interrupt(server.interrupt) as interrupted:
        server.actors = actors
        try:
            run_simulation(server_app, load_app(app), num_supernodes=clients, backend_config=config)
        except (Exception, SystemExit) as error:
            crash = error
        finally:
            # A failure of the back end leaves the server waiting for replies that never come.
            server.stop()
    if interrupted.is_set():
        raise KeyboardInterrupt
    return server.result(crash)


@contextmanager
def _first_interrupt(react: Callable[[], None]) -> Iterator[threading.Event]:
    """Let the first Ctrl-C end the run in order; the second one raises as usual.

    Raised amid Flower's start or its joins, KeyboardInterrupt leaves threads of Flower's in Ray's C++ code,
    and the process hangs or crashes when it exits.
    """
    seen = threading.Event()

    def handler(signum: int, frame: Any) -> None:
        if seen.is_set():
            raise KeyboardInterrupt
        seen.set()
        react()

    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _actors() -> Iterator[list[Any]]:
    """The handles of all actors that Flower makes meanwhile.

    Flower has no way to end an actor that never answers, and keeps the handles in an object of its own.
    """
    made: list[Any] = []
    module: Any = importlib.import_module("flwr.server.superlink.fleet.vce.backend.raybackend")
    original = getattr(module, "BasicActorPool", None)
    if original is None:
        yield made
        return

    class Pool(original):  # type: ignore[misc, valid-type]
        def add_actors_to_pool(self, num_actors: int) -> None:
            super().add_actors_to_pool(num_actors)
            made.extend(self.pool)

    module.BasicActorPool = Pool
    try:
        yield made
    finally:
        module.BasicActorPool = original


def _check_numbers(clients: int, client_threads: int) -> None:
    if clients < 1:
        raise ConfigError(f"clients = {clients}: a federation needs at least 1 client")
    if client_threads < 1:
        raise ConfigError(f"client_threads = {client_threads}: a client needs at least 1 thread")


def _check_cluster(num_cpus: int | None, address: str, client_threads: int) -> None:
    if address != "local":
        if num_cpus is not None:
            raise ConfigError(
                f"num_cpus = {num_cpus} with the cluster at {address!r}: the cluster has its own number; leave it out"
            )
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"ray address {address!r}: must be 'local' or HOST:PORT, such as 127.0.0.1:6379")
        try:
            # Ray itself would try for more than a minute.
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            raise FederationError(
                f"no Ray cluster answers at {address!r} ({error}); check it with `ray status`"
            ) from error
    elif num_cpus is not None and num_cpus < client_threads:
        raise ConfigError(
            f"num_cpus = {num_cpus} leaves no room for a client of {client_threads} threads; lower client_threads"
        )


class _Server:
    """The server's part of a Ray run: result, exception and end of a function in a thread of Flower's."""

    def __init__(self, main: Callable[[Grid], Any], cancel: threading.Event, startup_timeout: float) -> None:
        import torch

        self._main, self._cancel, self._startup = main, cancel, startup_timeout
        # OpenMP keeps the number of threads per thread; results depend on it.
        self._threads = torch.get_num_threads()
        self.actors: list[Any] = []
        self._done = threading.Event()
        self._ended = threading.Event()
        self._ident: int | None = None
        self._value: Any = None
        self._error: BaseException | None = None

    def run(self, grid: Grid) -> None:
        """Called by Flower in its server thread."""
        import torch

        self._ident = threading.get_ident()
        torch.set_num_threads(self._threads)
        try:
            # InMemoryGrid has no such attribute; `loop.collect` looks for it.
            grid.cancel = self._cancel  # type: ignore[attr-defined]
            self._await_backend(grid)
            self._value = self._main(grid)
        except BaseException as error:  # noqa: B036 - handed to the caller's thread
            self._error = error
        finally:
            self._done.set()
            threading.Thread(target=self._pull_the_rug, daemon=True).start()

    def _await_backend(self, grid: Grid) -> None:
        """Wait until one client has answered: starting up takes far longer than any round may."""
        import time

        from flwr.app import Message, RecordDict

        from ddfed_federated.flower.loop import Cancelled, collect

        end = time.monotonic() + self._startup
        while not (nodes := list(grid.get_node_ids())):
            if self._cancel.wait(0.02):
                raise Cancelled("the run was cancelled")
            if time.monotonic() > end:
                break
        hello = [Message(RecordDict(), node, "query.hello", group_id="0") for node in nodes[:1]]
        replies, _ = collect(grid, hello, timeout=max(0.1, end - time.monotonic()))
        if not replies:
            raise FederationError(
                f"Ray did not start within {self._startup:g} s; a busy machine needs a longer startup_timeout"
            )

    def _pull_the_rug(self) -> None:
        """A client that never answers would keep Flower waiting for its thread: end its process."""
        if self._ended.wait(_GRACE_S):
            return
        import ray

        for actor in list(self.actors):
            # Ray may be on its way out already, then there is nothing left to end.
            with suppress(Exception):
                ray.kill(actor)
        if not self.actors and ray.is_initialized():
            ray.shutdown()

    def interrupt(self) -> None:
        """Ctrl-C, in the handler: must not block."""
        self._cancel.set()
        threading.Thread(target=self._insist, daemon=True).start()

    def _insist(self) -> None:
        """End the server's thread: it has been asked, now wait a little, then raise in it."""
        if self._ident is None or self._done.wait(_NOTICE_S):
            return
        # The server is deep in its own computation and does not look at the grid. Raised at the next bytecode.
        from ddfed_federated.flower.loop import Cancelled

        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._ident), ctypes.py_object(Cancelled))
        self._done.wait(_NOTICE_S)

    def stop(self) -> None:
        """The back end is gone: the server's thread must end too."""
        self._ended.set()
        if not self._done.is_set():
            self._cancel.set()
            self._insist()

    def result(self, crash: BaseException | None) -> Any:
        """What the server's function gave, in the caller's thread."""
        from ddfed_federated.flower.loop import Cancelled

        if self._error is not None and not (crash is not None and isinstance(self._error, Cancelled)):
            raise self._error
        # Once the server is through, a complaint about Ray having been ended is no news.
        if crash is not None and (self._error is not None or not self._done.is_set()):
            raise FederationError(f"the Ray back end failed: {_root(crash)}") from crash
        if not self._done.is_set():
            raise FederationError("the Ray back end ended before the server did")
        return self._value


def _root(error: BaseException) -> str:
    """The innermost cause in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
