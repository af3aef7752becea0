"""What commands that make a run have in common: begin one or go on with one, do it, and show what it found."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddfed.cli.options import layers
from ddfed.cli.output import emit, say
from ddfed.errors import ConfigError

if TYPE_CHECKING:
    from ddfed.config import Layer, Resolved
    from ddfed.runs import RunFolder


@dataclass(frozen=True)
class Making:
    """How a command makes its runs; on the click command as ``command.making``, so that others can make them too.

    Args:
        command: name of the command; its runs alone can be resumed by it.
        resolver: ``"module:function"``, layers of settings to `Resolved`; loaded when a run is made.
        check: ``"module:function"``, finds what is wrong with settings before a folder is made.
        label: names the folder of an unnamed run.
        execute: ``(settings, folder, resume, quiet) -> summary``: the work, its report and its pictures.
        show: prints a summary; ``(summary, folder's path)``.
    """

    command: str
    resolver: str
    check: str
    label: Callable[[Any], str]
    execute: Callable[[Any, RunFolder, bool, bool], dict[str, Any]]
    show: Callable[[dict[str, Any], Path], None]

    def resolve(self, given: Sequence[Layer]) -> Resolved[Any]:
        """Settings from layers; raises `ConfigError`."""
        resolved: Resolved[Any] = _load(self.resolver)(given)
        return resolved

    def start(self, settings: Any) -> RunFolder:
        """A new run folder.

        Raises:
            DdfedError: wrong settings or data; no folder is left behind.
        """
        from ddfed.config import to_toml
        from ddfed.runs import RunFolder

        _load(self.check)(settings)
        return RunFolder.create(settings.run.out, settings.run.name or self.label(settings), to_toml(settings))

    def finish(self, settings: Any, folder: RunFolder, resume: bool, quiet: bool) -> dict[str, Any]:
        """The summary of a run: do what is left of it, or read what it found."""
        return folder.summary() if folder.finished else self.execute(settings, folder, resume, quiet)

    def main(
        self,
        flags: Mapping[str, tuple[str, Any]],
        config_file: Path | None,
        sets: Sequence[str],
        resume: Path | None,
        as_json: bool,
        quiet: bool,
    ) -> None:
        """The whole command: begin or go on, work, print.

        Args:
            flags: option -> (dotted key, value), None where it was not given.
            config_file: from ``--config``.
            sets: from ``--set``.
            resume: from ``--resume``.
            as_json: print the summary as JSON.
            quiet: only the result.

        Raises:
            ConfigError: a resumed run was given settings; it has its own.
            DdfedError: wrong settings or data; no folder is left behind.
        """
        if resume is None:
            settings = self.resolve(layers(config_file, sets, flags)).settings
            folder = self.start(settings)
        else:
            settings, folder = self._go_on(resume, flags, config_file, sets, quiet)
        say(f"run folder: {folder.path}", quiet)
        summary = self.finish(settings, folder, resume is not None, quiet)
        emit(summary, as_json, lambda: self.show(summary, folder.path))

    def _go_on(
        self,
        resume: Path,
        flags: Mapping[str, tuple[str, Any]],
        config_file: Path | None,
        sets: Sequence[str],
        quiet: bool,
    ) -> tuple[Any, RunFolder]:
        from ddfed.config import read_toml

        given = [option for option, (key, value) in flags.items() if value is not None and key != "run.out"]
        given += ["--set"] * bool(sets) + ["--config"] * bool(config_file)
        if given:
            raise ConfigError(
                f"--resume goes on with the run's own settings and takes no others, got {', '.join(given)}; "
                f"start a new run for other settings"
            )
        out = next((value for key, value in flags.values() if key == "run.out"), None)
        folder = _to_resume(self.command, resume, Path(out) if out else Path("runs"))
        if folder.finished:
            say("this run is finished; showing what it found", quiet)
        elif not folder.has_checkpoint:
            say("nothing was saved yet; starting from the beginning", quiet)
        return self.resolve([read_toml(folder.config_path)]).settings, folder


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _to_resume(command: str, resume: Path, base: Path) -> RunFolder:
    """The run folder to go on with; ``latest`` means the newest of this command."""
    from ddfed.runs import LATEST, RunFolder, find_runs

    if str(resume) != LATEST:
        folder = RunFolder.open(resume, writable=True)
        if made_by(folder) != command:
            raise ConfigError(
                f"{folder.path} was made by `ddfed {made_by(folder)}`; go on with: "
                f"ddfed {made_by(folder)} --resume {folder.path}"
            )
        return folder
    mine = [run for run in find_runs(base) if made_by(run) == command]
    if not mine:
        raise ConfigError(f"there is no run of `ddfed {command}` in {base}, so 'latest' means nothing; name a folder")
    return RunFolder.open(mine[-1].path, writable=True)


def made_by(folder: RunFolder) -> str:
    """The command that made a run, from its settings: only a federation has clients, only a pruning a set before."""
    from ddfed.config import read_toml

    values = read_toml(folder.config_path).values
    return "simulate" if "federation" in values else "prune" if "artifact" in values else "distill"
