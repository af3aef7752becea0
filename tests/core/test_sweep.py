"""The table of methods: cells in processes of their own, failures, limits, resuming. Most use a stand-in program."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from ddfed import sweep
from ddfed.cli import cli
from ddfed.errors import ConfigError, RunFolderError, UnknownNameError
from ddfed.registry import registry
from ddfed.sweep import Cell, How, Sweep, parse_cells, parse_data, parse_methods, parse_seeds, plan

#: Stands in for `ddfed distill`: makes a run folder at once, and does what the text in ``run.device`` says.
STAND_IN = """
import json, pathlib, sys, time, tomllib
what, value = sys.argv[1:3]
resumed = what == "--resume"
run = pathlib.Path(value)
settings = tomllib.loads((run / "config.toml" if resumed else run).read_text())
told = settings["run"]["device"].split("+")
if not resumed:
    runs = pathlib.Path(settings["run"]["out"])
    run = runs / f"20260101-00000{len(list(runs.glob('2026*')))}-cell"
    run.mkdir(parents=True)
    (run / "config.toml").write_text(pathlib.Path(value).read_text())
for word in told:
    if word == "fail":
        print("error: it does not converge", file=sys.stderr); sys.exit(1)
    if word == "die":
        import os; os.kill(os.getpid(), 9)
    if word == "big":
        held = bytearray(300_000_000)
    if word == "slow" and not resumed:
        (run / "checkpoint").mkdir(); (run / "checkpoint" / "state.safetensors").write_text("x")
        time.sleep(60)
seed = settings["run"]["seed"]
row = {"network": "net", "protocol": "E-dsa", "items": 10, "accuracies": [0.8, 0.9]}
rows = [{**row, "subject": settings["method"], "mean": 0.8 + seed / 10, "std": 0.05},
        {**row, "subject": "random", "mean": 0.5, "std": 0.0}]
(run / "summary.json").write_text(json.dumps(
    {"status": "finished", "evaluation": rows, "seconds": {"distil": 2.0 + seed, "evaluate": 1.0}}))
"""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_command", lambda what: [sys.executable, "-c", STAND_IN, *what])


def cells(*methods: str, seeds: tuple[int, ...] = (0,)) -> list[Cell]:
    return [Cell(method, "digits", 1, seed) for seed in seeds for method in methods]


def runs_of(folder: Path, cell: Cell) -> list[Path]:
    return sorted((folder / "cells" / cell.key).glob("2026*"))


# --- what is asked ------------------------------------------------------------------------------------------


def test_methods_are_names_families_or_all():
    assert parse_methods("random,dm,random") == ["dm", "random"]  # by family: moments before selection
    assert set(parse_methods("selection,dm")) >= {"dm", "random", "herding"}
    assert set(parse_methods("all")) == set(registry().names("recipe"))


def test_unknown_and_federated_methods_are_refused():
    with pytest.raises(UnknownNameError, match="'hording' .*--methods.*Did you mean 'herding'"):
        parse_methods("hording")
    with pytest.raises(UnknownNameError, match="federated method"):
        parse_methods("feddm")
    with pytest.raises(ConfigError, match="--methods is empty"):
        parse_methods(" ,")


def test_cells_name_a_data_set_and_a_budget():
    assert parse_cells("digits:1, image/digits:10,digits:1") == [("image", "digits", 1), ("image", "digits", 10)]
    for text in ("digits", "digits:", "digits:0", "digits:x", "1"):
        with pytest.raises(ConfigError, match="DATASET:IPC"):
            parse_cells(text)
    with pytest.raises(ConfigError, match="Did you mean 'digits'"):
        parse_cells("digit:1")


def test_seeds_are_numbers():
    assert parse_seeds("0, 3,0") == [0, 3]
    with pytest.raises(ConfigError, match="--seeds"):
        parse_seeds("0,a")


def test_data_sets_with_files_need_their_folder(tmp_path):
    assert parse_data([f"cifar10={tmp_path}"], ["cifar10", "digits"]) == {"cifar10": tmp_path.resolve()}
    with pytest.raises(ConfigError, match="--data cifar10=FOLDER"):
        parse_data([], ["cifar10"])
    with pytest.raises(ConfigError, match="NAME=FOLDER"):
        parse_data(["cifar10"], ["digits"])
    with pytest.raises(ConfigError, match="no cell uses"):
        parse_data(["mnist=x"], ["digits"])


def test_a_plan_holds_every_combination_seed_by_seed():
    found = plan(["dm", "random"], [("image", "digits", 1), ("image", "digits", 10)], [0, 1])
    assert len({cell.key for cell in found}) == 8
    assert [cell.seed for cell in found] == [0] * 4 + [1] * 4


def test_the_parent_imports_no_torch():
    """Its memory would count towards its children's peak."""
    code = (
        "import sys; from pathlib import Path; from ddfed import sweep; from ddfed.cli.sweep import sweep as _\n"
        "sweep._Task.of(sweep.Cell('dm', 'digits', 1, 0), sweep.How(steps=3), None, Path('x'))\n"
        "print([m for m in ('torch', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_steps_are_an_upper_bound_that_leaves_selection_alone(tmp_path):
    few = sweep._Task.of(Cell("dm", "digits", 1, 0), How(steps=3), None, tmp_path)
    assert few.settings.distill.steps == 3
    assert few.note.startswith("3 steps instead of ")
    selection = sweep._Task.of(Cell("random", "digits", 1, 0), How(steps=3), None, tmp_path)
    assert (selection.settings.distill.steps, selection.note) == (0, "")


def test_the_fingerprint_tells_settings_but_not_places(tmp_path):
    def of(how: How, root: Path | None = None, seed: int = 0) -> str:
        return sweep._Task.of(Cell("dm", "digits", 1, seed), how, root, tmp_path).fingerprint

    assert of(How(), tmp_path) == of(How(), tmp_path / "moved")
    assert len({of(How()), of(How(epochs=3)), of(How(sets=("distill.lr=2",))), of(How(), seed=1)}) == 4


# --- a sweep with the stand-in ------------------------------------------------------------------------------


def test_the_table_has_mean_spread_margin_time_and_memory(tmp_path, stand_in):
    state = Sweep(tmp_path, How(epochs=5))
    rows = state.run(cells("random", "dm", seeds=(0, 1)))
    dm = next(row for row in rows if row["method"] == "dm")
    assert dm["seeds"] == [0, 1]
    assert dm["accuracy"] == pytest.approx(85)
    assert dm["spread"] == pytest.approx(statistics.stdev([80, 90]))
    assert dm["margin"] == pytest.approx(35)
    assert dm["distil_s"] == pytest.approx(2.5)
    assert 0 < dm["seconds"] < 30
    assert [row["family"] for row in rows] == ["moments", "selection"]
    # Of random selection the first row of the name is the set, the second its control.
    assert next(row for row in rows if row["method"] == "random")["margin"] == pytest.approx(35)
    page = (tmp_path / "sweep.md").read_text()
    assert "| moments | dm | 85.0 | 7.1 | 50.0 | +35.0 | 2.5 |" in page
    assert "that trains is cut to 5 epochs" in page
    assert json.loads((tmp_path / "sweep.json").read_text())["table"] == rows


def test_one_seed_has_the_spread_over_its_networks(tmp_path, stand_in):
    (row,) = Sweep(tmp_path, How()).run(cells("dm"))
    assert (row["spread"], row["over"]) == (pytest.approx(5), "networks")


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="this system does not tell the peak memory of a child")
def test_peak_memory_is_the_cell_s_own(tmp_path):
    """From a small parent, as the command is: the big cell does not show in the one that runs after it."""
    code = (
        "import sys; from pathlib import Path; from ddfed import sweep\n"
        f"sweep._command = lambda what: [sys.executable, '-c', {STAND_IN!r}, *what]\n"
        "for device in ('big', 'cpu'):\n"
        "    how = sweep.How(device=device)\n"
        f"    rows = sweep.Sweep(Path({str(tmp_path)!r}) / device, how).run([sweep.Cell('dm', 'digits', 1, 0)])\n"
        "    print(rows[0]['peak_mb'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    big, small = map(float, done.stdout.split())
    assert 300 < big < 400, done.stderr
    assert 5 < small < 100


def test_what_is_finished_is_not_run_again(tmp_path, stand_in):
    Sweep(tmp_path, How()).run(cells("dm"))
    seen = []
    rows = Sweep(tmp_path, How()).run(cells("dm", "random"), told=lambda record, *counts: seen.append(counts))
    assert seen == [(2, 2)]
    assert len(rows) == 2
    assert len(runs_of(tmp_path, cells("dm")[0])) == 1


def test_a_recipe_that_changed_since_is_run_again(tmp_path, stand_in):
    Sweep(tmp_path, How()).run(cells("dm"))
    state = json.loads((tmp_path / "sweep.json").read_text())
    state["cells"][cells("dm")[0].key]["settings"] = "of an older recipe"
    (tmp_path / "sweep.json").write_text(json.dumps(state))
    Sweep(tmp_path, How()).run(cells("dm"))
    assert len(runs_of(tmp_path, cells("dm")[0])) == 2


@pytest.mark.parametrize(("what", "message"), [("fail", "it does not converge"), ("die", "killed by signal 9")])
def test_failures_are_told_and_the_sweep_goes_on(tmp_path, stand_in, monkeypatch, what, message):
    original = sweep._Task.of.__func__

    def of(cls, cell, how, root, folder):
        return original(cls, cell, How(device=what) if cell.method == "dm" else how, root, folder)

    monkeypatch.setattr(sweep._Task, "of", classmethod(of))
    rows = Sweep(tmp_path, How()).run(cells("dm", "random"))
    assert rows[0]["accuracy"] is None
    assert rows[0]["note"].startswith("failed (seed 0): ")
    assert message in rows[0]["note"]
    assert rows[1]["accuracy"] is not None
    monkeypatch.undo()
    monkeypatch.setattr(sweep, "_command", lambda w: [sys.executable, "-c", STAND_IN, *w])
    mended = Sweep(tmp_path, How()).run(cells("dm", "random"))
    assert mended[0]["accuracy"] is not None
    assert mended[0]["note"] == ""
    assert len(runs_of(tmp_path, cells("random")[0])) == 1


def test_a_cell_over_its_time_is_stopped_and_goes_on_next_time(tmp_path, stand_in):
    how = How(device="slow")
    began = time.monotonic()
    (row,) = Sweep(tmp_path, how).run(cells("dm"), limit_s=1.0)
    assert time.monotonic() - began < 15
    assert "over time after 1 s" in row["note"]
    first = json.loads((tmp_path / "sweep.json").read_text())["cells"][cells("dm")[0].key]
    (row,) = Sweep(tmp_path, how).run(cells("dm"), limit_s=30)
    assert row["accuracy"] == pytest.approx(80)
    assert row["distil_s"] is None  # only the last part is known
    assert row["seconds"] > first["seconds"]  # of both attempts
    assert len(runs_of(tmp_path, cells("dm")[0])) == 1


def test_an_interrupt_stops_the_children_and_loses_nothing(tmp_path, stand_in, monkeypatch):
    original = sweep._Task.of.__func__

    def of(cls, cell, how, root, folder):
        return original(cls, cell, How(device="slow") if cell.method == "dm" else how, root, folder)

    monkeypatch.setattr(sweep._Task, "of", classmethod(of))

    def interrupt(*_: object) -> None:
        while not list((tmp_path / "cells").glob("dm*/2026*/checkpoint/*")):
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Sweep(tmp_path, How()).run(cells("dm", "random"), jobs=2, told=interrupt)
    records = json.loads((tmp_path / "sweep.json").read_text())["cells"]
    assert {r["method"]: r["status"] for r in records.values()} == {"dm": "stopped", "random": "finished"}
    rows = Sweep(tmp_path, How()).run(cells("dm", "random"))
    assert all(row["accuracy"] is not None for row in rows)
    assert all(len(runs_of(tmp_path, cell)) == 1 for cell in cells("dm", "random"))


def test_another_way_of_measuring_is_another_sweep(tmp_path, stand_in):
    Sweep(tmp_path, How(epochs=5)).run(cells("dm"))
    with pytest.raises(ConfigError, match="epochs 5, now 6"):
        Sweep(tmp_path, How(epochs=6))


def test_a_damaged_state_is_said_and_kept(tmp_path):
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(RunFolderError, match="Move it away"):
        Sweep(tmp_path, How())
    assert (tmp_path / "sweep.json").read_text() == "{"


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunFolderError, match="taken"):
        Sweep(tmp_path / "taken", How())


def test_the_command_prints_the_table_and_says_where_it_is(tmp_path, stand_in):
    asked = ["sweep", "--methods", "dm,random", "--cells", "digits:1", "--seeds", "0,1", "--out", str(tmp_path / "s")]
    shown = CliRunner().invoke(cli, asked)
    assert shown.exit_code == 0, shown.stderr
    assert "4/4" in shown.stderr and "sweep.md" in shown.stderr
    assert [line.split()[2:4] for line in shown.stdout.splitlines()[1:]] == [["moments", "dm"], ["selection", "random"]]
    again = CliRunner().invoke(cli, [*asked, "--json", "--quiet"])
    assert again.stderr == ""
    assert [row["method"] for row in json.loads(again.stdout)] == ["dm", "random"]


def test_the_command_leaves_with_130_when_it_is_interrupted(tmp_path, stand_in, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Sweep, "run", interrupt)
    done = CliRunner().invoke(cli, ["sweep", "--methods", "dm", "--cells", "digits:1", "--out", str(tmp_path)])
    assert done.exit_code == 130
    assert "the same command goes on" in done.stderr


# --- with the real program ----------------------------------------------------------------------------------


def test_real_cells_of_digits(tmp_path):
    sets = ("data.train_limit=300", "data.test_limit=100", "distill.network=convnet-d2-w8")
    how = How(epochs=2, repeats=1, sets=(*sets, "evaluate.networks=[convnet-d2-w8]"))
    asked = [Cell("random", "digits", 1, 0), Cell("random", "digits", 500, 0)]
    rows = Sweep(tmp_path, how).run(asked)
    done, refused = rows
    assert 0 < done["accuracy"] <= 100
    assert done["protocol"] == "E-dsa (2 epochs)"
    assert done["peak_mb"] is None or done["peak_mb"] > 100  # torch alone is more
    assert refused["accuracy"] is None
    assert "500 real items per class" in refused["note"]


def test_epochs_are_cut_only_where_networks_are_trained(tmp_path: Path):
    """KIP is judged by a regression, which refuses epochs: the table of all methods lost its row."""
    tasks = {cell.method: sweep._Task.of(cell, How(epochs=7), None, tmp_path) for cell in cells("kip", "dm")}
    assert tasks["dm"].settings.evaluate.epochs == 7 and tasks["kip"].settings.evaluate.epochs is None


def test_cells_of_modalities_that_share_a_name_and_methods_for_one_of_them():
    assert parse_cells("digits:1,graph/digits:2") == [("image", "digits", 1), ("graph", "digits", 2)]
    places = parse_cells("digits:1,graph/digits:1")
    found = [(cell.domain, cell.method, cell.key) for cell in plan(["dm", "gcond"], places, [0])]
    assert found == [
        ("image", "dm", "dm-digits-ipc1-seed0"),
        ("graph", "dm", "dm-graph-digits-ipc1-seed0"),
        ("graph", "gcond", "gcond-graph-digits-ipc1-seed0"),
    ]
    with pytest.raises(ConfigError, match="no method fits a cell"):
        plan(["gcond"], parse_cells("digits:1"), [0])
