"""The federated methods as pure functions, without a grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from playing import DOMAIN, TASK, client, method_of, server, server_context, settings

from ddfed.errors import FederationError
from ddfed.federation import Release
from ddfed.gate import PlainGate
from ddfed.seeds import Streams
from ddfed_federated.methods import ServerState


def test_everything_that_leaves_a_feddm_client_is_listed():
    release, state = client(settings(), 1)
    assert set(release.payload) == {"set"}
    assert set(release.set) == {"x", "y"}
    assert release.set["x"].shape == (6, 2, 4, 4)
    assert release.class_counts == (40, 40, 40)
    assert set(release.metrics) == {"seeds", "fresh"}
    assert state == {}


def test_random_once_sends_the_same_real_rows_every_round():
    s = settings("random-once")
    first, second = client(s, 1)[0], client(s, 2)[0]
    assert torch.equal(first.set["x"], second.set["x"])
    real = {row.numpy().tobytes() for row in TASK.train.all().inputs}
    assert all(row.numpy().tobytes() in real for row in first.set["x"])


def test_random_fresh_sends_other_rows_every_round():
    s = settings("random-fresh")
    assert not torch.equal(client(s, 1)[0].set["x"], client(s, 2)[0].set["x"])


def test_the_control_sends_the_items_that_feddm_starts_from():
    start = client(settings("feddm", distill={"steps": 0}), 1)[0]
    assert torch.equal(start.set["x"], client(settings("random-once"), 1)[0].set["x"])


@pytest.mark.parametrize("restart", ["same", "fresh", "previous"])
def test_restart_decides_where_the_second_round_starts(restart):
    s = settings("feddm", federation={"restart": restart}, distill={"steps": 1})
    first, state = client(s, 1)
    weights = server_context(s).network().state_dict()
    frozen = s.model_copy(update={"distill": s.distill.model_copy(update={"steps": 0})})
    second, _ = client(frozen, 2, state=state, weights=weights)
    if restart == "previous":
        assert torch.equal(second.set["x"], first.set["x"])
        assert second.metrics["seeds"] == 0
    else:
        same = torch.equal(second.set["x"], client(frozen, 1)[0].set["x"])
        assert same == (restart == "same")


def test_a_client_with_one_class_sends_that_class_only():
    data = TASK.train.subset(TASK.train.class_index[2])
    release, _ = client(settings(), 1, data)
    assert release.set["y"].tolist() == [2, 2]


def test_a_client_with_fewer_rows_than_ipc_repeats_them():
    data = TASK.train.subset(TASK.train.class_index[0][:1])
    release, _ = client(settings("random-once"), 1, data)
    assert torch.equal(release.set["x"][0], release.set["x"][1])


@pytest.mark.parametrize("method", ["feddm", "random-once", "fedavg"])
def test_a_client_with_no_rows_sends_an_empty_release(method):
    data = TASK.train.subset(torch.zeros(0, dtype=torch.int64))
    release, _ = client(settings(method), 1, data)
    assert (release.payload, release.examples) == ({}, 0)


def test_classes_below_the_threshold_are_left_out():
    data = TASK.train.subset(torch.cat([TASK.train.class_index[0][:9], TASK.train.class_index[1][:10]]))
    release, _ = client(settings("feddm", distill={"min_count": 10}), 1, data)
    assert set(release.set["y"].tolist()) == {1}


def test_feddm_moves_towards_the_class_means_under_the_global_model():
    """With rho 0 the only network is the global one, so the matching loss must fall."""
    s = settings("feddm", distill={"steps": 200, "pool_options": {"rho": 0.0}})
    net = server_context(s).network()
    done, start = client(s, 1)[0], client(settings("random-once"), 1)[0]

    def gap(x: torch.Tensor, y: torch.Tensor) -> float:
        with torch.no_grad():
            real = TASK.train.all()
            total = 0.0
            for c in range(3):
                a, b = real.inputs[real.classes == c], x[y == c]
                total += float((net.embed(a).mean(0) - net.embed(b).mean(0)).square().sum())
                total += float((net(a).mean(0) - net(b).mean(0)).square().sum())
            return total

    assert gap(**done.set) < 0.1 * gap(**start.set)


def test_the_order_of_clients_changes_nothing_once_sorted():
    s = settings()
    releases = [replace(client(s, 1, who=k)[0], client=k) for k in range(3)]
    state = method_of(s).begin(server_context(s))
    one = server(s, state, releases).weights
    two = server(s, state, sorted(reversed(releases), key=lambda r: r.client)).weights
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_count_weighting_equals_repeating_rows():
    from ddfed_federated.parts.union import _weights

    sets = [
        {"y": torch.tensor([0, 0, 1]), "counts": [20, 5]},
        {"y": torch.tensor([0, 1, 1]), "counts": [10, 40]},
    ]
    weight = _weights(sets, settings(server={"weighting": "count"}))
    assert weight.mean() == pytest.approx(1)
    expected = np.array([10, 10, 5, 10, 20, 20])
    np.testing.assert_allclose(weight.numpy() / weight.numpy()[2], expected / 5, rtol=1e-6)


def test_no_release_at_all_is_an_error_of_the_round():
    s = settings()
    with pytest.raises(FederationError, match="no client released"):
        server(s, method_of(s).begin(server_context(s)), [])


def test_fedavg_is_the_count_weighted_mean():
    s = settings("fedavg")
    state = method_of(s).begin(server_context(s))
    a = {k: torch.full_like(v, 1.0) for k, v in state.weights.items()}
    b = {k: torch.full_like(v, 5.0) for k, v in state.weights.items()}
    releases = [Release(0, 1, {"weights": a}, examples=30), Release(1, 1, {"weights": b}, examples=10)]
    merged = server(s, state, releases)
    assert all(torch.allclose(v, torch.full_like(v, 2.0)) for v in merged.weights.values())
    assert merged.round == 1


def test_fedprox_stays_nearer_to_the_global_weights():
    weights = server_context(settings("fedavg")).network().state_dict()

    def distance(method: str, mu: float) -> float:
        s = settings(method, local={"proximal_mu": mu, "epochs": 5, "lr": 0.1})
        release, _ = client(s, 1, weights=weights)
        return float(sum((release.weights[k] - weights[k]).square().sum() for k in weights))

    assert distance("fedprox", 1.0) < 0.5 * distance("fedavg", 1.0)
    assert distance("fedprox", 0.0) == pytest.approx(distance("fedavg", 0.0))


@pytest.mark.parametrize("method", ["fedavgm", "fedadam"])
def test_the_memory_of_flowers_strategies_survives_between_rounds(method):
    """Two rounds through plain states equal two rounds of one live Flower strategy."""
    s = settings(method)
    context = server_context(s)
    updates = [
        {k: v + 0.1 * (r + 1) * torch.ones_like(v) for k, v in context.network().state_dict().items()} for r in range(2)
    ]
    state = method_of(s).begin(context)
    for r in range(2):
        state = server(s, state, [Release(0, r + 1, {"weights": updates[r]}, examples=7)])

    from flwr.app import Array, ArrayRecord

    from ddfed_federated.parts import averaging

    live = method_of(s).phases[0].server.strategy(s.local)
    weights = context.network().state_dict()
    for r in range(2):
        arrays = ArrayRecord({k: Array(v.numpy()) for k, v in weights.items()})
        averaging._configure(live, r + 1, arrays)
        merged, _ = live.aggregate_train(
            r + 1, [averaging._as_reply(Release(0, r + 1, {"weights": updates[r]}, examples=7))]
        )
        weights = {k: torch.from_numpy(merged[k].numpy().copy()) for k in weights}
    for k in weights:
        assert torch.allclose(state.weights[k], weights[k].float(), atol=1e-6), k


def test_one_client_with_everything_equals_central_distillation_around_the_model():
    from ddfed.distill import distill

    s = settings()
    weights = server_context(s).network().state_dict()
    release, _ = client(s, 1, weights=weights)
    central = distill(PlainGate(TASK.train), DOMAIN, s.distill, Streams(0).child("client", 0), center=weights)
    assert torch.equal(release.set["x"], central.decoded()[0])


def test_history_trains_on_the_sets_of_several_rounds():
    s = settings("random-fresh", server={"history": 2})
    state = method_of(s).begin(server_context(s))
    for number in (1, 2, 3):
        state = server(s, state, [client(s, number)[0]])
    assert [len(r) for r in state.memory["sets"]] == [1, 1]
    assert isinstance(state, ServerState)


def test_a_control_sends_real_rows_even_of_a_method_that_starts_from_noise():
    release, _ = client(settings("random-once", distill={"init": "noise"}), 1)
    real = {row.numpy().tobytes() for row in TASK.train.all().inputs}
    assert all(row.numpy().tobytes() in real for row in release.set["x"])
    assert release.metrics["seeds"] == len(release.set["y"])


def test_identical_clients_are_as_good_as_one():
    """With all items in a step, copies of a set weigh as the set itself."""
    s = settings(server={"batch": 0, "epochs": 20})
    state = method_of(s).begin(server_context(s))
    release, _ = client(s, 1, weights=state.weights)
    one = server(s, state, [release]).weights
    many = server(s, state, [replace(release, client=k) for k in range(3)]).weights
    assert all(torch.allclose(one[k], many[k], atol=1e-5) for k in one)


def test_a_set_that_is_the_clients_data_has_nothing_to_learn():
    """FedDM's features and logits of all rows against all rows: no loss, no gradient, so the items stay."""
    rows = TASK.train.subset(torch.arange(0, len(TASK.train), 8))
    s = settings(distill={"ipc": int(rows.class_counts.max()), "steps": 3, "objective_options": {"rows": None}})
    release, _ = client(s, 1, data=rows)
    real = {row.numpy().tobytes() for row in rows.all().inputs}
    moved = release.set["x"] - client(settings("random-once", distill={"ipc": s.distill.ipc}), 1, data=rows)[0].set["x"]
    assert float(moved.abs().max()) < 1e-4
    assert len(real) == len(release.set["y"])
