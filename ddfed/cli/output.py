"""Data to stdout, talk to stderr; tables drawn on a terminal, plain columns off it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

from ddfed.progress import is_terminal


def emit(data: Any, as_json: bool, human: Callable[[], None]) -> None:
    """Print ``data`` as JSON, or call ``human`` to print it for people."""
    if as_json:
        click.echo(json.dumps(data, indent=2, ensure_ascii=False, default=_plain))
    else:
        human()


def say(text: str, quiet: bool = False) -> None:
    """Talk: one line on stderr, unless ``quiet``."""
    if not quiet:
        click.echo(text, err=True)


def shown(value: Any) -> str:
    """A value in a cell: lists with commas, None and empty as a dash, floats with four digits."""
    if value is None or value == "" or value == () or value == [] or value == {}:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(shown(v) for v in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {shown(v)}" for k, v in value.items())
    return str(value)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "", width: int = 0) -> None:
    """Print a table on stdout; columns that hold only numbers are aligned right.

    Args:
        columns: their names.
        rows: one value per column.
        title: above it, on a terminal.
        width: off a terminal (which folds by itself), long cells are cut so that lines are no longer; 0 cuts
            nothing.
    """
    raw = [list(row) for row in rows]
    body = [[shown(cell) for cell in row] for row in raw]
    right = [_is_numeric([row[i] for row in raw]) for i in range(len(columns))]
    if is_terminal(sys.stdout):
        _drawn(columns, body, right, title)
    else:
        _columns(columns, _cut(columns, body, width) if width else body, right)


def _cut(columns: Sequence[str], body: Sequence[Sequence[str]], width: int) -> list[list[str]]:
    """Shorten the widest columns until a line fits; never the first, whose names are copied into commands."""
    wide = [max([len(name), *(len(row[i]) for row in body)]) for i, name in enumerate(columns)]
    while sum(wide) + 2 * (len(wide) - 1) > width:
        widest = max(range(1, len(wide)), key=wide.__getitem__, default=0)
        if not widest or wide[widest] <= max(len(columns[widest]), 8):
            break
        wide[widest] -= 1
    return [[c if len(c) <= w else f"{c[: w - 3].rstrip()}..." for c, w in zip(row, wide)] for row in body]


def facts(values: Mapping[str, Any], title: str = "") -> None:
    """Print names and values on stdout, one a line."""
    if title:
        click.secho(title, bold=True) if _colours() else click.echo(title)
    width = max(map(len, values), default=0)
    for name, value in values.items():
        label = f"  {name:<{width}}  "
        click.echo((click.style(label, dim=True) if _colours() else label) + shown(value))


def _is_numeric(cells: Sequence[Any]) -> bool:
    told = [c for c in cells if c is not None]
    return bool(told) and all(isinstance(c, (int, float)) and not isinstance(c, bool) for c in told)


def _colours() -> bool:
    return is_terminal(sys.stdout) and not os.environ.get("NO_COLOR")


def _columns(columns: Sequence[str], body: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    widths = [max([len(name), *(len(row[i]) for row in body)]) for i, name in enumerate(columns)]
    for row in (columns, *body):
        cells = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right))
        click.echo("  ".join(cells).rstrip())


def _drawn(columns: Sequence[str], body: Sequence[Sequence[str]], right: Sequence[bool], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for number, (name, is_right) in enumerate(zip(columns, right)):
        # Names are copied into commands, so the first column is never folded.
        drawn.add_column(name, justify="right" if is_right else "left", no_wrap=number == 0, overflow="fold")
    for row in body:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    return value.tolist() if hasattr(value, "tolist") else str(value)
