"""``ddfed experts`` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ddfed.cli import cli

SMALL = [
    "--count", "1", "--epochs", "2", "--network", "convnet-d1-w4",
    "--set", "data.train_limit=200", "--set", "training.batch=64", "--set", "run.threads=1",
]  # fmt: skip


def run(*arguments: str) -> Result:
    """In this process, through the same entry as the program's."""
    return CliRunner().invoke(cli, list(arguments))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "experts"
    done = run("experts", "make", str(folder), *SMALL, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["experts"] == 1
    # Said before the work begins: 2 epochs of ceil(200 / 64) steps, three snapshots in two bytes a value.
    assert "1 experts to make, 0 are there; 8 training steps of 64 rows" in done.stderr
    return folder


def test_making_again_adds_what_is_missing(made: Path):
    done = run("experts", "make", str(made), *SMALL, "--count", "2", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["experts"] == 2
    assert "1 experts to make, 1 are there" in done.stderr


def test_other_settings_are_refused(made: Path):
    done = run("experts", "make", str(made), *SMALL, "--epochs", "3")
    assert done.exit_code == 2
    assert "holds other experts: snapshots (3 there, 4 here)" in done.stderr


def test_list_and_check(made: Path):
    (row,) = json.loads(run("experts", "list", str(made.parent), "--json").stdout)
    assert row["folder"] == str(made) and row["network"] == "convnet-d1-w4" and row["epochs"] == 2
    assert "convnet-d1-w4" in run("experts", "list", str(made.parent)).stdout
    assert json.loads(run("experts", "check", str(made), "--json").stdout)["damaged"] == {}
    content = (made / "expert-0000.safetensors").read_bytes()
    (made / "expert-0000.safetensors").write_bytes(content[:-10])
    done = run("experts", "check", str(made))
    (made / "expert-0000.safetensors").write_bytes(content)
    assert done.exit_code == 1 and "expert-0000.safetensors is truncated" in done.stderr


def test_an_empty_place_says_how_to_make_one(tmp_path: Path):
    assert "make one with `ddfed experts make FOLDER`" in run("experts", "list", str(tmp_path)).stderr
    assert run("experts", "check", str(tmp_path / "gone")).exit_code == 1


def test_a_recipe_says_how_its_experts_are_trained(tmp_path: Path):
    folder = tmp_path / "flat"
    done = run("experts", "make", str(folder), "--method", "ftd", *SMALL, "--json")
    assert done.exit_code == 0, done.output
    training = json.loads((folder / "card.json").read_text())["training"]
    assert (training["rho"], training["alpha"], training["augment"]) == (0.01, 0.3, "dsa")
    wrong = run("experts", "make", str(folder), "--method", "dm")
    assert wrong.exit_code == 2 and "follows no experts" in wrong.stderr


def test_the_command_of_a_missing_buffer_makes_one_that_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import shlex

    monkeypatch.chdir(tmp_path)
    distil = [
        "distill", "-m", "mtt", "--ipc", "1", "--steps", "1", "-q", "--epochs", "1", "--repeats", "1",
        "--set", "data.train_limit=200", "--set", "data.test_limit=50", "--set", "distill.network=convnet-d1-w4",
        "--set", "evaluate.networks=['convnet-d1-w4']", "--set", "evaluate.baselines=[]", "--set", "run.threads=1",
        "--set", "distill.pool_options.buffer=my experts", "--set", "distill.pool_options.experts=1",
        "--set", "distill.pool_options.make.epochs=2", "--set", "distill.pool_options.max_start=1",
    ]  # fmt: skip
    missing = run(*distil)
    assert missing.exit_code == 2 and "there is no expert buffer in my experts" in missing.stderr
    (line,) = [line for line in missing.stderr.splitlines() if line.strip().startswith("ddfed experts make")]
    assert run(*shlex.split(line)[1:], "-q").exit_code == 0
    done = run(*distil)
    assert done.exit_code == 0, done.output
