"""``ddfed reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddfed.cli.options import data_option, device_option, json_option, layers, out_option, quiet_option, set_option
from ddfed.cli.output import emit, facts, say, table
from ddfed.cli.running import Making, made_by
from ddfed.errors import ConfigError, DdfedError

if TYPE_CHECKING:
    from ddfed.reproduce import Scenario
    from ddfed.runs import RunFolder


@click.command()
@click.argument("name", required=False)
@click.option("--list", "as_list", is_flag=True, help="Every scenario: cost, published and last measured figure.")
@click.option("--reduced", is_flag=True, help="The same experiment with less work.")
@click.option("--toml", "as_toml", is_flag=True, help="Print the scenario's file, to copy and change.")
@data_option
@click.option("--seed", "seeds", type=int, multiple=True, help="Root of all randomness (0); repeatable, for a spread.")
@device_option
@click.option("--resume", is_flag=True, help="Go on with runs of this scenario that were stopped, in --out.")
@set_option
@out_option
@json_option
@quiet_option
@click.pass_context
def reproduce(
    ctx: click.Context,
    name: str | None,
    as_list: bool,
    reduced: bool,
    as_toml: bool,
    root: Path | None,
    seeds: tuple[int, ...],
    device: str | None,
    resume: bool,
    sets: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run a scenario, and put the measured figure beside the published one.

    NAME is a scenario of the list, or a file of your own that has a table [scenario]. A figure that misses is
    said; it is no error.

    \b
    Examples:
      ddfed reproduce --list
      ddfed reproduce dm-mnist-ipc10 --reduced --data ~/data/mnist
      ddfed reproduce dm-cifar10-ipc10 --data ~/data/cifar10 --seed 0 --seed 1
      ddfed reproduce dm-cifar10-ipc10 --toml > mine.toml
    """
    from ddfed.reproduce import load_scenario

    if as_list:
        _list(as_json)
        return
    if name is None:
        raise ConfigError("which scenario? `ddfed reproduce --list` shows them")
    scenario = load_scenario(name)
    if reduced:
        scenario = _reduced(scenario)
    if as_toml:
        click.echo(scenario.text, nl=False)
        return
    flags: dict[str, tuple[str, Any]] = {
        "--data": ("data.root", str(root) if root else None),
        "--device": ("run.device", device),
        "--out": ("run.out", str(out) if out else None),
    }
    _reproduce(ctx, scenario, flags, sets, seeds or (0,), resume, as_json, quiet)


def _reproduce(
    ctx: click.Context,
    scenario: Scenario,
    flags: dict[str, tuple[str, Any]],
    sets: tuple[str, ...],
    seeds: tuple[int, ...],
    resume: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """One run a seed, then the figures."""
    from ddfed.reproduce import outcome

    making = making_of(scenario.table.command, ctx)
    summaries, paths = [], []
    for number, seed in enumerate(dict.fromkeys(seeds)):
        run = {"--seed": ("run.seed", seed), "run name": ("run.name", f"{scenario.name}-seed{seed}")}
        settings = making.resolve([scenario.layer, *layers(None, sets, {**flags, **run})]).settings
        old = earlier(settings, making) if resume else None
        folder = old or making.start(settings)
        say(f"{'going on with' if old else 'run folder:'} {folder.path}", quiet)
        try:
            summaries.append(making.finish(settings, folder, old is not None, quiet))
        except KeyboardInterrupt:
            left = len(set(seeds)) - number
            say(f"the scenario ({left} runs left) goes on with the same command and --resume", quiet)
            raise
        paths.append(str(folder.path))
    found = {**outcome(scenario, summaries, sets), "runs": paths}
    emit(found, as_json, lambda: _print(found))


def _reduced(scenario: Scenario) -> Scenario:
    from ddfed.reproduce import load_scenario

    if not scenario.table.reduced:
        raise ConfigError(f"scenario {scenario.name!r} has no reduced form; run it as it is ({scenario.table.cost})")
    return load_scenario(scenario.table.reduced)


def making_of(command: str, ctx: click.Context) -> Making:
    """How the command that a scenario names makes its runs.

    Raises:
        ConfigError: there is no such command, or it makes no runs.
    """
    root = ctx.find_root()
    group = root.command
    found = group.get_command(root, command) if isinstance(group, click.Group) else None
    making = getattr(found.load() if found is not None and hasattr(found, "load") else found, "making", None)
    if not isinstance(making, Making):
        raise ConfigError(f"the scenario wants `ddfed {command}`, which is no command that makes runs here")
    return making


def earlier(settings: Any, making: Making) -> RunFolder | None:
    """The newest run folder in ``run.out`` that was made with these very settings; None if there is none."""
    from ddfed.config import read_toml
    from ddfed.runs import RunFolder, find_runs

    def same(run: RunFolder) -> bool:
        if f"-{settings.run.name}" not in run.path.name or made_by(run) != making.command:
            return False
        theirs = making.resolve([read_toml(run.config_path)]).settings
        return bool(theirs.model_dump(mode="json") == settings.model_dump(mode="json"))

    found = next((run for run in reversed(find_runs(settings.run.out)) if same(run)), None)
    return None if found is None else RunFolder.open(found.path, writable=True)


# --- printing -----------------------------------------------------------------------------------------------


def _list(as_json: bool) -> None:
    from ddfed.reproduce import load_scenario, scenario_names

    rows = []
    for name in scenario_names():
        try:
            rows.append(load_scenario(name).to_json())
        except DdfedError as error:  # one broken plugin must not hide the others
            say(f"left out: {error}")
    cells = [(r["name"], _figure(r["published"]), _figure(r["measured"]), r["cost"]) for r in rows]
    emit(rows, as_json, lambda: table(("name", "published %", "last measured %", "cost"), cells, width=100))


def _figure(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"{row['accuracy']:.1f}" + (f" ± {row['spread']:.1f}" if row["spread"] is not None else "")


def _print(found: dict[str, Any]) -> None:
    published, measured, last = found["published"], found["measured"], found["last_measured"]
    facts(
        {
            "measures": found["measure"],
            "published": f"{_figure(published)} % under {published['protocol']} ({published['source']})"
            if published
            else "no figure is known for these settings",
            "measured": f"{_figure(measured)} % {_over(measured)} ({measured['protocol']})",
            "random": f"{measured['control']:.1f} %" if measured["control"] is not None else "",
            "difference": _verdict(found),
            "last": f"{_figure(last)} % {_over(last)}; {last['machine']}" if last else "not measured yet",
            "took": f"{measured['seconds']:.0f} s on {measured['machine']}",
            "runs": found["runs"],
        },
        title=f"{found['name']}: {found['title']}",
    )


def _over(row: dict[str, Any]) -> str:
    seeds = ", ".join(map(str, row["seeds"]))
    if row["spread"] is None:
        return f"(seed {seeds})"
    return f"over seeds {seeds}" if row["over"] == "seeds" else f"over networks, seed {seeds}"


def _verdict(found: dict[str, Any]) -> str:
    if found["difference"] is None:
        return ""
    points = f"{found['difference']:+.1f} points: "
    if found["changed"]:
        return points + f"settings were changed ({', '.join(found['changed'])}), so it is held to nothing"
    if found["reduction"]:
        return points + f"reduced ({found['reduction']}), so no tolerance is claimed"
    if found["within"] is None:
        return points + "no tolerance is claimed"
    side = "within" if found["within"] else "OUTSIDE"
    return points + f"{side} the tolerance of {found['tolerance']} points"
