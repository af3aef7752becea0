"""Selection of real items, and pruning of finished sets, on the embedded digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ddfed.artifact import SyntheticSet
from ddfed.central import load_task
from ddfed.cli import cli
from ddfed.evaluate import evaluate
from ddfed.prune import prune
from ddfed.seeds import Streams
from ddfed.settings import DataSettings

SHORT = {"init_options": {"train_steps": 60}}
ONE = {"init_options": {"networks": 1}}


@pytest.mark.parametrize(
    ("method", "parts", "margin"),
    [("herding", SHORT, 8), ("kcenter", SHORT, 8), ("kmeans", SHORT, 8), ("el2n", ONE, 4), ("grand", ONE, 4)],
)
def test_one_typical_item_beats_a_random_one(accuracy, method, parts, margin):
    assert accuracy(method, 1, **parts) > accuracy("random", 1) + margin


@pytest.mark.parametrize(
    ("method", "ipc", "parts", "margin"),
    [
        # What these are not: better than random items at this budget. Their pages say so.
        ("dq", 1, SHORT, 0),
        ("forgetting", 1, {"init_options": {"epochs": 8}}, -3),
        ("herding", 10, SHORT, -3),
        ("kcenter", 10, SHORT, -3),
        ("kmeans", 10, SHORT, -3),
        ("dq", 10, SHORT, -3),
        ("forgetting", 10, {"init_options": {"epochs": 8}}, -6),
        ("el2n", 10, ONE, -6),
        ("grand", 10, ONE, -6),
    ],
)
def test_others_hold_their_own_against_random_items(accuracy, method, ipc, parts, margin):
    assert accuracy(method, ipc, **parts) > accuracy("random", ipc) + margin


@pytest.mark.parametrize("method", ["forgetting", "el2n"])
def test_the_hardest_items_of_a_small_budget_are_the_worst(accuracy, method):
    few = {"epochs": 8} if method == "forgetting" else {"networks": 1}
    hard = accuracy(method, 1, init_options={**few, "direction": "hard"})
    assert hard < accuracy("random", 1) - 20


def ddfed(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in args])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ten random items of each class."""
    runs = tmp_path_factory.mktemp("runs")
    done = ddfed("distill", "-m", "random", "--ipc", 10, "--out", runs, *QUICK)
    assert done.exit_code == 0, done.stderr
    return next(runs.iterdir())


QUICK = ("--epochs", 5, "--repeats", 1, "--set", "evaluate.baselines=[]", "--set", "run.threads=1", "-q")


@pytest.mark.parametrize(("rule", "ipc", "margin"), [("el2n", 1, 5), ("yoco", 5, -2)])
def test_pruning_by_error_against_pruning_at_random(finished: Path, rule: str, ipc: int, margin: float):
    """Of few items the clearest should stay (el2n); of half the set raw logits do no harm (yoco)."""
    syn = SyntheticSet.load(finished)
    domain, task = load_task(DataSettings())

    def measured(rule: str) -> float:
        smaller = prune(syn, ipc, rule, domain, Streams(0))
        how = {"epochs": 100, "repeats": 2, "baselines": (), "streams": Streams(0).child("evaluate")}
        return 100 * evaluate(smaller, task, domain, **how)[0].mean

    assert measured(rule) > measured("random") + margin


def test_a_pruning_is_a_run_like_any_other(finished: Path):
    runs = finished.parent
    done = ddfed("prune", finished, "--ipc", 2, "--out", runs, *QUICK, "--set", "score.epochs=10", "--json")
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    assert [row["subject"] for row in summary["evaluation"]] == ["random pruned by yoco", "random pruned at random"]
    assert summary["parent"]["sha256"] == SyntheticSet.load(finished).content_hash and summary["items"] == 20
    folder = next(path for path in runs.iterdir() if "yoco-digits-ipc2" in path.name)
    assert {"config.toml", "summary.json", "report.html", "card.json", "distilled.safetensors"} <= {
        path.name for path in folder.iterdir()
    }
    assert (folder / "figures" / "distilled.png").is_file()
    assert "Pruned from" in (folder / "report.html").read_text()
    assert len(SyntheticSet.load(folder)) == 20
    # It can be shown again, pruned again and compared, and other commands leave it alone.
    again = ddfed("prune", "--resume", folder, "--json", "-q")
    assert json.loads(again.stdout) == summary
    assert "made by `ddfed prune`" in ddfed("distill", "--resume", folder).stderr
    assert "ipc 2" in ddfed("compare", finished, folder).stdout
    twice = ddfed("prune", folder, "--ipc", 1, "--rule", "random", "--out", runs, *QUICK, "--json")
    assert json.loads(twice.stdout)["parent"]["sha256"] == summary["artifact"]


def test_an_interrupted_pruning_starts_from_the_beginning(finished: Path, tmp_path: Path):
    from ddfed.runs import find_runs

    args = ("prune", finished, "--ipc", 2, "--out", tmp_path, *QUICK, "--set", "score.epochs=10", "--json")
    whole = json.loads(ddfed(*args).stdout)
    (folder,) = find_runs(tmp_path)
    events = (folder.path / "events.jsonl").read_text()
    (folder.path / "summary.json").unlink()
    resumed = json.loads(ddfed("prune", "--resume", "latest", "--out", tmp_path, "--json", "-q").stdout)
    assert resumed["artifact"] == whole["artifact"]

    def accuracies(text: str) -> list[list[float]]:
        return [json.loads(line)["accuracies"] for line in text.splitlines()]

    assert accuracies((folder.path / "events.jsonl").read_text()) == accuracies(events)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--ipc", 11], "ipc 11 would keep 11 items per class, but the set holds 10 of class '0'"),
        (["--ipc", 2, "--rule", "yco"], "Did you mean 'yoco'?"),
        (["--ipc", 2, "--network", "convnett"], "unknown network 'convnett'"),
        ([], "say with --ipc how many"),
    ],
)
def test_wrong_wishes_leave_no_folder(finished: Path, tmp_path: Path, args: list[object], words: str):
    done = ddfed("prune", finished, "--out", tmp_path / "runs", *args)
    assert done.exit_code == 2 and words in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_pruning_needs_a_set(tmp_path: Path):
    assert "name the run folder or set" in ddfed("prune", "--ipc", 2).stderr
    assert "no distilled set in" in ddfed("prune", tmp_path, "--ipc", 2, "--out", tmp_path / "runs").stderr
