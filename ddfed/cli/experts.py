"""``ddfed experts make|list|check``: buffers for trajectory matching."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ddfed.cli.options import (
    data_option,
    device_option,
    json_option,
    layers,
    quiet_option,
    seed_option,
    settings_options,
)
from ddfed.cli.output import emit, say, table
from ddfed.cli.output import facts as print_facts
from ddfed.errors import ArtifactError


@click.group()
def experts() -> None:
    """Buffers of networks in training on real data, which trajectory matching follows."""


@experts.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--method", "-m", help="Train them as this recipe asks (mtt, ftd, datm, ...).")
@click.option("--domain", help="Modality (image).")
@click.option("--dataset", help="Data set of the domain (digits, embedded).")
@data_option
@click.option("--network", help="Network; the domain's default when absent.")
@click.option("--count", type=int, help="How many experts (10).")
@click.option("--epochs", type=int, help="Epochs of each (50); a snapshot is kept after every one.")
@seed_option
@device_option
@quiet_option
@json_option
@settings_options
def make(
    folder: Path,
    method: str | None,
    domain: str | None,
    dataset: str | None,
    root: Path | None,
    network: str | None,
    count: int | None,
    epochs: int | None,
    seed: int | None,
    device: str | None,
    quiet: bool,
    as_json: bool,
    config_file: Path | None,
    sets: tuple[str, ...],
) -> None:
    """Train experts and keep what they were at every epoch in FOLDER.

    What the folder has already is kept, so the same command goes on after an interruption, or adds experts when
    --count is raised.

    \b
    Examples:
      ddfed experts make experts/digits --count 3 --epochs 20
      ddfed experts make experts/cifar10-mtt --method mtt --dataset cifar10 --data ~/data/cifar10 \\
          --count 10 --set data.options.whitening=mtt
    """
    from ddfed.config import resolve
    from ddfed.experts import facts, plan
    from ddfed.experts import make as train
    from ddfed.progress import Progress
    from ddfed.settings import ExpertSettings

    flags: dict[str, tuple[str, Any]] = {
        "FOLDER": ("folder", str(folder)),
        "--domain": ("data.domain", domain),
        "--dataset": ("data.dataset", dataset),
        "--data": ("data.root", str(root) if root else None),
        "--network": ("network", network),
        "--count": ("count", count),
        "--epochs": ("training.epochs", epochs),
        "--seed": ("run.seed", seed),
        "--device": ("run.device", device),
    }
    given = layers(config_file, sets, flags)
    settings = resolve(ExpertSettings, [*_as_recipe(method, given), *given]).settings
    work = plan(settings)
    kept = settings.count - len(work.missing)
    say(f"{work.buffer.folder}: {len(work.missing)} experts to make, {kept} are there; {work.cost}", quiet)
    with Progress(enabled=not quiet) as progress:
        bar = progress.task("training experts", total=work.cost.steps)
        try:
            buffer = train(work, lambda done, total: progress.update(bar, completed=done, experts=work.buffer.experts))
        except KeyboardInterrupt:
            progress.note(
                f"interrupted; {work.buffer.experts} experts are finished and kept, and the same command goes on"
            )
            raise
    found = facts(buffer)
    emit(found, as_json, lambda: print_facts(found))


def _as_recipe(method: str | None, given: Any) -> list[Any]:
    """How a recipe trains its experts, to lie below the user's settings."""
    from ddfed.config import Layer
    from ddfed.errors import ConfigError
    from ddfed.settings import resolve_distill, value_of

    if method is None:
        return []
    about = {"method": method, "data": {"dataset": value_of(given, "data.dataset", "digits")}}
    parts = resolve_distill([Layer("--method", about)]).settings.distill
    if parts.pool != "X":
        raise ConfigError(
            f"method {method!r} follows no experts (its pool is {parts.pool!r}), so there are none to make"
        )
    make = parts.pool_options.get("make", {})
    return [Layer(f"recipe {method}", {"network": parts.network, "training": make})]


@experts.command("list")
@click.argument("folder", required=False, default=".", type=click.Path(path_type=Path))
@json_option
def list_experts(folder: Path, as_json: bool) -> None:
    """List the buffers in FOLDER (the current one) and two levels below it."""
    from ddfed.experts import facts, find

    rows = [facts(buffer) for buffer in find(folder)]

    def human() -> None:
        if not rows:
            click.echo(f"no expert buffers in {folder}; make one with `ddfed experts make FOLDER`", err=True)
        else:
            table(list(rows[0]), [list(row.values()) for row in rows])

    emit(rows, as_json, human)


@experts.command()
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
def check(folder: Path, as_json: bool) -> None:
    """Read all of a buffer; names every file that is truncated, changed or foreign, and then exits with 1."""
    from ddfed.experts import check as read

    found = read(folder)
    emit(found, as_json, lambda: print_facts({**found, "damaged": list(found["damaged"])}))
    if found["damaged"]:
        told = "; ".join(f"{name} {why}" for name, why in found["damaged"].items())
        raise ArtifactError(
            f"{told}. Delete these, and run the command that made the buffer again: it makes what is missing"
        )


def _settings() -> Any:
    from ddfed.settings import ExpertSettings

    return ExpertSettings


experts.settings = _settings  # type: ignore[attr-defined]
