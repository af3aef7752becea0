"""Forgetting: what is meant, what is dropped, how it is judged, and whole runs that forget."""

from __future__ import annotations

import json

import pytest
import torch
from playing import TASK, client, method_of, play, server_context, settings, small_run

from ddfed.config import to_toml
from ddfed.errors import ConfigError, FederationError
from ddfed.report.pages import percent
from ddfed.runs import RunFolder
from ddfed_federated.forgetting import Probe, alike, forgetting_columns, forgetting_rows, losses, threshold_attack
from ddfed_federated.rounds import Progressing
from ddfed_federated.simulate import simulate
from ddfed_federated.targets import Target, Targets
from ddfed_federated.worker import load_partition, load_task


@pytest.mark.parametrize("text", ["client", "client=", "class=x", "klass=3", "client=-1", ""])
def test_what_is_no_target_is_refused(text):
    with pytest.raises(ValueError, match="not client=NUMBER or class=NUMBER"):
        Target.parse(text)


def test_targets_travel_and_come_back():
    targets = Targets.parse(["client=3", "class=7", "client=3"])
    assert str(targets) == "client=3, class=7"
    assert Targets.unpack(targets.pack()) == targets
    assert Targets.unpack(Targets().pack()) == Targets()


def test_rows_that_are_meant_and_those_that_stay():
    targets = Targets.parse(["client=1", "class=2"])
    labels = torch.tensor([0, 2, 1, 2])
    assert targets.meant(0, labels).tolist() == [False, True, False, True]
    assert targets.meant(1, labels).all()
    assert targets.without(TASK.train, 0).class_counts.tolist() == [40, 40, 0]
    assert len(targets.without(TASK.train, 1)) == 0
    assert Targets().without(TASK.train, 1) is TASK.train


@pytest.mark.parametrize(
    ("texts", "said"),
    [(["client=3"], "no client 3"), (["class=9"], "no class 9"), (["class=0", "class=1", "class=2"], "every class")],
)
def test_targets_that_do_not_exist_or_leave_nothing_are_refused(texts, said):
    with pytest.raises(ConfigError, match=said):
        Targets.parse(texts).check(3, 3, "forget")


def test_a_method_without_stores_says_who_could():
    with pytest.raises(ConfigError, match="'fedavg' keeps no sets.*feddm.*quickdrop"):
        settings("fedavg", forget=["client=1"])


def test_the_control_has_no_such_record_at_any_client():
    """The worker that answers for a client is what leaves records out."""
    from ddfed_federated.worker import answer

    s = settings("fedavg", federation={"without": ["client=1", "class=2"], "clients": 3, "partition": "iid"})
    counts = load_partition(s).counts
    context = server_context(s)
    for who in range(3):
        broadcast = method_of(s).phases[0].broadcast(1, method_of(s).begin(context), context)
        release, _ = answer(s.model_dump_json(), who, broadcast, {})
        assert release.examples == (0 if who == 1 else counts[who, :2].sum())


# --- dropping ----------------------------------------------------------------------------------------------------


def test_what_is_dropped_is_gone_from_the_store_and_nothing_else():
    from ddfed_federated.parts.dropping import without

    release, _ = client(settings(), 1)
    packed = {"client": 0, "x": release.set["x"], "y": release.set["y"].long(), "counts": [40, 40, 40]}
    assert without(packed, Targets.parse(["client=0"])) == {}
    kept = without(packed, Targets.parse(["class=1", "client=2"]))
    assert kept["y"].tolist() == [0, 0, 2, 2]
    assert torch.equal(kept["x"], packed["x"][[0, 1, 4, 5]])
    assert kept["counts"] == [40, 0, 40]


def test_the_model_that_forgot_is_the_one_trained_on_the_rest_alone():
    """Exactly the model that comes of a store which never held the dropped sets."""
    s = settings("random-once", server={"epochs": 20})
    state, _ = play(s)
    context, targets = server_context(s), Targets.parse(["client=1"])
    forgot = method_of(s).forgets.begin(state, targets, context)
    never = state.having(sets=[[one for one in sets if one["client"] != 1] for sets in state.memory["sets"]])
    again = method_of(s).forgets.begin(never, Targets(), context)
    assert all(torch.equal(forgot.weights[k], again.weights[k]) for k in again.weights)
    assert not all(torch.equal(forgot.weights[k], state.weights[k]) for k in state.weights)
    assert {one["client"] for sets in forgot.memory["sets"] for one in sets} == {0, 2}


def test_a_store_of_which_nothing_stays_is_an_error():
    s = settings("random-once")
    state, _ = play(s, [torch.arange(len(TASK.train))])
    with pytest.raises(FederationError, match="nothing is left to train on"):
        method_of(s).forgets.begin(state, Targets.parse(["client=0"]), server_context(s))


# --- judging -----------------------------------------------------------------------------------------------------


def test_the_attack_equals_its_definition_pair_by_pair():
    torch.manual_seed(0)
    members, unseen = torch.rand(30).double().round(decimals=1), torch.rand(40).double().round(decimals=1) + 0.2
    weights = torch.rand(40)
    found = threshold_attack(members, unseen, weights)
    lower = (members[:, None] < unseen).double() + 0.5 * (members[:, None] == unseen)
    share = weights.double() / weights.double().sum()
    assert found["auc"] == pytest.approx(float((lower * share).sum() / len(members)))
    best = max(
        float((members <= t).double().mean() - ((unseen <= t).double() * share).sum())
        for t in torch.cat([members, unseen])
    )
    assert found["advantage"] == pytest.approx(max(best, 0.0))


def test_the_attack_on_perfect_and_on_no_evidence():
    ones = torch.ones(5)
    assert threshold_attack(torch.zeros(5), ones, ones) == {"auc": 1.0, "advantage": 1.0}
    assert threshold_attack(ones, ones, ones) == {"auc": 0.5, "advantage": 0.0}
    assert threshold_attack(torch.zeros(0), ones, ones) == {"auc": None, "advantage": None}


def test_unseen_rows_are_weighted_to_the_classes_of_the_members():
    weights = alike(torch.tensor([0, 0, 0, 2]), torch.tensor([0, 1, 2, 2]))
    assert weights.tolist() == [3.0, 0.0, 0.5, 0.5]


def test_the_probe_asks_for_the_right_rows():
    s = settings("feddm", federation={"clients": 3, "partition": "iid"})
    _, task = load_task(s)
    partition = load_partition(s)
    probe = Probe.of(task, partition, Targets.parse(["client=1", "class=2"]))
    assert len(probe.forgotten["client=1"]) == partition.counts[1, :2].sum()
    assert probe.forgotten["class=2"].class_counts.tolist() == [0, 0, 40]
    assert probe.rest.class_counts.tolist() == [40, 40, 0]
    assert sum(len(data) for data in probe.members) == partition.counts[1, :2].sum() + 40
    net = server_context(s).network()
    batch = probe.rest.all()
    expected = torch.nn.functional.cross_entropy(net(batch.inputs).double(), batch.classes, reduction="none")
    torch.testing.assert_close(losses(net, probe.rest), expected.detach())


# --- whole runs --------------------------------------------------------------------------------------------------


def run_settings(method="feddm", **sections):
    base = {"method": method, "server": {"epochs": 20}, "federation": {"partition": "iid"}}
    return small_run(base, **sections)


def timeless(found):
    """Everything but wall time."""
    if isinstance(found, dict):
        return {k: timeless(v) for k, v in found.items() if "seconds" not in k}
    return [timeless(v) for v in found] if isinstance(found, list) else found


def test_a_forgotten_class_is_gone_and_the_others_stay(run):
    summary, folder = run(run_settings("feddm", forget=["class=7"], baselines=["fedavg"]))
    models = summary["forgetting"]["models"]
    assert list(models) == ["trained", "forgot", "retrained"]
    assert models["forgot"]["forgotten"]["class=7"] == models["retrained"]["forgotten"]["class=7"] == 0.0
    assert models["trained"]["forgotten"]["class=7"] > 0.3
    assert models["forgot"]["rest"] > 0.4
    assert (models["forgot"]["rounds"], models["forgot"]["bytes"], models["retrained"]["rounds"]) == (0, 0, 2)
    # The run itself and its baseline are what they are without forgetting.
    plain, _ = run(run_settings("feddm", baselines=["fedavg"]), "plain")
    assert timeless(plain["methods"]) == timeless(summary["methods"])
    events = [e for e in folder.events() if e["kind"] == "forgetting"]
    assert {e["method"] for e in events} == {"feddm without class=7"}


def test_the_control_is_the_run_without_the_data(run):
    summary, _ = run(run_settings("feddm", forget=["client=3"]))
    s = run_settings("feddm", federation={"without": ["client=3"]})
    alone, _ = run(s, "alone")
    domain, task = load_task(s)
    assert summary["forgetting"]["models"]["retrained"]["rest"] == alone["methods"]["feddm"]["accuracy"]


@pytest.mark.parametrize("method", ["feddm", "quickdrop"])
def test_interrupted_while_forgetting_or_after_it_goes_on_to_the_same_numbers(run, tmp_path, method):
    class Stop(Exception):
        pass

    s = run_settings(method, forget=["client=2"], baselines=["fedavg"])
    whole, _ = run(s, "whole")
    for place in (f"{method} without client=2", "fedavg"):

        def stop(row, place=place):
            if row.method == place:
                raise Stop

        with RunFolder.create(tmp_path, f"stopped {place.replace('=', '-')}", to_toml(s)) as folder:
            with pytest.raises(Stop):
                simulate(s, folder, Progressing(finished=stop))
            resumed = simulate(s, folder, resume=True)
        assert timeless(resumed["forgetting"]) == timeless(whole["forgetting"])
        assert timeless(resumed["methods"]) == timeless(whole["methods"])


def test_the_table_and_the_report_show_it(run):
    from ddfed_federated.report import federated_page

    summary, folder = run(run_settings("random-once", forget=["client=1", "class=0"]))
    found = summary["forgetting"]
    assert forgetting_columns(found)[1:4] == ("F-set client=1 %", "F-set class=0 %", "R-set %")
    rows = forgetting_rows(found)
    assert [row[0] for row in rows] == ["trained", "forgot", "retrained"]
    assert rows[1][3] == percent(found["models"]["forgot"]["rest"])
    domain, _ = load_task(run_settings())
    page = federated_page(json.loads((folder.path / "summary.json").read_text()), domain, None)
    html = page.save(folder.path / "report.html").read_text()
    assert "random-once forgot client=1, class=0" in html
    assert "attack AUC" in html


# --- afterwards, from the command line ---------------------------------------------------------------------------

SMALL_RUN = [
    "--clients", "3", "--rounds", "2", "--ipc", "2", "--set", "data.train_limit=300", "--set", "data.test_limit=100",
    "--set", "distill.network=convnet-d2-w16", "--set", "distill.steps=2", "--set", "distill.min_count=1",
    "--set", "server.epochs=3", "--set", "local.epochs=1", "--threads", "1",
]  # fmt: skip


def told(capsys, monkeypatch, where, *words: str) -> tuple[int, str]:
    """A command in this process: exit code, and what it printed, results or the error."""
    from ddfed.cli import main

    monkeypatch.chdir(where)
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    said = capsys.readouterr()
    return ended.value.code or 0, said.out or said.err


def without_times(found):
    if isinstance(found, dict):
        return {k: without_times(v) for k, v in found.items() if k != "seconds"}
    return found


def test_a_finished_run_forgets_what_it_would_have_forgotten_at_once(tmp_path, capsys, monkeypatch):
    run = ["simulate", "--method", "feddm", "--baselines", "fedavg", *SMALL_RUN]
    code, text = told(capsys, monkeypatch, tmp_path, *run, "--forget", "client=1", "--out", "at-once", "--json")
    assert code == 0, text
    at_once = json.loads(text)["forgetting"]
    code, text = told(capsys, monkeypatch, tmp_path, *run, "--out", "later", "--json")
    assert code == 0 and json.loads(text)["forgetting"] is None
    # The last checkpoint is that of fedavg; the end of feddm is in it all the same.
    code, text = told(capsys, monkeypatch, tmp_path, "forget", "latest", "client=1", "--out", "later", "--json")
    assert code == 0, text
    assert without_times(json.loads(text)["forgetting"]) == without_times(at_once)
    [first, second] = sorted((tmp_path / "later").iterdir())
    assert "feddm-forgets-client-1" in second.name
    code, text = told(capsys, monkeypatch, tmp_path, "forget", str(first), "client=7")
    assert code == 2 and "no client 7" in text
    assert len(list((tmp_path / "later").iterdir())) == 2


def test_runs_that_cannot_forget_afterwards_say_why(tmp_path, capsys, monkeypatch):
    code, text = told(
        capsys, monkeypatch, tmp_path, "simulate", "--method", "fedavg", "--baselines", "none", *SMALL_RUN, "--json"
    )
    assert code == 0
    code, text = told(capsys, monkeypatch, tmp_path, "forget", "latest", "client=1")
    assert code == 2 and "'fedavg' keeps no sets" in text
    [run] = (tmp_path / "runs").iterdir()
    (run / "summary.json").unlink()
    code, text = told(capsys, monkeypatch, tmp_path, "forget", "latest", "client=1")
    assert code == 2 and f"ddfed simulate --resume {run.relative_to(tmp_path)}" in text
