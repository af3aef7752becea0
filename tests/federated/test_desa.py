"""DESA: anchors, what is learned from them, and clients of different structure."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from playing import TASK, client_context, method_of, play, server_context, settings, shares

from ddfed.federation import Broadcast
from ddfed.gate import PlainGate
from ddfed.seeds import Streams
from ddfed_federated.methods.desa import Anchors, DesaOptions, distilled, drawn_to, joined, mean_items
from ddfed_federated.parts.personal import own_network


def desa(**sections):
    distill = {"augment": "none", "ipc": 2, **sections.pop("distill", {})}
    local = {"lr": 0.05, "batch": 16, **sections.pop("local", {})}
    return settings("desa", distill=distill, local=local, **sections)


def item(value: float) -> torch.Tensor:
    return torch.full((2, 4, 4), float(value))


def test_an_anchor_is_the_mean_over_those_who_hold_its_slot():
    one = {"x": torch.stack([item(1), item(2), item(8)]), "y": torch.tensor([0, 0, 2])}
    two = {"x": torch.stack([item(3), item(5)]), "y": torch.tensor([0, 1])}
    found = mean_items([one, two], 3)
    assert found["y"].tolist() == [0, 0, 1, 2]
    assert found["x"].flatten(1).mean(1).tolist() == [2, 2, 5, 8]
    assert joined([one, two], 3)["y"].tolist() == [0, 0, 2, 0, 1]


def test_learning_answers_equals_its_definition():
    torch.manual_seed(0)
    student, teacher, classes = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    options = DesaOptions(temperature=4.0)
    total = 0.0
    for z, t, c in zip(student.tolist(), teacher.tolist(), classes.tolist()):
        q = [math.exp(v / 4) / sum(math.exp(u / 4) for u in z) for v in z]
        p = [math.exp(v / 4) / sum(math.exp(u / 4) for u in t) for v in t]
        hard = math.exp(z[c]) / sum(math.exp(u) for u in z)
        total += 0.9 * 16 * sum(a * math.log(a / b) for a, b in zip(p, q)) / 3 - 0.1 * math.log(hard)
    assert float(distilled(student, teacher, classes, options)) == pytest.approx(total / 5, rel=1e-5)
    alike = distilled(teacher, teacher, classes, replace_share(options))
    assert float(alike) == pytest.approx(0, abs=1e-6)


def replace_share(options: DesaOptions) -> DesaOptions:
    return options.model_copy(update={"kd_share": 1.0})


def test_contrast_equals_its_definition_and_leaves_out_classes_without_anchor():
    torch.manual_seed(1)
    features, anchors = torch.randn(4, 6), torch.randn(5, 6)
    classes, of_anchors = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 0, 1, 1, 1])
    found = drawn_to(features, classes, anchors, of_anchors, 0.07)
    for i, c in enumerate(classes.tolist()):
        alike = [math.exp(float(F.cosine_similarity(features[i], a, dim=0)) / 0.07) for a in anchors]
        own = [alike[p] for p in range(5) if of_anchors[p] == c]
        wanted = -sum(math.log(v / sum(alike)) for v in own) / len(own) if own else 0.0
        assert float(found[i]) == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_the_teacher_is_the_mean_of_the_others_for_exactly_these_anchors():
    s = desa()
    answers = torch.randn(3, 4, 3)
    state = {"anchors": torch.zeros(4, 2, 4, 4), "classes": torch.tensor([0, 0, 1, 2]), "answers": answers[1]}
    broadcast = Broadcast(1, arrays={"sum": answers.sum(0)}, scalars={"publishers": 3.0})
    known = Anchors.known(state, broadcast, client_context(s, 1))
    torch.testing.assert_close(known.teacher, answers[[0, 2]].mean(0))
    alone = Broadcast(1, arrays={"sum": answers[1]}, scalars={"publishers": 1.0})
    assert Anchors.known(state, alone, client_context(s, 1)).teacher is None


def test_batches_of_anchors_show_all_before_any_again():
    anchors = Anchors(torch.zeros(5, 2, 4, 4), torch.zeros(5, dtype=torch.int64), None)
    batches = anchors.batches(2, Streams(0).torch("anchors"))
    seen = torch.cat([next(batches) for _ in range(3)])
    assert sorted(seen.tolist()) == [0, 1, 2, 3, 4]


def test_without_anchors_terms_training_is_that_of_rows_and_anchors_together():
    """One full batch, both weights 0: the step is that of CE on the union of rows and anchors."""
    s = desa(
        local={"batch": 0, "epochs": 1, "momentum": 0.0},
        options={"kd_weight": 0.0, "contrast_weight": 0.0},
    )  # fmt: skip
    rows = shares(3)[0]
    data = TASK.train.subset(rows)
    context = client_context(s)
    anchors = {"x": torch.randn(6, 2, 4, 4), "y": torch.tensor([0, 0, 1, 1, 2, 2])}
    state = {"anchors": anchors["x"], "classes": anchors["y"], "answers": torch.zeros(6, 3)}
    naive = own_network(state, TASK.info, context)
    batch = data.all()
    x, y = torch.cat([batch.inputs, anchors["x"]]), torch.cat([batch.classes, anchors["y"]])
    grads = torch.autograd.grad(F.cross_entropy(naive(x), y), list(naive.parameters()))
    wanted = [p - 0.05 * g for p, g in zip(naive.parameters(), grads)]
    broadcast = Broadcast(1, arrays={"sum": torch.zeros(6, 3)}, scalars={"publishers": 2.0}, phase="training")
    _, new = method_of(s).phases[0].client(state, PlainGate(data), broadcast, context)
    trained = own_network(new, TASK.info, context)
    for p, q in zip(trained.parameters(), wanted):
        torch.testing.assert_close(p, q)


def test_clients_of_different_structure_learn_what_they_do_not_hold():
    """Two clients with two classes each and other networks; both know the third class from the anchors."""
    of = TASK.train.class_index
    parts = [torch.cat([of[0], of[1]]), torch.cat([of[1], of[2]])]
    s = desa(
        federation={"clients": 2, "rounds": 5, "networks": ("small", "wide")},
        distill={"steps": 100, "init": "random", "lr": 0.5},
        local={"epochs": 3},
    )  # fmt: skip
    state, heard = play(s, parts)
    alone = 2 / 3
    assert all(r.metrics["accuracy"] > alone + 0.1 for r in heard[-1])
    assert {len(r.statistics["answers"]) for r in heard[-1]} == {6}
    assert set(state.memory["answers"]) == {"0", "1"}


def test_what_leaves_a_client():
    state, heard = play(desa(), rounds=1)
    setup, joining, training = heard
    assert [set(r.payload) for r in (setup[0], joining[0], training[0])] == [{"set"}, {"statistics"}, {"statistics"}]
    assert training[0].size_bytes == 4 * 3 * 6  # classes x anchors
    assert len(state.memory["anchors"]["y"]) == 6


def test_a_client_that_missed_the_anchors_stays_out():
    s = desa()
    broadcast = Broadcast(1, arrays={"sum": torch.zeros(6, 3)}, scalars={"publishers": 2.0}, phase="training")
    release, state = method_of(s).phases[0].client({}, PlainGate(TASK.train), broadcast, client_context(s))
    assert (release.payload, state) == ({}, {})


def test_a_resumed_client_goes_on_as_if_nothing_had_happened():
    """The memory is all that a client is: the same state and broadcast give the same answer."""
    s = desa()
    context = server_context(s)
    state, _ = play(s, rounds=1)
    broadcast = method_of(s).phases[0].broadcast(2, state, context)
    memory = {"anchors": state.memory["anchors"]["x"], "classes": state.memory["anchors"]["y"]}
    memory["answers"] = state.memory["answers"]["0"]
    gate = PlainGate(TASK.train.subset(shares(3)[0]))
    one, first = method_of(s).phases[0].client(memory, gate, broadcast, client_context(s))
    two, second = method_of(s).phases[0].client(dict(memory), gate, broadcast, client_context(s))
    assert torch.equal(one.statistics["answers"], two.statistics["answers"])
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert method_of(s).remembers(s)


def test_the_mean_of_what_clients_report_is_from_their_own_networks():
    s = desa(federation={"clients": 3, "rounds": 1})
    _, heard = play(s)
    assert all(0 <= r.metrics["accuracy"] <= 1 for phase in heard[1:] for r in phase)
    assert replace(heard[0][0], metrics={}).set  # sets carry no accuracy
