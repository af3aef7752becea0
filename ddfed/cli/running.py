"""What commands that make a run have in common: begin one, or go on with one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddfed.cli.options import layers
from ddfed.cli.output import say
from ddfed.errors import ConfigError

if TYPE_CHECKING:
    from ddfed.config import Layer, Resolved
    from ddfed.runs import RunFolder


def begin(
    command: str,
    resolver: Callable[[Sequence[Layer]], Resolved[Any]],
    check: Callable[[Any], None],
    flags: Mapping[str, tuple[str, Any]],
    config_file: Path | None,
    sets: Sequence[str],
    resume: Path | None,
    label: Callable[[Any], str],
    quiet: bool,
) -> tuple[Any, RunFolder]:
    """Settings and run folder of a new run, or of the one to go on with.

    Args:
        command: name of the command; its runs alone can be resumed.
        check: finds what is wrong before a folder is made.
        resolver: turns layers into settings that have the sections ``data`` and ``run``.
        flags: option -> (dotted key, value), None where it was not given.
        config_file: from ``--config``.
        sets: from ``--set``.
        resume: from ``--resume``.
        label: names the folder of an unnamed run.
        quiet: do not say where the folder is.

    Raises:
        ConfigError: a resumed run was given settings; it has its own.
        DdfedError: wrong settings or data; no folder is left behind.
    """
    from ddfed.config import read_toml, to_toml
    from ddfed.runs import RunFolder

    if resume is not None:
        given = [option for option, (key, value) in flags.items() if value is not None and key != "run.out"]
        given += ["--set"] * bool(sets) + ["--config"] * bool(config_file)
        if given:
            raise ConfigError(
                f"--resume goes on with the run's own settings and takes no others, got {', '.join(given)}; "
                f"start a new run for other settings"
            )
        out = next((value for key, value in flags.values() if key == "run.out"), None)
        folder = _to_resume(command, resume, Path(out) if out else Path("runs"))
        settings = resolver([read_toml(folder.config_path)]).settings
        if folder.finished:
            say("this run is finished; showing what it found", quiet)
        elif not folder.has_checkpoint:
            say("nothing was saved yet; starting from the beginning", quiet)
    else:
        settings = resolver(layers(config_file, sets, flags)).settings
        check(settings)
        folder = RunFolder.create(settings.run.out, settings.run.name or label(settings), to_toml(settings))
    say(f"run folder: {folder.path}", quiet)
    return settings, folder


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
    """The command that made a run, from its settings: only a federation has clients."""
    from ddfed.config import read_toml

    return "simulate" if "federation" in read_toml(folder.config_path).values else "distill"
