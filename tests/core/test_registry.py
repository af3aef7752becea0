"""Plugins: names, owners, and what happens when one of them is broken."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from ddfed import registry as module
from ddfed.errors import ConfigError, MissingDependencyError, UnknownNameError, one_of, suggest
from ddfed.hookspecs import hookimpl
from ddfed.registry import Registry


def filled() -> Registry:
    registry = Registry()
    registry._owner = "first"
    registry.add("recipe", "dm", "ddfed.recipes.moments:DM", family="moments")
    registry.add("recipe", "idm", "ddfed.recipes.moments:IDM")
    registry.add("pool", "R", "ddfed.pool:RandomPool", summary="fresh")
    return registry


def test_components_load_from_their_target_and_know_their_owner():
    component = filled().get("recipe", "dm")
    assert component.plugin == "first" and component.facts == {"family": "moments"}
    assert component.load().name == "dm" and filled().load("recipe", "idm").name == "idm"
    assert filled().names("recipe", "pool") == ["R", "dm", "idm"] and len(list(filled())) == 3


def test_a_taken_name_names_both_plugins():
    registry = filled()
    registry._owner = "second"
    with pytest.raises(ConfigError, match="recipe 'dm' is offered by two plugins, 'first' and 'second'.*DDFED_PLUGINS"):
        registry.add("recipe", "dm", "a:b")
    registry.add("pool", "dm", "a:b")  # another kind is another name


@pytest.mark.parametrize("target", ["", "module", "module:", ":attribute"])
def test_a_malformed_target_is_refused(target: str):
    with pytest.raises(ConfigError, match="plugin 'first': target of pool 'X' must be 'module:attribute'"):
        filled().add("pool", "X", target)


def test_an_unknown_kind_is_refused_with_the_near_one():
    with pytest.raises(ConfigError, match="plugin 'first': unknown kind 'decodr'. Did you mean 'decoder'?"):
        filled().add("decodr", "X", "a:b")


def test_an_unknown_name_suggests_the_near_one_and_says_where_it_came_from():
    with pytest.raises(
        UnknownNameError, match=r"unknown method 'idn' \(from --method\). Did you mean 'idm'\? Possible: 'dm', 'idm'"
    ):
        filled().get("recipe", "idn", "--method")
    with pytest.raises(UnknownNameError, match="It is a schedule of the networks.*, not a central distillation method"):
        filled().get("recipe", "R")
    assert isinstance(UnknownNameError(), ValueError)


@pytest.mark.parametrize("missing", ["no_such_module", "no_such_package.part"])
def test_a_missing_dependency_gives_the_pip_line(missing: str):
    """Bug found by this test: a missing parent package ended in ModuleNotFoundError."""
    registry = filled()
    registry.add("domain", "graph", "ddfed_graph:Graph", extra="graph", modules=("json", missing))
    registry.add("domain", "plain", "plain:Plain", modules=(missing,))
    assert registry.get("domain", "graph").missing == (missing,)
    with pytest.raises(
        MissingDependencyError, match=rf'domain \'graph\' needs {missing}, .*: pip install "ddfed\[graph\]"'
    ):
        registry.load("domain", "graph")
    with pytest.raises(ImportError, match=f"pip install {missing}"):
        registry.load("domain", "plain")


class Point:
    """An entry point."""

    def __init__(self, name: str, load: Any) -> None:
        self.name, self.value, self._load = name, f"{name}.plugin", load

    def load(self) -> Any:
        if isinstance(self._load, Exception):
            raise self._load
        return self._load


def offering(*names: str) -> types.ModuleType:
    plugin = types.ModuleType("offering")

    @hookimpl
    def ddfed_register(registry: Registry) -> None:
        for name in names:
            registry.add("domain", name, f"{name}:Domain")

    plugin.ddfed_register = ddfed_register  # type: ignore[attr-defined]
    return plugin


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets the installed entry points, and gives the registry that they make; the real one comes back after."""

    def make(*points: Point) -> Registry:
        monkeypatch.setattr(module, "entry_points", lambda group: points if group == "ddfed" else ())
        monkeypatch.setattr(module, "manager", module.cache(module.manager.__wrapped__))
        return module.registry.__wrapped__()

    monkeypatch.delenv("DDFED_PLUGINS", raising=False)
    yield make


def test_every_installed_plugin_is_asked(plugins: Any):
    registry = plugins(Point("b", offering("b1", "b2")), Point("core", offering("c")), Point("a", offering("a")))
    assert {c.name: c.plugin for c in registry} == {"a": "a", "b1": "b", "b2": "b", "c": "core"}


def test_the_allow_list_limits_plugins_and_keeps_the_core(plugins: Any, monkeypatch: pytest.MonkeyPatch):
    points = [Point("a", offering("a")), Point("b", offering("b")), Point("core", offering("c"))]
    monkeypatch.setenv("DDFED_PLUGINS", " b ,")
    assert plugins(*points).names("domain") == ["b", "c"]
    monkeypatch.setenv("DDFED_PLUGINS", "")
    assert plugins(*points).names("domain") == ["c"]
    monkeypatch.setenv("DDFED_PLUGINS", "b,wrong")
    with pytest.warns(UserWarning, match="not installed: 'wrong'"):
        assert plugins(*points).names("domain") == ["b", "c"]


def strange() -> types.ModuleType:
    plugin = offering("s")

    @hookimpl
    def ddfed_of_another_version() -> None: ...

    plugin.ddfed_of_another_version = ddfed_of_another_version  # type: ignore[attr-defined]
    return plugin


def misspelt() -> types.ModuleType:
    plugin = types.ModuleType("misspelt")

    @hookimpl
    def ddfed_register(regstry: Registry) -> None: ...

    plugin.ddfed_register = ddfed_register  # type: ignore[attr-defined]
    return plugin


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (ImportError("no torch_geometric"), "ImportError: no torch_geometric"),
        (SyntaxError("oops"), "SyntaxError"),
        (RuntimeError("at import"), "RuntimeError: at import"),
        (misspelt(), "regstry"),
        (strange(), "ddfed_of_another_version"),
    ],
    ids=["import", "syntax", "runtime", "misspelt argument", "hook of another version"],
)
def test_a_broken_plugin_is_left_out_with_a_warning_that_names_it(plugins: Any, broken: Any, words: str):
    """Bug found by this test: a hook of another version took every command down."""
    with pytest.warns(
        UserWarning, match=f"(?s)plugin 'bad' .bad.plugin. could not be loaded and is left out: .*{words}"
    ):
        registry = plugins(Point("core", offering("c")), Point("bad", broken), Point("good", offering("g")))
    assert registry.names("domain") == ["c", "g"]


def failing(*names: str) -> types.ModuleType:
    plugin = offering(*names)
    register = plugin.ddfed_register

    @hookimpl
    def ddfed_register(registry: Registry) -> None:
        register(registry)
        raise RuntimeError("half way")

    plugin.ddfed_register = ddfed_register  # type: ignore[attr-defined]
    return plugin


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (failing("b1", "b2"), "RuntimeError: half way"),
        (offering("b1", "c"), "offered by two plugins, 'core' and 'bad'"),
    ],
    ids=["raises", "takes a name that is taken"],
)
def test_a_plugin_that_cannot_register_is_left_out_whole(plugins: Any, broken: Any, words: str):
    """Bug found by this test: one plugin that raised while it registered took every command down."""
    with pytest.warns(UserWarning, match=f"plugin 'bad' could not register what it offers and is left out: .*{words}"):
        registry = plugins(Point("core", offering("c")), Point("bad", broken), Point("good", offering("g")))
    assert registry.names("domain") == ["c", "g"]
    assert not module.manager().has_plugin("bad")


def test_the_core_itself_must_register(plugins: Any):
    with pytest.raises(RuntimeError, match="half way"):
        plugins(Point("core", failing("c")))


def test_the_built_in_components_all_load():
    registry = module.registry()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for component in registry:
            if component.plugin == "core":
                component.load()
    assert {"dm", "idm", "random", "herding", "kcenter", "kmeans"} <= set(registry.names("recipe"))
    assert {"E-dc", "E-dsa", "E-idc"} <= set(registry.names("protocol"))
    assert "ddfed.pool" in sys.modules


def test_messages_name_the_near_option_and_cut_long_lists():
    assert suggest("mmt", ["mtt", "dm"]) == " Did you mean 'mtt'?" and suggest("zzz", ["mtt"]) == ""
    assert one_of("abc") == "'a', 'b', 'c'" and one_of(range(30), 2) == "0, 1 ... (30 in all)"
