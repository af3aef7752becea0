"""``ddfed forget``: what ``ddfed simulate --forget`` does after its last round, for a run that has ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddfed.cli.options import json_option, out_option, quiet_option
from ddfed.cli.output import emit, say
from ddfed_federated.cli import MAKING

if TYPE_CHECKING:
    from ddfed.runs import RunFolder


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@out_option
@json_option
@quiet_option
def forget(run: Path, targets: tuple[str, ...], out: Path | None, as_json: bool, quiet: bool) -> None:
    """Let a finished federation forget clients or classes, and hold the result against a run without them.

    RUN is a finished run of `ddfed simulate` ('latest' for the newest), a TARGET is client=3 or class=7; all are
    forgotten together. The main method goes on from where its last round left it, in a run folder of its own; RUN
    stays as it is. What was interrupted goes on by `ddfed simulate --resume`.

    \b
    Examples:
      ddfed forget latest client=3
      ddfed forget runs/20260101-120000-feddm-digits-5clients class=7 class=8
    """
    from ddfed.runs import RunFolder

    settings, folder = begun(RunFolder.open(run, out), targets, out)
    say(f"run folder: {folder.path}", quiet)
    summary = MAKING.finish(settings, folder, True, quiet)
    emit(summary, as_json, lambda: MAKING.show(summary, folder.path))


def begun(run: RunFolder, targets: Sequence[str], out: Path | None = None) -> tuple[Any, RunFolder]:
    """A new run folder whose checkpoint is the end of a run, so that what is left of it is to forget.

    Args:
        run: finished.
        targets: what it forgets.
        out: where the folder is made; beside ``run`` if None.

    Raises:
        ConfigError: no finished federated run with data in one place, a method that cannot forget, wrong targets, or
            data that lie otherwise than they did.
    """
    from ddfed.cli.running import made_by
    from ddfed.config import Layer, read_toml
    from ddfed.errors import ConfigError
    from ddfed_federated.worker import load_partition

    if made_by(run) != MAKING.command:
        raise ConfigError(f"{run.path} was made by `ddfed {made_by(run)}`, and only federations forget clients")
    if not run.finished:
        raise ConfigError(f"{run.path} is not finished; go on with it first: ddfed simulate --resume {run.path}")
    before = read_toml(run.config_path)
    trained = MAKING.resolve([before]).settings
    if trained.federation.partition == "own":
        raise ConfigError(
            f"the sites of {run.path} keep their data to themselves, and forgetting is judged by the rows that are "
            f"forgotten and by a run without them. Train the federation anew without them (federation.without)."
        )
    asked = {
        "forget": list(targets),
        "baselines": [],
        "references": [],
        "methods": {},
        "run": {"out": str(out or run.path.parent), "name": f"{trained.method}-forgets-{'-'.join(targets)}"},
        # Where the clients of a deployment were machines, they are simulated.
        "federation": {"backend": "inprocess"} if trained.federation.backend == "deployed" else {},
    }
    given = {key: value for key, value in before.values.items() if key != "methods"}
    settings = MAKING.resolve([Layer(before.origin, given), Layer("ddfed forget", asked)]).settings
    known, here = run.summary()["partition"]["hash"], load_partition(settings).hash
    if here != known:
        raise ConfigError(
            f"the rows of the clients of {run.path} cannot be told any more: its split had the hash {known[:12]}, and "
            f"the same settings give {here[:12]} now. Put back the data that it was made from."
        )
    saved = run.load_checkpoint()
    end = saved.get("trained")
    if end is None:
        raise ConfigError(
            f"{run.path} did not keep the end of {trained.method!r}, as runs of older versions did not; run it again, "
            f"with --forget {targets[0]}"
        )
    folder = MAKING.start(settings)
    rows = {trained.method: saved["rows"][trained.method]}
    kept = {key: saved[key] for key in ("union", "clients")}
    folder.checkpoint({"method": trained.method, **end, "rows": rows, **kept, "forgotten": None, "trained": end})
    return settings, folder
