"""Rehearsed faults: the plan hangs on the seed alone, garbage is refused, hostile releases pass and are counted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from ddfed.config import Layer, to_toml
from ddfed.errors import ReleaseError
from ddfed.federation import Broadcast, Expectation, Release, check_release
from ddfed.runs import RunFolder
from ddfed.testing import twin_task
from ddfed_federated import faults
from ddfed_federated.faults import KINDS, FaultPlan, shares_of
from ddfed_federated.flower import wire
from ddfed_federated.settings import resolve_simulate
from ddfed_federated.simulate import simulate

INFO = twin_task().info
GARBAGE = [k.name for k in KINDS.values() if k.group == "garbage"]
HOSTILE = [k.name for k in KINDS.values() if k.group == "byzantine"]


def a_set(client=0, number=2, items=6) -> Release:
    x = torch.randn(items, *INFO.shape, generator=torch.Generator().manual_seed(client))
    y = torch.arange(items) % INFO.num_classes
    counts = tuple(torch.bincount(y, minlength=INFO.num_classes).tolist())
    return Release(client, number, {"set": {"x": x, "y": y}}, sum(counts), counts, phase="set")


def some_weights(scale=1.0) -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(3)
    shapes = {"body.weight": (4, 5), "body.bias": (4,), "head.weight": (INFO.num_classes, 4)}
    state = {k: scale * torch.randn(s, generator=drawn) for k, s in shapes.items()}
    return {**state, "head.bias": torch.arange(float(INFO.num_classes)), "steps": torch.tensor(7)}


def weights(client=0, number=2) -> Release:
    return Release(client, number, {"weights": some_weights()}, 10, phase="set")


CASES = {
    "set": (a_set(), Broadcast(2, phase="set"), Expectation(("set",), 6)),
    "weights": (
        weights(),
        Broadcast(2, some_weights(0.5), phase="set"),
        Expectation(("weights",), weights=some_weights()),
    ),
}


def scene_of(broadcast, client=0, seed=0):
    return FaultPlan(seed).scene(client, 5, INFO.num_classes, broadcast)


# --- the plan --------------------------------------------------------------------------------------------------------


def test_the_plan_hangs_on_seed_round_phase_and_client_alone():
    plan = FaultPlan(0, rates={"crash": 0.3, "nan": 0.2})
    wanted = [(r, p, c) for r in range(3) for p in ("a", "b") for c in range(20)]
    drawn = {key: plan.at(*key).name for key in wanted}
    assert {key: plan.at(*key).name for key in reversed(wanted)} == drawn
    assert FaultPlan(0, rates={"nan": 0.2, "crash": 0.3}).at(1, "a", 4).name == drawn[1, "a", 4]
    assert [plan.at(1, "a", c).name for c in range(20)] != [plan.at(1, "b", c).name for c in range(20)]
    assert [FaultPlan(1, rates=plan.rates).at(*key).name for key in wanted] != list(drawn.values())


def test_kinds_come_as_often_as_their_rates_say():
    plan = FaultPlan(0, rates=shares_of({"crash": 0.1, "garbage": 0.3}))
    found = [plan.at(1, "set", client).name for client in range(4000)]
    assert abs(found.count("crash") / 4000 - 0.1) < 0.02
    for kind in GARBAGE:
        assert abs(found.count(kind) / 4000 - 0.3 / len(GARBAGE)) < 0.015
    assert abs(found.count("") / 4000 - 0.6) < 0.03


def test_exact_faults_come_before_rates_and_take_stars():
    exact = (("2", "*", "nan"), ("*", "3", "flip"))
    plan = FaultPlan(0, exact, {"crash": 1.0})
    assert [plan.at(r, "set", c).name for r, c in ((2, 3), (1, 3), (1, 4))] == ["nan", "flip", "crash"]


# --- what each kind does ---------------------------------------------------------------------------------------------


def through_the_wire(release: Release) -> Release:
    return wire.decode_release(wire.encode_release(release))


@pytest.mark.parametrize("payload", CASES)
@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_refused(kind, payload):
    release, broadcast, expected = CASES[payload]
    check_release(through_the_wire(release), INFO, broadcast, expected)
    spoilt = KINDS[kind].after(release, scene_of(broadcast))
    if kind == "forged":  # the engine compares the signature with whom it asked
        assert through_the_wire(spoilt).client != release.client
        return
    with pytest.raises(ReleaseError):
        check_release(through_the_wire(spoilt), INFO, broadcast, expected)


@pytest.mark.parametrize("payload", CASES)
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_releases_pass_the_screen_and_differ(kind, payload):
    release, broadcast, expected = CASES[payload]
    before = {k: v.clone() for k, v in release.payload[payload].items()}
    bent = KINDS[kind].after(release, scene_of(broadcast))
    check_release(through_the_wire(bent), INFO, broadcast, expected)
    assert any(not torch.equal(bent.payload[payload][k], before[k]) for k in before)
    assert all(torch.equal(release.payload[payload][k], before[k]) for k in before)
    again = KINDS[kind].after(release, scene_of(broadcast))
    assert all(torch.equal(v, again.payload[payload][k]) for k, v in bent.payload[payload].items())


def test_hostile_weights_bend_the_step_and_not_the_start():
    release, broadcast, _ = CASES["weights"]
    start, sent = broadcast.weights, release.weights
    turned = KINDS["flip"].after(release, scene_of(broadcast)).weights
    boosted = KINDS["boost"].after(release, scene_of(broadcast)).weights
    for name in ("body.weight", "head.bias"):
        torch.testing.assert_close(turned[name], 2 * start[name] - sent[name])
        torch.testing.assert_close(boosted[name] - start[name], 10 * (sent[name] - start[name]))
    assert turned["steps"] == sent["steps"]


def test_mislabelled_weights_name_the_next_class():
    release, broadcast, _ = CASES["weights"]
    sent, bent = release.weights, KINDS["mislabel"].after(release, scene_of(broadcast)).weights
    hidden = torch.randn(8, 4)
    honest = hidden @ sent["head.weight"].T + sent["head.bias"]
    hostile = hidden @ bent["head.weight"].T + bent["head.bias"]
    torch.testing.assert_close(hostile, honest.roll(1, 1))
    assert torch.equal(bent["body.weight"], sent["body.weight"])


def test_an_empty_release_stays_empty():
    for kind in [*GARBAGE, *HOSTILE]:
        assert not KINDS[kind].after(Release(0, 1, phase="set"), scene_of(Broadcast(1, phase="set"))).payload


def test_a_slow_client_waits_as_drawn(monkeypatch):
    waited = []
    monkeypatch.setattr(faults.time, "sleep", waited.append)
    plan = FaultPlan(0, delay_s=2.0)
    for client in range(400):
        KINDS["delay"].before(plan.scene(client, 5, 3, Broadcast(1, phase="set")))
    assert abs(sum(waited) / 400 - 2.0) < 0.4


# --- whole runs ------------------------------------------------------------------------------------------------------


def settings(**sections):
    base = {
        "baselines": [],
        "method": "random-once",
        "data": {"domain": "twin", "dataset": "blobs"},
        "distill": {"ipc": 2, "min_count": 1, "network": "small", "objective": "mean"},
        "server": {"epochs": 5},
        "local": {"epochs": 1},
        "federation": {"clients": 5, "rounds": 3, "partition": "iid"},
    }
    return resolve_simulate([Layer("test", base), Layer("case", sections)]).settings


@pytest.fixture
def rows(tmp_path):
    def go(s, **options):
        with RunFolder.create(tmp_path, "run", to_toml(s)) as folder:
            summary = simulate(s, folder, **options)
        return [r for m in summary["methods"].values() for r in m["rows"]], folder

    return go


def test_rows_say_what_was_rehearsed_on_every_kind_of_method(rows):
    exact = ["1:2:noise", "2:*:late", "3:0:crash", "3:1:forged"]
    s = settings(federation={"faults": exact, "min_replies": 1}, baselines=["fedavg"])
    found, _ = rows(s)
    for first, second, third in (found[:3], found[3:]):
        assert list(first["rehearsed"]) == ["client 2: noise"]
        assert (first["releases"], second["releases"], third["releases"]) == (5, 0, 3)
        assert second["note"].startswith("skipped")
        assert len(second["lost"]) == 5
        assert list(third["rehearsed"]) == ["client 0: crash", "client 1: forged"]


def test_a_mixture_of_everything_never_aborts_and_is_the_same_again(rows):
    rates = {"drop": 0.1, "raise": 0.1, "crash": 0.1, "late": 0.1, "garbage": 0.2, "byzantine": 0.2}
    s = settings(federation={"fault_rates": rates, "rounds": 4, "absent": "reuse", "late": "use"}, baselines=["fedavg"])
    one, two = rows(s)[0], rows(s)[0]
    assert sum(len(r["rehearsed"]) for r in one) > 10
    for row in one:
        kinds = [told.split(": ")[1] for told in row["rehearsed"]]
        assert len(row["lost"]) == sum(KINDS[k].group != "byzantine" for k in kinds)
        assert row["releases"] == 5 - len(row["lost"])
    timed = ("seconds", "client_seconds")
    assert [{k: v for k, v in r.items() if k not in timed} for r in one] == [
        {k: v for k, v in r.items() if k not in timed} for r in two
    ]


def test_faults_stay_out_of_a_deployment(monkeypatch):
    from ddfed.errors import ConfigError
    from ddfed_federated.worker import answer

    monkeypatch.delenv("DDFED_SIMULATION", raising=False)
    s = settings(federation={"faults": ["*:*:crash"]})
    with pytest.raises(ConfigError, match="simulations only"):
        answer(s.model_dump_json(), 0, Broadcast(1, phase="set"), {})


DIGITS = {
    "method": "random-once",
    "baselines": [],
    "distill": {"ipc": 5, "network": "convnet-d2-w16", "min_count": 1},
    "server": {"epochs": 20, "lr": 0.03},
    "federation": {"clients": 10, "rounds": 5, "partition": "dirichlet", "partition_options": {"alpha": 0.5}},
}


def test_a_tenth_of_the_clients_crashing_costs_less_than_two_points(rows):
    calm, _ = rows(resolve_simulate([Layer("test", DIGITS)]).settings)
    crash = Layer("case", {"federation": {"fault_rates": {"crash": 0.1}}})
    hit, _ = rows(resolve_simulate([Layer("test", DIGITS), crash]).settings)
    crashed = [len(row["rehearsed"]) for row in hit]
    assert sum(crashed) >= 3
    assert [row["releases"] for row in hit] == [10 - n for n in crashed]
    assert calm[-1]["accuracy"] > 0.8
    assert hit[-1]["accuracy"] > calm[-1]["accuracy"] - 0.02


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
@pytest.mark.parametrize("method", ["random-once", "feddm"])
def test_a_server_killed_in_mid_round_resumes_to_the_same_curve(rows, tmp_path, method):
    """What a kill takes is the round that was on its way; what clients and the shelf remember comes back."""
    wrong = {"faults": ["2:1:late", "3:2:drop", "2:4:delay"], "fault_delay_s": 0.01}
    federation = {**wrong, "late": "use", "absent": "reuse", "restart": "previous", "rounds": 4}
    s = settings(method=method, federation=federation, distill={"steps": 2})
    whole, _ = rows(s)
    folder = RunFolder.create(tmp_path, "killed", to_toml(s))
    folder.close()
    script = tmp_path / "victim.py"
    script.write_text(
        "import dataclasses, sys\n"
        "from ddfed.registry import registry\n"
        "from ddfed.runs import RunFolder\n"
        "from ddfed_federated.faults import KINDS\n"
        "from ddfed_federated.settings import SimulateSettings\n"
        "from ddfed_federated.simulate import simulate\n"
        "registry().add('domain', 'twin', 'ddfed.testing:TwinDomain', summary='Gaussian blobs')\n"
        "KINDS['delay'] = dataclasses.replace(KINDS['delay'], before=KINDS['hang'].before)\n"
        "with RunFolder.open(sys.argv[1], writable=True) as folder:\n"
        "    simulate(SimulateSettings.model_validate_json(sys.argv[2]), folder)\n"
    )
    process = subprocess.Popen([sys.executable, str(script), str(folder.path), s.model_dump_json()])
    try:
        deadline = time.monotonic() + 60
        while not folder.has_checkpoint:
            assert process.poll() is None, "the victim ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # The first round is saved; the second goes on until its last client, which never answers.
        time.sleep(1.0)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
    finally:
        process.kill()
    with RunFolder.open(folder.path, writable=True) as again:
        assert [e["round"] for e in again.events()] == [1]
        resumed = simulate(s, again, resume=True)["methods"][method]["rows"]
        assert [e["round"] for e in again.events()] == [1, 2, 3, 4]
    timed = ("seconds", "client_seconds")
    strip = lambda row: json.dumps({k: v for k, v in row.items() if k not in timed})  # noqa: E731
    assert [strip(r) for r in resumed] == [strip(r) for r in whole]


def test_a_duplicate_of_an_old_release_does_not_pass_for_a_new_one():
    release, broadcast, expected = CASES["set"]
    with pytest.raises(ReleaseError, match="another round"):
        check_release(replace(release, round=1), INFO, broadcast, expected)
