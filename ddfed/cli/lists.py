"""``ddfed methods|domains|datasets|plugins list|show``: what there is. Imports no torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ddfed.cli.options import json_option
from ddfed.cli.output import emit, facts, table
from ddfed.errors import UnknownNameError, suggest
from ddfed.registry import KINDS, PLURALS, Component, manager, registry

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

#: Off a terminal lines are cut here, unless the environment says how wide they may be.
_COLUMNS = int(os.environ["COLUMNS"]) if os.environ.get("COLUMNS", "").isdigit() else 160
_METHOD_KINDS = {"recipe": "central", "federated": "federated"}
Row = dict[str, Any]


@click.group()
def methods() -> None:
    """The distillation methods, central and federated."""


@methods.command("list")
@click.option("--kind", type=click.Choice(["central", "federated"]), help="Only these.")
@json_option
def list_methods(kind: str | None, as_json: bool) -> None:
    """List the methods."""
    found = [c for c in registry().of_kind(*_METHOD_KINDS) if kind in (None, _METHOD_KINDS[c.kind])]
    columns = ("name", "kind", "family", "needs", "cost", "summary")
    rows = sorted((_method(c) for c in found), key=lambda row: (row["kind"], row["family"], row["name"]))
    _list(rows, columns, as_json, "methods", width=_COLUMNS)


@methods.command("show")
@click.argument("name")
@json_option
def show_method(name: str, as_json: bool) -> None:
    """Show all that is known about one method: idea, equation, parts, figures, when it fails."""
    found = _named("method", name, *_METHOD_KINDS)
    component = found[0]
    if component.kind == "recipe":
        from ddfed.cli.method_pages import described, told

        recipe, row = component.read(), _method(component)
        told_needs = {"needs": row["needs"]} if component.missing else {}
        emit(
            {**row, **described(recipe), **told_needs, **_offer(component)},
            as_json,
            lambda: click.echo(told(recipe, absent=_missing(component) if component.missing else "")),
        )
        return
    _show([{**_method(c), **_declared(c), **_offer(c)} for c in found], as_json)


def _declared(component: Component) -> dict[str, Any]:
    """What a federated method's declaration says of itself, where its packages are there to load it."""
    told = None if component.missing else getattr(component.load(), "described", None)
    return told() if told else {}


@click.group()
def domains() -> None:
    """The modalities."""


@domains.command("list")
@json_option
def list_domains(as_json: bool) -> None:
    """List the modalities and whether they are installed."""
    rows = [_domain(c) for c in registry().of_kind("domain")]
    _list(rows, ("name", "state", "datasets", "summary"), as_json, "domains")


@domains.command("show")
@click.argument("name")
@json_option
def show_domain(name: str, as_json: bool) -> None:
    """Show one modality and its data sets."""
    _show([{**_domain(c), **_offer(c)} for c in _named("domain", name, "domain")], as_json)


@click.group()
def datasets() -> None:
    """The data sets."""


@datasets.command("list")
@click.option("--domain", help="Only this modality.")
@json_option
def list_datasets(domain: str | None, as_json: bool) -> None:
    """List the data sets."""
    if domain is not None:
        _named("domain", domain, "domain")
    found = [c for c in registry().of_kind("dataset") if domain in (None, c.name.partition("/")[0])]
    _list(
        [_dataset(c) for c in found],
        ("name", "classes", "train", "test", "state", "summary"),
        as_json,
        "data sets",
    )


@datasets.command("show")
@click.argument("name")
@json_option
def show_dataset(name: str, as_json: bool) -> None:
    """Show one data set: sizes, the files it expects, its licence."""
    if "/" not in name:
        # People leave the domain out; a name that two domains share shows both.
        short = [c.name for c in registry().of_kind("dataset") if c.name.partition("/")[2] == name]
        found = [c for full in short for c in _named("dataset", full, "dataset")]
    else:
        found = []
    _show([{**_dataset(c), **_offer(c)} for c in found or _named("dataset", name, "dataset")], as_json)


@click.group()
def plugins() -> None:
    """The installed plugins."""


@plugins.command("list")
@json_option
def list_plugins(as_json: bool) -> None:
    """List the plugins; DDFED_PLUGINS (names with commas) limits which are loaded."""
    rows = [_plugin(point) for point in _points()]
    _list(rows, ("name", "module", "distribution", "state", "offers"), as_json, "plugins")


@plugins.command("show")
@click.argument("name")
@json_option
def show_plugin(name: str, as_json: bool) -> None:
    """Show one plugin and everything it offers."""
    points = {point.name: point for point in _points()}
    if name not in points:
        raise _unknown("plugin", name, points)
    row = _plugin(points[name])
    offered = sorted((c for c in registry() if c.plugin == name), key=lambda c: (list(KINDS).index(c.kind), c.name))
    row["components"] = [{"kind": c.kind, "name": c.name, "summary": c.summary} for c in offered]

    def human() -> None:
        facts({k: v for k, v in row.items() if k not in ("name", "components")}, title=name)
        if offered:
            click.echo()
            table(("kind", "name", "summary"), [(c.kind, c.name, c.summary) for c in offered])

    emit(row, as_json, human)


# --- rows ---------------------------------------------------------------------------------------------------


def _method(component: Component) -> Row:
    known = component.facts
    needs = [f"{domain} data" for domain in known.get("domains", ())]
    needs += [*_many(known.get("requires")), *_many(known.get("needs"))]
    if component.missing:
        needs.append(_missing(component))
    return {
        "name": component.name,
        "kind": _METHOD_KINDS[component.kind],
        "family": known.get("family", ""),
        "needs": needs,
        "cost": known.get("cost", ""),
        "summary": component.summary,
    }


def _domain(component: Component) -> Row:
    mine = [c.name for c in registry().of_kind("dataset") if c.name.startswith(f"{component.name}/")]
    return {
        "name": component.name,
        "state": _state(component),
        "datasets": [name.partition("/")[2] for name in mine],
        "summary": component.summary,
    }


def _dataset(component: Component) -> Row:
    known = component.facts
    return {
        "name": component.name,
        **{name: known.get(name) for name in ("classes", "train", "test")},
        "state": _state(component) + (", needs its files" if known.get("files") and not component.missing else ""),
        "files": list(_many(known.get("files"))),
        "licence": known.get("licence"),
        "summary": component.summary,
    }


def _plugin(point: EntryPoint) -> Row:
    count = Counter(c.kind for c in registry() if c.plugin == point.name)
    dist = point.dist
    return {
        "name": point.name,
        "module": point.value,
        "distribution": f"{dist.name} {dist.version}" if dist else "",
        "state": "loaded" if manager().has_plugin(point.name) else _why_left_out(point),
        "offers": [f"{n} {_plural(kind) if n > 1 else kind}" for kind, n in count.items()],
    }


def _offer(component: Component) -> Row:
    """What `show` adds: everything else the plugin said, and where it loads from."""
    said = {k: v for k, v in component.facts.items() if k not in ("family", "requires", "needs", "domains")}
    return {**said, "plugin": component.plugin, "loads": component.target}


def _points() -> list[EntryPoint]:
    from importlib.metadata import entry_points

    return sorted(entry_points(group="ddfed"), key=lambda point: (point.name != "core", point.name))


def _why_left_out(point: EntryPoint) -> str:
    allowed = os.environ.get("DDFED_PLUGINS")
    if allowed is not None and point.name not in {name.strip() for name in allowed.split(",")}:
        return "left out by DDFED_PLUGINS"
    return "could not be loaded"


def _state(component: Component) -> str:
    return f"not installed: {component.pip_line}" if component.missing else "installed"


def _missing(component: Component) -> str:
    return f"{', '.join(component.missing)} ({component.pip_line})"


def _plural(kind: str) -> str:
    return {"recipe": "recipes", "federated": "federated methods"}.get(kind, PLURALS.get(kind, f"{kind}s"))


def _many(value: Any) -> Sequence[str]:
    if not value:
        return ()
    return (value,) if isinstance(value, str) else tuple(map(str, value))


# --- printing -----------------------------------------------------------------------------------------------


def _list(rows: list[Row], columns: Sequence[str], as_json: bool, what: str, width: int = 0) -> None:
    def human() -> None:
        if rows:
            table(columns, [[row[c] for c in columns] for row in rows], width=width)
        else:
            click.echo(f"no {what} are registered; `ddfed plugins list` shows the plugins", err=True)

    emit(rows, as_json, human)


def _show(found: list[Row], as_json: bool) -> None:
    def human() -> None:
        for number, row in enumerate(found):
            if number:
                click.echo()
            facts({k: v for k, v in row.items() if k != "name"}, title=row["name"])

    emit(found[0] if len(found) == 1 else found, as_json, human)


def _named(what: str, name: str, *kinds: str) -> list[Component]:
    found = [c for c in registry().of_kind(*kinds) if c.name == name]
    if not found:
        raise _unknown(what, name, registry().names(*kinds))
    return found


def _unknown(what: str, name: str, options: Iterable[str]) -> UnknownNameError:
    return UnknownNameError(f"unknown {what} {name!r}.{suggest(name, options)} `ddfed {what}s list` shows them all.")
