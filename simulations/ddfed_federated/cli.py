"""``ddfed simulate``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddfed.cli.options import experiment_options, run_options, shared_flags
from ddfed.cli.output import say, table
from ddfed.cli.running import Making

if TYPE_CHECKING:
    from ddfed.runs import RunFolder


@click.command()
@click.option("--method", "-m", help="Federated method (feddm); `ddfed methods list` shows them.")
@click.option("--engine", help="Central recipe whose parts clients distil with, such as dsa; the method's own if not.")
@click.option("--clients", "-n", type=int, help="Number of clients (10).")
@click.option("--rounds", type=int, help="Number of rounds.")
@experiment_options("Items per class and client.")
@click.option("--partition", help="How the data lie: dirichlet, iid, pathological, shards, natural, file, ...")
@click.option(
    "--alpha", type=float, help="Concentration of the Dirichlet splits and of quantity (0.5); smaller is more uneven."
)
@click.option("--baselines", help="Comma-separated methods run beside it; 'none' for none.")
@click.option(
    "--forget", multiple=True, metavar="TARGET", help="client=3 or class=7: what the method then forgets; repeatable."
)
@click.option("--references", help="Comma-separated trainings on real rows: local, central, central-cut; 'none'.")
@click.option("--backend", help="inprocess or ray.")
@click.option("--ray-address", help="Join this Ray cluster (HOST:PORT) instead of starting one; means --backend ray.")
@click.option("--workers", type=int, help="Client processes of the inprocess back end; 0 for none.")
@run_options
def simulate(
    method: str | None,
    engine: str | None,
    clients: int | None,
    rounds: int | None,
    partition: str | None,
    alpha: float | None,
    baselines: str | None,
    forget: tuple[str, ...],
    references: str | None,
    backend: str | None,
    ray_address: str | None,
    workers: int | None,
    config_file: Path | None,
    sets: tuple[str, ...],
    resume: Path | None,
    as_json: bool,
    quiet: bool,
    **shared: Any,
) -> None:
    """Run a federation: clients distil their own data, a server learns from the tiny sets.

    Baselines run beside it on the same split. The run folder gets the settings, the events, a checkpoint after
    every round, the distilled set and report.html.

    \b
    Examples:
      ddfed simulate --clients 10 --method feddm
      ddfed simulate --clients 20 --ipc 1 --alpha 0.1 --seed 3
      ddfed simulate --method fedaf --baselines feddm,fedlap,scaffold,random-once
      ddfed simulate --method fedd3 --engine herding
      ddfed simulate --dataset cifar10 --data ~/data/cifar10 --set distill.steps=100
      ddfed simulate --clients 5 --forget client=3
      ddfed simulate --domain graph --dataset cora --data ~/data/cora --clients 5
      ddfed simulate --resume latest
    """
    flags: dict[str, tuple[str, Any]] = {
        "--method": ("method", method),
        "--engine": ("engine", engine),
        "--clients": ("federation.clients", clients),
        "--rounds": ("federation.rounds", rounds),
        "--partition": ("federation.partition", partition),
        "--alpha": ("federation.partition_options", None if alpha is None else {"alpha": alpha}),
        "--baselines": ("baselines", None if baselines is None else names(baselines)),
        "--forget": ("forget", list(forget) or None),
        "--references": ("references", None if references is None else names(references)),
        "--backend": ("federation.backend", backend or (ray_address and "ray")),
        "--ray-address": ("federation.ray_address", ray_address),
        "--workers": ("federation.workers", workers),
        **shared_flags(shared),
    }
    MAKING.main(flags, config_file, sets, resume, as_json, quiet)


simulate.resolver = "ddfed_federated.settings:resolve_simulate"  # type: ignore[attr-defined]


def _settings() -> Any:
    from ddfed_federated.settings import SimulateSettings

    return SimulateSettings


simulate.settings = _settings  # type: ignore[attr-defined]


def names(text: str) -> list[str]:
    """A comma-separated option; 'none' for none."""
    return [] if text.strip() in ("", "none") else [part.strip() for part in text.split(",")]


def _label(settings: Any) -> str:
    return f"{settings.method}-{settings.data.dataset}-{settings.federation.clients}clients"


def _run(settings: Any, folder: RunFolder, resume: bool, quiet: bool) -> dict[str, Any]:
    from ddfed_federated.simulate import simulate as run

    return carried_out(
        settings,
        folder,
        quiet,
        lambda watching, _: run(settings, folder, watching, resume=resume),
        "ddfed simulate",
    )


def carried_out(
    settings: Any,
    folder: RunFolder,
    quiet: bool,
    hold: Callable[[Any, Callable[[str], None]], dict[str, Any]],
    command: str,
) -> dict[str, Any]:
    """Hold a run with bars and notes, then write its report.

    Args:
        settings: of the run.
        folder: of the run.
        quiet: no progress.
        hold: ``(watching, note) -> summary``: all rounds.
        command: that goes on with the run, given ``--resume``.
    """
    from ddfed.artifact import SyntheticSet
    from ddfed.progress import Progress
    from ddfed_federated.report import federated_page
    from ddfed_federated.rounds import Progressing
    from ddfed_federated.worker import load_task

    with folder, Progress(enabled=not quiet) as progress:
        watching = _watch(progress, settings, Progressing)
        try:
            summary = hold(watching, progress.note)
        except KeyboardInterrupt as interrupt:
            progress.note(f"interrupted; go on with: {command} --resume {folder.path}")
            interrupt.told = True  # type: ignore[attr-defined]
            raise
    domain, _ = load_task(settings)
    syn = SyntheticSet.load(folder.path) if summary["artifact"] else None
    report = federated_page(summary, domain, syn).save(folder.path / "report.html")
    if syn is not None:
        folder.figures.mkdir(exist_ok=True)
        domain.render(syn, folder.figures / "distilled.png")
    say(f"report: {report}", quiet)
    return summary


#: Lost clients of a round that are named, so that a thousand clients leave a log that can be read.
_TOLD = 5


def _watch(progress: Any, settings: Any, kind: Any) -> Any:
    """Bars: one per method, counting client answers, with accuracy and bytes so far."""
    from ddfed.registry import registry
    from ddfed_federated.settings import settings_of

    bars: dict[str, int] = {}
    federation = settings.federation
    asked = max(1, round(federation.participation * federation.clients))
    sent: dict[str, int] = {}

    def bar(method: str) -> int:
        if method not in bars:
            # Rounds in which something is forgotten stand under a name of their own; how many is the method's affair.
            known = method in (settings.method, *settings.baselines)
            rounds = registry().load("federated", method).rounds(settings_of(settings, method)) if known else None
            bars[method] = progress.task(method, total=rounds and rounds * asked)
        return bars[method]

    def replied(method: str, number: int, done: int, total: int) -> None:
        # The last answer of a round is counted when the round is done: the server has yet to train.
        progress.update(bar(method), completed=max(number - 1, 0) * asked + min(done, asked - 1), round=number)

    def finished(row: Any) -> None:
        sent[row.method] = sent.get(row.method, 0) + row.up + row.down
        progress.update(bar(row.method), completed=row.round * asked, accuracy=row.accuracy, bytes=sent[row.method])
        for why in row.lost[:_TOLD]:
            progress.note(f"{row.method}, round {row.round}: went on without {why}")
        if len(row.lost) > _TOLD:
            progress.note(f"{row.method}, round {row.round}: went on without {len(row.lost) - _TOLD} more")
        if row.stood_in:
            progress.note(f"{row.method}, round {row.round}: {len(row.stood_in)} old sets stood in")
        if row.note:
            progress.note(f"{row.method}, round {row.round}: {row.note}")
        if row.missing_classes and row.round == 1:
            progress.note(
                f"{row.method}: no client released class {', '.join(map(str, row.missing_classes))}, "
                f"so the model cannot learn it"
            )

    return kind(replied, finished)


def _print(summary: dict[str, Any], path: Path) -> None:
    from ddfed_federated.forgetting import forgetting_columns, forgetting_rows
    from ddfed_federated.measures import kept_ties
    from ddfed_federated.report import METHOD_COLUMNS, client_line, method_rows, told_lines

    table(METHOD_COLUMNS, method_rows(summary))
    for line in filter(None, [*told_lines(summary), client_line(summary)]):
        click.echo(line)
    if summary.get("forgetting"):
        click.echo(f"\nforgetting {', '.join(summary['forgetting']['targets'])}")
        table(forgetting_columns(summary["forgetting"]), forgetting_rows(summary["forgetting"]))
    if summary["partition"].get("ties"):
        click.echo(f"\n{kept_ties(summary['partition']['ties'])}")
    click.echo(f"\n{path / 'report.html'}")


MAKING = Making(
    command="simulate",
    resolver="ddfed_federated.settings:resolve_simulate",
    check="ddfed_federated.simulate:check_simulate",
    label=_label,
    execute=_run,
    show=_print,
)
simulate.making = MAKING  # type: ignore[attr-defined]
