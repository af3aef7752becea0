"""QuickDrop: FedAvg to the last bit, a set at home, ascent with a cap, recovery on what stays."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from playing import TASK, client, client_context, method_of, play, server_context, settings, shares

from ddfed.gate import PlainGate
from ddfed_federated.methods import ClientPart
from ddfed_federated.parts.quickdrop import moved, no_better_than_a_guess
from ddfed_federated.targets import Targets


def small(**options):
    wanted = {"scale": 0.1, "ascent_lr": 0.1, "ascent_epochs": 200, "recovery_epochs": 5, **options}
    return around(settings("quickdrop", distill={"steps": 4}, options=wanted, local={"epochs": 2, "lr": 0.1}))


def around(s, **distill):
    """Without the radius that the harness gives to the pools of other methods."""
    return s.model_copy(update={"distill": s.distill.model_copy(update={"pool_options": {}, **distill})})


def test_clients_send_what_those_of_fedavg_send_and_keep_their_set():
    mine, kept = client(small(), 1)
    theirs, _ = client(settings("fedavg", local={"epochs": 2, "lr": 0.1}), 1)
    assert set(mine.payload) == {"weights"}
    assert mine.examples == theirs.examples == 120
    assert all(torch.equal(mine.weights[k], theirs.weights[k]) for k in theirs.weights)
    assert kept["y"].tolist() == [c for c in range(3) for _ in range(4)]
    assert kept["x"].shape == (12, 2, 4, 4)


def test_every_class_has_its_share_rounded_up():
    rows = torch.cat([TASK.train.class_index[0][:11], TASK.train.class_index[2][:1]])
    _, kept = client(small(), 1, TASK.train.subset(rows))
    assert kept["y"].tolist() == [0, 0, 2]


def test_the_set_moves_on_from_round_to_round_and_starts_at_real_rows():
    s = small()
    still = around(s, steps=0)
    _, start = client(still, 1)
    real = {row.numpy().tobytes() for row in TASK.train.all().inputs}
    assert all(row.numpy().tobytes() in real for row in start["x"])
    _, first = client(s, 1)
    _, second = client(s, 2, state=first)
    assert not torch.equal(first["x"], start["x"])
    assert not torch.equal(second["x"], first["x"])
    assert torch.equal(second["y"], first["y"])


def test_classes_of_several_sizes_move_as_if_each_were_alone():
    """Grouping by size changes nothing: matching is class by class, and all rows of a class are looked at."""
    rows = torch.cat([TASK.train.class_index[0][:11], TASK.train.class_index[1][:40], TASK.train.class_index[2][:11]])
    s = small()
    context, gate = client_context(s), PlainGate(TASK.train.subset(rows))
    net = server_context(s).network()
    start = moved(gate, net, {}, 0, (1, 1), context)
    together = moved(gate, net, start, 3, (1, 2), context)
    for c in range(3):
        mine = rows[TASK.train.labels[rows] == c]
        alone = {k: v[start["y"] == c] for k, v in start.items()}
        one = moved(PlainGate(TASK.train.subset(mine)), net, alone, 3, (1, 2), context)
        torch.testing.assert_close(one["x"], together["x"][together["y"] == c])


def test_the_set_comes_to_give_the_gradients_of_the_data():
    s = around(settings("quickdrop", options={"scale": 0.05}))
    context, gate = client_context(s), PlainGate(TASK.train)
    net = server_context(s).network()

    def gap(kept) -> float:
        total, batch = 0.0, TASK.train.all()
        for c in range(3):
            # Of the head: a hidden unit that no item excites has no gradient by which it could be moved.
            g, h = (
                torch.autograd.grad(torch.nn.functional.cross_entropy(net(x[y == c]), y[y == c]), net.head.weight)[0]
                for x, y in ((batch.inputs, batch.classes), (kept["x"], kept["y"]))
            )
            total += float((1 - torch.cosine_similarity(g, h, dim=1)).sum())
        return total

    start = moved(gate, net, {}, 0, (1, 1), context)
    assert gap(moved(gate, net, start, 100, (1, 1), context)) < 0.5 * gap(start)


# --- forgetting --------------------------------------------------------------------------------------------------


def trained(s, targets: str):
    """A trained federation of three clients that was told what to forget: state, memories, broadcast maker."""
    state, _ = play(s)
    memory = {}
    for who, rows in enumerate(shares(3)):
        gate = PlainGate(TASK.train.subset(rows))
        part = method_of(s).phases[0]
        broadcast = part.broadcast(1, method_of(s).begin(server_context(s)), server_context(s))
        _, memory[who] = part.client({}, gate, broadcast, client_context(s, who))
    return method_of(s).forgets.begin(state, Targets.parse([targets]), server_context(s)), memory


def answered(s, phase: str, state, memory, who: int):
    part = method_of(s).phase(phase)
    assert isinstance(part.client, ClientPart)
    gate = PlainGate(TASK.train.subset(shares(3)[who]))
    release, new = part.client(memory[who], gate, part.broadcast(3, state, server_context(s)), client_context(s, who))
    assert gate.ledger.to_json() == [], "forgetting looks at no real row"
    return release, new


def test_only_those_who_hold_it_go_up():
    s = small()
    state, memory = trained(s, "client=1")
    releases = [answered(s, "ascend", state, memory, who)[0] for who in range(3)]
    assert [bool(r.payload) for r in releases] == [False, True, False]
    assert releases[1].examples == len(memory[1]["y"])


def test_the_ascent_ends_at_the_first_step_past_the_loss_of_a_guess():
    s = small(ascent_lr=0.02)
    state, memory = trained(s, "class=2")
    release, _ = answered(s, "ascend", state, memory, 0)
    x, y = (memory[0][k][memory[0]["y"] == 2] for k in ("x", "y"))

    def loss(net) -> float:
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(net(x), y))

    # The naive ascent, step by step.
    net, steps = server_context(s).network(state.weights), 0
    before = loss(net)
    while loss(net) <= math.log(3):
        grads = torch.autograd.grad(torch.nn.functional.cross_entropy(net(x), y), list(net.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(net.parameters(), grads):
                parameter += 0.02 * grad
        steps += 1
    assert before < math.log(3)
    assert 1 < steps < 200
    sent = server_context(s).network(release.weights)
    assert loss(sent) == pytest.approx(loss(net), rel=1e-4)
    assert no_better_than_a_guess(sent, x, y)


def test_what_is_past_a_guess_already_is_left_as_it_is():
    s = small()
    state, memory = trained(s, "class=2")
    weights = {k: -v if k.startswith("head") else v for k, v in state.weights.items()}
    bad = replace(state, weights=weights)
    release, _ = answered(s, "ascend", bad, memory, 0)
    assert all(torch.equal(release.weights[k], weights[k]) for k in weights)


def test_recovery_deletes_what_is_forgotten_and_trains_on_the_rest():
    s = small()
    state, memory = trained(s, "class=2")
    release, new = answered(s, "recover", state, memory, 0)
    assert set(new["y"].tolist()) == {0, 1}
    assert release.examples == len(new["y"])
    state, memory = trained(s, "client=1")
    release, new = answered(s, "recover", state, memory, 1)
    assert (release.payload, new) == ({}, {})


def test_a_class_is_forgotten_and_the_rest_recovers():
    s = small(recovery_rounds=2)
    state, memory = trained(s, "class=2")
    context, method = server_context(s), method_of(s)
    assert tuple(method.forgets.rounds(context)) == ("ascend", "recover", "recover")

    def share(state, classes) -> float:
        from ddfed.evaluate import accuracy

        rows = torch.isin(TASK.test.labels, torch.tensor(classes)).nonzero().flatten()
        return accuracy(context.network(state.weights), TASK.test.subset(rows))

    assert share(state, [2]) > 0.8
    for name in method.forgets.rounds(context):
        answers = [answered(s, name, state, memory, who) for who in range(3)]
        memory = {who: new for who, (_, new) in enumerate(answers)}
        state = method.phase(name).server(state, [r for r, _ in answers if r.payload], context)
    assert share(state, [2]) < 0.4
    assert share(state, [0, 1]) > 0.8


def test_a_client_without_rows_keeps_nothing_and_sends_nothing():
    release, kept = client(small(), 1, TASK.train.subset(torch.zeros(0, dtype=torch.int64)))
    assert (release.payload, kept) == ({}, {})
