"""DENSE: its terms against their formulas, and what the server makes of networks that differ."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from playing import DOMAIN, TASK, client, method_of, play, server, server_context, settings, shares

from ddfed.config import Layer, to_toml
from ddfed.errors import ConfigError, FederationError
from ddfed.evaluate import accuracy
from ddfed.federation import Broadcast
from ddfed.match.teacher import batch_norms, inputs_of
from ddfed.runs import RunFolder
from ddfed_federated.methods.datafree import DENSE
from ddfed_federated.parts import ensemble as parts
from ddfed_federated.report import told_lines
from ddfed_federated.settings import resolve_simulate
from ddfed_federated.simulate import check_simulate, simulate

OPTIONS = {"generator": "mlp", "generator_options": {"latent": 8}, "batch": 32, "steps": 20, "lr": 0.01}


def dense(**sections):
    common = {"local": {"epochs": 20, "lr": 0.01, "batch": 32}, "server": {"epochs": 10, "lr": 0.05, "batch": 32}}
    given = {**common, **sections, "options": {**OPTIONS, **sections.get("options", {})}}
    return settings("dense", **given)


def mixed(**sections):
    return dense(federation={"networks": ["small", "maps", "norms"]}, **sections)


# --- terms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_the_divergence_is_its_sum_written_out(temperature):
    student, teacher = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = parts.divergence(student, teacher, temperature)
    for row in range(5):
        p, q = (torch.softmax(z[row] / temperature, 0) for z in (teacher, student))
        by_hand = temperature**2 * sum(float(a * (a / b).log()) for a, b in zip(p, q))
        assert float(found[row]) == pytest.approx(by_hand, rel=1e-9)
    assert float(parts.divergence(teacher, teacher).abs().max()) < 1e-12


def test_the_distance_to_batch_norms_is_nought_for_what_they_remember_and_by_hand_otherwise():
    net = DOMAIN.network("norms", TASK.info).eval()
    x = TASK.train.all().inputs
    norms = batch_norms(net)
    with torch.no_grad(), inputs_of(norms) as entered:
        net(x)
    by_hand = 0.0
    for norm, values in zip(norms, entered):
        by_hand += float((values.mean((0, 2)) - norm.running_mean).norm())
        by_hand += float((((values - values.mean((0, 2), keepdim=True)) ** 2).mean((0, 2)) - norm.running_var).norm())
    assert len(norms) == 2
    assert float(parts.remembered_distance(norms, entered)) == pytest.approx(by_hand, rel=1e-4)
    for norm, values in zip(norms, entered):
        norm.running_mean.copy_(values.mean((0, 2)))
        norm.running_var.copy_(values.var((0, 2), unbiased=False))
    assert float(parts.remembered_distance(norms, entered)) < 1e-4
    assert float(parts.remembered_distance([], [])) == 0


def _trained(s):
    context, method = server_context(s), method_of(s)
    state = method.begin(context)
    broadcast = method.phases[0].broadcast(1, state, context)
    releases = [client(s, 1, TASK.train.subset(r), who=k, broadcast=broadcast)[0] for k, r in enumerate(shares(3))]
    return context, state, releases


def test_the_ensemble_is_the_mean_of_the_clients_logits():
    context, _, releases = _trained(mixed())
    x = TASK.test.all().inputs
    each = torch.stack([context.network_of(r.client, r.weights).eval()(x) for r in releases])
    assert torch.allclose(parts.ensemble_of(releases, context)(x), each.mean(0), atol=1e-6)


def test_the_rows_of_the_lowest_loss_are_kept(monkeypatch):
    """Without statistics and adversary the loss is the ensemble's cross-entropy, which can be asked again."""
    s = dense(options={"adversarial": 0.0, "lr": 0.01, "steps": 8})
    context, state, releases = _trained(s)
    ensemble, student = parts.ensemble_of(releases, context), context.network(state.weights)
    seen = []
    plain = parts.F.cross_entropy
    monkeypatch.setattr(parts.F, "cross_entropy", lambda z, y: seen.append(plain(z, y)) or seen[-1])
    rows = parts.make_up(ensemble, student, context, context.streams)
    classes = parts._new_generator(context, context.streams)[2]
    assert len(seen) == 8
    assert float(plain(ensemble(rows), classes)) == pytest.approx(min(float(v.detach()) for v in seen), rel=1e-5)
    assert float(seen[0].detach()) > 1.02 * float(seen[-1].detach())


def test_the_adversary_looks_for_rows_on_which_student_and_ensemble_differ():
    context, state, releases = _trained(dense())
    ensemble, student = parts.ensemble_of(releases, context), context.network(state.weights)

    def apart(weight: float) -> float:
        s = dense(options={"classes": 0.0, "statistics": 0.0, "adversarial": weight, "steps": 30, "lr": 0.05})
        own = server_context(s)
        if not weight:
            generator, z, classes = parts._new_generator(own, own.streams)
            made = generator(z, classes).detach()
        else:
            made = parts.make_up(ensemble, student, own, own.streams)
        with torch.no_grad():
            one, two = ensemble(made), student(made)
        return float((parts.divergence(two, one) * (one.argmax(1) != two.argmax(1))).mean())

    assert apart(1.0) > 2 * apart(0.0)


# --- server ----------------------------------------------------------------------------------------------------------


def test_a_pass_over_made_up_rows_brings_the_student_to_its_teacher_and_leaves_that_alone():
    context, state, releases = _trained(dense())
    teacher, student = parts.ensemble_of(releases, context), context.network(state.weights)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    rows = TASK.train.all().inputs

    def apart() -> float:
        with torch.no_grad():
            return float(parts.divergence(student.eval()(rows), teacher(rows)).mean())

    start = apart()
    for number in range(20):
        parts.teach(student, teacher, rows, context, context.streams.child("t", number))
    assert apart() < 0.2 * start
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert not teacher.training


def test_the_student_of_different_networks_learns_without_a_single_record():
    s = mixed(server={"epochs": 15, "lr": 0.05, "batch": 32})
    state, heard = play(s)
    context = server_context(s)
    student, fresh = context.network(state.weights), context.network()
    assert accuracy(student, TASK.test) > 0.8 > accuracy(fresh, TASK.test)
    assert [set(r.weights) for r in heard[0]] == [set(DOMAIN.network(n, TASK.info).state_dict()) for n in
                                                  ("small", "maps", "norms")]  # fmt: skip


def test_nothing_is_sent_down_and_only_weights_come_up():
    s = mixed()
    context, method = server_context(s), method_of(s)
    broadcast = method.phases[0].broadcast(1, method.begin(context), context)
    assert broadcast == Broadcast(1, phase="weights")
    release, memory = client(s, 1, broadcast=broadcast, who=1)
    assert set(release.payload) == {"weights"}
    assert memory == {}
    assert release.size_bytes == 4 * sum(p.numel() for p in DOMAIN.network("maps", TASK.info).parameters())


def test_without_any_network_the_round_is_an_error():
    s = dense()
    with pytest.raises(FederationError, match="no client sent weights"):
        server(s, DENSE.begin(server_context(s)), [])


# --- whole runs ------------------------------------------------------------------------------------------------------


def small(**sections):
    base = {
        "method": "dense",
        "baselines": ["random-once"],
        "data": {"train_limit": 300, "test_limit": 100},
        "distill": {"network": "convnet-d2-w16", "ipc": 1, "min_count": 1},
        "local": {"epochs": 5},
        "server": {"epochs": 2},
        "options": {"steps": 3, "batch": 16, "generator_options": {"latent": 8, "width": 8}},
        "federation": {"clients": 3, "networks": ["convnet-d2-w16", "convnet-d1-w8-bn", "mlp"]},
    }
    return resolve_simulate([Layer("test", base), Layer("case", sections)]).settings


def run(folder, s):
    with folder:
        return simulate(s, folder)


def test_a_run_with_three_structures_tells_the_accuracy_of_the_ensemble(tmp_path):
    s = small()
    one = run(RunFolder.create(tmp_path, "one", to_toml(s)), s)
    two = run(RunFolder.create(tmp_path, "two", to_toml(s)), s)
    rows = one["methods"]["dense"]["rows"]
    assert len(rows) == 1
    assert rows[0]["bytes_down"]["weights"] == 0 < rows[0]["bytes_up"]["weights"]
    assert 0.2 < rows[0]["told"]["ensemble"] <= 1
    assert (rows[0]["told"], rows[0]["accuracy"]) == (
        two["methods"]["dense"]["rows"][0]["told"],
        two["methods"]["dense"]["rows"][0]["accuracy"],
    )
    assert one["methods"]["random-once"]["rows"][0]["told"] == {}
    assert told_lines(one) == [f"dense, round 1: ensemble {100 * rows[0]['told']['ensemble']:.1f} %"]


def test_coupled_rows_are_refused():
    class Coupled(type(DOMAIN)):
        capabilities = type(DOMAIN.capabilities)(independent_rows=False)

    context = replace(server_context(dense()), domain=Coupled())
    with pytest.raises(ConfigError, match="cannot be seen apart from others"):
        DENSE.check(context)


def test_items_without_cell_axes_need_another_generator():
    context = server_context(dense(options={"generator": "conv"}))
    DENSE.check(context)
    flat = replace(context.task, info=replace(TASK.info, cell_axes=()))
    with pytest.raises(ConfigError, match="Set options.generator = 'mlp'"):
        DENSE.check(replace(context, task=flat))
    check_simulate(small())
