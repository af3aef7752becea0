"""``ddfed evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddfed.cli.output import emit, table

if TYPE_CHECKING:
    from ddfed.artifact import SyntheticSet
    from ddfed.settings import DataSettings


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--arch", "networks", help="Comma-separated networks to train, such as convnet,resnet18,mlp.")
@click.option("--protocol", default="", help="Evaluation recipe; the set's own when absent.")
@click.option("--epochs", type=int, help="Overrides the recipe's epochs; the table says so.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Fresh networks per row.")
@click.option("--baselines", default="random,full", show_default=True, help="Rows beside it; 'none' for none.")
@click.option("--data", "root", type=click.Path(path_type=Path), help="Folder of the data set, if it moved.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the trained networks.")
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Torch threads; 0 for the number of cores.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", "-q", is_flag=True, help="Only the result, no progress.")
def evaluate(
    artifact: Path,
    networks: str | None,
    protocol: str,
    epochs: int | None,
    repeats: int,
    baselines: str,
    root: Path | None,
    seed: int,
    device: str,
    threads: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train fresh networks on a distilled set and test them, beside random items and full data.

    ARTIFACT is a run folder, or a folder that holds card.json and distilled.safetensors. Several networks make
    the cross-architecture table.

    \b
    Examples:
      ddfed evaluate runs/20260101-120000-dm-digits-ipc10
      ddfed evaluate my-set --arch convnet,resnet18,mlp --repeats 5
    """
    from ddfed.artifact import SyntheticSet
    from ddfed.central import load_task
    from ddfed.devices import resolve_device, set_threads
    from ddfed.errors import ConfigError, MissingDataError
    from ddfed.evaluate import evaluate as judge
    from ddfed.progress import Progress
    from ddfed.report.pages import EVALUATION_COLUMNS, evaluation_rows
    from ddfed.seeds import Streams

    wanted = [] if baselines == "none" else [b.strip() for b in baselines.split(",")]
    for name in wanted:
        if name not in ("random", "full"):
            raise ConfigError(f"unknown baseline {name!r} (from --baselines). Possible: 'random', 'full', or 'none'")
    set_threads(threads)
    syn = SyntheticSet.load(artifact)
    try:
        domain, task = load_task(data_of(syn, root))
    except MissingDataError as error:
        raise MissingDataError(f"{error}. If the data moved, give their folder with --data.") from None
    bars: dict[str, int] = {}
    with Progress(enabled=not quiet) as progress:

        def show(text: str, done: int, total: int) -> None:
            if text not in bars:
                bars[text] = progress.task(f"training on {text}", total=total)
            progress.update(bars[text], completed=done)

        rows = judge(
            syn,
            task,
            domain,
            name=str(syn.provenance.get("recipe", "distilled")),
            networks=[n.strip() for n in networks.split(",")] if networks else (),
            protocol=protocol,
            epochs=epochs,
            repeats=repeats,
            baselines=wanted,
            streams=Streams(seed).child("evaluate"),
            device=resolve_device(device),
            report=show,
        )
    data = [row.to_json() for row in rows]
    emit(data, as_json, lambda: table(EVALUATION_COLUMNS, evaluation_rows(data)))


def data_of(syn: SyntheticSet, root: Path | None) -> DataSettings:
    """The data settings that the set's card records, with the folder replaced if it moved."""
    from ddfed.errors import ArtifactError
    from ddfed.settings import DataSettings

    saved = syn.provenance.get("settings", {})
    if "data" in saved:
        found = DataSettings.model_validate(saved["data"])
    elif root is None and syn.info.dataset != "digits":
        raise ArtifactError(f"the card does not say where {syn.info.dataset!r} lies; give its folder with --data")
    else:
        found = DataSettings(domain=syn.info.domain, dataset=syn.info.dataset)
    return found.model_copy(update={"root": root}) if root is not None else found
