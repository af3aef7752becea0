"""The plugin manager: names -> lazily imported components.

Built-in domains, methods and simulators come in through the same entry-point group ``ddfed`` as a
stranger's package. The environment variable ``DDFED_PLUGINS`` (comma-separated entry-point names) limits
which plugins are loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import pluggy

from ddfed import hookspecs
from ddfed.errors import ConfigError, MissingDependencyError, UnknownNameError, one_of, suggest

KINDS = {
    "domain": "a modality",
    "dataset": "a data set of a domain, named domain/dataset",
    "recipe": "a central distillation method",
    "objective": "a matching engine",
    "decoder": "a parametrisation of the synthetic items",
    "generator": "a map from latents to network inputs",
    "labels": "a label store",
    "sampler": "a choice of the real rows of a step",
    "pool": "a schedule of the networks that judge",
    "selector": "a choice of real items, and the initialisation of synthetic ones",
    "kernel": "a kernel of rows, for regression",
    "protocol": "an evaluation recipe",
    "federated": "a federated method",
    "partitioner": "a split of the data among clients",
    "skew": "what a client's instrument makes of its rows",
    "backend": "a place where a federation runs",
    "scenario": "an experiment with its published figure, as a file",
}
#: What people call a kind where its own name would puzzle them.
TITLES = {"recipe": "method", "federated": "federated method", "decoder": "store", "dataset": "data set"}
PLURALS = {"recipe": "methods", "federated": "methods", "labels": "labels"}


@dataclass(frozen=True)
class Component:
    """What a plugin said about one thing it offers.

    Args:
        kind: one of `KINDS`.
        name: the name people type.
        target: ``"module:attribute"``; of a scenario ``"package:file.toml"`` (see `ddfed.reproduce`).
        summary: one line for lists.
        extra: the pip extra that brings what it imports, such as ``"image"``.
        modules: importable names that must be there for it to work.
        facts: what lists and refusals read: family, citation, needs ...
        plugin: name of the plugin that offered it.
    """

    kind: str
    name: str
    target: str
    summary: str = ""
    extra: str = ""
    modules: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    plugin: str = ""

    @property
    def missing(self) -> tuple[str, ...]:
        """Modules it needs that are not installed; looks, does not import."""
        return tuple(m for m in self.modules if not _installed(m))

    @property
    def pip_line(self) -> str:
        return f'pip install "ddfed[{self.extra}]"' if self.extra else f"pip install {' '.join(self.modules)}"

    def load(self) -> Any:
        """Import the target.

        Raises:
            MissingDependencyError: an optional package is absent; the message holds the pip line.
        """
        if self.missing:
            raise MissingDependencyError(
                f"{self.kind} {self.name!r} needs {', '.join(self.missing)}, which is not installed: {self.pip_line}"
            )
        return self.read()

    def read(self) -> Any:
        """Import the target whatever is installed: a declaration, such as a recipe, can be told without its packages.

        Raises:
            ImportError: the target imports what is absent.
        """
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is part of is absent
        return False


class Registry:
    """Components by kind and name, filled by the plugins' `ddfed_register` hooks."""

    def __init__(self) -> None:
        self._components: dict[tuple[str, str], Component] = {}
        self._owner = ""

    def add(
        self,
        kind: str,
        name: str,
        target: str,
        *,
        summary: str = "",
        extra: str = "",
        modules: tuple[str, ...] = (),
        **facts: Any,
    ) -> None:
        """Offer a component; see `Component` for the arguments.

        Raises:
            ConfigError: unknown kind, malformed target, or a name that is taken (names both plugins).
        """
        if kind not in KINDS:
            raise ConfigError(
                f"plugin {self._owner!r}: unknown kind {kind!r}.{suggest(kind, KINDS)} Kinds: {one_of(KINDS)}"
            )
        module, colon, attribute = target.partition(":")
        if not (module and colon and attribute):
            raise ConfigError(
                f"plugin {self._owner!r}: target of {kind} {name!r} must be 'module:attribute', got {target!r}"
            )
        taken = self._components.get((kind, name))
        if taken:
            raise ConfigError(
                f"{kind} {name!r} is offered by two plugins, {taken.plugin!r} and {self._owner!r}; "
                f"rename one, or leave one out with DDFED_PLUGINS"
            )
        self._components[kind, name] = Component(kind, name, target, summary, extra, tuple(modules), facts, self._owner)

    def of_kind(self, *kinds: str) -> list[Component]:
        """Components of these kinds, sorted by name."""
        return sorted((c for c in self._components.values() if c.kind in kinds), key=lambda c: (c.name, c.kind))

    def names(self, *kinds: str) -> list[str]:
        return [c.name for c in self.of_kind(*kinds)]

    def get(self, kind: str, name: str, origin: str = "") -> Component:
        """The component called ``name``.

        Raises:
            UnknownNameError: nobody offers it; the near name and the list command are in the message.
        """
        found = self._components.get((kind, name))
        if found:
            return found
        elsewhere = [k for (k, n) in self._components if n == name]
        hint = f" It is {KINDS[elsewhere[0]]}, not {KINDS[kind]}." if elsewhere else suggest(name, self.names(kind))
        where = f" (from {origin})" if origin else ""
        raise UnknownNameError(
            f"unknown {TITLES.get(kind, kind)} {name!r}{where}.{hint} Possible: {one_of(self.names(kind))}"
        )

    def load(self, kind: str, name: str, origin: str = "") -> Any:
        """Import and return what the component's target names."""
        return self.get(kind, name, origin).load()

    def __iter__(self) -> Iterator[Component]:
        return iter(self._components.values())


def _allowed() -> set[str] | None:
    value = os.environ.get("DDFED_PLUGINS")
    return None if value is None else {name.strip() for name in value.split(",") if name.strip()}


@cache
def manager() -> pluggy.PluginManager:
    """The process's plugin manager, with every allowed plugin loaded.

    A plugin that cannot be imported is left out with a warning that names it: one broken package must not
    take the whole tool down.
    """
    found = pluggy.PluginManager("ddfed")
    found.add_hookspecs(hookspecs)
    allowed = _allowed()
    points = sorted(entry_points(group="ddfed"), key=lambda point: (point.name != "core", point.name))
    if allowed is not None:
        unknown = allowed - {point.name for point in points}
        if unknown:
            warnings.warn(
                f"DDFED_PLUGINS names plugins that are not installed: {one_of(sorted(unknown))}", stacklevel=2
            )
    for point in points:
        if allowed is not None and point.name not in allowed | {"core"}:
            continue
        if found.has_plugin(point.name):
            continue
        try:
            found.register(point.load(), name=point.name)
            found.check_pending()
        except Exception as error:  # noqa: BLE001 - whatever a stranger's module raises
            if found.has_plugin(point.name):
                found.unregister(name=point.name)
            warnings.warn(
                f"plugin {point.name!r} ({point.value}) could not be loaded and is left out: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )
    return found


@cache
def registry() -> Registry:
    """The process's registry.

    A plugin whose `ddfed_register` fails is left out whole, with a warning that names it.
    """
    filled = Registry()
    plugins = manager()
    for name, plugin in plugins.list_name_plugin():
        implementation = getattr(plugin, "ddfed_register", None)
        if not implementation:
            continue
        # Called one by one rather than through the hook so that each component knows its owner.
        filled._owner = name
        before = dict(filled._components)
        try:
            implementation(registry=filled)
        except Exception as error:  # noqa: BLE001 - whatever a stranger's module raises
            if name == "core":
                raise
            filled._components = before
            plugins.unregister(name=name)
            warnings.warn(
                f"plugin {name!r} could not register what it offers and is left out: {type(error).__name__}: {error}",
                stacklevel=2,
            )
    return filled
