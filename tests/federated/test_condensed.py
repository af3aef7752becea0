"""FedAF, FedLAP and FedD3: what is sent, and the laws that must hold of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from playing import TASK, client, client_context, method_of, play, server_context, settings, shares

from ddfed.errors import ConfigError
from ddfed.federation import Release
from ddfed.gate import PlainGate
from ddfed_federated.methods.condensed import match_soft_labels
from ddfed_federated.parts.radius import distance, within_radius
from ddfed_federated.parts.tables import per_class, pooled

# --- tables ------------------------------------------------------------------------------------------------------


def test_means_of_clients_weighted_by_their_rows_are_the_mean_of_all_rows():
    s = settings("fedaf")
    net = server_context(s).network().eval()
    context = client_context(s)
    uneven = [torch.arange(0, 50), torch.arange(50, 60), torch.arange(60, len(TASK.train))]
    tables = [per_class(PlainGate(TASK.train.subset(rows)), net, 3, context, "t") for rows in uneven]
    whole = per_class(PlainGate(TASK.train), net, 3, context, "t")
    assert torch.allclose(pooled(tables), whole, atol=1e-5)
    assert torch.equal(whole[:, 0], torch.tensor([40.0, 40.0, 40.0]))


def test_holders_count_alike_on_request_and_classes_nobody_holds_stay_unknown():
    one = torch.tensor([[10.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    two = torch.tensor([[30.0, 5.0], [5.0, 2.0], [0.0, 0.0]])
    assert pooled([one, two], "uniform").tolist() == [[40, 3], [5, 2], [0, 0]]
    assert pooled([one, two], "count").tolist() == [[40, 4], [5, 2], [0, 0]]


# --- FedAF -------------------------------------------------------------------------------------------------------


def test_a_round_of_fedaf_has_two_exchanges_and_no_weights_go_up():
    state, heard = play(settings("fedaf"), rounds=1)
    logits, sets = heard
    assert all(set(r.payload) == {"statistics"} and set(r.statistics) == {"class logits"} for r in logits)
    assert all(set(r.payload) == {"set", "statistics"} for r in sets)
    assert all(set(r.statistics) == {"soft labels"} for r in sets)
    assert torch.equal(state.memory["class logits"], pooled([r.statistics["class logits"] for r in logits], "uniform"))


def test_soft_labels_are_means_of_distributions():
    _, heard = play(settings("fedaf"), rounds=1)
    for release in heard[1]:
        table = release.statistics["soft labels"]
        assert torch.allclose(table[:, 1:].sum(1), torch.ones(3), atol=1e-5)


def _release(table: torch.Tensor) -> Release:
    return Release(0, 1, {"statistics": {"soft labels": table}})


def test_the_match_of_soft_labels_vanishes_where_they_agree_and_pulls_elsewhere():
    s = settings("fedaf")
    context = server_context(s)
    classes = torch.tensor([0, 0, 1, 2])
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    soft = F.softmax(logits.detach() / 2.0, 1)
    own = torch.stack([soft[classes == c].mean(0) for c in range(3)])
    table = torch.cat([torch.ones(3, 1), own], 1)
    state = method_of(s).begin(context)
    assert float(match_soft_labels(state, [_release(table)], context)(logits, classes)) == pytest.approx(0, abs=1e-6)
    other = table.clone()
    other[:, 1:] = 1 / 3
    term = match_soft_labels(state, [_release(other)], context)(logits, classes)
    kl = (own * (own / other[:, 1:]).log()).sum(1) + (other[:, 1:] * (other[:, 1:] / own).log()).sum(1)
    assert float(term) == pytest.approx(0.8 * 0.5 * float(kl.mean()), rel=1e-4)
    assert float(torch.autograd.grad(term, logits)[0].abs().max()) > 0


def test_a_class_that_nobody_holds_is_left_out_of_the_match():
    s = settings("fedaf")
    context = server_context(s)
    table = torch.tensor([[1.0, 0.8, 0.1, 0.1], [0, 0, 0, 0], [0, 0, 0, 0]])
    term = match_soft_labels(method_of(s).begin(context), [_release(table)], context)
    logits = torch.randn(2, 3).requires_grad_()
    assert float(term(logits, torch.tensor([1, 2]))) == 0
    assert float(term(logits, torch.tensor([0, 2]))) > 0


def test_options_of_fedaf_are_checked_before_anything_runs():
    with pytest.raises(ConfigError, match="temperatur"):
        settings("fedaf", options={"temperatur": 1.0})
    with pytest.raises(ConfigError, match="temperature"):
        settings("fedaf", options={"temperature": 0})


# --- FedLAP ------------------------------------------------------------------------------------------------------


def fedlap(**sections):
    parts = {
        "pool_options": {"length": 2, "points": 2, "radius": 5.0, "epochs": 1, "lr": 0.1},
        "objective_options": {"rows": 5},
    }
    return settings("fedlap", distill=parts, **sections)


def test_the_server_stops_where_the_least_trusting_client_says():
    s = fedlap(server={"epochs": 600, "lr": 0.05})
    state = method_of(s).begin(server_context(s))
    release, _ = client(s, 1, weights=state.weights)
    for radius in (0.05, 0.3):
        told = replace(release, payload={**release.payload, "statistics": {"radius": torch.tensor(radius)}})
        far = replace(release, payload={**release.payload, "statistics": {"radius": torch.tensor(9.0)}})
        merged = method_of(s).phases[0].server(state, [told, far], server_context(s))
        net = server_context(s).network(merged.weights)
        gone = distance(net, state.weights)
        assert gone >= radius
        assert gone < radius + 0.5, "it stopped at the first step beyond"


def test_a_radius_that_is_never_reached_is_plain_training():
    s = fedlap()
    state = method_of(s).begin(server_context(s))
    release, _ = client(s, 1, weights=state.weights)
    endless = replace(release, payload={**release.payload, "statistics": {"radius": torch.tensor(1e9)}})
    bounded = method_of(s).phases[0].server(state, [endless], server_context(s)).weights
    from ddfed_federated.parts.union import TrainsOnUnion

    plain = TrainsOnUnion()(state, [endless], server_context(s)).weights
    assert all(torch.equal(bounded[k], plain[k]) for k in plain)


def test_the_smallest_radius_counts():
    s = fedlap()
    context = server_context(s)
    state = method_of(s).begin(context)
    y = torch.tensor([0])
    sets = {"x": torch.zeros(1, 2, 4, 4), "y": y}
    releases = [
        Release(k, 1, {"set": sets, "statistics": {"radius": torch.tensor(r)}}) for k, r in ((0, 2.0), (1, 0.0))
    ]
    assert within_radius(state, releases, context, context.network(state.weights))()
    assert not within_radius(state, releases[:1], context, context.network(state.weights))()


@pytest.mark.parametrize(("which", "radius"), [("min", 0.0), ("median", 1.0), ("mean", 2.0), ("max", 5.0)])
def test_another_radius_than_the_smallest_can_be_asked_for(which: str, radius: float):
    s = fedlap(options={"radius": which})
    context = server_context(s)
    state = method_of(s).begin(context)
    sets = {"x": torch.zeros(1, 2, 4, 4), "y": torch.tensor([0])}
    releases = [
        Release(k, 1, {"set": sets, "statistics": {"radius": torch.tensor(r)}}) for k, r in enumerate((0.0, 1.0, 5.0))
    ]
    net = context.network(state.weights)
    stop = within_radius(state, releases, context, net)
    with torch.no_grad():
        next(net.parameters()).view(-1)[0] += radius - 1e-3
    assert not stop() or radius == 0.0
    with torch.no_grad():
        next(net.parameters()).view(-1)[0] += 2e-3
    assert stop()


def test_the_radius_is_at_most_that_of_the_walk():
    _, heard = play(fedlap(), rounds=1)
    radii = [float(r.statistics["radius"]) for r in heard[0]]
    assert all(0 <= radius <= 5.0 for radius in radii)
    assert max(radii) > 0, "training on a set of its own rows helps a client somewhere"


# --- FedD3 -------------------------------------------------------------------------------------------------------


def test_fedd3_asks_once_and_sends_nothing_down():
    s = settings("fedd3", distill={"objective_options": {"rows": 5}}, federation={"rounds": 4})
    method = method_of(s)
    assert method.rounds(s) == 1
    broadcast = method.phases[0].broadcast(1, method.begin(server_context(s)), server_context(s))
    assert not broadcast.weights and not broadcast.arrays
    _, heard = play(s, shares(2))
    assert len(heard) == 1
    assert all(set(r.payload) == {"set"} for r in heard[0])


def test_any_engine_can_take_the_place_of_a_methods_own():
    s = settings("feddm", engine="dc", distill={"pool_options": {}})
    assert s.distill.objective == "gradient"
    assert s.distill.pool == "RS"
    kept = settings("feddm", engine="dm")
    assert kept.distill.objective == "mean"
    assert kept.distill.pool == "ball", "networks drawn at random give way to those that the method judges with"
