"""One table of many methods: every cell (method, data set, budget, seed) is a run in a process of its own.

A process of its own gives each cell its own peak memory and time, and a crash costs one cell. The sweep writes itself
down in a folder and goes on from there::

    sweep/
        sweep.json          how it was made, every cell, the rows of the table
        sweep.md            the table
        cells/dm-digits-ipc10-seed0/     run folder and messages of a cell

The parent imports no torch. That is not for speed alone: Linux counts the memory of a parent towards the peak of a
child it starts, so a large parent would be the peak of every small cell.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ddfed.config import Layer, parse_set, to_toml
from ddfed.errors import ConfigError, RunFolderError, one_of, suggest
from ddfed.registry import registry
from ddfed.runs import RunFolder, find_runs
from ddfed.settings import DataSettings, DistillSettings, resolve_distill

STATE, TABLE, CELLS = "sweep.json", "sweep.md", "cells"
COLUMNS = (
    "family", "method", "accuracy %", "±", "random %", "margin", "distil s", "all s", "peak MB", "protocol", "note",
)  # fmt: skip
_POLL_S = 0.05
#: What a child gets to save itself after it was asked to stop.
_GRACE_S = 10.0


@dataclass(frozen=True)
class Cell:
    """One run of the table."""

    method: str
    dataset: str
    ipc: int
    seed: int
    domain: str = "image"

    @property
    def key(self) -> str:
        """Name in ``sweep.json``, and of the cell's folder."""
        place = self.dataset if self.domain == DataSettings().domain else f"{self.domain}-{self.dataset}"
        return f"{self.method}-{place}-ipc{self.ipc}-seed{self.seed}"


@dataclass(frozen=True)
class How:
    """What all cells of a sweep have in common; a sweep with other values is another sweep.

    Args:
        epochs: overrides the evaluation recipe's; said in every row's protocol.
        repeats: fresh networks per row.
        steps: no more outer steps than this; said in the rows that would have made more.
        sets: further settings, ``key=value``.
        threads: torch threads of a cell.
        device: as `ddfed.devices.resolve_device` takes it.
    """

    epochs: int | None = None
    repeats: int = 2
    steps: int | None = None
    sets: tuple[str, ...] = ()
    threads: int = 1
    device: str = "auto"


def parse_methods(text: str) -> list[str]:
    """Central methods from ``all``, or names and families with commas; by family, then by name.

    Raises:
        UnknownNameError: neither a central method nor a family; federated methods have no place in this table.
    """
    known = {c.name: str(c.facts.get("family", "")) for c in registry().of_kind("recipe")}
    families = set(known.values())
    wanted: set[str] = set()
    for name in _parts(text, "--methods"):
        if name == "all":
            wanted |= set(known)
        elif name in families:
            wanted |= {method for method, family in known.items() if family == name}
        else:
            wanted.add(registry().get("recipe", name, f"--methods; families: {one_of(sorted(families))}").name)
    return sorted(wanted, key=lambda name: (known[name], name))


def parse_cells(text: str) -> list[tuple[str, str, int]]:
    """``digits:1,graph/digits:10`` as (domain, data set, items per class).

    Raises:
        ConfigError: malformed, or no such data set.
    """
    found = []
    for part in _parts(text, "--cells"):
        name, colon, ipc = part.rpartition(":")
        if not colon or not ipc.isdigit() or int(ipc) < 1:
            raise ConfigError(f"--cells wants DATASET:IPC with commas, got {part!r}. Example: digits:1,digits:10")
        full = [c for c in registry().names("dataset") if name in (c, c.partition("/")[2])]
        # Where modalities share a name it means the default one; the others are asked for by domain/name.
        usual = f"{DataSettings().domain}/{name}"
        full = [usual] if usual in full else full
        if len(full) != 1:
            known = [c.partition("/")[2] for c in registry().names("dataset")]
            hint = f" It is one of {one_of(full)}." if full else suggest(name, known)
            raise ConfigError(f"unknown data set {name!r} (from --cells).{hint} `ddfed datasets list` shows them all.")
        domain, _, dataset = full[0].partition("/")
        found.append((domain, dataset, int(ipc)))
    return list(dict.fromkeys(found))


def parse_seeds(text: str) -> list[int]:
    """``0,1`` as numbers; raises `ConfigError`."""
    try:
        return list(dict.fromkeys(int(part) for part in _parts(text, "--seeds")))
    except ValueError:
        raise ConfigError(f"--seeds wants whole numbers with commas, got {text!r}. Example: 0,1,2") from None


def parse_data(pairs: Iterable[str], datasets: Iterable[str]) -> dict[str, Path]:
    """``NAME=FOLDER`` pairs, absolute; raises `ConfigError` for one that is malformed or missing."""
    found: dict[str, Path] = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not equals or not folder:
            raise ConfigError(f"--data wants NAME=FOLDER, got {pair!r}. Example: cifar10=data/cifar10")
        found[name] = Path(folder).expanduser().resolve()
    for name in datasets:
        needs = any(c.facts.get("files") for c in registry().of_kind("dataset") if c.name.partition("/")[2] == name)
        if needs and name not in found:
            raise ConfigError(f"data set {name!r} needs its files: give their folder with --data {name}=FOLDER")
    unused = sorted(set(found) - set(datasets))
    if unused:
        raise ConfigError(
            f"--data names {one_of(unused)}, which no cell uses. Cells use {one_of(sorted(set(datasets)))}"
        )
    return found


def plan(methods: Sequence[str], places: Sequence[tuple[str, str, int]], seeds: Sequence[int]) -> list[Cell]:
    """All cells, one seed after the other, so that a sweep that was stopped has whole columns.

    Methods for other modalities than a cell's are left out.

    Raises:
        ConfigError: none of the methods is for the modality of any cell.
    """
    only = {method: registry().get("recipe", method).facts.get("domains", ()) for method in methods}
    found = [
        Cell(method, dataset, ipc, seed, domain)
        for seed in seeds
        for domain, dataset, ipc in places
        for method in methods
        if not only[method] or domain in only[method]
    ]
    if not found:
        wanted = one_of(sorted({domain for domains in only.values() for domain in domains}))
        raise ConfigError(
            f"no method fits a cell: {one_of(methods)} are for {wanted}. Name cells of that modality, such as "
            f"graph/digits:10."
        )
    return found


def _parts(text: str, option: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ConfigError(f"{option} is empty")
    return parts


# --- a sweep ------------------------------------------------------------------------------------------------


#: Told that a cell ended: its record, and how many are done of how many.
Told = Callable[[dict[str, Any], int, int], None]


class Sweep:
    """The state of a sweep in its folder.

    Args:
        folder: made if absent.
        how: what its cells have in common.

    Raises:
        ConfigError: the folder holds a sweep made in another way; names the difference.
        RunFolderError: the folder cannot be written, or its state is damaged.
    """

    def __init__(self, folder: Path, how: How) -> None:
        self.folder, self.how = folder, how
        self.records: dict[str, dict[str, Any]] = {}
        if (folder / STATE).exists():
            saved = _read(folder / STATE)
            mine = json.loads(json.dumps(asdict(how)))
            other = [f"{k} {saved['how'].get(k)!r}, now {v!r}" for k, v in mine.items() if saved["how"].get(k) != v]
            if other:
                raise ConfigError(
                    f"the sweep in {folder} was made with {'; '.join(other)}. Its rows would not compare: go on with "
                    f"its own settings, or choose another folder with --out"
                )
            self.records = saved["cells"]
        try:
            (folder / CELLS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"cannot write a sweep into {folder}: {error.strerror or error}") from error

    def run(
        self,
        cells: Sequence[Cell],
        data: Mapping[str, Path] | None = None,
        jobs: int = 1,
        limit_s: float | None = None,
        told: Told | None = None,
    ) -> list[dict[str, Any]]:
        """Run what is not finished yet.

        Args:
            cells: which; those of an earlier call stay in the table.
            data: folder of each data set that has files.
            jobs: cells at the same time.
            limit_s: wall time after which a cell is stopped; it goes on from its checkpoint in the next call.
            told: called as it goes.

        Returns:
            The rows of the table.

        Raises:
            ConfigError: settings that no cell can have.
            KeyboardInterrupt: after the running cells were stopped and written down.
        """
        tasks = [_Task.of(cell, self.how, (data or {}).get(cell.dataset), self.folder) for cell in cells]
        waiting = [task for task in tasks if not self._is_done(task)]
        done = len(tasks) - len(waiting)
        running: list[_Child] = []
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(_Child(task := waiting.pop(0), self.records.get(task.cell.key)))
                time.sleep(_POLL_S)
                for child in [c for c in running if c.ended(limit_s)]:
                    running.remove(child)
                    done += 1
                    record = self._keep(child)
                    if told is not None:
                        told(record, done, len(tasks))
        except BaseException:
            for child in running:
                child.stop()
                self._keep(child)
            raise
        self._save()
        return self.rows()

    def rows(self) -> list[dict[str, Any]]:
        """The table: one row per (data set, budget, method), over the seeds."""
        groups: dict[tuple[str, int, str, str], list[dict[str, Any]]] = {}
        for record in self.records.values():
            place = (record["dataset"], record["ipc"], record["family"], record["method"])
            groups.setdefault(place, []).append(record)
        return [_table_row(groups[place]) for place in sorted(groups)]

    def markdown(self) -> str:
        """The table as a page."""
        rows = self.rows()
        places = list(dict.fromkeys((row["dataset"], row["ipc"]) for row in rows))
        parts = [f"# Methods side by side\n\n{_said(self.how)}\n"]
        for dataset, ipc in places:
            mine = [cells_of(row) for row in rows if (row["dataset"], row["ipc"]) == (dataset, ipc)]
            lines = ["| " + " | ".join(map(str, line)).replace("\n", " ") + " |" for line in mine]
            head = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
            parts.append("\n".join([f"## {dataset}, {ipc} items per class\n", *head, *lines, ""]))
        return "\n".join(parts)

    def _is_done(self, task: _Task) -> bool:
        record = self.records.get(task.cell.key, {})
        # A recipe that was changed since makes another run, whatever its name.
        return bool(record.get("status") == "finished" and record.get("settings") == task.fingerprint)

    def _keep(self, child: _Child) -> dict[str, Any]:
        self.records[child.task.cell.key] = record = child.record()
        self._save()
        return record

    def _save(self) -> None:
        state = {"how": asdict(self.how), "cells": self.records, "table": self.rows()}
        _write(self.folder / STATE, json.dumps(state, indent=1, ensure_ascii=False) + "\n")
        _write(self.folder / TABLE, self.markdown())


def has_epochs(settings: DistillSettings) -> bool:
    """Whether a set made so is judged by training networks; a regression has no epochs that could be cut."""
    name = settings.evaluate.protocol or settings.distill.protocol
    return hasattr(registry().load("protocol", name, "the protocol"), "epochs")


def _said(how: How) -> str:
    """In a sentence what all rows have in common."""
    parts = [
        f"Every run is a process of its own with {how.threads} torch thread{'s' if how.threads > 1 else ''}",
        f"{how.repeats} fresh networks judge each set" if how.repeats > 1 else "one fresh network judges each set",
    ]
    if how.epochs is not None:
        parts.append(f"every evaluation recipe that trains is cut to {how.epochs} epochs")
    if how.steps is not None:
        parts.append(f"no method makes more than {how.steps} outer steps (said in the rows where it matters)")
    if how.sets:
        parts.append(f"set for all: {', '.join(f'`{text}`' for text in how.sets)}")
    return (
        "; ".join(parts) + ". ± is the sample deviation over seeds, or over networks (population) where there is one "
        "seed. *random* is as many real items as fit into the same bytes, under the same protocol and from the same "
        "initial networks; *margin* is over it. *distil s* is distillation alone, *all s* the whole process, *peak MB* "
        "its largest resident memory, interpreter and torch included, a GPU's not."
    )


# --- one cell -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """A cell with all its settings.

    Args:
        cell: what it is.
        folder: where its runs and messages go.
        settings: complete.
        note: how it departs from the method's own settings.
    """

    cell: Cell
    folder: Path
    settings: DistillSettings
    note: str = ""

    @classmethod
    def of(cls, cell: Cell, how: How, root: Path | None, folder: Path) -> _Task:
        folder = folder / CELLS / cell.key
        common = {"evaluate": {"baselines": ["random"]}, "run": {"threads": how.threads, "device": how.device}}
        own: dict[str, Any] = {
            "method": cell.method,
            "data": {"domain": cell.domain, "dataset": cell.dataset, **({"root": str(root)} if root else {})},
            "distill": {"ipc": cell.ipc},
            "evaluate": {"repeats": how.repeats},
            "run": {"seed": cell.seed, "out": str(folder), "name": "cell"},
        }
        layers = [Layer("the sweep", common), *(Layer("--set", parse_set(t)) for t in how.sets), Layer("the cell", own)]
        if how.epochs and has_epochs(resolve_distill(layers).settings):
            layers.append(Layer("--epochs", {"evaluate": {"epochs": how.epochs}}))
        settings = resolve_distill(layers).settings
        if how.steps is None or settings.distill.steps <= how.steps:
            return cls(cell, folder, settings)
        fewer = resolve_distill([*layers, Layer("--steps", {"distill": {"steps": how.steps}})]).settings
        return cls(cell, folder, fewer, f"{how.steps} steps instead of {settings.distill.steps}")

    @property
    def fingerprint(self) -> str:
        """Of everything that decides the result; where the files lie does not."""
        left_out: Any = {"data": {"root"}, "run": {"out", "name"}}
        text = json.dumps(self.settings.model_dump(mode="json", exclude=left_out), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _command(what: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "ddfed.cli", "distill", *what, "--quiet"]


@dataclass
class _Child:
    """A cell in its process.

    Args:
        task: what to run.
        before: the record of an earlier attempt that did not finish.
    """

    task: _Task
    before: dict[str, Any] | None
    status: str = "running"
    peak_mb: float | None = None
    resumes: RunFolder | None = field(init=False)

    def __post_init__(self) -> None:
        self.resumes = self._unfinished()
        self.task.folder.mkdir(parents=True, exist_ok=True)
        config = self.task.folder / "settings.toml"
        _write(config, to_toml(self.task.settings))
        what = ["--resume", str(self.resumes.path)] if self.resumes else ["--config", str(config)]
        with self._messages.open("wb") as messages:
            self.process = subprocess.Popen(
                _command(what),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=messages,
            )
        self.began = time.monotonic()
        self.seconds = 0.0

    @property
    def _messages(self) -> Path:
        return self.task.folder / "messages.txt"

    def _unfinished(self) -> RunFolder | None:
        """The run of an attempt that was stopped; one that failed starts anew, for the cause may be mended by now."""
        before = self.before or {}
        if before.get("status") not in ("stopped", "over time") or before["settings"] != self.task.fingerprint:
            return None
        runs = find_runs(self.task.folder)
        return runs[-1] if runs and runs[-1].has_checkpoint else None

    def ended(self, limit_s: float | None) -> bool:
        """Look whether it is done; stop it if its time is up."""
        if self._reap():
            self.status = "finished" if self.process.returncode == 0 else "failed"
            return True
        if limit_s is not None and time.monotonic() - self.began > limit_s:
            self.stop("over time")
            return True
        return False

    def stop(self, status: str = "stopped") -> None:
        """Ask it to stop as Ctrl-C does, then make it."""
        deadline = time.monotonic() + _GRACE_S
        self.process.send_signal(signal.SIGINT)
        while not self._reap():
            if time.monotonic() > deadline:
                self.process.kill()
            time.sleep(_POLL_S)
        self.status = "finished" if self.process.returncode == 0 else status

    def _reap(self) -> bool:
        """True once it has ended; takes its peak memory with it, which only this call can tell apart from others'."""
        if self.process.returncode is not None:
            return True
        if not hasattr(os, "wait4"):  # Windows: no peak memory
            if self.process.poll() is None:
                return False
        else:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if not pid:
                return False
            self.process.returncode = os.waitstatus_to_exitcode(status)
            self.peak_mb = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3 / 1.024)
        self.seconds = time.monotonic() - self.began
        return True

    def record(self) -> dict[str, Any]:
        """What ``sweep.json`` keeps."""
        cell, task = self.task.cell, self.task
        earlier = self.before["seconds"] if self.resumes and self.before else 0.0
        found: dict[str, Any] = {
            **asdict(cell),
            "family": registry().get("recipe", cell.method).facts.get("family", ""),
            "status": self.status,
            "message": self._message(),
            "note": task.note,
            "settings": task.fingerprint,
            "seconds": round(earlier + self.seconds, 2),
            "peak_mb": None if self.peak_mb is None else round(self.peak_mb, 1),
        }
        runs = find_runs(task.folder)
        if runs:
            found["run"] = str(runs[-1].path.relative_to(task.folder.parent.parent))
        if self.status == "finished":
            found |= _measured(runs[-1].summary(), cell.method, resumed=self.resumes is not None)
        return found

    def _message(self) -> str:
        """Why it ended, in a line; empty if it finished."""
        if self.status == "finished":
            return ""
        if self.status != "failed":
            return f"{self.status} after {self.seconds:.0f} s; the next call goes on with it"
        lines = self._messages.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        code = self.process.returncode
        why = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return errors[-1] if errors else f"{why}{': ' + lines[-1] if lines else ''}"


def _measured(summary: Mapping[str, Any], method: str, resumed: bool) -> dict[str, Any]:
    table = summary["evaluation"]
    mine = next(row for row in table if row["subject"] == method)
    # The method may itself be random selection: then the control is the second row of that name.
    others = (row for row in table if row is not mine and row["network"] == mine["network"])
    control = next((row for row in others if row["subject"] == "random"), None)
    return {
        "accuracy": 100 * mine["mean"],
        "networks_spread": 100 * mine["std"] if len(mine["accuracies"]) > 1 else None,
        "random": None if control is None else 100 * control["mean"],
        "protocol": mine["protocol"],
        "network": mine["network"],
        "items": mine["items"],
        # A resumed run knows the time of its last part alone.
        "distil_s": None if resumed else summary["seconds"]["distil"],
    }


# --- the table ----------------------------------------------------------------------------------------------


def _table_row(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row from the seeds of a method at one place; failures are said in its note."""
    done = [r for r in records if r["status"] == "finished"]
    first = records[0]
    notes = list(dict.fromkeys(r["note"] for r in records if r["note"]))
    for status in ("failed", "over time", "stopped"):
        mine = [r for r in records if r["status"] == status]
        if mine:
            seeds = ", ".join(str(r["seed"]) for r in mine)
            messages = "; ".join(dict.fromkeys(r["message"] for r in mine))
            notes.append(f"{status} (seed {seeds}): {messages}")
    accuracy, control = _mean(done, "accuracy"), _mean(done, "random")
    return {
        **{k: first[k] for k in ("family", "method", "dataset", "ipc")},
        "seeds": [r["seed"] for r in done],
        "accuracy": accuracy,
        "spread": statistics.stdev(r["accuracy"] for r in done)
        if len(done) > 1
        else (done[0]["networks_spread"] if done else None),
        "over": "seeds" if len(done) > 1 else "networks",
        "random": control,
        "margin": None if accuracy is None or control is None else accuracy - control,
        "distil_s": _mean(done, "distil_s"),
        "seconds": _mean(done, "seconds"),
        "peak_mb": max((r["peak_mb"] for r in done if r["peak_mb"] is not None), default=None),
        "protocol": ", ".join(dict.fromkeys(r["protocol"] for r in done)),
        "note": "; ".join(notes),
    }


def _mean(records: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Mean of the known values."""
    values = [r[key] for r in records if r[key] is not None]
    return statistics.fmean(values) if values else None


def cells_of(row: Mapping[str, Any]) -> list[str]:
    """A row of `Sweep.rows` as text under `COLUMNS`."""

    def number(key: str, form: str) -> str:
        return "-" if row[key] is None else format(row[key], form)

    return [
        row["family"],
        row["method"],
        number("accuracy", ".1f"),
        number("spread", ".1f"),
        number("random", ".1f"),
        number("margin", "+.1f"),
        number("distil_s", ".1f"),
        number("seconds", ".1f"),
        number("peak_mb", ".0f"),
        row["protocol"] or "-",
        row["note"],
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not {"how", "cells"} <= set(found):
            raise ValueError("it lacks 'how' or 'cells'")
    except (OSError, ValueError, TypeError) as error:
        raise RunFolderError(f"cannot read {path}: {error}. Move it away to start anew.") from None
    return dict(found)


def _write(path: Path, text: str) -> None:
    """Write whole or not at all. (`ddfed.files` does it too, and imports torch.)"""
    try:
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error
