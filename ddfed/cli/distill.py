"""``ddfed distill``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ddfed.cli.options import layers, run_options
from ddfed.cli.output import emit, say, table
from ddfed.errors import ConfigError


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
    given = [option for option, (_, value) in flags.items() if value is not None and option != "--out"]
    if resume is not None and (given or sets or config_file):
        raise ConfigError(
            f"--resume goes on with the run's own settings and takes no others, got "
            f"{', '.join(given) or '--set or --config'}; start a new run for other settings"
        )
    summary, path = _run(layers(config_file, sets, flags), resume, out, quiet)
    emit(summary, as_json, lambda: _print(summary, path))


def _run(given: list[Any], resume: Path | None, out: Path | None, quiet: bool) -> tuple[dict[str, Any], Path]:
    from ddfed.artifact import SyntheticSet
    from ddfed.central import load_task, run_distill
    from ddfed.config import read_toml, to_toml
    from ddfed.progress import Progress
    from ddfed.report.pages import central_page
    from ddfed.runs import RunFolder
    from ddfed.settings import resolve_distill

    if resume is not None:
        folder = RunFolder.open(resume, base=out, writable=True)
        settings = resolve_distill([read_toml(folder.config_path)]).settings
    else:
        settings = resolve_distill(given).settings
        load_task(settings.data)  # a wrong data set must not leave an empty run folder behind
        data, parts = settings.data, settings.distill
        label = settings.run.name or f"{settings.method}-{data.dataset}-ipc{parts.ipc}"
        folder = RunFolder.create(settings.run.out, label, to_toml(settings))
    say(f"run folder: {folder.path}", quiet)
    with folder, Progress(enabled=not quiet) as progress:
        try:
            summary = run_distill(settings, folder, _watch(progress), resume=resume is not None)
        except KeyboardInterrupt:
            progress.note(f"interrupted; go on with: ddfed distill --resume {folder.path}")
            raise
    domain, _ = load_task(settings.data)
    syn = SyntheticSet.load(folder.path)
    folder.figures.mkdir(exist_ok=True)
    domain.render(syn, folder.figures / "distilled.png")
    report = central_page(summary, domain, syn).save(folder.path / "report.html")
    say(f"report: {report}", quiet)
    return summary, folder.path


def _watch(progress: Any) -> Any:
    from ddfed.central import Watching

    bars: dict[str, int] = {}

    def show(text: str, done: int, total: int, **values: float) -> None:
        if text not in bars:
            bars[text] = progress.task(text, total=total)
        progress.update(bars[text], completed=done, **values)

    return Watching(
        step=lambda event: show("distilling", event.step, event.steps, **event.values),
        training=lambda text, epoch, epochs: show(f"training on {text}", epoch, epochs),
    )


def _print(summary: dict[str, Any], path: Path) -> None:
    from ddfed.report.pages import EVALUATION_COLUMNS, evaluation_rows

    table(EVALUATION_COLUMNS, evaluation_rows(summary["evaluation"]))
    for p in summary["published"]:
        spread = f" ± {p['spread']}" if p["spread"] is not None else ""
        click.echo(f"published: {p['accuracy']}{spread} % under {p['protocol']} ({p['source']})")
    click.echo(f"\n{path / 'report.html'}")
