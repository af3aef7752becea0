"""Scenarios: experiments as files, with the published figure to hold the measured one against.

A scenario is a settings file that ``--config`` takes, with one more table that says what it is::

    method = "dm"

    [data]
    dataset = "cifar10"

    [scenario]
    title = "DM on CIFAR-10, ten items per class"
    measure = "test accuracy of 20 networks trained on the set, last epoch"
    cost = "8 h on two cores"
    tolerance = 1.5
    reduced = "dm-cifar10-ipc10-reduced"

A plugin offers one with ``registry.add("scenario", "dm-cifar10-ipc10", "my_package:dm-cifar10-ipc10.toml")``. The
published figure is the recipe's (`ddfed.recipes.Published`) for this data set, budget and evaluation recipe, so that
it stands in one place; ``[scenario.published]`` holds it where no recipe can. Light: imports no torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ddfed.config import SCENARIO, Layer, read_tables, resolve
from ddfed.errors import ConfigError, one_of, suggest
from ddfed.recipes import Published
from ddfed.registry import Component, registry
from ddfed.settings import DistillSettings, Settings, resolve_distill


class PublishedSettings(Settings):
    """A figure that stands in no recipe: of a federated method, or of other settings than the recipe's."""

    accuracy: float = Field(ge=0, le=100, description="percent")
    spread: float | None = Field(None, ge=0, description="as printed; none where none is printed")
    protocol: str = Field("", description="evaluation recipe, or how else it was measured")
    source: str = Field(min_length=1, description="authors, title, venue, or where else it stands")


class MeasuredSettings(Settings):
    """What the scenario gave when it was last run; `outcome` gives the same fields."""

    accuracy: float = Field(ge=0, le=100, description="percent, mean")
    spread: float | None = Field(None, ge=0, description="deviation over networks (population) or seeds (sample)")
    over: Literal["networks", "seeds"] = Field("networks", description="what the spread is over")
    seeds: tuple[int, ...] = Field(min_length=1, description="seeds of the runs")
    control: float | None = Field(None, ge=0, le=100, description="random real items of the same budget, percent")
    protocol: str = Field("", description="how it was judged, departures included")
    machine: str = Field("", description="in words: processor, threads, versions")
    seconds: float | None = Field(None, ge=0, description="of all runs together")
    command: str = Field("", description="what was typed")


class ScenarioTable(Settings):
    """The table ``[scenario]``."""

    title: str = Field(min_length=1, description="what is run, in one line")
    command: str = Field("distill", description="the command that runs it: distill, simulate")
    measure: str = Field(min_length=1, description="what the figure is and how it is measured")
    cost: str = Field(min_length=1, description="time it takes, in words")
    tolerance: float | None = Field(None, gt=0, description="points that the published figure may be missed by")
    reduced: str = Field("", description="name of the scenario that does the same with less work")
    reduction: str = Field("", description="what is reduced; such a scenario claims no tolerance")
    published: PublishedSettings | None = Field(None, description="the figure, where no recipe holds it")
    measured: MeasuredSettings | None = Field(None, description="what it gave when it was last run")


class _File(Settings):
    scenario: ScenarioTable


@dataclass(frozen=True)
class Scenario:
    """An experiment with its published figure.

    Args:
        name: what people type.
        text: the file, for copying.
        layer: its settings.
        table: what the file says about itself.
        published: the figure to hold against; None where none is known for these settings.
    """

    name: str
    text: str
    layer: Layer
    table: ScenarioTable
    published: Published | None

    @property
    def method(self) -> str:
        return str(self.layer.values.get("method", ""))

    def to_json(self) -> dict[str, Any]:
        """What lists show."""
        table = self.table.model_dump(mode="json", exclude={"published"})
        return {"name": self.name, "method": self.method, **table, "published": _published_json(self.published)}


def scenario_names() -> list[str]:
    return registry().names("scenario")


def load_scenario(name: str) -> Scenario:
    """A scenario by its name, or from a file of one's own.

    Args:
        name: of a registered scenario, or the path of a ``.toml`` file.

    Raises:
        UnknownNameError: nobody offers it.
        ConfigError: the file is broken; the message says where and why.
    """
    if name.endswith(".toml"):
        return read_scenario(Path(name).stem, Path(name))
    component = registry().get("scenario", name)
    with as_file(_resource(component)) as path:
        return read_scenario(name, path)


def _resource(component: Component) -> Any:
    package, _, file = component.target.partition(":")
    try:
        return files(package) / file
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"scenario {component.name!r} of plugin {component.plugin!r}: {component.target!r} is no "
            f"'package:file.toml': {error}"
        ) from None


def read_scenario(name: str, path: Path) -> Scenario:
    """A scenario from its file; see `load_scenario`."""
    tables = read_tables(path)
    origin = f"scenario {name}"
    if not isinstance(tables.get(SCENARIO), Mapping):
        raise ConfigError(f"{path} has no table [scenario], so there is nothing to reproduce; run it with --config")
    table = resolve(_File, [Layer(origin, {SCENARIO: tables.pop(SCENARIO)})]).settings.scenario
    layer = Layer(origin, tables)
    published = _published(name, table, layer)
    if table.tolerance is not None and published is None:
        raise ConfigError(f"{origin}: a tolerance, but no published figure to hold it to; give [scenario.published]")
    if table.tolerance is not None and table.reduction:
        raise ConfigError(
            f"{origin}: a reduced setting cannot be held to the published figure; leave out the tolerance"
        )
    if table.reduced and table.reduced not in scenario_names():
        raise ConfigError(
            f"{origin}: 'reduced' names {table.reduced!r}, which is no scenario."
            f"{suggest(table.reduced, scenario_names())} `ddfed reproduce --list` shows them all."
        )
    return Scenario(name, path.read_text(encoding="utf-8"), layer, table, published)


def _published(name: str, table: ScenarioTable, layer: Layer) -> Published | None:
    """The recipe's figure for these settings, or the file's."""
    settings = resolve_distill([layer]).settings if table.command == "distill" else None
    known = _in_recipe(settings, f"scenario {name}", exactly=not table.reduction) if settings else []
    if table.published is None:
        if len(known) > 1:
            raise ConfigError(
                f"scenario {name}: its recipe holds {len(known)} figures for these settings "
                f"({one_of(p.source for p in known)}); say which in [scenario.published]"
            )
        return known[0] if known else None
    given = table.published
    if len(known) == 1:
        raise ConfigError(
            f"scenario {name}: the recipe holds the published figure ({known[0].accuracy} %); leave out "
            f"[scenario.published], so that it stands in one place"
        )
    dataset, ipc = (settings.data.dataset, settings.distill.ipc) if settings else ("", 0)
    return Published(dataset, ipc, given.accuracy, given.spread, given.protocol, given.source)


def _in_recipe(settings: DistillSettings, origin: str, exactly: bool) -> list[Published]:
    """The recipe's figures for a data set, budget and evaluation recipe.

    Args:
        settings: what is run.
        origin: who asks.
        exactly: also under the same epochs; a reduced scenario may train fewer.
    """
    protocol = settings.evaluate.protocol or settings.distill.protocol
    # As `ddfed.evaluate.Protocol.with_epochs` names it.
    whole = protocol if settings.evaluate.epochs is None else f"{protocol} ({settings.evaluate.epochs} epochs)"
    return [
        p
        for p in registry().get("recipe", settings.method, origin).read().published
        if (p.dataset, p.ipc) == (settings.data.dataset, settings.distill.ipc)
        and (p.protocol == whole if exactly else p.protocol.partition(" (")[0] == protocol)
    ]


def _published_json(published: Published | None) -> dict[str, Any] | None:
    return None if published is None else asdict(published)


def outcome(scenario: Scenario, summaries: Sequence[Mapping[str, Any]], changed: Sequence[str] = ()) -> dict[str, Any]:
    """The published figure beside the measured one.

    Args:
        scenario: what was run.
        summaries: of its finished runs (``summary.json``), one a seed.
        changed: settings that differ from the file's; then the runs are held to nothing.

    Returns:
        JSON: ``published``, ``measured``, ``difference`` in points (measured less published), ``tolerance`` and
        ``within``: True or False, None where no tolerance is claimed (no figure, reduced or changed settings).
    """
    measured = _measured(summaries)
    published, tolerance = scenario.published, scenario.table.tolerance
    difference = None if published is None else round(measured["accuracy"] - published.accuracy, 2)
    held = difference is not None and tolerance is not None and not changed
    return {
        **scenario.to_json(),
        "last_measured": scenario.table.model_dump(mode="json")["measured"],
        "measured": measured,
        "difference": difference,
        "within": abs(difference) <= tolerance if held and difference is not None and tolerance is not None else None,
        "changed": list(changed),
    }


def _measured(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of `MeasuredSettings` from runs that differ by seed alone."""
    rows = [_row(summary) for summary in summaries]
    means = [row["accuracy"] for row in rows]
    several = len(rows) > 1
    spread = statistics.stdev(means) if several else rows[0]["spread"]
    controls = [row["control"] for row in rows if row["control"] is not None]
    return {
        "accuracy": round(statistics.fmean(means), 2),
        "spread": None if spread is None else round(spread, 2),
        "over": "seeds" if several else "networks",
        "seeds": [summary["seed"] for summary in summaries],
        "control": round(statistics.fmean(controls), 2) if controls else None,
        "protocol": rows[0]["protocol"],
        "machine": _machine(summaries[0]),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
    }


def _row(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Figure, spread over networks, control and seconds of one run, in percent."""
    method = summary["settings"]["method"]
    if summary["kind"] == "federated":
        methods = summary["methods"]
        control = methods.get("random-once", {}).get("accuracy")
        federation = summary["settings"]["federation"]
        return {
            "accuracy": 100 * methods[method]["accuracy"],
            "spread": None,
            "control": None if control is None else 100 * control,
            "protocol": f"global model after {federation['rounds']} rounds",
            "seconds": float(summary.get("seconds") or 0),
        }
    table = summary["evaluation"]
    mine = next(row for row in table if row["subject"] == method)
    # The method may itself be random selection: then the control is the second row of that name.
    others = (r for r in table if r is not mine and r["network"] == mine["network"])
    random = next((r for r in others if r["subject"] == "random"), None)
    return {
        "accuracy": 100 * mine["mean"],
        "spread": 100 * mine["std"] if len(mine["accuracies"]) > 1 else None,
        "control": None if random is None else 100 * random["mean"],
        "protocol": f"{mine['protocol']}, {mine['network']}",
        "seconds": sum(summary["seconds"].values()),
    }


def _machine(summary: Mapping[str, Any]) -> str:
    machine, versions = summary.get("machine", {}), summary.get("versions", {})
    words = [str(machine["device"])] if "device" in machine else []
    words += [f"{machine['threads']} torch threads"] if "threads" in machine else []
    words += [f"torch {versions['torch']}"] if "torch" in versions else []
    return ", ".join(words)
