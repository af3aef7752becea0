"""``ddfed sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ddfed.cli.options import device_option, json_option, quiet_option, set_option
from ddfed.cli.output import emit, say, table


@click.command()
@click.option("--methods", default="all", show_default=True, help="Names and families with commas, or 'all'.")
@click.option("--cells", default="digits:1,digits:10", show_default=True, help="DATASET:IPC with commas.")
@click.option("--seeds", default="0", show_default=True, help="With commas.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at the same time.")
@click.option("--data", "folders", multiple=True, metavar="NAME=FOLDER", help="Files of a data set; repeatable.")
@click.option("--epochs", type=click.IntRange(min=1), help="Overrides the evaluation recipes' epochs; rows say so.")
@click.option("--repeats", type=click.IntRange(min=1), default=2, show_default=True, help="Fresh networks per row.")
@click.option("--steps", type=click.IntRange(min=1), help="No more outer steps than this; the table says where.")
@click.option("--limit", type=click.FloatRange(min=0, min_open=True), help="Seconds after which a run is stopped.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Torch threads of a run.")
@device_option
@set_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="sweep",
    show_default=True,
    metavar="FOLDER",
    help="Where the sweep is kept; a sweep that is there goes on.",
)
@json_option
@quiet_option
def sweep(
    methods: str,
    cells: str,
    seeds: str,
    jobs: int,
    folders: tuple[str, ...],
    epochs: int | None,
    repeats: int,
    steps: int | None,
    limit: float | None,
    threads: int,
    device: str | None,
    sets: tuple[str, ...],
    out: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make the table of methods: accuracy beside random selection, time and peak memory.

    Every run is a process of its own. A sweep that was stopped, or whose runs failed, goes on when it is called
    again; what is finished is not run again. The table is in FOLDER/sweep.md and sweep.json.

    \b
    Examples:
      ddfed sweep --methods all --cells digits:1,digits:10 --seeds 0,1 --epochs 200
      ddfed sweep --methods selection,dm --cells cifar10:10 --data cifar10=data/cifar10 --steps 300
    """
    from ddfed.progress import Progress
    from ddfed.sweep import (
        COLUMNS,
        TABLE,
        How,
        Sweep,
        cells_of,
        parse_cells,
        parse_data,
        parse_methods,
        parse_seeds,
        plan,
    )

    places = parse_cells(cells)
    wanted = plan(parse_methods(methods), places, parse_seeds(seeds))
    data = parse_data(folders, [dataset for _, dataset, _ in places])
    state = Sweep(out, How(epochs, repeats, steps, sets, threads, device or "auto"))
    with Progress(enabled=not quiet) as progress:
        bar = progress.task("sweep", total=len(wanted))

        def told(record: dict[str, Any], done: int, total: int) -> None:
            values = {"accuracy": record["accuracy"] / 100} if "accuracy" in record else {}
            progress.update(bar, completed=done, cell=key(record), **values)
            if record["message"]:
                progress.note(f"{key(record)}: {record['message']}")

        try:
            rows = state.run(wanted, data, jobs, limit, told)
        except KeyboardInterrupt:
            progress.note(f"interrupted; what is done is in {out}, and the same command goes on with the rest")
            raise
    say(f"table: {out / TABLE}", quiet)
    shown = [[row["dataset"], row["ipc"], *cells_of(row)] for row in rows]
    emit(rows, as_json, lambda: table(("data", "ipc", *COLUMNS), shown))


def key(record: dict[str, Any]) -> str:
    """Which cell, for people."""
    return f"{record['method']} {record['dataset']}:{record['ipc']} seed {record['seed']}"
