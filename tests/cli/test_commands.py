"""The commands as a person types them: results, files, exit codes and messages."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ddfed.cli import main

SMALL_RUN = [
    "--set", "data.train_limit=300", "--set", "data.test_limit=100", "--set", "distill.network=convnet-d2-w16",
    "--set", "server.epochs=5", "--set", "local.epochs=1", "--set", "distill.steps=3",
    "--set", "distill.min_count=1",
]  # fmt: skip
SMALL_DISTILL = [
    "--set", "data.train_limit=300", "--set", "data.test_limit=100", "--set", "distill.network=convnet-d2-w16",
    "--set", "evaluate.networks=['convnet-d2-w16']", "--epochs", "5", "--repeats", "2",
    "--set", "evaluate.teacher_steps=3",
]  # fmt: skip


def ddfed(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """A command through its own door in this process; one of its own would spend seconds on imports each time."""
    out, err, threads = io.StringIO(), io.StringIO(), torch.get_num_threads()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            torch.set_num_threads(threads)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def ddfed_apart(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """A command as a person starts it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "ddfed.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def the_run(cwd: Path) -> Path:
    (run,) = (cwd / "runs").iterdir()
    return run


@pytest.fixture(scope="module")
def distilled(tmp_path_factory) -> Path:
    """One small central run for the commands that look at it."""
    cwd = tmp_path_factory.mktemp("distilled")
    done = ddfed("distill", "-m", "dm", "--ipc", "2", "--steps", "4", *SMALL_DISTILL, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return the_run(cwd)


def test_simulate_writes_a_whole_run_folder(tmp_path):
    done = ddfed_apart("simulate", "--clients", "4", "--rounds", "2", "--ipc", "2", *SMALL_RUN, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)  # stdout is data alone, also while progress is shown
    assert list(summary["methods"]) == ["feddm", "random-once", "random-fresh", "fedavg"]
    names = {path.name for path in the_run(tmp_path).iterdir()}
    assert names >= {
        "config.toml", "events.jsonl", "summary.json", "distilled.safetensors", "card.json", "checkpoint",
        "report.html", "figures",
    }  # fmt: skip
    page = (the_run(tmp_path) / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert "random-once" in page
    assert page.count("<svg") >= 3
    assert "data:image/png;base64," in page


def test_distill_prints_the_table_with_its_baselines(distilled):
    summary = json.loads((distilled / "summary.json").read_text())
    assert [row["subject"] for row in summary["evaluation"]] == ["dm", "random", "label-only", "full data"]
    assert all(len(row["accuracies"]) == len(row["ece"]) == 2 for row in summary["evaluation"])
    assert "E-dsa (5 epochs)" in (distilled / "report.html").read_text()


def test_a_finished_run_that_is_resumed_gives_the_same_summary(distilled, tmp_path):
    before = json.loads((distilled / "summary.json").read_text())
    done = ddfed("distill", "--resume", str(distilled), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert again["artifact"] == before["artifact"]
    assert [r["accuracies"] for r in again["evaluation"]] == [r["accuracies"] for r in before["evaluation"]]


def test_an_evaluation_that_was_stopped_goes_on_at_the_row_where_it_was(distilled, tmp_path):
    """Seen by a mark in the rows that were finished: what is measured again would not bear it."""
    run = tmp_path / "runs" / distilled.name
    shutil.copytree(distilled, run)
    before = json.loads((run / "summary.json").read_text())["evaluation"]
    (run / "summary.json").unlink()
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    kept = [e for e in events if e["kind"] == "step"] + [e for e in events if e["kind"] == "evaluation"][:2]
    kept[-1]["note"] = "measured before"
    (run / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in kept))
    done = ddfed("distill", "--resume", str(run), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    after = json.loads(done.stdout)["evaluation"]
    assert [row["accuracies"] for row in after] == [row["accuracies"] for row in before]
    assert after[1]["note"] == "measured before" != after[2]["note"]


def test_evaluate_makes_the_cross_architecture_table(distilled, tmp_path):
    done = ddfed(
        "evaluate",
        str(distilled),
        "--arch",
        "convnet-d2-w8,mlp",
        "--epochs",
        "2",
        "--repeats",
        "1",
        "--set",
        "evaluate.teacher_steps=3",
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {(r["network"], r["subject"]) for r in rows} == {
        (n, s) for n in ("convnet-d2-w8", "mlp") for s in ("dm", "random", "label-only", "full data")
    }


def test_evaluate_takes_the_settings_of_a_run(distilled, tmp_path):
    """The run's own file gives back the run's own table."""
    config = str(distilled / "config.toml")
    done = ddfed("evaluate", str(distilled), "--config", config, "--json", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((distilled / "summary.json").read_text())
    assert [r["accuracies"] for r in json.loads(done.stdout)] == [r["accuracies"] for r in summary["evaluation"]]


def test_evaluate_makes_the_dc_bench_matrix(distilled, tmp_path):
    small = ["--epochs", "1", "--repeats", "1", "--baselines", "none", "--augment", "none,dsa"]
    done = ddfed(
        "evaluate", str(distilled), "--benchmark", "dc-bench", *small, "--arch", "convnet-d2-w8,mlp", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["trained", "on", "network", "none", "dsa"] and len(lines) == 2


def test_evaluate_scores_a_set(distilled, tmp_path):
    options = ["--scores", "--arch", "convnet-d2-w8", "--epochs", "2", "--repeats", "1"]
    done = ddfed("evaluate", str(distilled), *options, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert set(data["scores"]) == {"HLR", "IOR", "LRS", "ARS"} and 0 <= data["scores"]["LRS"] <= 1
    assert data["used"]["rows held out to choose step sizes"] == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--baselines", "rando"], "Did you mean 'random'"),
        (["--protocol", "E-mtt"], "this set carries none"),
        (["--protocol", "E-krr", "--arch", "mlp"], "trains no network"),
        (["--scores", "--benchmark", "dc-bench"], "one at a time"),
        (["--augment", "dsa"], "belongs to --benchmark"),
        (["--benchmark", "dc-bench", "--protocol", "E-dc"], "a recipe of its own"),
        (["--benchmark", "dc-bench", "--arch", "vgg11"], "at least 32 pixels"),
        (["--scores", "--protocol", "E-krr"], "trains none"),
        (["--scores", "--arch", "mlp,convnet"], "for one network"),
        (["--set", "evaluate.teacher_stepz=3"], "Did you mean 'evaluate.teacher_steps'"),
    ],
)
def test_wrong_evaluations_are_one_clear_error(distilled, options, message):
    """In this process: starting ten takes a minute, and how an error is printed is tested above."""
    from click.testing import CliRunner

    from ddfed.cli.evaluate import evaluate
    from ddfed.errors import ConfigError

    # Named as the root names it: a command remembers the help option it was first asked with.
    names = ["-h", "--help"]
    done = CliRunner().invoke(
        evaluate, [str(distilled), *options, "--quiet", "--threads", "1"], help_option_names=names
    )
    assert isinstance(done.exception, ConfigError) and message in str(done.exception) and not done.stdout


def test_show_compare_and_export(distilled, tmp_path):
    shown = ddfed("show", str(distilled), "--picture", str(tmp_path / "set.png"), cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "No formal privacy guarantee" in shown.stdout
    assert (tmp_path / "set.png").stat().st_size > 100
    compared = ddfed("compare", str(distilled), str(distilled), "--html", "c.html", cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    assert (tmp_path / "c.html").is_file()
    exported = ddfed("export", str(distilled), "out", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert len(list((tmp_path / "out").rglob("*.png"))) == 20
    refused = ddfed("export", str(distilled), "more", "--samples", "3", cwd=tmp_path)
    assert refused.returncode == 2 and "only those of a generator that was trained" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill", "--method", "mmt"], "unknown method 'mmt'"),
        (["distill", "--method", "feddm"], "federated method"),
        (["simulate", "--method", "feddmm"], "Did you mean 'feddm'"),
        (["simulate", "--dataset", "digit"], "Did you mean 'digits'"),
        (["simulate", "--domain", "imag"], "Did you mean 'image'"),
        (["simulate", "--set", "federation.cilents=3"], "Did you mean 'federation.clients'"),
        (["simulate", "--set", "nonsense"], "KEY=VALUE"),
        (["simulate", "--dataset", "cifar10"], "no folder was given"),
        (["simulate", "--dataset", "mnist", "--data", "nowhere"], "nowhere"),
        (["distill", "--ipc", "100000"], "ipc"),
        (["simulate", "--clients", "100000"], "clients"),
        (["simulate", "--clients", "200"], "distill.min_count"),
        (["simulate", "--data", "."], "--dataset folder"),
        (["distill", "--protocol", "E-foo"], "unknown protocol 'E-foo'"),
        (["distill", "--set", "distill.init=randum"], "Did you mean 'random'"),
        (["simulate", "--set", "distill.init=randum"], "Did you mean 'random'"),
        (["simulate", "--alpha", "-1"], "alpha"),
        (["distill", "--device", "gpu"], "possible: auto, cpu"),
        (["show", "nothing-here"], "nothing-here"),
        (["compare", "nothing-here"], "nothing-here"),
        (["simulate", "--resume", "latest"], "runs"),
        (["simulate", "--resume", "latest", "--clients", "3"], "--clients"),
        (["simulat"], "simulate"),
    ],
)
def test_wrong_input_is_one_clear_error(tmp_path, arguments, message):
    done = ddfed(*arguments, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    assert not (tmp_path / "runs").exists(), "a run that cannot start must leave no folder behind"


def test_a_place_that_cannot_be_written_is_refused_before_work(tmp_path):
    # A file where the folder should be: refuses root as well, unlike permissions.
    (tmp_path / "taken").write_text("")
    done = ddfed("simulate", "--out", "taken", *SMALL_RUN, cwd=tmp_path)
    assert done.returncode == 1
    assert "--out" in done.stderr


def test_a_changed_artifact_is_refused(distilled, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(distilled, copy)
    content = bytearray((copy / "distilled.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "distilled.safetensors").write_bytes(bytes(content))
    done = ddfed("evaluate", str(copy), cwd=tmp_path)
    assert done.returncode == 1
    assert "changed or truncated" in done.stderr


def test_a_run_is_resumed_by_the_command_that_made_it(distilled, tmp_path):
    done = ddfed("simulate", "--resume", str(distilled), cwd=tmp_path)
    assert done.returncode == 2
    assert f"ddfed distill --resume {distilled}" in done.stderr
    latest = ddfed("simulate", "--resume", "latest", "--out", str(distilled.parent), cwd=tmp_path)
    assert "no run of `ddfed simulate`" in latest.stderr


def test_a_baseline_that_does_not_exist_is_refused(distilled, tmp_path):
    done = ddfed("evaluate", str(distilled), "--baselines", "rnd", cwd=tmp_path)
    assert done.returncode == 2
    assert "'random', 'label-only', 'full'" in done.stderr


def test_unfinished_runs_are_left_out_of_a_comparison(distilled, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.toml").write_text((distilled / "config.toml").read_text())
    done = ddfed("compare", "broken", str(distilled), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "left out: broken" in done.stderr
    assert {row["method"].split(" · ")[0] for row in json.loads(done.stdout)} == {
        "dm", "random", "label-only", "full data",
    }  # fmt: skip


def test_compare_and_distill_print_the_same_spread(distilled, tmp_path):
    rows = json.loads(ddfed("compare", str(distilled), "--json", cwd=tmp_path).stdout)
    summary = json.loads((distilled / "summary.json").read_text())
    assert [row["std"] for row in rows] == pytest.approx([row["std"] for row in summary["evaluation"]])


@pytest.mark.slow
@pytest.mark.parametrize("command", ["simulate", "distill"])
def test_ctrl_c_leaves_a_run_that_resumes_to_the_same_end(tmp_path, command):
    if command == "simulate":
        base = ["simulate", "--clients", "3", "--ipc", "2", "--baselines", "fedavg", "--quiet", *SMALL_RUN]
        base += ["--rounds", "12", "--json"]
    else:
        base = ["distill", "--ipc", "2", "--steps", "60", "--set", "run.checkpoint_every=5", "--json", "--quiet"]
        base += [*SMALL_DISTILL, "--set", "evaluate.baselines=[]"]
    whole = ddfed(*base, "--out", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    broken = subprocess.Popen(
        [sys.executable, "-m", "ddfed.cli", *base],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/*/checkpoint/*.safetensors")):
        assert broken.poll() is None, broken.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    broken.send_signal(signal.SIGINT)
    _, talk = broken.communicate(timeout=30)
    assert broken.returncode == 130, talk
    run = the_run(tmp_path)
    assert not (run / "summary.json").exists()
    resumed = ddfed(command, "--resume", str(run), "--json", "--quiet", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["artifact"] == json.loads(whole.stdout)["artifact"]
