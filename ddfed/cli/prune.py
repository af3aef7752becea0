"""``ddfed prune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddfed.cli.options import data_option, device_option, resume_option, run_options, shared_flags, threads_option
from ddfed.cli.output import say, table
from ddfed.cli.running import Making

if TYPE_CHECKING:
    from ddfed.runs import RunFolder


@click.command()
@click.argument("artifact", required=False, type=click.Path(path_type=Path, resolve_path=True))
@click.option("--ipc", type=int, help="Items per class that are left.")
@click.option("--rule", help="Which items stay: yoco (low error of logits), el2n (of probabilities), random.")
@click.option("--network", help="Network that scores the items; the domain's default when absent.")
@click.option("--repeats", type=int, help="Fresh networks per row of the evaluation (3).")
@click.option("--protocol", help="Evaluation recipe; the set's own when absent.")
@click.option("--epochs", type=int, help="Overrides the evaluation recipe's epochs; tables say so.")
@data_option
@device_option
@threads_option
@resume_option
@run_options
def prune(
    artifact: Path | None,
    ipc: int | None,
    rule: str | None,
    network: str | None,
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
    """Keep fewer items of a distilled set, without distilling again (YOCO).

    ARTIFACT is a run folder, or a folder that holds card.json and distilled.safetensors. A network is trained on
    the set alone, and of each class the items with the lowest error stay. The table shows the smaller set beside as
    many random items of the same set, and beside the rows of every evaluation: random real items, the same with soft
    labels, full data.

    \b
    Examples:
      ddfed prune runs/20260101-120000-dm-digits-ipc10 --ipc 5
      ddfed prune my-set --ipc 1 --rule random
    """
    if artifact is None and resume is None and config_file is None:
        raise click.UsageError("name the run folder or set that is to be pruned")
    if ipc is None and resume is None and config_file is None and not any(s.startswith("ipc=") for s in sets):
        raise click.UsageError("say with --ipc how many items per class are to be left")
    flags: dict[str, tuple[str, Any]] = {
        **shared_flags(shared),  # first: --ipc means another setting here
        "ARTIFACT": ("artifact", None if artifact is None else str(artifact)),
        "--ipc": ("ipc", ipc),
        "--rule": ("rule", rule),
        "--network": ("score.network", network),
        "--repeats": ("evaluate.repeats", repeats),
        "--protocol": ("evaluate.protocol", protocol),
        "--epochs": ("evaluate.epochs", epochs),
    }
    MAKING.main(flags, config_file, sets, resume, as_json, quiet)


def _settings() -> Any:
    from ddfed.settings import PruneSettings

    return PruneSettings


prune.settings = _settings  # type: ignore[attr-defined]


def _label(settings: Any) -> str:
    return f"{settings.rule}-{settings.data.dataset}-ipc{settings.ipc}"


def _run(settings: Any, folder: RunFolder, resume: bool, quiet: bool) -> dict[str, Any]:
    from ddfed.artifact import SyntheticSet
    from ddfed.central import Watching, load_task
    from ddfed.progress import Progress
    from ddfed.prune import run_prune
    from ddfed.report.pages import central_page

    bars: dict[str, int] = {}
    with folder, Progress(enabled=not quiet) as progress:

        def show(text: str, done: int, total: int) -> None:
            if text not in bars:
                bars[text] = progress.task(f"training on {text}", total=total)
            progress.update(bars[text], completed=done)

        summary = run_prune(settings, folder, Watching(training=show))
    domain, _ = load_task(settings.data)
    syn = SyntheticSet.load(folder.path)
    folder.figures.mkdir(exist_ok=True)
    domain.render(syn, folder.figures / "distilled.png")
    page = central_page(summary, domain, syn)
    page.section("Pruned from").facts({**summary["parent"], "rule": settings.rule, "citation": summary["citation"]})
    say(f"report: {page.save(folder.path / 'report.html')}", quiet)
    return summary


def _print(summary: dict[str, Any], path: Path) -> None:
    from ddfed.report.pages import EVALUATION_COLUMNS, evaluation_rows

    table(EVALUATION_COLUMNS, evaluation_rows(summary["evaluation"]))
    click.echo(f"\n{summary['title']}\n{path / 'report.html'}")


MAKING = Making(
    command="prune",
    resolver="ddfed.settings:resolve_prune",
    check="ddfed.prune:check_prune",
    label=_label,
    execute=_run,
    show=_print,
)
prune.making = MAKING  # type: ignore[attr-defined]
