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
    resolver: Callable[[Sequence[Layer]], Resolved[Any]],
    flags: Mapping[str, tuple[str, Any]],
    config_file: Path | None,
    sets: Sequence[str],
    resume: Path | None,
    label: Callable[[Any], str],
    quiet: bool,
) -> tuple[Any, RunFolder]:
    """Settings and run folder of a new run, or of the one to go on with.

    Args:
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
    from ddfed.central import load_task
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
        folder = RunFolder.open(resume, base=Path(out) if out else None, writable=True)
        settings = resolver([read_toml(folder.config_path)]).settings
    else:
        settings = resolver(layers(config_file, sets, flags)).settings
        load_task(settings.data)  # wrong data must not leave an empty run folder behind
        folder = RunFolder.create(settings.run.out, settings.run.name or label(settings), to_toml(settings))
    say(f"run folder: {folder.path}", quiet)
    return settings, folder
