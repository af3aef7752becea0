"""HFLDD: clusters of unlike clients, sets that go to their own head, and rounds among heads."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from playing import TASK, client_context, method_of, play, server_context, settings

from ddfed.data import RealData
from ddfed.errors import ConfigError
from ddfed.federation import Release
from ddfed.seeds import Streams
from ddfed_federated.methods.base import ServerState
from ddfed_federated.methods.hfldd import imbalance, unlike
from ddfed_federated.parts.local import train_on_records


def hfldd(clients=4, clusters=2, **sections):
    distill = {"steps": 2, "objective_options": {"kernel": "features"}, **sections.pop("distill", {})}
    federation = {"clients": clients, "rounds": 2, **sections.pop("federation", {})}
    return settings("hfldd", options={"clusters": clusters}, distill=distill, federation=federation, **sections)


def of_classes(*classes: int) -> torch.Tensor:
    return torch.cat([TASK.train.class_index[c][:20] for c in classes])


def test_imbalance_is_the_sum_of_divergences_from_everybodys_mix():
    counts = torch.tensor([[8, 0], [0, 8], [4, 4]])
    assert imbalance([[0, 1], [2]], counts) == pytest.approx(0)
    assert imbalance([[0], [1, 2]], counts) == pytest.approx(
        math.log(2) + (1 / 4) * math.log(1 / 4 / 0.5) + (3 / 4) * math.log(3 / 4 / 0.5)
    )


def test_two_of_each_class_make_two_balanced_clusters():
    counts = torch.tensor([[10, 0, 0], [10, 0, 0], [0, 10, 0], [0, 10, 0], [0, 0, 10], [0, 0, 10]])
    found = unlike(counts, 2)
    assert imbalance(found, counts) == pytest.approx(0, abs=1e-9)
    assert sorted(k for members in found for k in members) == list(range(6))


@pytest.mark.parametrize("seed", range(4))
def test_clusters_are_near_the_best_there_are(seed):
    """Against all divisions of six clients into two threes."""
    counts = torch.randint(0, 30, (6, 4), generator=Streams(seed).torch("counts"))
    best = min(
        imbalance([list(one), [k for k in range(6) if k not in one]], counts) for one in combinations(range(6), 3)
    )
    found = imbalance(unlike(counts, 2), counts)
    assert found <= 1.5 * best + 0.02


def test_the_head_has_the_most_rows_and_clients_without_rows_are_in_no_cluster():
    counts = torch.tensor([[1, 0], [0, 9], [0, 0], [5, 0], [0, 2]])
    found = unlike(counts, 2)
    assert all(int(counts[m[0]].sum()) == max(int(counts[k].sum()) for k in m) for m in found)
    assert sorted(k for members in found for k in members) == [0, 1, 3, 4]


def test_sets_go_to_their_own_head_and_only_heads_train():
    parts = [of_classes(0), of_classes(0), of_classes(1, 2), of_classes(1, 2)]
    s = hfldd()
    state, heard = play(s, parts)
    counts, sets, taken, *rounds = heard
    clusters = state.memory["clusters"]
    heads = sorted(members[0] for members in clusters)
    assert [r.client for r in sets] == sorted(k for members in clusters for k in members[1:])
    assert all([r.client for r in held] == heads for held in (taken, *rounds))
    assert all({0, 1} & set(m) and {2, 3} & set(m) for m in clusters)
    context = server_context(s)
    sent = method_of(s).setup[2].broadcasts(0, state, context, range(4))
    assert sorted(sent) == heads
    for members in clusters:
        theirs = torch.cat([r.set["x"] for r in sets if r.client in members])
        assert torch.equal(sent[members[0]].arrays["x"], theirs)
    assert len(counts) == 4


def test_heads_weigh_as_many_rows_as_their_clusters():
    s = hfldd(clients=3)
    context = server_context(s)
    begun = method_of(s).begin(context)
    state = ServerState(0, begun.weights, {"clusters": [[0, 1], [2]], "rows": [30, 10]})
    part = method_of(s).phases[0].server
    ones = {k: torch.ones_like(v) for k, v in begun.weights.items()}
    fives = {k: torch.full_like(v, 5.0) for k, v in begun.weights.items()}
    merged = part(state, [Release(0, 1, {"weights": ones}, 1), Release(2, 1, {"weights": fives}, 999)], context)
    assert all(torch.allclose(v, torch.full_like(v, 2.0)) for v in merged.weights.values())


def test_training_beside_items_is_training_on_both():
    """Records and items in one full batch give the step of their concatenation."""
    s = hfldd(local={"batch": 0, "epochs": 1, "momentum": 0.0, "lr": 0.1})
    context = client_context(s)
    data: RealData = TASK.train.subset(of_classes(0, 1))
    x, y = torch.randn(4, 2, 4, 4), torch.tensor([2, 2, 0, 1])
    net = context.network(TASK.info)
    batch = data.all()
    loss = torch.nn.functional.cross_entropy(net(torch.cat([batch.inputs, x])), torch.cat([batch.classes, y]))
    wanted = [p.detach() - 0.1 * g for p, g in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters())))]
    train_on_records(net, data, s.local, Streams(0), context.device, beside=(x, y))
    for p, q in zip(net.parameters(), wanted):
        torch.testing.assert_close(p.detach(), q)


def test_as_many_clusters_as_clients_are_refused():
    s = hfldd(clients=2, clusters=2)
    with pytest.raises(ConfigError, match="a member beside its head"):
        method_of(s).setup[0].server.check(server_context(s))
