"""Run folders survive crashes, and progress stays off stdout."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from ddfed.errors import ArtifactError, RunFolderError
from ddfed.progress import Progress, human_bytes, human_time, human_value
from ddfed.runs import RunFolder, find_runs, safe_name


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "dm", "seed = 1\n")


def test_create_writes_the_config_under_a_dated_name(run: RunFolder):
    assert run.config_path.read_text() == "seed = 1\n"
    assert run.path.name[8] == "-" and run.path.name.endswith("-dm")
    assert not run.finished and not run.has_checkpoint and run.events() == []


def test_a_taken_name_gets_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.strftime", lambda _: "20260131-120000")
    names = [RunFolder.create(tmp_path, "dm", "").path.name for _ in range(3)]
    assert names == ["20260131-120000-dm", "20260131-120000-dm-2", "20260131-120000-dm-3"]
    assert RunFolder.open("latest", tmp_path).path.name == names[-1]


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a b/c", "a-b-c"),
        ("../../etc", "etc"),
        ("", "run"),
        ("...", "run"),
        ("é", "run"),
        ("x" * 200, "x" * 80),
    ],
)
def test_names_are_made_safe(name: str, safe: str):
    assert safe_name(name) == safe


def test_a_place_that_cannot_be_written_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="--out"):
        RunFolder.create(tmp_path / "file", "dm", "")

    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunFolderError, match="Permission denied.*--out"):
        RunFolder.create(tmp_path, "dm", "")


def test_opening_to_resume_probes_by_writing(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    def refuse(self: Path, content: bytes) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert RunFolder.open(run.path).path == run.path
    with pytest.raises(RunFolderError, match="Read-only file system"):
        RunFolder.open(run.path, writable=True)


def test_open_says_what_is_missing(tmp_path: Path, run: RunFolder):
    with pytest.raises(RunFolderError, match="not a run folder: it lacks config.toml, events.jsonl.*name one"):
        RunFolder.open(tmp_path / "runs")
    with pytest.raises(RunFolderError, match="does not exist. Newest beside it"):
        RunFolder.open(tmp_path / "runs" / "nothing")
    with pytest.raises(RunFolderError, match="'latest'"):
        RunFolder.open("latest", tmp_path / "empty")
    assert [r.path for r in find_runs(tmp_path / "runs")] == [run.path]


def test_events_are_on_disk_at_once_and_hold_json_only(run: RunFolder):
    run.event("step", step=1, loss=float("nan"), accuracy=torch.tensor(0.5), path=Path("x"), sizes=(1, 2))
    line = (run.path / "events.jsonl").read_text()
    assert line.endswith("\n")
    assert json.loads(line) == {
        "kind": "step", "step": 1, "loss": None, "accuracy": 0.5, "path": "x", "sizes": [1, 2]
    }  # fmt: skip


def test_a_torn_last_line_is_forgotten_and_overwritten(run: RunFolder):
    run.event("step", step=1)
    run.close()
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(b'{"kind": "step", "st')
    again = RunFolder.open(run.path)
    assert [e["step"] for e in again.events()] == [1]
    again.event("step", step=2)
    assert [e["step"] for e in again.events()] == [1, 2]


def test_a_damaged_line_in_the_middle_is_named(run: RunFolder):
    (run.path / "events.jsonl").write_text('{"kind": "a"}\nrubbish\n{"kind": "b"}\n')
    with pytest.raises(RunFolderError, match="line 2"):
        run.events()


def test_resumed_events_equal_the_uninterrupted_ones(tmp_path: Path):
    whole, broken = (RunFolder.create(tmp_path, name, "") for name in ("whole", "broken"))
    for step in range(10):
        whole.event("step", step=step, loss=1 / (step + 1))
    for step in range(7):
        broken.event("step", step=step, loss=1 / (step + 1))
    assert broken.truncate_events(lambda event: event["step"] < 5) == 2
    for step in range(5, 10):
        broken.event("step", step=step, loss=1 / (step + 1))
    files = [(r.path / "events.jsonl").read_bytes() for r in (whole, broken)]
    assert files[0] == files[1]


def test_checkpoint_round_trip(run: RunFolder):
    with pytest.raises(RunFolderError, match="no checkpoint.*--config"):
        run.load_checkpoint()
    run.checkpoint({"step": 3, "x": torch.arange(3), "optimiser": {0: {"momentum": torch.ones(2)}}})
    tree = RunFolder.open(run.path).load_checkpoint()
    assert tree["step"] == 3 and tree["x"].tolist() == [0, 1, 2]
    assert tree["optimiser"][0]["momentum"].tolist() == [1, 1]
    (run.path / "checkpoint" / "state.safetensors").write_bytes(b"short")
    with pytest.raises(ArtifactError):
        run.load_checkpoint()


def test_the_summary_marks_the_end(run: RunFolder):
    with pytest.raises(RunFolderError, match="did not finish"):
        run.summary()
    run.write_summary({"status": "interrupted"})
    assert not run.finished
    run.write_summary({"status": "finished", "accuracy": {"mean": 0.5, "spread": float("inf")}})
    assert run.finished and run.summary()["accuracy"] == {"mean": 0.5, "spread": None}
    (run.path / "summary.json").write_text("[")
    with pytest.raises(RunFolderError, match="cannot read"):
        run.summary()


# --- progress -----------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_show_the_first_and_the_last_step(capsys: pytest.CaptureFixture[str]):
    stream = io.StringIO()
    with Progress(stream=stream, interval_s=1000) as progress:
        task = progress.task("distilling", total=100)
        for step in range(100):
            progress.update(task, completed=step + 1, loss=1 / (step + 1), accuracy=0.93, sent_bytes=1536)
        progress.note("done")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3 and lines[2] == "done"
    assert lines[0].startswith("distilling: 1/100 (1 %)  loss 1  accuracy 93.0 %  sent_bytes 1.54 kB")
    assert "eta" not in lines[0], "a first step that has just begun says nothing about the time left"
    assert lines[1].startswith("distilling: 100/100 (100 %)  loss 0.01")
    assert capsys.readouterr().out == ""


def test_time_left_is_told_once_there_is_time_behind(monkeypatch: pytest.MonkeyPatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    stream = io.StringIO()
    with Progress(stream=stream, interval_s=0) as progress:
        task = progress.task("distilling", total=3)
        progress.update(task, completed=1)
    assert "eta" in stream.getvalue()


def test_plain_lines_show_where_an_interrupted_loop_stopped():
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Progress(stream=stream, interval_s=1000) as progress:
        task = progress.task("rounds")
        for _ in range(3):
            progress.update(task, advance=1)
        raise KeyboardInterrupt
    assert stream.getvalue().splitlines() == ["rounds: 1", "rounds: 3"]


def test_bars_on_a_terminal_honour_no_color(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with Progress(stream=stream) as progress:
        task = progress.task("distilling [dm]", total=4)
        progress.update(task, completed=3, loss=0.125)
        progress.update(task, advance=1)
        progress.note("a [note]")
        print("data")
    shown = stream.getvalue()
    assert "distilling [dm]" in shown and "loss 0.125" in shown and "4/4" in shown and "a [note]" in shown
    assert "\x1b[3" not in shown, "colour in spite of NO_COLOR"
    assert capsys.readouterr().out == "data\n"


def test_disabled_progress_is_silent():
    stream = Terminal()
    with Progress(enabled=False, stream=stream) as progress:
        progress.update(progress.task("x", 3), completed=1)
        progress.note("x")
    assert stream.getvalue() == ""


def test_values_read_as_people_write_them():
    assert [human_bytes(n) for n in (0, 999, 1000, 12345678)] == ["0 B", "999 B", "1 kB", "12.3 MB"]
    assert [human_time(n) for n in (0, 75, 3661)] == ["0:00", "1:15", "1:01:01"]
    assert human_value("test_accuracy", 0.5) == "50.0 %" and human_value("loss", 1e-9) == "1e-09"
