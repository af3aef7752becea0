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
    help="One setting (distill.steps=100); repeatable.",
)
seed_option = click.option("--seed", type=int, help="Root of all randomness.")
out_option = click.option(
    "--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Where run folders are made (runs)."
)
name_option = click.option("--name", help="Name of the run folder, after its date.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Only the result, no progress.")


def settings_options(command: F) -> F:
    """``--config`` and ``--set``, arriving as ``config_file: Path | None`` and ``sets: tuple[str, ...]``."""
    return config_option(set_option(command))


def run_options(command: F) -> F:
    """What every command that makes a run takes: settings, seed, out, name, json, quiet."""
    for option in (quiet_option, json_option, name_option, out_option, seed_option):
        command = option(command)
    return settings_options(command)


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
