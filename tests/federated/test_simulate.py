"""Whole federations on the embedded digits, small: equality, resumption, faults, and what is written down."""

from __future__ import annotations

import json

import pytest
from playing import small_run

from ddfed.artifact import SyntheticSet
from ddfed.config import to_toml
from ddfed.errors import ConfigError, FederationError, UnknownNameError
from ddfed.runs import RunFolder
from ddfed_federated.rounds import Progressing
from ddfed_federated.simulate import simulate


def numbers(summary) -> list:
    """Everything but wall time."""
    timed = ("seconds", "client_seconds")
    return [
        {k: v for k, v in row.items() if k not in timed}
        for method in summary["methods"].values()
        for row in method["rows"]
    ]


def test_same_seed_same_numbers_other_seed_others(run):
    one, first = run(small_run(baselines=["random-once", "fedavg"]))
    two, second = run(small_run(baselines=["random-once", "fedavg"]))
    assert numbers(one) == numbers(two)
    assert one["artifact"] == two["artifact"]
    other, _ = run(small_run(run={"seed": 1}))
    assert other["artifact"] != one["artifact"]


def test_what_a_run_writes_can_be_read_back(run):
    summary, folder = run(small_run(baselines=["random-once"]))
    syn = SyntheticSet.load(folder.path)
    assert syn.content_hash == summary["artifact"]
    assert len(syn.provenance["federated"]["client_of_item"]) == len(syn)
    assert "No formal privacy guarantee" in syn.privacy["statement"]
    # The statement is made of what the clients themselves recorded, not of the settings.
    asked = {(event["scope"], event["mechanism"], event["query"]) for event in syn.privacy["events"]}
    assert {("client 0", "raw", "initialisation by random"), ("client 0", "none", "class counts")} <= asked
    rounds = [e for e in folder.events() if e["kind"] == "round"]
    assert [(e["method"], e["round"]) for e in rounds] == [
        ("feddm", 1), ("feddm", 2), ("random-once", 1), ("random-once", 2),
    ]  # fmt: skip
    assert json.loads((folder.path / "summary.json").read_text())["status"] == "finished"


def test_the_ledger_makes_fresh_choices_visible(run):
    summary, _ = run(small_run(baselines=["random-once", "random-fresh"], federation={"rounds": 3}))
    seeds = {name: [r["real_seeds"] for r in m["rows"]] for name, m in summary["methods"].items()}
    assert seeds["feddm"] == seeds["random-once"]
    assert len(set(seeds["random-once"])) == 1
    assert seeds["random-fresh"][0] == seeds["random-once"][0]
    assert seeds["random-fresh"][0] < seeds["random-fresh"][1] < seeds["random-fresh"][2]


class _Stop(Exception):
    pass


@pytest.mark.parametrize("restart", ["same", "previous"])
@pytest.mark.parametrize("stop_after", [("feddm", 1), ("feddm", 2), ("fedavgm", 1)])
def test_interrupted_and_resumed_equals_uninterrupted(run, restart, stop_after):
    s = small_run(baselines=["fedavgm", "random-fresh"], federation={"restart": restart, "rounds": 3})
    whole, straight = run(s)

    def stop(row):
        # Raised while the round after the one to keep is on its way, as Ctrl-C would be.
        if (row.method, row.round - 1) == stop_after:
            raise _Stop

    folder = RunFolder.create(straight.path.parent, "broken", to_toml(s))
    with pytest.raises(_Stop), folder:
        simulate(s, folder, Progressing(finished=stop))
    again = RunFolder.open(folder.path, writable=True)
    with again:
        resumed = simulate(s, again, resume=True)
    assert numbers(resumed) == numbers(whole)
    assert resumed["artifact"] == whole["artifact"]
    keep = lambda e: (e["method"], e["round"], e["accuracy"])  # noqa: E731
    assert [keep(e) for e in again.events()] == [keep(e) for e in straight.events()]


@pytest.mark.usefixtures("one_ray")
@pytest.mark.slow
def test_serial_pool_and_ray_give_the_same_numbers(run):
    plans = {
        "serial": {},
        "pool": {"workers": 2},
        "ray": {"backend": "ray"},
    }
    found = {}
    for name, federation in plans.items():
        summary, _ = run(small_run(baselines=["random-fresh", "fedprox"], federation=federation), name)
        found[name] = (numbers(summary), summary["artifact"])
    assert found["pool"] == found["serial"]
    assert found["ray"] == found["serial"]


@pytest.mark.parametrize("kind", ["drop", "raise", "crash", "nan", "shape", "labels", "oversize", "replay", "forged"])
def test_a_run_goes_on_without_a_client_that_fails(run, kind):
    summary, _ = run(small_run(federation={"faults": [f"1:2:{kind}"]}))
    first, second = summary["methods"]["feddm"]["rows"]
    assert (first["releases"], second["releases"]) == (3, 4)
    assert len(first["lost"]) == 1
    assert first["lost"][0].startswith("client 2: ")


@pytest.mark.parametrize("kind", ["nan", "shape"])
def test_broken_weights_are_refused_too(run, kind):
    summary, _ = run(small_run(method="fedavg", federation={"faults": [f"1:0:{kind}"]}))
    assert summary["methods"]["fedavg"]["rows"][0]["releases"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "deadline"), [("crash", None), ("hang", 30.0)])
def test_a_client_that_dies_or_never_answers_costs_its_own_release(run, kind, deadline):
    federation = {"faults": [f"1:1:{kind}"], "workers": 2, "deadline_s": deadline}
    summary, _ = run(small_run(federation=federation))
    first, second = summary["methods"]["feddm"]["rows"]
    assert "client 1: " in first["lost"][0]
    assert second["releases"] == 4


def test_a_round_below_the_quorum_is_skipped_and_keeps_the_model(run):
    faults = [f"1:{k}:raise" for k in range(3)]
    summary, _ = run(small_run(federation={"faults": faults, "min_replies": 2}))
    first, second = summary["methods"]["feddm"]["rows"]
    assert first["note"].startswith("skipped")
    assert second["note"] == ""


def test_when_nobody_ever_answers_the_error_says_what_the_clients_said(run):
    with pytest.raises(FederationError, match="dropped out"):
        run(small_run(federation={"faults": ["*:*:drop"]}))


def test_partial_participation_asks_the_same_clients_in_every_run(run):
    s = small_run(federation={"participation": 0.5, "rounds": 3})
    one, two = run(s)[0], run(s)[0]
    assert [r["asked"] for r in one["methods"]["feddm"]["rows"]] == [2, 2, 2]
    assert numbers(one) == numbers(two)


def test_dropouts_follow_the_seed(run):
    s = small_run(federation={"dropout": 0.4, "rounds": 3})
    one, two = run(s)[0], run(s)[0]
    lost = [len(r["lost"]) for r in one["methods"]["feddm"]["rows"]]
    assert sum(lost) > 0
    assert numbers(one) == numbers(two)


def test_one_client_works(run):
    summary, _ = run(small_run(federation={"clients": 1}))
    assert summary["methods"]["feddm"]["rows"][-1]["releases"] == 1


def test_two_hundred_clients_on_all_digits_work(run):
    s = small_run(
        data={"train_limit": None, "test_limit": 100},
        distill={"ipc": 1, "steps": 1, "network": "convnet-d2-w8", "min_count": 1},
        server={"epochs": 1},
        federation={"clients": 200, "rounds": 1, "partition_options": {"alpha": 0.1}},
    )
    row = run(s)[0]["methods"]["feddm"]["rows"][0]
    assert row["releases"] == 200
    assert not row["lost"]


def test_a_class_that_nobody_holds_is_named(run):
    s = small_run(distill={"min_count": 200}, data={"train_limit": None}, federation={"clients": 2})
    with pytest.raises(ConfigError, match="no client holds 200 rows of any class.*distill.min_count"):
        run(s)
    # 300 rows cut evenly: every class has 30, of which two clients hold about half each.
    s = small_run(distill={"min_count": 16}, federation={"partition": "iid", "clients": 2})
    summary, _ = run(s)
    missing = summary["methods"]["feddm"]["rows"][0]["missing_classes"]
    counts = summary["partition"]["counts"]
    assert list(missing) == [c for c in range(10) if max(client[c] for client in counts) < 16]


def test_uint8_costs_a_quarter_of_the_image_bytes(run):
    wide, _ = run(small_run(distill={"ipc": 8}))
    narrow, _ = run(small_run(distill={"ipc": 8}, federation={"codec": "uint8"}))
    up = [s["methods"]["feddm"]["rows"][0]["bytes_up"]["items"] for s in (wide, narrow)]
    assert 3.0 < up[0] / up[1] < 4.1


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"method": "fedmd"}, "Did you mean"),
        ({"baselines": ["fedavgg"]}, "Did you mean 'fedavg'"),
        ({"federation": {"partition": "dirichlett"}}, "Did you mean 'dirichlet'"),
        ({"federation": {"backend": "rai"}}, "Did you mean 'ray'"),
        ({"federation": {"codec": "uint9"}}, "uint8"),
        ({"distill": {"store": "mirrored"}}, "must be 'pixels'"),
        ({"federation": {"faults": ["1:1:boom"]}}, "ROUND:CLIENT:KIND"),
        ({"federation": {"faults": ["*:1:hang"]}}, "federation.workers"),
        ({"federation": {"fault_rates": {"crush": 0.1}}}, "Did you mean 'crash'"),
        ({"federation": {"fault_rates": {"crash": 0.6, "garbage": 0.6}}}, "add up to 1.2"),
        ({"federation": {"fault_rates": {"drop": 0.1}, "dropout": 0.1}}, "set one of dropout"),
        ({"federation": {"late": "use", "deadline_s": 1.0}}, "set federation.workers"),
        ({"federation": {"faults": ["1:1:hang"]}}, "deadline_s"),
        ({"federation": {"clients": 0}}, "clients"),
    ],
)
def test_wrong_settings_are_refused_before_anything_starts(case, message):
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        small_run(**case)


def test_an_unknown_option_of_the_split_is_refused_before_a_grid_exists(run):
    with pytest.raises(ConfigError, match="alpha"):
        run(small_run(federation={"partition_options": {"alhpa": 1.0}}))
