"""``ddfed distill``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddfed.cli.options import experiment_options, run_options, shared_flags
from ddfed.cli.output import facts, say, table
from ddfed.cli.running import Making

if TYPE_CHECKING:
    from ddfed.runs import RunFolder


@click.command()
@click.option("--method", "-m", help="Recipe (dm); `ddfed methods list` shows them.")
@experiment_options("Items per class (10).")
@click.option("--repeats", type=int, help="Fresh networks per row of the evaluation (3).")
@click.option("--protocol", help="Evaluation recipe, such as E-dc, E-dsa, E-idc.")
@click.option("--epochs", type=int, help="Overrides the evaluation recipe's epochs; tables say so.")
@run_options
def distill(
    method: str | None,
    repeats: int | None,
    protocol: str | None,
    epochs: int | None,
    config_file: Path | None,
    sets: tuple[str, ...],
    resume: Path | None,
    as_json: bool,
    quiet: bool,
    **shared: Any,
) -> None:
    """Distil a data set into a few synthetic items, and judge them.

    The table shows fresh networks trained on the result, on random real items of the same number, and on full
    data, under one evaluation recipe.

    \b
    Examples:
      ddfed distill --method dm --ipc 10
      ddfed distill -m dm --dataset mnist --data ~/data/mnist --ipc 10
      ddfed distill -m idm --dataset folder --data ~/my-pictures --steps 500
      ddfed distill --resume latest
    """
    flags: dict[str, tuple[str, Any]] = {
        "--method": ("method", method),
        "--repeats": ("evaluate.repeats", repeats),
        "--protocol": ("evaluate.protocol", protocol),
        "--epochs": ("evaluate.epochs", epochs),
        **shared_flags(shared),
    }
    MAKING.main(flags, config_file, sets, resume, as_json, quiet)


def _label(settings: Any) -> str:
    return f"{settings.method}-{settings.data.dataset}-ipc{settings.distill.ipc}"


def _run(settings: Any, folder: RunFolder, resume: bool, quiet: bool) -> dict[str, Any]:
    from ddfed.artifact import SyntheticSet
    from ddfed.central import load_task, run_distill
    from ddfed.progress import Progress
    from ddfed.report.pages import central_page

    with folder, Progress(enabled=not quiet) as progress:
        try:
            summary = run_distill(settings, folder, _watch(progress), resume=resume)
        except KeyboardInterrupt as interrupt:
            progress.note(f"interrupted; go on with: ddfed distill --resume {folder.path}")
            interrupt.told = True  # type: ignore[attr-defined]
            raise
    domain, _ = load_task(settings.data)
    syn = SyntheticSet.load(folder.path)
    folder.figures.mkdir(exist_ok=True)
    domain.render(syn, folder.figures / "distilled.png")
    report = central_page(summary, domain, syn).save(folder.path / "report.html")
    say(f"report: {report}", quiet)
    return summary


def _watch(progress: Any) -> Any:
    from ddfed.central import Watching

    bars: dict[str, int] = {}

    def show(text: str, done: int, total: int, **values: float) -> None:
        if text not in bars:
            bars[text] = progress.task(text, total=total)
        progress.update(bars[text], completed=done, **values)

    return Watching(
        step=lambda event: show(event.phase or "distilling", event.step, event.steps, **event.values),
        training=lambda text, epoch, epochs: show(f"training on {text}", epoch, epochs),
    )


def _print(summary: dict[str, Any], path: Path) -> None:
    from ddfed.report.pages import EVALUATION_COLUMNS, evaluation_rows, told_facts

    table(EVALUATION_COLUMNS, evaluation_rows(summary["evaluation"]))
    for p in summary["published"]:
        spread = f" ± {p['spread']}" if p["spread"] is not None else ""
        click.echo(f"published: {p['accuracy']}{spread} % under {p['protocol']} ({p['source']})")
    if summary.get("facts"):
        facts(told_facts(summary["facts"]))
    click.echo(f"\n{path / 'report.html'}")


MAKING = Making(
    command="distill",
    resolver="ddfed.settings:resolve_distill",
    check="ddfed.central:check_distill",
    label=_label,
    execute=_run,
    show=_print,
)
distill.making = MAKING  # type: ignore[attr-defined]
