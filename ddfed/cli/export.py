"""``ddfed export``."""

from __future__ import annotations

from pathlib import Path

import click

from ddfed.cli.output import emit


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--format", "fmt", default="", help="Format; the modality's usual one when absent.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export(artifact: Path, folder: Path, fmt: str, as_json: bool) -> None:
    """Write a distilled set in the modality's own ecosystem format.

    \b
    Example:
      ddfed export runs/20260101-120000-dm-digits-ipc10 my-images
    """
    from ddfed.artifact import SyntheticSet
    from ddfed.registry import registry

    syn = SyntheticSet.load(artifact)
    domain = registry().load("domain", syn.info.domain, "the card")()
    chosen = domain.check_name("export format", fmt or domain.export_formats[0], domain.export_formats)
    written = [str(path) for path in domain.export(syn, folder, chosen)]
    shown = f"{len(written)} files in {folder} ({chosen})"
    emit({"format": chosen, "files": written}, as_json, lambda: click.echo(shown))
