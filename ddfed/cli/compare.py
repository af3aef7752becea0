"""``ddfed compare``."""

from __future__ import annotations

from pathlib import Path

import click

from ddfed.cli.output import emit, say, table


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--html", type=click.Path(path_type=Path), help="Also write a page with table and curves to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(runs: tuple[Path, ...], html: Path | None, as_json: bool) -> None:
    """Put finished runs side by side; runs that differ by seed alone become one row with mean and spread.

    \b
    Example:
      ddfed compare runs/*-feddm-* --html compare.html
    """
    from ddfed.compare import COLUMNS, compared
    from ddfed.errors import ConfigError
    from ddfed.report.pages import compare_page
    from ddfed.runs import RunFolder

    # A run named twice (two patterns that overlap) is not two seeds.
    unique = {path.resolve(): path for path in runs}.values()
    folders = [RunFolder.open(path) for path in unique]
    for folder in folders:
        if not folder.finished:
            say(f"left out: {folder.path} is not finished")
    summaries = [folder.summary() for folder in folders if folder.finished]
    if not summaries:
        raise ConfigError("none of these runs is finished; resume one with --resume, or name others")
    found = compared(summaries)
    if html is not None:
        compare_page(summaries, found.cells(), COLUMNS, found.figures()).save(html)
        say(f"page: {html}")
    emit(found.to_json(), as_json, lambda: table(COLUMNS, found.cells()))
