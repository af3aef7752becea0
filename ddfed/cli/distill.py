"""``ddfed distill``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddfed.cli.options import run_options
from ddfed.cli.output import emit, say, table
from ddfed.cli.running import begin

if TYPE_CHECKING:
    from ddfed.runs import RunFolder


@click.command()
@click.option("--method", "-m", help="Recipe (dm); `ddfed methods list` shows them.")
@click.option("--domain", help="Modality (image).")
@click.option("--dataset", help="Data set of the domain (digits, embedded).")
@click.option("--data", "root", type=click.Path(path_type=Path), help="Folder that holds the data set's files.")
@click.option("--ipc", type=int, help="Items per class (10).")
@click.option("--steps", type=int, help="Outer steps.")
@click.option("--repeats", type=int, help="Fresh networks per row of the evaluation (3).")
@click.option("--protocol", help="Evaluation recipe: E-dc, E-dsa, E-idc.")
@click.option("--epochs", type=int, help="Overrides the evaluation recipe's epochs; tables say so.")
@click.option("--device", help="auto, cpu, cuda, mps.")
@click.option("--resume", type=click.Path(path_type=Path), help="Go on with a run folder ('latest' for the newest).")
@run_options
def distill(
    method: str | None,
    domain: str | None,
    dataset: str | None,
    root: Path | None,
    ipc: int | None,
    steps: int | None,
    repeats: int | None,
    protocol: str | None,
    epochs: int | None,
    device: str | None,
    resume: Path | None,
    config_file: Path | None,
    sets: tuple[str, ...],
    seed: int | None,
    out: Path | None,
    name: str | None,
    as_json: bool,
    quiet: bool,
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
    from ddfed.central import check_distill
    from ddfed.settings import resolve_distill

    flags: dict[str, tuple[str, Any]] = {
        "--method": ("method", method),
        "--domain": ("data.domain", domain),
        "--dataset": ("data.dataset", dataset),
        "--data": ("data.root", str(root.resolve()) if root else None),
        "--ipc": ("distill.ipc", ipc),
        "--steps": ("distill.steps", steps),
        "--repeats": ("evaluate.repeats", repeats),
        "--protocol": ("evaluate.protocol", protocol),
        "--epochs": ("evaluate.epochs", epochs),
        "--device": ("run.device", device),
        "--seed": ("run.seed", seed),
        "--out": ("run.out", str(out) if out else None),
        "--name": ("run.name", name),
    }
    settings, folder = begin("distill", resolve_distill, check_distill, flags, config_file, sets, resume, _label, quiet)
    summary = folder.summary() if folder.finished else _run(settings, folder, resume is not None, quiet)
    emit(summary, as_json, lambda: _print(summary, folder.path))


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
        except KeyboardInterrupt:
            progress.note(f"interrupted; go on with: ddfed distill --resume {folder.path}")
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
    from ddfed.report.pages import EVALUATION_COLUMNS, evaluation_rows

    table(EVALUATION_COLUMNS, evaluation_rows(summary["evaluation"]))
    for p in summary["published"]:
        spread = f" ± {p['spread']}" if p["spread"] is not None else ""
        click.echo(f"published: {p['accuracy']}{spread} % under {p['protocol']} ({p['source']})")
    click.echo(f"\n{path / 'report.html'}")
