"""``ddfed show``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ddfed.cli.output import emit, facts


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--picture", type=click.Path(path_type=Path), help="Also write a picture of the set to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the card, and the summary of a run.")
def show(path: Path, picture: Path | None, as_json: bool) -> None:
    """Look at a distilled set or a run folder: what it is, where it came from, what it may claim.

    \b
    Example:
      ddfed show runs/20260101-120000-dm-digits-ipc10 --picture set.png
    """
    from ddfed.artifact import SyntheticSet
    from ddfed.registry import registry

    syn = SyntheticSet.load(path)
    card = syn.card(syn.content_hash)
    if picture is not None:
        domain = registry().load("domain", syn.info.domain, "the card")()
        click.echo(f"picture: {domain.render(syn, picture)}", err=True)
    emit(card, as_json, lambda: facts(_shown(card)))


def _shown(card: dict[str, Any]) -> dict[str, Any]:
    task, budget, provenance = card["task"], card["budget"], card["provenance"]
    return {
        "task": f"{task['domain']}/{task['dataset']}, {len(task['classes'])} classes, items of {tuple(task['shape'])}",
        "items": f"{budget['items']} stored, {budget['rows']} rows, {budget['stored_bytes']} bytes",
        "per class": budget["items_per_class"],
        "decoder": card["decoder"]["name"],
        "labels": f"{card['labels']['name']} ({card['labels']['loss']})",
        "space": card["space"]["kind"],
        "evaluation recipe": card["protocol"],
        "made by": ", ".join(
            [provenance.get("recipe", "unknown"), f"seed {provenance.get('seed', 'unknown')}", f"ddfed {card['ddfed']}"]
        ),
        "federated": provenance.get("federated", {}).get("round") and f"round {provenance['federated']['round']}",
        "privacy": card["privacy"]["statement"],
        "licence of the data": card["licence"],
        "source": task["source"],
        "sha256": card["sha256"],
    }
