"""The programs of a deployment on this machine: start, watch, restart, and leave nothing behind."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ddfed.errors import ConfigError, FederationError, MissingDependencyError

#: In the environment of every process of one deployment, also of those that left their session.
_MARK = "DDFED_DEPLOYMENT"
#: Seconds before a SuperNode is started again: the SuperLink refuses it until it has missed the old one.
RESTART_S = 15.0
#: Seconds a program has to end by itself.
_GRACE_S = 8.0


@dataclass
class Program:
    """One program and the process that runs it now.

    Args:
        name: for people and for its log.
        command: program and arguments.
        log: where its output goes.
        environment: added to this process's.
        when_it_ends: ``"fail"`` with all the others, ``"restart"`` it after a while, or ``"go on"`` without it.
    """

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    when_it_ends: Literal["fail", "restart", "go on"] = "fail"
    process: subprocess.Popen[bytes] | None = None
    #: When to start it again, on the clock of `time.monotonic`.
    due: float | None = None

    @property
    def pid(self) -> int:
        """Of the process that runs now.

        Raises:
            FederationError: none runs.
        """
        if self.process is None or self.process.poll() is not None:
            raise FederationError(f"{self.name} is not running")
        return self.process.pid

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        try:
            return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        except OSError:
            return "(no log)"


class Programs:
    """Starts programs and ends them all. Use as a context manager, in one thread."""

    def __init__(self) -> None:
        self._id = uuid.uuid4().hex
        self._all: list[Program] = []

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, program: Program) -> Program:
        """Start a program.

        Raises:
            MissingDependencyError: it is not installed.
        """
        self._all.append(program)
        self._launch(program)
        return program

    def _launch(self, program: Program) -> None:
        # Next to this interpreter first: another installation's programs would run another ddfed.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        executable = shutil.which(program.command[0], path=path)
        if executable is None:
            raise MissingDependencyError(
                f'{program.command[0]} is not installed beside {sys.executable}: pip install "ddfed[federated]"'
            )
        environment = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **program.environment, _MARK: self._id}
        program.log.parent.mkdir(parents=True, exist_ok=True)
        with program.log.open("ab") as log:
            # A session of its own: Ctrl-C is for the one who started all this, who then ends them in order.
            program.process = subprocess.Popen(
                [executable, *program.command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        program.due = None

    def tend(self) -> list[str]:
        """Look after all: start again what may be started again; call often.

        Returns:
            What happened, in words.

        Raises:
            FederationError: a program ended that must not; holds the end of its log.
        """
        told = []
        for program in self._all:
            if program.due is not None:
                if time.monotonic() >= program.due:
                    self._launch(program)
                    told.append(f"{program.name} is started again")
                continue
            code = program.process.poll() if program.process is not None else 0
            if code is None:
                continue
            if program.when_it_ends == "fail":
                raise FederationError(
                    f"{program.name} ended with {_why(code)}; its log {program.log} ends:\n{program.tail()}"
                )
            again = program.when_it_ends == "restart"
            program.due = time.monotonic() + RESTART_S if again else math.inf
            told.append(f"{program.name} ended with {_why(code)}" + f"; it is started again in {RESTART_S:g} s" * again)
        return told

    def stop(self) -> None:
        """End all, last started first, with whatever they started; returns when nothing is left."""
        with _uninterrupted():
            # SuperNodes first: they sign off at the SuperLink.
            _end([program for program in self._all if program.when_it_ends != "fail"])
            _end([program for program in self._all if program.when_it_ends == "fail"])
            while self._kill_the_rest():
                time.sleep(0.05)
            for program in self._all:
                if program.process is not None:
                    program.process.wait()
            self._all.clear()

    def _kill_the_rest(self) -> bool:
        """Kill what bears the mark; whether there was anything."""
        found = _marked(f"{_MARK}={self._id}".encode())
        found |= {p.process.pid for p in self._all if p.process is not None and p.process.poll() is None}
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        return bool(found)


def _end(programs: Sequence[Program]) -> None:
    """Ask all to end, and give them a while."""
    running = [program.process for program in programs if program.process is not None]
    for process in running:
        process.terminate()
    end = time.monotonic() + _GRACE_S
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))


def _marked(mark: bytes) -> set[int]:
    """Living processes with this in their environment; none where the system does not tell."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # A process that has ended and waits for its parent has no environment any more.
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
    return found - {os.getpid()}


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C or SIGTERM waits until all have ended; that takes seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is interrupted
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _why(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"code {code}"


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens at now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def check_port(port: int, option: str, host: str = "127.0.0.1") -> None:
    """Refuse a port that somebody listens at.

    Raises:
        ConfigError: names the option to change.
    """
    try:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"port {port} of {host} cannot be had ({error.strerror or error}); end what listens there, or choose "
            f"another with {option}"
        ) from error


def wait_for_health(program: Program, programs: Programs, port: int, authority: Path, timeout: float = 90.0) -> None:
    """Wait until a program answers at ``/health``.

    Raises:
        FederationError: it ended, or did not answer in time; holds the end of its log.
    """
    context = ssl.create_default_context(cafile=str(authority))
    # Without the environment's web proxy, which knows nothing of this machine's ports.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    end = time.monotonic() + timeout
    while True:
        programs.tend()
        try:
            with opener.open(f"https://127.0.0.1:{port}/health", timeout=5):
                return
        except (OSError, urllib.error.URLError) as error:
            if time.monotonic() > end:
                raise FederationError(
                    f"{program.name} did not answer within {timeout:g} s ({error}); its log {program.log} ends:\n"
                    f"{program.tail()}"
                ) from error
        time.sleep(0.1)
