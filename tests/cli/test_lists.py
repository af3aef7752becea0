"""The command line itself: fast, lazy, and errors in one line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from ddfed import cli as package
from ddfed.cli import COMMANDS, LazyCommand, RootGroup, cli
from ddfed.cli.options import SHARED_KEYS, layers, shared_flags
from ddfed.errors import ConfigError, DataError
from ddfed.registry import registry

HEAVY = ("torch", "flwr", "ray", "pydantic", "matplotlib", "rich", "numpy", "sklearn", "PIL")


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, list(args), prog_name="ddfed")


@pytest.mark.parametrize(
    "args", [["--help"], ["methods", "list"], ["domains", "list"], ["datasets", "list"], ["plugins", "list"]]
)
def test_looking_around_imports_nothing_heavy(args: list[str]):
    code = (
        "import sys; from ddfed.cli import cli; cli.main(sys.argv[1:], standalone_mode=False);"
        f"print('HEAVY', [m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    took = time.perf_counter() - began
    print(f"ddfed {' '.join(args)}: {took:.2f} s")
    assert done.returncode == 0, done.stderr
    if "--help" not in args:  # help leaves by exiting
        assert "HEAVY []" in done.stderr
    assert done.stdout and took < 2


def test_help_imports_nothing_heavy():
    code = (
        "import sys, atexit; from ddfed.cli import main;"
        f"atexit.register(lambda: print('HEAVY', [m for m in {HEAVY} if m in sys.modules], file=sys.stderr));"
        "main(['-h'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "HEAVY []" in done.stderr
    for name, (_, summary) in COMMANDS.items():
        assert name in done.stdout and summary in done.stdout


@pytest.mark.parametrize("group", ["methods", "domains", "datasets", "plugins"])
def test_every_listed_name_can_be_shown(group: str):
    listed = run(group, "list", "--json")
    assert listed.exit_code == 0 and listed.stderr == ""
    rows = json.loads(listed.stdout)
    assert rows
    plain = run(group, "list").stdout
    for row in rows:
        assert row["name"] in plain
        shown = run(group, "show", row["name"])
        assert shown.exit_code == 0 and row["name"] in shown.stdout
        assert json.loads(run(group, "show", row["name"], "--json").stdout)


def test_methods_say_kind_family_needs_and_citation():
    rows = {row["name"]: row for row in json.loads(run("methods", "list", "--json").stdout)}
    assert rows["dm"]["kind"] == "central" and rows["dm"]["family"]
    assert json.loads(run("methods", "show", "dm", "--json").stdout)["citation"]
    kinds = {row["kind"] for row in json.loads(run("methods", "list", "--kind", "central", "--json").stdout)}
    assert kinds == {"central"}


def test_what_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    # `registry` is cached for the process, so the stand-in is taken out again by monkeypatch.
    from ddfed.registry import Component

    absent = Component("domain", "smell", "no_such:Thing", "Odours.", "smell", ("no_such_module",))
    monkeypatch.setitem(registry()._components, ("domain", "smell"), absent)
    assert 'not installed: pip install "ddfed[smell]"' in run("domains", "list").stdout


@pytest.mark.parametrize(
    ("args", "words", "code"),
    [
        (["metods"], ["unknown command 'metods'", "Did you mean 'methods'?"], 2),
        (["methods", "show", "dmm"], ["unknown method 'dmm'", "`ddfed methods list`"], 2),
        (["datasets", "list", "--domain", "imagee"], ["unknown domain 'imagee'"], 2),
        (["plugins", "show", "coer"], ["Did you mean 'core'?"], 2),
        (["plugins", "list", "--jsn"], ["--jsn", "`ddfed plugins list --help`"], 2),
        (["config", "show", "--for", "export"], ["has settings", "'distill'"], 2),
        (["config", "show", "--config", "nowhere.toml"], ["nowhere.toml does not exist"], 2),
        (["config", "show", "--set", "distill.stepz=3"], ["Did you mean 'distill.steps'?"], 2),
    ],
)
def test_errors_are_one_line_on_stderr(args: list[str], words: list[str], code: int):
    result = run(*args)
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def test_a_data_set_that_lives_in_files_says_that_it_needs_them():
    """Bug found by this test: every data set was called installed, with or without its files."""
    states = {row["name"]: row["state"] for row in json.loads(run("datasets", "list", "--json").stdout)}
    assert states["image/digits"] == "installed"
    assert states["image/mnist"] == "installed, needs its files"


def test_data_sets_are_found_without_their_domain():
    assert run("datasets", "show", "mnist").stdout == run("datasets", "show", "image/mnist").stdout
    shared = run("datasets", "show", "digits").stdout
    assert all(run("datasets", "show", f"{domain}/digits").stdout in shared for domain in ("graph", "image"))


def test_config_show_tells_origins(tmp_path: Path):
    (tmp_path / "mine.toml").write_text("[run]\nseed = 4\n")
    args = ["config", "show", "--config", str(tmp_path / "mine.toml"), "--set", "distill.ipc=2", "--method", "dm"]
    rows = {row["key"]: row for row in json.loads(run(*args, "--json").stdout)}
    assert rows["run.seed"] == {"key": "run.seed", "value": 4, "origin": str(tmp_path / "mine.toml")}
    assert rows["distill.ipc"]["origin"] == "--set" and rows["method"]["origin"] == "--method"
    assert "distill.ipc" in run(*args).stdout


def test_the_printed_toml_is_taken_back(tmp_path: Path):
    first = run("config", "show", "--set", "distill.ipc=2", "--toml").stdout
    (tmp_path / "config.toml").write_text(first)
    assert run("config", "show", "--config", str(tmp_path / "config.toml"), "--toml").stdout == first


def test_layers_rise_from_file_to_set_to_options(tmp_path: Path):
    (tmp_path / "a.toml").write_text("seed = 1\n")
    found = layers(tmp_path / "a.toml", ["a.b=1"], {"--seed": ("run.seed", 3), "--name": ("run.name", None)})
    assert [layer.origin for layer in found] == [str(tmp_path / "a.toml"), "--set", "--seed"]
    assert found[2].values == {"run": {"seed": 3}}


@pytest.mark.parametrize("command", ["distill", "simulate"])
def test_commands_that_distil_share_their_options(command: str):
    root = click.Context(cli)
    found = cli.get_command(root, command)
    assert found is not None
    found = found.load() if isinstance(found, LazyCommand) else found
    names = {option for parameter in found.params for option in parameter.opts}
    assert set(SHARED_KEYS) <= names


def test_shared_options_become_settings(tmp_path: Path):
    flags = shared_flags({"steps": 3, "root": tmp_path, "device": None, "clients": 7})
    assert flags["--steps"] == ("distill.steps", 3)
    assert flags["--data"] == ("data.root", str(tmp_path))
    assert flags["--device"] == ("run.device", None)
    assert set(flags) == set(SHARED_KEYS)


# --- the root group -----------------------------------------------------------------------------------------


@pytest.fixture
def root() -> RootGroup:
    group = RootGroup("ddfed")
    group._has_plugins = True
    return group


def failing(root: RootGroup, error: BaseException) -> Result:
    @root.command()
    def fail() -> None:
        raise error

    return CliRunner().invoke(root, ["fail"])


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("wrong setting"), 2, "error: wrong setting\n"),
        (DataError("two\n  lines"), 1, "error: two\n  lines\n"),
        (RuntimeError("odd"), 1, "error: RuntimeError: odd. Run again with --debug to see where.\n"),
    ],
)
def test_errors_become_exit_codes(root: RootGroup, error: BaseException, code: int, text: str):
    result = failing(root, error)
    assert (result.exit_code, result.stderr) == (code, text)


def test_an_interrupt_exits_with_130(root: RootGroup):
    result = failing(root, KeyboardInterrupt())
    assert result.exit_code == 130 and result.stderr.strip() == "interrupted"


def test_debug_may_be_appended_and_shows_the_traceback(root: RootGroup):
    @root.command()
    def fail() -> None:
        raise ConfigError("wrong")

    result = CliRunner().invoke(root, ["fail", "--debug"])
    assert isinstance(result.exception, ConfigError)


def test_a_closed_pipe_is_quiet():
    code = "from ddfed.cli import main; main(['methods', 'list', '--json'])"
    reader = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.close()"], stdin=subprocess.PIPE)
    reader.wait()
    done = subprocess.run([sys.executable, "-c", code], stdout=reader.stdin, stderr=subprocess.PIPE, text=True)
    assert done.stderr == ""
    assert done.returncode == 1
    assert reader.stdin is not None
    reader.stdin.close()


def test_a_lazy_command_works_in_any_group(monkeypatch: pytest.MonkeyPatch):
    group = click.Group("any")
    group.add_command(LazyCommand("lists", "ddfed.cli.lists:methods", "Shown before it loads."))
    assert "Shown before it loads." in CliRunner().invoke(group, ["--help"]).output
    assert CliRunner().invoke(group, ["lists", "list"]).exit_code == 0


def test_a_taken_command_name_is_refused(root: RootGroup):
    root.add_command(LazyCommand("x", "a:b"))
    with pytest.raises(ConfigError, match="'x'"):
        root.add_command(LazyCommand("x", "c:d"))


def test_a_broken_plugin_loses_its_commands_only(root: RootGroup, monkeypatch: pytest.MonkeyPatch):
    class Broken:
        @staticmethod
        def ddfed_commands(cli: click.Group) -> None:
            raise RuntimeError("no")

    class Manager:
        @staticmethod
        def list_name_plugin() -> list[tuple[str, object]]:
            return [("broken", Broken)]

    monkeypatch.setattr("ddfed.registry.manager", Manager)
    root._has_plugins = False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert root.list_commands(click.Context(root)) == []
    assert "'broken'" in str(caught[0].message)


def test_version():
    assert run("--version").stdout.startswith("ddfed, version ")
    assert package.cli is cli
