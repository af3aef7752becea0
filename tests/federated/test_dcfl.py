"""DCFL: similarity of features, groups of clients that see differently, and their sets in local training."""

from __future__ import annotations

import pytest
import torch
from playing import TASK, client_context, method_of, play, server_context, settings

from ddfed.gate import PlainGate
from ddfed_federated.methods.dcfl import complementary, linear_cka, probes


def dcfl(**sections):
    federation = {"clients": 4, "rounds": 1, **sections.pop("federation", {})}
    distill = {"steps": 2, "ipc": 1, "augment": "none"}
    return settings("dcfl", options={"probes": 32, "warmup": 30}, distill=distill, federation=federation, **sections)


def test_similarity_is_that_of_gram_matrices():
    """The other form: <K, L> / (|K| |L|) of centred Gram matrices."""
    torch.manual_seed(0)
    one, two = torch.randn(10, 4, dtype=torch.float64), torch.randn(10, 6, dtype=torch.float64)
    centre = torch.eye(10, dtype=torch.float64) - 0.1
    k, m = (centre @ f @ f.T @ centre for f in (one, two))
    assert linear_cka(one, two) == pytest.approx(float((k * m).sum() / (k.norm() * m.norm())))


def test_similarity_ignores_rotation_scale_and_offset():
    torch.manual_seed(1)
    features = torch.randn(20, 5)
    rotation = torch.linalg.qr(torch.randn(5, 5))[0]
    assert linear_cka(features, 3 * features @ rotation + 7) == pytest.approx(1, abs=1e-5)
    assert linear_cka(features, torch.ones(20, 2)) == 0


def test_groups_join_those_who_are_least_alike():
    alike = torch.tensor([[1.0, 0.9, 0.2, 0.5], [0.9, 1, 0.6, 0.1], [0.2, 0.6, 1, 0.9], [0.5, 0.1, 0.9, 1]])
    assert complementary(alike, 2) == [[0, 2], [1, 3]]
    assert complementary(alike[:3, :3], 2) == [[0, 2, 1]]
    assert complementary(alike, 4) == [[0, 2, 3, 1]]
    assert complementary(alike[:1, :1], 2) == [[0]]


def test_probes_are_the_same_for_all():
    seed = torch.tensor(5)
    assert torch.equal(probes((2, 4, 4), 3, seed), probes((2, 4, 4), 3, seed))
    assert not torch.equal(probes((2, 4, 4), 3, seed), probes((2, 4, 4), 3, seed + 1))


def test_a_client_is_handed_the_sets_of_its_group_and_no_others():
    of = TASK.train.class_index
    parts = [of[0][:20], of[0][20:], of[1], of[2]]
    s = dcfl()
    state, heard = play(s, parts)
    features, sets, taken, training = heard
    assert sorted(k for group in state.memory["groups"] for k in group) == [0, 1, 2, 3]
    assert torch.allclose(state.memory["alike"].diagonal(), torch.ones(4))
    sent = method_of(s).setup[2].broadcasts(0, state, server_context(s), range(4))
    for group in state.memory["groups"]:
        for client in group:
            theirs = torch.cat([r.set["x"] for r in sets if r.client in group and r.client != client])
            assert torch.equal(sent[client].arrays["x"], theirs)
    assert [int(r.statistics["taken"]) for r in taken] == [len(sent[k].arrays["y"]) for k in range(4)]
    assert features[0].statistics["features"].shape == (32, 16)
    assert all(set(r.payload) == {"weights"} for r in training)


def test_sets_of_the_group_change_what_a_client_learns():
    """A client of one class learns of another from its group."""
    of = TASK.train.class_index
    s = dcfl(local={"epochs": 10, "lr": 0.1})
    context, part = server_context(s), method_of(s).phases[0].client
    broadcast = method_of(s).phases[0].broadcast(1, method_of(s).begin(context), context)
    gate = PlainGate(TASK.train.subset(of[0]))
    other = TASK.train.subset(of[1][:10]).all()
    alone, _ = part({}, gate, broadcast, client_context(s))
    helped, _ = part({"x": other.inputs, "y": other.classes}, gate, broadcast, client_context(s))
    test = TASK.test.subset(TASK.test.class_index[1]).all()

    def right(release) -> float:
        net = context.network(release.weights).eval()
        return float((net(test.inputs).argmax(1) == 1).float().mean())

    assert right(helped) > 0.8 > 0.2 > right(alone)
