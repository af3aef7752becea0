"""FedMK: rows the model does not know weigh more, sets begin from peers' sets, a generator keeps classes alive."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from playing import DOMAIN, TASK, client, method_of, play, server, server_context, settings, shares

from ddfed.distill import distill
from ddfed.federation import Broadcast
from ddfed.gate import PlainGate
from ddfed.seeds import Streams

INNER = {"steps": 3, "lr": 0.1, "augment": False, "rows": 512}


def mk(**sections):
    distill_ = {"steps": 3, "lr": 0.05, "objective_options": {**INNER, "weighting": "hard"}}
    options = {"generator_steps": 5, "pseudo": 2, **sections.pop("options", {})}
    return settings(
        "fedmk", distill=distill_, options=options, federation={"participation": 1.0, "rounds": 2}, **sections
    )


def naive_step(x: torch.Tensor, y: torch.Tensor, weighed: bool) -> torch.Tensor:
    """d(weighted real loss after three steps on x)/dx by a graph through all of it."""
    net = server_context(mk()).network()
    names = [n for n, _ in net.named_parameters()]
    weights = [p.detach().clone().requires_grad_() for p in net.parameters()]
    leaf = x.clone().requires_grad_()

    def logits(w, inputs):
        return torch.func.functional_call(net, dict(zip(names, w)), (inputs,))

    real = TASK.train.all()
    with torch.no_grad():
        factor = torch.sigmoid(F.cross_entropy(logits(weights, real.inputs), real.classes, reduction="none"))
    now = weights
    for _ in range(3):
        grads = torch.autograd.grad(F.cross_entropy(logits(now, leaf), y), now, create_graph=True)
        now = [w - 0.1 * g for w, g in zip(now, grads)]
    losses = F.cross_entropy(logits(now, real.inputs), real.classes, reduction="none")
    loss = (factor * losses if weighed else losses).mean()
    return torch.autograd.grad(loss, leaf)[0]


def test_the_outer_derivative_weighs_rows_by_what_the_model_knows_of_them():
    s = mk()
    start = torch.randn(6, 2, 4, 4)
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    weights = server_context(s).network().state_dict()
    moves = {}
    for weighting in ("none", "hard"):
        parts = s.distill.model_copy(
            update={
                "objective_options": {**INNER, "weighting": weighting},
                "steps": 1, "optimizer": "sgd", "lr": 1.0, "momentum": 0.0,
            }
        )  # fmt: skip
        made = distill(PlainGate(TASK.train), DOMAIN, parts, Streams(0), center=weights, start={"x": start})
        moves[weighting] = start - made.decoded()[0]
        torch.testing.assert_close(moves[weighting], naive_step(start, y, weighting == "hard"), rtol=1e-3, atol=1e-6)
    assert not torch.allclose(moves["none"], moves["hard"])


def test_a_client_begins_from_the_sets_of_others():
    s = mk()
    frozen = s.model_copy(update={"distill": s.distill.model_copy(update={"steps": 0})})
    peers = torch.randn(9, 2, 4, 4)
    arrays = {
        "x": peers,
        "y": torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2]),
        "client": torch.tensor([0, 1, 1, 1, 0, 1, 0, 0, 0]),
    }
    broadcast = Broadcast(2, server_context(s).network().state_dict(), arrays, phase="set")
    release, _ = client(frozen, 2, broadcast=broadcast, who=0)
    at = [next(i for i, p in enumerate(peers) if torch.equal(p, x)) for x in release.set["x"]]
    assert (sorted(at[:2]), sorted(at[2:4])) == ([1, 2], [3, 5])  # others' items of classes 0 and 1
    assert set(at[4:]) <= {6, 7, 8}  # of class 2 only its own are known
    assert release.metrics["seeds"] == 0


def test_a_class_that_nobody_sent_makes_the_client_begin_as_in_the_first_round():
    s = mk()
    frozen = s.model_copy(update={"distill": s.distill.model_copy(update={"steps": 0})})
    arrays = {"x": torch.randn(1, 2, 4, 4), "y": torch.tensor([0]), "client": torch.tensor([1])}
    broadcast = Broadcast(2, server_context(s).network().state_dict(), arrays, phase="set")
    first, _ = client(frozen, 1)
    assert torch.equal(client(frozen, 2, broadcast=broadcast)[0].set["x"], first.set["x"])


def test_the_broadcast_holds_the_sets_of_the_last_round_and_whose_they_are():
    s = mk()
    state, heard = play(s, rounds=1)
    context = server_context(s)
    sent = method_of(s).phases[0].broadcast(2, state, context)
    assert torch.equal(sent.arrays["x"], torch.cat([r.set["x"] for r in heard[0]]))
    assert sent.arrays["client"].tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert method_of(s).phases[0].broadcast(1, method_of(s).begin(context), context).arrays == {}


def test_the_generator_makes_what_the_model_takes_for_the_class():
    """Fitted long enough on sets of real rows, its items are classified as they should be."""
    from ddfed_federated.methods.fedmk import drawn, fit, new_generator
    from ddfed_federated.parts.union import union_of_sets

    s = mk(options={"generator_steps": 150, "generator_lr": 1e-2})
    context = server_context(s)
    batch = TASK.train.all()
    net = context.network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(batch.inputs), batch.classes).backward()
        optimizer.step()
    net.eval().requires_grad_(False)
    sets = [[{"client": 0, "x": batch.inputs, "y": batch.classes, "counts": [40, 40, 40]}]]
    generator = new_generator(context)
    fit(generator, net, union_of_sets(sets, context), [0, 1, 2], context, Streams(0))
    classes = torch.tensor([0, 1, 2]).repeat_interleave(20)
    with torch.no_grad():
        answers = net(drawn(generator, classes, Streams(1).torch("z")))
    assert float((answers.argmax(1) == classes).float().mean()) > 0.9


def test_classes_of_earlier_rounds_stay_in_training():
    s = mk()
    of = TASK.train.class_index
    state = method_of(s).begin(server_context(s))
    for number, rows in ((1, torch.cat([of[0], of[1]])), (2, torch.cat([of[1], of[2]]))):
        release, _ = client(s, number, TASK.train.subset(rows), weights=state.weights)
        state = server(s, state, [release])
    assert state.memory["seen"] == [0, 1, 2]
    assert set(state.memory["generator"])


def test_without_generated_items_the_server_trains_on_the_union_alone():
    s, plain = mk(options={"pseudo": 0}), settings("feddm")
    state = method_of(s).begin(server_context(s))
    release, _ = client(s, 1, TASK.train.subset(shares(3)[0]), weights=state.weights)
    mine = server(s, state, [release])
    theirs = server(plain.model_copy(update={"server": s.server}), state, [replace(release)])
    assert all(torch.equal(mine.weights[k], theirs.weights[k]) for k in mine.weights)
    assert "generator" not in mine.memory
