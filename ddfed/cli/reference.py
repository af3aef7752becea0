"""Writes the page of all commands: ``python -m ddfed.cli.reference > docs/reference/commands.md``."""

from __future__ import annotations

from collections.abc import Iterator

import click

HEAD = """# Commands

Made from the program itself by `python -m ddfed.cli.reference`; a test holds it up to date.
"""


def page(root: click.Group) -> str:
    """The help of every command, in Markdown."""
    parts = [HEAD]
    for path, command in _walk(root, ("ddfed",)):
        context = click.Context(command, info_name=" ".join(path), terminal_width=100)
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


def main() -> None:
    from ddfed.cli import cli

    click.echo(page(cli), nl=False)


if __name__ == "__main__":
    main()
