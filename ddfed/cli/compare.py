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
    from ddfed.report.pages import compare_page
    from ddfed.runs import RunFolder

    # A run named twice (two patterns that overlap) is not two seeds.
    unique = {path.resolve(): path for path in runs}.values()
    summaries = [RunFolder.open(path).summary() for path in unique]
    found = compared(summaries)
    if html is not None:
        compare_page(summaries, found.cells(), COLUMNS, found.figures()).save(html)
        say(f"page: {html}")
    emit(found.to_json(), as_json, lambda: table(COLUMNS, found.cells()))
