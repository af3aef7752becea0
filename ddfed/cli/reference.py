"""Writes the pages that the program knows best: ``python -m ddfed.cli.reference docs/reference``.

The pages of the methods go beside that folder, to ``docs/methods``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pydantic import BaseModel

HEAD = """# Commands

Made from the program itself by `python -m ddfed.cli.reference docs/reference`; a test holds it up to date.
"""

SETTINGS_HEAD = """# Settings

Made from the program itself by `python -m ddfed.cli.reference docs/reference`; a test holds it up to date. Defaults are
those before a method and its presets have their say; `ddfed config show --for COMMAND` shows what a run would use.
Options of a part (`distill.pool_options`, `distill.objective_options`, ...) are listed with the part.
"""


def page(root: click.Group) -> str:
    """The help of every command, in Markdown."""
    parts = [HEAD]
    for path, command in _walk(root, ("ddfed",)):
        # Commands remember the help option they were first asked with, so ask as the program does.
        names = root.context_settings["help_option_names"]
        context = click.Context(command, info_name=" ".join(path), terminal_width=100, help_option_names=names)
        parts.append(f"## {' '.join(path)}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def _walk(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    load = getattr(command, "load", None)
    command = load() if callable(load) else command
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None:
                yield from _walk(child, (*path, name))


def settings_page(commands: dict[str, type[BaseModel]]) -> str:
    """Every setting of the commands, with default and meaning, and the options of the parts."""
    parts = [SETTINGS_HEAD]
    for command, model in commands.items():
        rows = [f"| `{key}` | {default} | {meaning} |" for key, default, meaning in _fields(model, "")]
        parts.append("\n".join([f"## ddfed {command}\n", "| key | default | meaning |", "|---|---|---|", *rows, ""]))
    rows = [f"| {kind} | `{name}` | {options} |" for kind, name, options in _part_options()]
    parts.append(
        "\n".join(["## Options of the parts\n", "| part | name | options and defaults |", "|---|---|---|", *rows, ""])
    )
    return "\n".join(parts)


def _fields(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    from pydantic import BaseModel

    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            yield from _fields(type(default), f"{prefix}{name}.")
        else:
            given = "required" if field.is_required() else _shown(default)
            yield f"{prefix}{name}", given, field.description or ""


def _shown(default: Any) -> str:
    return "none" if default is None else f"`{default}`" if str(default) else "empty"


def _part_options() -> Iterator[tuple[str, str, str]]:
    from ddfed.registry import registry

    for kind in ("objective", "pool", "decoder"):
        for name in registry().names(kind):
            defaults = registry().load(kind, name).defaults
            if defaults:
                yield kind, name, ", ".join(f"`{key} = {value}`" for key, value in defaults.items())


def pages() -> dict[str, str]:
    """File name -> text. The settings of commands that plugins bring are found by their resolver's module."""

    from ddfed.cli import cli
    from ddfed.settings import DistillSettings

    models: dict[str, type[BaseModel]] = {"distill": DistillSettings}
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command: Any = cli.get_command(context, name)
        loaded = command.load() if hasattr(command, "load") else command
        model = getattr(loaded, "settings", None)
        if model:
            models[name] = model()
    return {"commands.md": page(cli), "settings.md": settings_page(models)}


def main() -> None:
    from ddfed.cli.method_pages import method_pages

    folder = Path(sys.argv[1])
    methods = folder.parent / "methods"
    methods.mkdir(exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)
    for name, text in method_pages().items():
        (methods / name).write_text(text)


if __name__ == "__main__":
    main()
