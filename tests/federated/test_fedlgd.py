"""FedLGD: moments that compose, a contrast with anchors, and a server that distils a known gradient."""

from __future__ import annotations

import pytest
import torch
from playing import DOMAIN, TASK, client, client_context, method_of, play, server_context, settings, shares

from ddfed.distill import distill
from ddfed.errors import ConfigError, GateError
from ddfed.gate import EmptyGate, GivenGradient, PlainGate, Query
from ddfed.seeds import Streams
from ddfed_federated.parts.tables import pooled
from ddfed_federated.parts.virtual import contrast, gradient_parts, noise_like, pixel_moments


def small(**options):
    wanted = {"every": 2, "warm_up": 2, "global_ipc": 2, "global_steps": 3, "contrast": 0.5, **options}
    s = settings("fedlgd", distill={"steps": 3}, options=wanted, local={"epochs": 3, "lr": 0.1})
    # Without the radius that the harness gives to the pools of other methods.
    return s.model_copy(update={"distill": s.distill.model_copy(update={"pool_options": {}})})


def test_pooled_moments_are_those_of_the_pooled_rows():
    s = small()
    parts = [pixel_moments(PlainGate(TASK.train.subset(rows)), client_context(s)) for rows in shares(3)]
    batch = TASK.train.all()
    found = pooled(parts)
    for c in range(3):
        rows = batch.inputs[batch.classes == c].flatten(2)
        torch.testing.assert_close(found[c, 1:3], rows.mean((0, 2)))
        torch.testing.assert_close(found[c, 3:], rows.square().mean((0, 2)))


def test_items_begin_with_the_mean_and_deviation_of_their_class_and_channel():
    moments = torch.tensor([[9.0, 0.1, -0.2, 0.1**2 + 0.25, 0.2**2 + 0.01], [0.0] * 5, [4.0, -0.5, 0.5, 0.5, 0.26]])
    x = noise_like(moments, (0, 2), 2000, TASK.info, torch.Generator().manual_seed(0))
    assert x.shape == (4000, 2, 4, 4)
    first = x[:2000].transpose(0, 1).flatten(1)
    torch.testing.assert_close(first.mean(1), torch.tensor([0.1, -0.2]), atol=0.01, rtol=0)
    torch.testing.assert_close(first.std(1), torch.tensor([0.5, 0.1]), atol=0.01, rtol=0)
    assert float((x - TASK.info.space.clamp(x)).abs().max()) == 0


def test_the_contrast_equals_its_definition_row_by_row():
    torch.manual_seed(0)
    z, y, a, of = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]), torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 1, 0])
    found = contrast(z, y, a, of, 0.3)
    for i in range(5):
        scores = torch.stack([torch.cosine_similarity(z[i], one, dim=0) / 0.3 for one in a])
        same = [j for j in range(6) if of[j] == y[i]]
        expected = -sum(torch.log(scores[j].exp() / scores.exp().sum()) for j in same) / max(len(same), 1)
        assert float(found[i]) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)


# --- the gate that knows a gradient ------------------------------------------------------------------------------


def test_a_given_gradient_answers_for_all_classes_and_no_other_question():
    given = [torch.randn(4, 3), torch.randn(2, 4)]
    gate, draws = GivenGradient(TASK.info, given=given), torch.Generator()
    parameters = [torch.zeros(4, 3), torch.zeros(2, 4)]
    found, counts = gate.class_gradients(Query("g", (0, 1)), parameters, lambda batch: batch.inputs, draws)
    assert counts.tolist() == [1, 1]
    assert all(torch.equal(stacked, torch.stack([one, one])) for stacked, one in zip(found, given))
    with pytest.raises(GateError, match="has the shapes"):
        gate.gradient(Query("g", (0,)), parameters[:1], lambda batch: batch.inputs, draws)
    with pytest.raises(GateError, match="no records"):
        gate.raw("initialisation")
    assert isinstance(gate, EmptyGate)


def test_a_set_that_matches_a_given_gradient_matches_the_data_that_gave_it():
    """Distilling the gradient of all rows equals distilling the rows themselves, class means weighted alike."""
    s = small(global_steps=8)
    context = server_context(s)
    net, batch = context.network(), TASK.train.all()
    loss = torch.nn.functional.cross_entropy(net(batch.inputs), batch.classes)
    given = torch.autograd.grad(loss, [p for p in net.parameters() if p.ndim > 1])
    start = {"x": noise_like(pixel_moments(PlainGate(TASK.train), client_context(s)), (0, 1, 2), 2, TASK.info,
                             torch.Generator().manual_seed(1))}  # fmt: skip

    def made(gate) -> torch.Tensor:
        weights = {k: v.clone() for k, v in net.state_dict().items()}
        parts = gradient_parts(context)
        return distill(gate, DOMAIN, parts, Streams(0), center=weights, start=start).decoded()[0]

    known = made(GivenGradient(TASK.info, given=given))
    torch.testing.assert_close(known, made(PlainGate(TASK.train)), atol=1e-4, rtol=1e-4)
    assert not torch.equal(known, start["x"])


# --- rounds ------------------------------------------------------------------------------------------------------


def test_what_leaves_a_client_is_moments_once_and_weights():
    _, heard = play(small())
    assert [set(releases[0].payload) for releases in heard] == [{"statistics"}, {"weights"}, {"weights"}]
    assert set(heard[0][0].statistics) == {"moments"}
    assert heard[0][0].statistics["moments"].shape == (3, 5)


def test_the_global_set_moves_in_the_rounds_that_every_divides():
    s = small()
    sets = [play(s, rounds=r)[0].memory["x"] for r in (1, 2)]
    context, method = server_context(s), method_of(s)
    begun = (
        method.setup[0]
        .server(
            method.begin(context),
            _moments(s),
            context,
        )
        .memory["x"]
    )
    assert torch.equal(sets[0], begun)
    assert not torch.equal(sets[1], begun)


def _moments(s):
    context = server_context(s)
    part = method_of(s).setup[0]
    broadcast = part.broadcast(0, method_of(s).begin(context), context)
    return [
        part.client({}, PlainGate(TASK.train.subset(rows)), broadcast, client_context(s, who))[0]
        for who, rows in enumerate(shares(3))
    ]


def test_own_sets_move_in_the_same_rounds_only():
    s = small()
    context, method = server_context(s), method_of(s)
    state, _ = play(s, rounds=0)
    part = method.setup[0]
    _, kept = part.client({}, PlainGate(TASK.train), part.broadcast(0, state, context), client_context(s))
    for number, moves in ((1, False), (2, True)):
        broadcast = method.phases[0].broadcast(number, state, context)
        _, new = method.phases[0].client(kept, PlainGate(TASK.train), broadcast, client_context(s))
        assert torch.equal(new["x"], kept["x"]) != moves
        assert torch.equal(new["y"], kept["y"])


def test_a_client_without_rows_says_nothing_in_either_phase():
    s = small()
    state, _ = play(s, rounds=0)
    nobody = TASK.train.subset(torch.zeros(0, dtype=torch.int64))
    context = server_context(s)
    for phase in (method_of(s).setup[0], method_of(s).phases[0]):
        broadcast = phase.broadcast(1, state, context)
        release, kept = phase.client({}, PlainGate(nobody), broadcast, client_context(s))
        assert (release.payload, kept) == ({}, {})


def test_it_learns_from_virtual_rows_alone():
    from ddfed.evaluate import accuracy

    s = small(contrast=0.1, warm_up=50, global_steps=50)
    s = s.model_copy(update={"distill": s.distill.model_copy(update={"steps": 50, "lr": 1.0})})
    state, _ = play(s, rounds=4)
    assert accuracy(server_context(s).network(state.weights), TASK.test) > 0.8


def test_the_contrast_pulls_rows_towards_the_anchors_of_their_class():
    """Its weight in training lowers it."""
    near, far = (_contrast_after(weight) for weight in (3.0, 0.0))
    assert near < far


def _contrast_after(weight: float) -> float:
    s = small(contrast=weight)
    state, _ = play(s, rounds=0)
    context = server_context(s)
    part = method_of(s).setup[0]
    _, kept = part.client({}, PlainGate(TASK.train), part.broadcast(0, state, context), client_context(s))
    broadcast = method_of(s).phases[0].broadcast(1, state, context)
    release, _ = client(s, 1, state=kept, broadcast=broadcast)
    net = context.network(release.weights)
    with torch.no_grad():
        anchors = net.embed(state.memory["x"])
        return float(contrast(net.embed(kept["x"]), kept["y"], anchors, state.memory["y"], 0.07).mean())


def test_interrupted_it_goes_on_to_the_same_numbers(tmp_path):
    from ddfed.config import Layer, to_toml
    from ddfed.runs import RunFolder
    from ddfed_federated.rounds import Progressing
    from ddfed_federated.settings import resolve_simulate
    from ddfed_federated.simulate import simulate

    class Stop(Exception):
        pass

    def stop(row):
        if row.round == 2:
            raise Stop

    def rows(summary) -> list[dict]:
        return [{k: v for k, v in row.items() if "seconds" not in k} for row in summary["methods"]["fedlgd"]["rows"]]

    base = {
        "method": "fedlgd",
        "baselines": [],
        "data": {"domain": "twin", "dataset": "blobs"},
        "distill": {"ipc": 2, "steps": 2, "network": "small"},
        "options": {"every": 1, "warm_up": 2, "global_ipc": 2, "global_steps": 2},
        "local": {"epochs": 1},
        "federation": {"rounds": 3, "clients": 3, "partition": "iid"},
    }
    s = resolve_simulate([Layer("test", base)]).settings
    with RunFolder.create(tmp_path, "whole", to_toml(s)) as folder:
        whole = rows(simulate(s, folder))
    with RunFolder.create(tmp_path, "stopped", to_toml(s)) as folder:
        with pytest.raises(Stop):
            simulate(s, folder, Progressing(finished=stop))
        assert rows(simulate(s, folder, resume=True)) == whole
    assert [row["round"] for row in whole] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"federation": {"networks": ["small", "wide"]}}, "clients train the global weights"),
        ({"distill": {"network": "small", "augment": "jpeg"}}, "jpeg"),
    ],
)
@pytest.mark.parametrize("method", ["fedlgd", "quickdrop"])
def test_what_cannot_run_is_refused_before_the_first_round(method, changed, said):
    s = settings(method, **changed)
    with pytest.raises(ConfigError, match=said):
        method_of(s).check(server_context(s))
