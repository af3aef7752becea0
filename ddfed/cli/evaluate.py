"""``ddfed evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddfed.cli.options import config_option, json_option, layers, quiet_option, set_option
from ddfed.cli.output import emit, facts, say, table
from ddfed.errors import ConfigError

if TYPE_CHECKING:
    from ddfed.artifact import SyntheticSet
    from ddfed.config import Layer
    from ddfed.evaluate import Bench
    from ddfed.settings import DistillSettings


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--arch", "networks", help="Comma-separated networks to train, such as convnet,resnet18,mlp.")
@click.option("--protocol", help="Evaluation recipe; the set's own when absent.")
@click.option("--epochs", type=int, help="Overrides the recipe's epochs; the table says so.")
@click.option("--repeats", type=click.IntRange(min=1), help="Fresh networks per row (3).")
@click.option("--baselines", help="Rows beside it (random,label-only,full); 'none' for none.")
@click.option("--benchmark", type=click.Choice(["dc-bench"]), help="Networks x augmentations of the domain.")
@click.option("--augment", help="With --benchmark: comma-separated augmentations; all of the domain when absent.")
@click.option("--scores", is_flag=True, help="DD-Ranking's HLR, IOR, LRS and ARS.")
@click.option("--data", "root", type=click.Path(path_type=Path), help="Folder of the data set, if it moved.")
@click.option("--seed", type=int, help="Seed of the trained networks (0).")
@click.option("--device", help="auto, cpu, cuda, mps.")
@click.option("--threads", type=click.IntRange(min=0), help="Torch threads; 0 for the number of cores.")
@config_option
@set_option
@json_option
@quiet_option
def evaluate(
    artifact: Path,
    networks: str | None,
    protocol: str | None,
    epochs: int | None,
    repeats: int | None,
    baselines: str | None,
    benchmark: str | None,
    augment: str | None,
    scores: bool,
    root: Path | None,
    seed: int | None,
    device: str | None,
    threads: int | None,
    config_file: Path | None,
    sets: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Train fresh networks on a distilled set and test them, beside random items and full data.

    ARTIFACT is a run folder, or a folder that holds card.json and distilled.safetensors. Several networks make
    the cross-architecture table. Settings are those of `ddfed distill`; its sections data, evaluate and run count.

    \b
    Examples:
      ddfed evaluate runs/20260101-120000-dm-digits-ipc10
      ddfed evaluate my-set --arch convnet,resnet18,mlp --repeats 5
      ddfed evaluate my-set --benchmark dc-bench --arch convnet,mlp --augment none,dsa
      ddfed evaluate my-set --scores
    """
    from ddfed.artifact import SyntheticSet
    from ddfed.config import resolve
    from ddfed.devices import set_threads
    from ddfed.settings import DistillSettings

    if scores and benchmark:
        raise ConfigError("--scores and --benchmark are two tables; ask for one at a time")
    if augment and not benchmark:
        raise ConfigError("--augment belongs to --benchmark; a recipe's own augmentation comes with --protocol")
    if benchmark and protocol:
        raise ConfigError(f"--benchmark {benchmark} has a recipe of its own, so it takes no --protocol")
    syn = SyntheticSet.load(artifact)
    flags: dict[str, tuple[str, Any]] = {
        "--arch": ("evaluate.networks", _listed(networks)),
        "--protocol": ("evaluate.protocol", protocol),
        "--epochs": ("evaluate.epochs", epochs),
        "--repeats": ("evaluate.repeats", repeats),
        "--baselines": ("evaluate.baselines", [] if baselines == "none" else _listed(baselines)),
        "--data": ("data.root", str(root) if root else None),
        "--seed": ("run.seed", seed),
        "--device": ("run.device", device),
        "--threads": ("run.threads", threads),
    }
    given = layers(config_file, sets, flags)
    settings = resolve(DistillSettings, [*_from_card(syn), *given]).settings
    set_threads(settings.run.threads)
    work: Callable[[Any], tuple[Any, Show]]
    if scores:
        work = partial(_scores, syn, settings)
    elif benchmark:
        work = partial(_matrix, syn, settings, _listed(augment) or [])
    else:
        work = partial(_table, syn, settings)
    data, show = _watched(work, quiet)
    emit(data, as_json, show)


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _from_card(syn: SyntheticSet) -> list[Layer]:
    """The data settings that the set's card records, to lie below the user's."""
    from ddfed.config import Layer

    settings = syn.provenance.get("settings")
    saved = settings.get("data") if isinstance(settings, Mapping) else None
    if not isinstance(saved, Mapping):
        saved = {"domain": syn.info.domain, "dataset": syn.info.dataset}
    return [Layer("the set's card", {"data": {k: v for k, v in saved.items() if v is not None}})]


Show = Callable[[], None]


def _watched(work: Callable[[Any], tuple[Any, Show]], quiet: bool) -> tuple[Any, Show]:
    """Run ``work`` with a report that draws a bar for each text."""
    from ddfed.progress import Progress

    bars: dict[str, int] = {}
    with Progress(enabled=not quiet) as progress:

        def show(text: str, done: int, total: int) -> None:
            if text not in bars:
                bars[text] = progress.task(f"training on {text}", total=total)
            progress.update(bars[text], completed=done)

        return work(show)


def _bench(syn: SyntheticSet, settings: DistillSettings, report: Any) -> Bench:
    from ddfed.central import load_task
    from ddfed.devices import resolve_device
    from ddfed.errors import MissingDataError
    from ddfed.evaluate import Bench
    from ddfed.seeds import Streams

    how = settings.evaluate
    try:
        domain, task = load_task(settings.data)
    except MissingDataError as error:
        raise MissingDataError(f"{error}. If the data moved, give their folder with --data.") from None
    return Bench(
        syn,
        task,
        domain,
        name=str(syn.provenance.get("recipe", "distilled")),
        repeats=how.repeats,
        baselines=how.baselines,
        teacher_steps=how.teacher_steps,
        teacher_network=how.networks[0] if how.networks else "",
        streams=Streams(settings.run.seed).child("evaluate"),
        device=resolve_device(settings.run.device),
        report=report,
    )


def _table(syn: SyntheticSet, settings: DistillSettings, report: Any) -> tuple[Any, Show]:
    from ddfed.report.pages import EVALUATION_COLUMNS, evaluation_rows

    how = settings.evaluate
    rows = _bench(syn, settings, report).tables(how.networks, how.protocol, how.epochs)
    data = [row.to_json() for row in rows]
    return data, lambda: table(EVALUATION_COLUMNS, evaluation_rows(data))


def _matrix(syn: SyntheticSet, settings: DistillSettings, augmentations: list[str], report: Any) -> tuple[Any, Show]:
    from ddfed.evaluate.matrix import matrix

    how = settings.evaluate
    found = matrix(_bench(syn, settings, report), how.networks, augmentations, how.epochs)
    for name, why in found.left_out.items():
        say(f"left out: {name}: {why}")
    return found.to_json(), lambda: table(found.columns, found.table())


def _scores(syn: SyntheticSet, settings: DistillSettings, report: Any) -> tuple[Any, Show]:
    from ddfed.evaluate.protocols import Protocol
    from ddfed.evaluate.scores import ranking
    from ddfed.report.pages import EVALUATION_COLUMNS, evaluation_rows

    how, bench = settings.evaluate, _bench(syn, settings, report)
    if len(how.networks) > 1:
        raise ConfigError(f"--scores are for one network, got {', '.join(how.networks)}")
    own = bench.recipe(how.protocol)
    if not isinstance(own, Protocol):
        raise ConfigError(f"--scores train networks, and {own.name} trains none; name another with --protocol")
    network = how.networks[0] if how.networks else bench.domain.default_network(bench.task.info)
    found = ranking(bench, network, own, how.epochs)
    data = found.to_json()

    def show() -> None:
        facts({name: f"{value:.4f}" for name, value in found.scores.items()}, "scores")
        facts(found.used, "measured with")
        rows = [[name, *cells[1:]] for name, cells in zip(found.rows, evaluation_rows(list(data["rows"].values())))]
        table(EVALUATION_COLUMNS, rows)

    return data, show
