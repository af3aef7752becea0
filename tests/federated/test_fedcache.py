"""FedCache 2.0: what is served to whom, and models that live at their clients."""

from __future__ import annotations

import torch
from playing import TASK, client_context, method_of, play, server_context, settings

from ddfed.federation import Broadcast
from ddfed.gate import PlainGate
from ddfed_federated.methods.base import ServerState
from ddfed_federated.methods.fedcache import _with_served, quotas
from ddfed_federated.parts.personal import own_network


def cache(**sections):
    options = {"warmup": 2, **sections.pop("options", {})}
    distill = {"steps": 2, "ipc": 1, **sections.pop("distill", {})}
    local = {"epochs": 2, "lr": 0.01, **sections.pop("local", {})}
    return settings("fedcache", options=options, distill=distill, local=local, **sections)


def test_tau_one_serves_all_classes_alike_and_tau_zero_the_clients_mix():
    stock = torch.tensor([4, 8, 6])
    mix = torch.tensor([0.5, 0.25, 0.25])
    assert quotas(stock, mix, 1.0).tolist() == [4, 4, 4]
    assert quotas(stock, mix, 0.0).tolist() == [4, 2, 2]
    # w = (.75, .625, .625), times 4 / .75
    assert quotas(stock, mix, 0.5).tolist() == [4, 4, 4]


def test_a_rare_class_is_served_and_an_absent_one_is_not_missed():
    mix = torch.tensor([0.98, 0.02, 0.0])
    assert quotas(torch.tensor([5, 5, 5]), mix, 0.0).tolist() == [5, 1, 0]
    assert quotas(torch.tensor([5, 0, 3]), torch.ones(3) / 3, 0.5).tolist() == [3, 0, 3]
    assert quotas(torch.zeros(3, dtype=torch.int64), mix, 0.5).tolist() == [0, 0, 0]


def cached(counts: dict[str, list[int]], sets: list[dict]) -> ServerState:
    weights = method_of(cache()).begin(server_context(cache())).weights
    return ServerState(1, weights, {"counts": counts, "sets": [sets]})


def test_a_client_is_served_others_items_by_its_mix():
    sets = [
        {"client": k, "x": torch.full((6, 2, 4, 4), k / 4), "y": torch.tensor([0, 0, 1, 1, 2, 2]), "counts": [1, 1, 1]}
        for k in range(3)
    ]
    s = cache(options={"tau": 0.0})
    state = cached({"0": [30, 10, 0], "1": [1, 1, 1]}, sets)
    sent = method_of(s).phases[0].broadcasts(2, state, server_context(s), range(3))
    assert sorted(sent) == [0, 1]  # the third told nothing of its classes
    known = _with_served({}, sent[0], client_context(s, 0))
    assert torch.bincount(known["y"], minlength=3).tolist() == [4, 2, 0]
    levels = known["x"].flatten(1).mean(1)
    assert float(levels.min()) > 0.2  # none of its own, which are 0


def test_the_newest_items_are_kept():
    s = cache(options={"keep": 3}, federation={"codec": "float32"})
    first = Broadcast(1, arrays={"x": torch.zeros(2, 2, 4, 4), "y": torch.tensor([0, 0])})
    second = Broadcast(2, arrays={"x": torch.ones(2, 2, 4, 4), "y": torch.tensor([1, 1])})
    state = _with_served({}, first, client_context(s))
    assert _with_served(state, second, client_context(s))["y"].tolist() == [0, 1, 1]


def test_a_client_below_the_threshold_learns_but_sends_nothing():
    s = cache(options={"least": 1.0, "warmup": 0}, local={"epochs": 1, "lr": 1e-6})
    broadcast = Broadcast(1, phase="cache")
    release, state = method_of(s).phases[0].client({}, PlainGate(TASK.train), broadcast, client_context(s))
    assert release.payload == {} and "accuracy" in release.metrics
    assert any(k.startswith("net.") for k in state)


def test_models_of_any_structure_stay_at_home_and_the_cache_is_replaced():
    of = TASK.train.class_index
    parts = [torch.cat([of[0], of[1]]), torch.cat([of[1], of[2]]), torch.cat([of[0], of[2]])]
    s = cache(federation={"clients": 3, "rounds": 2, "networks": ("small", "wide", "maps")})
    for phase in method_of(s).phases:
        phase.client.check(server_context(s))
    state, heard = play(s, parts)
    assert all(set(r.payload) <= {"set"} for r in heard[-1])
    assert [len(r.set["y"]) for r in heard[-1]] == [2, 2, 2]
    assert [s["client"] for s in state.memory["sets"][0]] == [0, 1, 2]
    assert torch.equal(state.memory["sets"][0][0]["x"], heard[-1][0].set["x"])
    assert all(0 <= r.metrics["accuracy"] <= 1 for r in heard[-1])


def test_the_memory_is_all_that_a_client_is():
    s = cache()
    part, context = method_of(s).phases[0].client, client_context(s)
    gate = PlainGate(TASK.train)
    _, state = part({}, gate, Broadcast(1, phase="cache"), context)
    one, first = part(state, gate, Broadcast(2, phase="cache"), context)
    two, second = part({k: v.clone() for k, v in state.items()}, gate, Broadcast(2, phase="cache"), context)
    assert torch.equal(one.set["x"], two.set["x"])
    nets = [own_network(m, TASK.info, context).state_dict() for m in (state, first, second)]
    assert all(torch.equal(nets[1][k], nets[2][k]) for k in nets[1])
    assert any(not torch.equal(nets[0][k], nets[1][k]) for k in nets[0])
    assert method_of(s).remembers(s)
