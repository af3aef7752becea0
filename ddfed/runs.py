"""Run folders: one folder a run, readable with a text editor, resumable after a crash.

    runs/20260131-120000-name/
        config.toml                      the whole resolved settings, enough to run again
        events.jsonl                     one line a step or round, written as it goes
        checkpoint/state.safetensors     enough to continue
        summary.json                     written last
        figures/  report.html  distilled.safetensors  card.json

Events hold no clock times, so that a resumed run's file equals the uninterrupted one.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from ddfed.errors import RunFolderError

# ddfed.files is imported inside the functions: it brings torch, which listing runs does not need.

CONFIG, EVENTS, SUMMARY = "config.toml", "events.jsonl", "summary.json"
CHECKPOINT = Path("checkpoint") / "state.safetensors"
LATEST = "latest"
FINISHED = "finished"
_STAMP = re.compile(r"\d{8}-\d{6}(?=-)")


class RunFolder:
    """One run on disk. Make one with `create` or `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events: IO[bytes] | None = None

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @classmethod
    def create(cls, base: Path, name: str, config_toml: str) -> RunFolder:
        """Make ``base/<YYYYmmdd-HHMMSS>-<name>/`` with its ``config.toml``; call before any work is done.

        A taken name gets ``-2``, ``-3`` ... appended, also when two processes ask at once.

        Raises:
            RunFolderError: the folder cannot be made or written to.
        """
        from ddfed.files import write_text

        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{safe_name(name)}"
        blocking = next((p for p in (base, *base.parents) if p.exists() and not p.is_dir()), None)
        if blocking is not None:
            raise RunFolderError(
                f"cannot make a run folder in {base}: {blocking} is a file, not a folder. "
                f"Choose another place with --out."
            )
        try:
            base.mkdir(parents=True, exist_ok=True)
            path = _claim(base, stem)
        except OSError as error:
            raise RunFolderError(
                f"cannot make a run folder in {base}: {error.strerror or error}. "
                f"Make that folder writable, or choose another place with --out."
            ) from error
        write_text(path / CONFIG, config_toml)
        return cls(path)

    @classmethod
    def open(cls, path: Path | str, base: Path | None = None, writable: bool = False) -> RunFolder:
        """A run folder that exists.

        Args:
            path: the folder, or ``"latest"`` for the newest one below ``base``.
            base: where ``"latest"`` looks; ``runs`` by default.
            writable: also make sure that it can be written to, as resuming needs.

        Raises:
            RunFolderError: no such folder, no run folder (says what is missing), or not writable.
        """
        folder = _latest(base or Path("runs")) if str(path) == LATEST else Path(path)
        if not folder.is_dir():
            beside = find_runs(folder.parent)
            hint = f" Newest beside it: {beside[-1].path}" if beside else ""
            raise RunFolderError(f"run folder {folder} does not exist.{hint}")
        if not (folder / CONFIG).is_file():
            missing = [str(p) for p in (CONFIG, EVENTS, CHECKPOINT, SUMMARY) if not (folder / p).exists()]
            inside = find_runs(folder)
            hint = f" It holds run folders; name one, such as {inside[-1].path}" if inside else ""
            raise RunFolderError(f"{folder} is not a run folder: it lacks {', '.join(missing)}.{hint}")
        run = cls(folder)
        if writable:
            run._probe()
        return run

    # --- what a run writes as it goes -----------------------------------------------------------------------

    def event(self, kind: str, **numbers: Any) -> None:
        """Append one line to ``events.jsonl`` and flush it. Numbers that are not finite become null."""
        line = json.dumps({"kind": kind, **plain(numbers)}, ensure_ascii=False) + "\n"
        try:
            if self._events is None:
                self._events = self._open_events()
            self._events.write(line.encode())
            self._events.flush()
        except OSError as error:
            raise _unwritable(self.path / EVENTS, error) from error

    def events(self) -> list[dict[str, Any]]:
        """All events. A last line without its line break was torn by a crash and does not count.

        Raises:
            RunFolderError: a line in the middle is damaged; names it.
        """
        return [self._parse(number, line) for number, line in enumerate(self._lines(), 1)]

    def truncate_events(self, keep: Callable[[dict[str, Any]], bool]) -> int:
        """Drop the events that ``keep`` refuses (those after the checkpoint); returns how many went."""
        from ddfed.files import write_bytes

        self.close()
        lines = self._lines()
        kept = [line for number, line in enumerate(lines, 1) if keep(self._parse(number, line))]
        if (self.path / EVENTS).exists():
            write_bytes(self.path / EVENTS, b"".join(line + b"\n" for line in kept))
        return len(lines) - len(kept)

    def checkpoint(self, tree: Any) -> None:
        """Replace the checkpoint by a tree of tensors and JSON values, in one atomic step."""
        from ddfed.files import write_state

        write_state(self.path / CHECKPOINT, tree)

    @property
    def has_checkpoint(self) -> bool:
        return (self.path / CHECKPOINT).is_file()

    def load_checkpoint(self) -> Any:
        """What `checkpoint` wrote (tuples come back as lists).

        Raises:
            RunFolderError: there is none.
            ArtifactError: it is damaged.
        """
        from ddfed.files import read_state

        if not self.has_checkpoint:
            raise RunFolderError(
                f"{self.path} holds no checkpoint ({CHECKPOINT}); the run stopped before its first one. "
                f"Start it again with --config {self.path / CONFIG}"
            )
        return read_state(self.path / CHECKPOINT)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``; ``status: finished`` in it marks the run as done."""
        from ddfed.files import write_json

        write_json(self.path / SUMMARY, plain(summary))

    # --- what others read -----------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """The summary.

        Raises:
            RunFolderError: the run wrote none yet, or it is damaged.
        """
        path = self.path / SUMMARY
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunFolderError(f"{self.path} has no {SUMMARY}: the run did not finish; resume it") from None
        except (OSError, ValueError) as error:
            raise RunFolderError(f"cannot read {path}: {error}") from None
        if not isinstance(found, dict):
            raise RunFolderError(f"{path} holds {type(found).__name__}, not a table of values")
        return found

    @property
    def finished(self) -> bool:
        return (self.path / SUMMARY).is_file() and self.summary().get("status") == FINISHED

    @property
    def config_path(self) -> Path:
        return self.path / CONFIG

    @property
    def figures(self) -> Path:
        """Folder of the figures; made by whoever writes the first one."""
        return self.path / "figures"

    def close(self) -> None:
        """Close ``events.jsonl``; the next event opens it again."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- inside ---------------------------------------------------------------------------------------------

    def _open_events(self) -> IO[bytes]:
        file = (self.path / EVENTS).open("ab")
        # Appending to a torn line would damage the new event too.
        whole = sum(len(line) + 1 for line in self._lines())
        if file.tell() > whole:
            file.truncate(whole)
        return file

    def _lines(self) -> list[bytes]:
        try:
            return (self.path / EVENTS).read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunFolderError(f"cannot read {self.path / EVENTS}: {error.strerror or error}") from error

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise RunFolderError(f"{self.path / EVENTS} line {number} is damaged: {line[:60]!r}")
        return event

    def _probe(self) -> None:
        # Asking the permission bits is not enough: a read-only mount or a full disk shows on writing only.
        path = self.path / f".probe-{os.getpid()}"
        try:
            path.write_bytes(b"\n")
            path.unlink()
        except OSError as error:
            raise RunFolderError(
                f"run folder {self.path} cannot be written to: {error.strerror or error}. "
                f"Make it writable, or copy it to another place and resume there."
            ) from error


def find_runs(base: Path) -> list[RunFolder]:
    """Run folders directly below ``base``, oldest first; empty if there is no such folder."""
    try:
        found = [path for path in base.iterdir() if (path / CONFIG).is_file()]
    except OSError:
        return []
    return [RunFolder(path) for path in sorted(found, key=_age)]


def safe_name(name: str) -> str:
    """``name`` reduced to what every file system takes; ``run`` if nothing remains."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-.")[:80].rstrip("-.") or "run"


def plain(value: Any) -> Any:
    """``value`` as JSON takes it: tensors and numpy scalars as numbers, not-finite numbers as None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def _claim(base: Path, stem: str) -> Path:
    for attempt in range(1, 10_000):
        path = base / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"{base / stem} and its numbered neighbours are taken")


def _latest(base: Path) -> Path:
    runs = find_runs(base)
    if not runs:
        raise RunFolderError(f"there is no run folder in {base}, so 'latest' means nothing; name a folder")
    return runs[-1].path


def _age(path: Path) -> tuple[str, int, str]:
    stamp = _STAMP.match(path.name)
    # Within a second (and for renamed folders) the time of the config file decides.
    return (stamp[0] if stamp else "", (path / CONFIG).stat().st_mtime_ns, path.name)


def _unwritable(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"cannot write {path}: {error.strerror or error}. Check that the disk has room; "
        f"the run can be resumed from its last checkpoint."
    )
