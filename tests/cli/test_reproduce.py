"""Scenarios: found, read, refused when broken, run, and held against the published figure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ddfed.cli import cli
from ddfed.cli.method_pages import told
from ddfed.config import read_toml
from ddfed.errors import ConfigError, UnknownNameError
from ddfed.recipes import Published
from ddfed.registry import registry
from ddfed.reproduce import MeasuredSettings, Scenario, load_scenario, outcome, scenario_names
from ddfed.settings import resolve_distill

TINY = """
method = "random"

[data]
train_limit = 300
test_limit = 100

[distill]
ipc = 1

[evaluate]
networks = ["convnet-d2-w8"]
epochs = 3
repeats = 2
baselines = ["random"]

[run]
threads = 1
"""
TABLE = """
[scenario]
title = "random digits"
measure = "test accuracy of two networks"
cost = "seconds"
tolerance = 99.0

[scenario.published]
accuracy = 50.0
spread = 1.0
protocol = "E-dsa"
source = "made up"
"""
DATADAM = """
method = "datadam"

[data]
dataset = "cifar10"

[distill]
ipc = 10

[scenario]
title = "without its epochs"
measure = "x"
cost = "x"
tolerance = 1.0
"""
FEDERATED = """
method = "feddm"
baselines = ["random-once"]

[data]
train_limit = 300
test_limit = 100

[distill]
ipc = 1
network = "convnet-d2-w8"
steps = 2
min_count = 1

[server]
epochs = 2

[federation]
clients = 2
rounds = 1

[scenario]
title = "a federation on digits"
command = "simulate"
measure = "test accuracy of the global model"
cost = "seconds"
"""


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, list(args), prog_name="ddfed")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY + TABLE)
    return tmp_path


# --- running ------------------------------------------------------------------------------------------------


def test_a_scenario_runs_to_its_figures(here):
    done = run("reproduce", "tiny.toml", "--json", "--quiet")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    summary = json.loads((Path(found["runs"][0]) / "summary.json").read_text())
    assert found["measured"]["accuracy"] == pytest.approx(100 * summary["evaluation"][0]["mean"], abs=0.01)
    assert found["measured"]["control"] == pytest.approx(100 * summary["evaluation"][1]["mean"], abs=0.01)
    assert found["difference"] == pytest.approx(found["measured"]["accuracy"] - 50, abs=0.01)
    assert found["within"] is True
    assert found["published"]["source"] == "made up"
    assert found["measured"]["protocol"] == "E-dsa (3 epochs), convnet-d2-w8"
    MeasuredSettings.model_validate(found["measured"])  # what is printed can be put into the file


def test_several_seeds_give_a_spread_and_stopped_ones_go_on(here):
    first = json.loads(run("reproduce", "tiny.toml", "--json", "-q").stdout)
    done = run("reproduce", "tiny.toml", "--seed", "0", "--seed", "1", "--resume", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["runs"][0] == first["runs"][0]  # finished already
    assert "going on with" in done.stderr
    assert found["measured"]["seeds"] == [0, 1]
    assert found["measured"]["over"] == "seeds"
    assert len(list((here / "runs").iterdir())) == 2


def test_a_miss_is_said_and_is_no_error(here):
    (here / "tiny.toml").write_text(TINY + TABLE.replace("50.0", "99.9").replace("99.0", "0.5"))
    done = run("reproduce", "tiny.toml", "-q")
    assert done.exit_code == 0
    assert "OUTSIDE the tolerance of 0.5 points" in done.stdout
    assert "made up" in done.stdout


def test_changed_settings_are_held_to_nothing(here):
    found = json.loads(run("reproduce", "tiny.toml", "--set", "evaluate.epochs=2", "--json", "-q").stdout)
    assert found["within"] is None
    assert found["changed"] == ["evaluate.epochs=2"]


def test_a_federated_scenario_runs_by_its_own_command(here):
    (here / "fed.toml").write_text(FEDERATED)
    done = run("reproduce", "fed.toml", "--json", "-q")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["published"] is None and found["within"] is None
    summary = json.loads((Path(found["runs"][0]) / "summary.json").read_text())
    assert found["measured"]["accuracy"] == pytest.approx(100 * summary["methods"]["feddm"]["accuracy"], abs=0.01)
    assert found["measured"]["control"] is not None


def test_the_file_also_runs_as_settings(here):
    """Bug found by this test: settings files with a table [scenario] were refused."""
    settings = resolve_distill([read_toml(here / "tiny.toml")]).settings
    assert (settings.method, settings.distill.ipc) == ("random", 1)
    (here / "odd.toml").write_text("scenario = 3\n")
    with pytest.raises(ConfigError, match="unknown setting 'scenario'"):
        resolve_distill([read_toml(here / "odd.toml")])


# --- the verdict --------------------------------------------------------------------------------------------


def scenario(**table: Any) -> Scenario:
    from ddfed.config import Layer
    from ddfed.reproduce import ScenarioTable

    known = Published("digits", 1, 50.0, 1.0, "E-dsa", "made up")
    return Scenario(
        "x", "", Layer("x", {"method": "dm"}), ScenarioTable(title="x", measure="x", cost="x", **table), known
    )


def summary(accuracy: float, seed: int = 0) -> dict[str, Any]:
    row = {"subject": "dm", "network": "net", "protocol": "E-dsa", "mean": accuracy, "std": 0.01, "accuracies": [0, 0]}
    settings = {"method": "dm"}
    return {"kind": "central", "settings": settings, "seed": seed, "evaluation": [row], "seconds": {"distil": 1.0}}


@pytest.mark.parametrize(
    ("table", "accuracy", "within"),
    [
        ({"tolerance": 2.0}, 0.52, True),
        ({"tolerance": 2.0}, 0.521, False),
        ({"tolerance": 2.0}, 0.479, False),
        ({}, 0.52, None),
        ({"reduction": "fewer steps"}, 0.30, None),
    ],
)
def test_within_means_within_on_both_sides(table, accuracy, within):
    assert outcome(scenario(**table), [summary(accuracy)])["within"] is within


def test_the_spread_over_seeds_is_the_sample_deviation():
    measured = outcome(scenario(), [summary(0.4, 0), summary(0.6, 1)])["measured"]
    assert measured["accuracy"] == pytest.approx(50)
    assert measured["spread"] == pytest.approx(14.14)


def test_the_control_of_random_selection_is_the_other_row_of_its_name():
    made = summary(0.4)
    made["settings"]["method"] = "random"
    (row,) = made["evaluation"]
    made["evaluation"] = [
        {**row, "subject": "random"},
        {**row, "subject": "random", "network": "another", "mean": 0.1},
        {**row, "subject": "random", "mean": 0.3},
    ]
    measured = outcome(scenario(), [made])["measured"]
    assert (measured["accuracy"], measured["control"]) == (pytest.approx(40), pytest.approx(30))


# --- broken files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TINY, "no table [scenario]"),
        (TINY + TABLE.replace("title", "titel"), "Did you mean 'scenario.title'"),
        (TINY + TABLE.replace('cost = "seconds"\n', ""), "'scenario.cost' is not given"),
        (TINY + TABLE.replace("99.0", "-1"), "scenario.tolerance"),
        (TINY + TABLE.replace("[scenario.published]", "[scenario.publishd]"), "scenario.publish"),
        (TINY + TABLE.split("[scenario.published]")[0], "no published figure"),
        (TINY + TABLE.replace("tolerance", 'reduction = "x"\ntolerance'), "leave out the tolerance"),
        (TINY + TABLE.replace("tolerance", 'reduced = "dm-cifar10-ipc1"\ntolerance'), "no scenario. Did you mean"),
        (TINY.replace("ipc = 1", "ipcs = 1") + TABLE, "Did you mean 'distill.ipc'"),
        (TINY.replace('"random"\n\n[data]', '"randm"\n\n[data]') + TABLE, "unknown method 'randm'"),
        (TINY + TABLE.replace("title", 'command = "evaluate"\ntitle'), "`ddfed evaluate`"),
        (TINY + TABLE + "[", "not valid TOML"),
        (DATADAM, "no published figure"),  # it was published under 1800 epochs
        (
            TINY.replace("[data]", '[data]\ndataset = "cifar10"')
            .replace("ipc = 1", "ipc = 10")
            .replace("epochs = 3\n", "")
            + TABLE,
            "one place",
        ),
    ],
)
def test_broken_files_are_refused_with_the_reason(here, text, message):
    (here / "broken.toml").write_text(text)
    done = run("reproduce", "broken.toml")
    assert done.exit_code == 2
    assert message in done.stderr
    assert not done.stdout
    assert not (here / "runs").exists()


def test_what_is_not_there_is_refused():
    assert "Did you mean 'dm-cifar10-ipc10'" in run("reproduce", "dm-cifar-ipc10").stderr
    assert "`ddfed reproduce --list`" in run("reproduce").stderr
    assert "nowhere.toml does not exist" in run("reproduce", "nowhere.toml").stderr
    assert "central distillation method" in run("reproduce", "dm").stderr
    assert "no reduced form" in run("reproduce", "random-cifar10-ipc10", "--reduced").stderr
    with pytest.raises(UnknownNameError):
        load_scenario("nothing")


# --- those of the house -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", scenario_names())
def test_scenarios_of_the_house_are_whole(name):
    found = load_scenario(name)
    table = found.table
    assert table.tolerance is not None or table.reduction or found.published is None
    if table.reduced:
        twin = load_scenario(table.reduced)
        assert twin.table.reduction and not table.reduction
        assert twin.method == found.method
        assert twin.published == found.published
    if table.command == "distill":
        settings = resolve_distill([found.layer]).settings
        assert settings.data.dataset in name and f"ipc{settings.distill.ipc}" in name
        assert name.startswith(settings.method)


def test_the_list_shows_cost_and_figures_without_torch():
    code = (
        "import sys; from ddfed.cli import cli; cli.main(sys.argv[1:], standalone_mode=False);"
        "print([m for m in ('torch', 'matplotlib') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, "reproduce", "--list"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.strip() == "[]", done.stderr
    lines = done.stdout.splitlines()
    assert all(len(line) <= 100 for line in lines)
    (dm,) = [line for line in lines if line.startswith("dm-cifar10-ipc10 ")]
    assert "48.9 ± 0.6" in dm
    rows = json.loads(run("reproduce", "--list", "--json").stdout)
    assert [row["name"] for row in rows] == scenario_names()
    assert all(row["cost"] for row in rows)


def test_a_broken_scenario_does_not_hide_the_others(tmp_path, monkeypatch):
    from ddfed.registry import Component

    for name, target in (("zz-broken", "ddfed_scenarios:nothing.toml"), ("zz-nowhere", "no_such_package:x.toml")):
        broken = Component("scenario", name, target, plugin="stranger")
        monkeypatch.setitem(registry()._components, ("scenario", name), broken)
    done = run("reproduce", "--list")
    assert done.exit_code == 0
    assert "dm-cifar10-ipc10" in done.stdout
    assert "nothing.toml does not exist" in done.stderr
    assert "plugin 'stranger'" in done.stderr


def test_the_printed_file_is_the_scenario(tmp_path):
    text = run("reproduce", "dm-cifar10-ipc10", "--toml").stdout
    (tmp_path / "copy.toml").write_text(text)
    assert load_scenario(str(tmp_path / "copy.toml")).layer.values == load_scenario("dm-cifar10-ipc10").layer.values
    assert run("reproduce", "dm-cifar10-ipc10", "--toml", "--reduced").stdout != text


def test_a_plugin_brings_its_own(tmp_path, monkeypatch):
    from ddfed.registry import Component

    (tmp_path / "strange_scenarios").mkdir()
    (tmp_path / "strange_scenarios/__init__.py").write_text("")
    (tmp_path / "strange_scenarios/mine.toml").write_text(TINY + TABLE)
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = Component("scenario", "mine", "strange_scenarios:mine.toml", plugin="stranger")
    monkeypatch.setitem(registry()._components, ("scenario", "mine"), mine)
    assert load_scenario("mine").table.title == "random digits"


# --- what is told about methods -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry().names("recipe"))
def test_methods_are_shown_whole_and_narrow(name):
    shown = run("methods", "show", name)
    component = registry().get("recipe", name)
    recipe = component.read()
    assert shown.exit_code == 0
    absent = f"{', '.join(component.missing)} ({component.pip_line})" if component.missing else ""
    assert shown.stdout.rstrip("\n") == told(recipe, absent=absent)
    assert [line for line in shown.stdout.splitlines() if len(line) > 100 and " " in line.strip()] == []
    flat = " ".join(shown.stdout.split())
    assert recipe.name in flat
    for text in (recipe.title, recipe.citation, recipe.idea, recipe.fails, *recipe.departures):
        assert " ".join(text.split()) in flat


def test_the_list_of_methods_is_narrow_and_by_family():
    lines = run("methods", "list").stdout.splitlines()
    assert all(len(line) <= 160 for line in lines)
    rows = json.loads(run("methods", "list", "--json").stdout)
    assert [(r["kind"], r["family"]) for r in rows] == sorted((r["kind"], r["family"]) for r in rows)
    assert all(r["cost"] in ("low", "medium", "high") for r in rows if r["kind"] == "central")


def test_showing_a_method_loads_no_torch():
    code = (
        "import sys; from ddfed.cli import cli; cli.main(['methods', 'show', 'dm'], standalone_mode=False);"
        "print([m for m in ('torch', 'matplotlib') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


def test_every_setting_of_the_parts_has_its_place():
    from ddfed.cli.method_pages import ELSEWHERE, PARTS
    from ddfed.settings import PartSettings

    placed = [name for names in PARTS.values() for name in names]
    assert len(placed) == len(set(placed))
    assert set(placed) | set(ELSEWHERE) == set(PartSettings.model_fields)


def test_a_table_is_cut_in_its_widest_columns_and_never_in_its_names(capsys):
    from ddfed.cli.output import table

    table(("name", "short", "text"), [("a" * 30, "kept", "word " * 30)], width=60)
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("a" * 30 + "  kept ") and line.endswith("...") and len(line) <= 60
    table(("name", "text"), [("a" * 70, "some words")], width=60)
    assert "a" * 70 in capsys.readouterr().out
    table(("name", "text"), [("a", "b" * 200)])
    assert "b" * 200 in capsys.readouterr().out
