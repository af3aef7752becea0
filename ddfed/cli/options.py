"""Options that several commands share, and how they become layers of settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ddfed.config import Layer

F = TypeVar("F", bound=Callable[..., Any])

config_option = click.option(
    "--config", "-c", "config_file", type=click.Path(path_type=Path), metavar="FILE", help="Settings in TOML."
)
set_option = click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="One setting (run.threads=1); repeatable.",
)
seed_option = click.option("--seed", type=int, help="Root of all randomness.")
out_option = click.option(
    "--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Where run folders are made (runs)."
)
name_option = click.option("--name", help="Name of the run folder, after its date.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Only the result, no progress.")
resume_option = click.option(
    "--resume", type=click.Path(path_type=Path), help="Go on with a run folder ('latest' for the newest)."
)
# Absolute, since a run may be resumed from another folder.
data_option = click.option(
    "--data",
    "root",
    type=click.Path(path_type=Path, resolve_path=True),
    help="Folder that holds the data set's files.",
)
device_option = click.option("--device", help="auto, cpu, cuda, mps.")
threads_option = click.option(
    "--threads", type=click.IntRange(min=0), help="Torch threads; 1 where the machine is shared (0: all cores)."
)

#: Options that mean the same setting wherever they are taken: option -> dotted key.
SHARED_KEYS = {
    "--domain": "data.domain",
    "--dataset": "data.dataset",
    "--data": "data.root",
    "--ipc": "distill.ipc",
    "--steps": "distill.steps",
    "--device": "run.device",
    "--threads": "run.threads",
    "--seed": "run.seed",
    "--out": "run.out",
    "--name": "run.name",
}


def settings_options(command: F) -> F:
    """``--config`` and ``--set``, arriving as ``config_file: Path | None`` and ``sets: tuple[str, ...]``."""
    return config_option(set_option(command))


def run_options(command: F) -> F:
    """What every command that makes a run takes: settings, seed, out, name, json, quiet."""
    for option in (quiet_option, json_option, name_option, out_option, seed_option):
        command = option(command)
    return settings_options(command)


def experiment_options(ipc: str) -> Callable[[F], F]:
    """What every command that distils takes beside `run_options`: which data, how much, where, and ``--resume``.

    Args:
        ipc: help of ``--ipc``, whose unit differs between a data set and a client.
    """

    def add(command: F) -> F:
        for option in (
            resume_option,
            threads_option,
            device_option,
            click.option("--steps", type=int, help="Outer steps."),
            click.option("--ipc", type=int, help=ipc),
            data_option,
            click.option("--dataset", help="Data set of the domain (digits, embedded)."),
            click.option("--domain", help="Modality (image)."),
        ):
            command = option(command)
        return command

    return add


def shared_flags(given: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """The options of `SHARED_KEYS` among a command's keywords, as `layers` takes them."""
    found = {}
    for option, key in SHARED_KEYS.items():
        value = given.get("root" if option == "--data" else option.removeprefix("--"))
        found[option] = (key, str(value) if isinstance(value, Path) else value)
    return found


def layers(
    config_file: Path | None, sets: Sequence[str], flags: Mapping[str, tuple[str, Any]] | None = None
) -> list[Layer]:
    """Layers in rising order: the file, each ``--set``, then the command's own options.

    Args:
        config_file: from ``--config``.
        sets: from ``--set``.
        flags: option -> (dotted key, value); a value of None means that the option was not given.

    Example:
        >>> layers(None, (), {"--seed": ("run.seed", 3), "--name": ("run.name", None)})
        [Layer(origin='--seed', values={'run': {'seed': 3}})]
    """
    from ddfed.config import Layer, parse_set, read_toml

    found = [] if config_file is None else [read_toml(config_file)]
    found += [Layer("--set", parse_set(text)) for text in sets]
    for origin, (key, value) in (flags or {}).items():
        if value is not None:
            nested: Any = value
            for part in reversed(key.split(".")):
                nested = {part: nested}
            found.append(Layer(origin, nested))
    return found
