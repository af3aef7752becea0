"""Progress for loops: bars on a terminal, a few plain lines elsewhere, always on stderr.

with Progress() as progress:
    task = progress.task("distilling", total=100)
    progress.update(task, completed=3, loss=0.12, accuracy=0.93)
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO


def human_bytes(count: float) -> str:
    """``1536`` -> ``"1.5 kB"`` (decimal units, as networks and disks are sold)."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def human_time(seconds: float) -> str:
    """``75`` -> ``"1:15"``."""
    whole = int(seconds + 0.5)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def human_value(name: str, value: Any) -> str:
    """A value as people read it; the name says the unit (``bytes``, ``accuracy``, ``..._s``)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if name == "bytes" or name.endswith("_bytes"):
        return human_bytes(value)
    if name.endswith("accuracy"):
        return f"{100 * value:.1f} %"
    if name.endswith("_s"):
        return f"{value:.3g} s"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def is_terminal(stream: TextIO) -> bool:
    """True if ``stream`` is a terminal that can redraw a line."""
    return bool(getattr(stream, "isatty", lambda: False)()) and os.environ.get("TERM") != "dumb"


class _Face(Protocol):
    """Where progress is shown."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def add(self, description: str, total: int | None) -> int: ...
    def update(self, task: int, completed: int | None, advance: int, values: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...


class Progress:
    """What a loop tells about how far it is.

    Args:
        enabled: False shows nothing at all.
        stream: stderr by default; bars appear only if it is a terminal.
        interval_s: least time between two plain lines of one task.
    """

    def __init__(self, enabled: bool = True, stream: TextIO | None = None, interval_s: float = 5.0) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._face: _Face = _Silent()
        if enabled:
            self._face = _Bars(self._stream) if is_terminal(self._stream) else _Lines(self._stream, interval_s)

    def __enter__(self) -> Progress:
        self._face.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._face.stop()

    def task(self, description: str, total: int | None = None) -> int:
        """Announce a loop of ``total`` steps (None: unknown); returns its handle."""
        return self._face.add(description, total)

    def update(self, task: int, completed: int | None = None, advance: int = 0, **values: Any) -> None:
        """Say how many steps are done, in all (``completed``) or more (``advance``), and what they gave."""
        self._face.update(task, completed, advance, values)

    def note(self, text: str) -> None:
        """Print a line without disturbing the bars."""
        self._face.note(text)


class _Silent:
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def add(self, description: str, total: int | None) -> int:
        return 0

    def update(self, task: int, completed: int | None, advance: int, values: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass
class _State:
    description: str
    total: int | None
    began: float
    completed: int = 0
    values: dict[str, Any] = field(default_factory=dict)
    first_completed: int = 0
    printed_at: float | None = None
    is_stale: bool = False

    def line(self, now: float) -> str:
        parts = [f"{self.description}: {self.completed}"]
        if self.total:
            parts[0] += f"/{self.total} ({100 * self.completed // self.total} %)"
        parts += [f"{name} {human_value(name, value)}" for name, value in self.values.items()]
        done = self.completed - self.first_completed
        # A task made by its own first step has no time behind it to judge by.
        is_known = done > 0 and now - self.began >= 1.0
        if self.total and is_known and self.completed < self.total:
            parts.append(f"eta {human_time((now - self.began) / done * (self.total - self.completed))}")
        elif self.total and self.completed >= self.total:
            parts.append(f"took {human_time(now - self.began)}")
        return "  ".join(parts)


class _Lines:
    """Plain lines: the first, the last, and at most one every few seconds between."""

    def __init__(self, stream: TextIO, interval_s: float) -> None:
        self._stream, self._interval = stream, interval_s
        self._tasks: list[_State] = []

    def start(self) -> None: ...

    def stop(self) -> None:
        for state in self._tasks:
            if state.is_stale:
                self._print(state)

    def add(self, description: str, total: int | None) -> int:
        self._tasks.append(_State(description, total, time.monotonic()))
        return len(self._tasks) - 1

    def update(self, task: int, completed: int | None, advance: int, values: dict[str, Any]) -> None:
        state, now = self._tasks[task], time.monotonic()
        before = state.completed
        state.completed = (before if completed is None else completed) + advance
        state.values.update(values)
        if state.printed_at is None:
            # A resumed run starts at its checkpoint; steps done earlier say nothing about the speed now.
            state.first_completed = state.completed if state.completed - before > 1 else before
        state.is_stale = True
        is_last = state.total is not None and before < state.total <= state.completed
        if state.printed_at is None or is_last or now - state.printed_at >= self._interval:
            self._print(state)

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def _print(self, state: _State) -> None:
        now = time.monotonic()
        print(state.line(now), file=self._stream, flush=True)
        state.printed_at, state.is_stale = now, False


class _Bars:
    """Bars by rich, which is imported here and nowhere earlier."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        self._console = Console(file=stream)
        self._values: dict[int, dict[str, Any]] = {}
        self._progress = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=self._console,
            # rich would send what the program prints to stdout to our stderr.
            redirect_stdout=False,
        )

    def start(self) -> None:
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()

    def add(self, description: str, total: int | None) -> int:
        task = self._progress.add_task(description, total=total, shown="")
        self._values[task] = {}
        return int(task)

    def update(self, task: int, completed: int | None, advance: int, values: dict[str, Any]) -> None:
        from rich.progress import TaskID

        known = self._values[task]
        known.update(values)
        shown = "  ".join(f"{name} {human_value(name, value)}" for name, value in known.items())
        self._progress.update(TaskID(task), completed=completed, shown=shown)
        if advance:
            self._progress.update(TaskID(task), advance=advance)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)
