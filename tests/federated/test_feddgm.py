"""FedDGM: weights on the wire, sets inside a generator at the server."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from playing import TASK, client, method_of, play, server_context, settings, shares
from torch import Tensor, nn

from ddfed.data import TaskInfo
from ddfed.errors import ConfigError, UnknownNameError
from ddfed.registry import Component, registry
from ddfed.seeds import isolated
from ddfed.store.latent import Generator
from ddfed_federated.parts.generative import FindsSets, synthesis

SMALL = {"ipc": 2, "steps": 6, "student_steps": 4, "student_lr": 1.0, "lr": 0.1}
FINDS = FindsSets()


class Plane(Generator):
    """A generator as a plugin brings it: rows in a plane of its own for each class."""

    def __init__(self, info: TaskInfo, seed: int = 0) -> None:
        super().__init__()
        self.latent_shape, self._shape = (2,), info.shape
        with isolated(seed):
            self.weight = nn.Parameter(torch.linalg.qr(torch.randn(info.num_classes, 32, 2)).Q.contiguous())

    def forward(self, z: Tensor, classes: Tensor) -> Tensor:
        return torch.einsum("nw,ndw->nd", z, self.weight[classes]).view(-1, *self._shape)


@pytest.fixture(autouse=True)
def plane(monkeypatch: pytest.MonkeyPatch):
    offered = Component("generator", "plane", f"{__name__}:Plane")
    monkeypatch.setitem(registry()._components, ("generator", "plane"), offered)


def small(**options):
    return settings("feddgm", options={**SMALL, **options})


def found(s, rows: Tensor | None = None, who: int = 0):
    """One client's set in the first round, and what it sent."""
    context = server_context(s)
    data = TASK.train if rows is None else TASK.train.subset(rows)
    release, _ = client(s, 1, data=data, who=who)
    return FINDS._found(method_of(s).begin(context), release, context), release


def test_clients_do_what_those_of_fedavg_do_and_tell_their_classes():
    mine, _ = client(small(), 1)
    theirs, _ = client(settings("fedavg", local={"epochs": 10}), 1)
    mine_alike, _ = client(settings("feddgm", local={"epochs": 10}), 1)
    assert set(mine.payload) == {"weights"}
    assert mine.class_counts == tuple(TASK.train.class_counts.tolist())
    assert all(torch.equal(mine_alike.weights[k], theirs.weights[k]) for k in theirs.weights)


def test_a_set_holds_the_classes_of_its_client_and_rows_that_the_generator_makes():
    rows = torch.nonzero(TASK.train.labels < 2).flatten()
    one, _ = found(small(generator="plane"), rows)
    assert one["y"].tolist() == [0, 0, 1, 1]
    for x, y in zip(one["x"].flatten(1), one["y"]):
        weight = Plane(TASK.info).weight[y].detach()
        torch.testing.assert_close(weight @ (weight.T @ x), x, atol=1e-5, rtol=1e-4)


def test_training_on_a_set_leads_towards_what_the_client_sent():
    options = {**SMALL, "steps": 100, "lr": 0.2, "student_steps": 8, "student_lr": 0.05, "student_lr_lr": 0, "ipc": 5}
    s = settings("feddgm", options=options, local={"epochs": 10})
    one, release = found(s)
    context = server_context(s)
    start = context.network()
    student, target = context.network(), context.network(release.weights)
    for _ in range(options["student_steps"]):
        losses = nn.functional.cross_entropy(student(one["x"]), one["y"], reduction="none")
        means = torch.stack([losses[one["y"] == c].mean() for c in one["y"].unique()]).mean()
        for p, g in zip(student.parameters(), torch.autograd.grad(means, list(student.parameters()))):
            p.data -= options["student_lr"] * g

    def apart(a, b):
        return sum(float((p - q).detach().square().sum()) for p, q in zip(a.parameters(), b.parameters()))

    assert apart(student, target) < 0.9 * apart(start, target)


def test_the_server_looks_for_every_client_and_comes_out_the_same():
    s = small()
    state, heard = play(s, shares(2), rounds=2)
    again, _ = play(s, shares(2), rounds=2)
    assert [len(one) for one in heard] == [2, 2]
    assert all(torch.equal(state.weights[k], again.weights[k]) for k in state.weights)


def test_a_client_with_too_few_rows_of_every_class_has_nothing_to_send():
    s = settings("feddgm", options=SMALL, distill={"min_count": 30})
    few = TASK.train.subset(shares(2)[0])
    assert not client(s, 1, data=few)[0].payload
    assert client(s, 1)[0].payload


def test_a_client_that_sends_weights_and_no_counts_changes_nothing():
    s = small()
    state, (sent, _) = method_of(s).begin(server_context(s)), client(s, 1)
    merged = FINDS(state, [replace(sent, class_counts=())], server_context(s))
    assert all(torch.equal(merged.weights[k], v) for k, v in state.weights.items())


def test_what_cannot_work_is_refused_before_a_client_exists():
    with pytest.raises(UnknownNameError, match="options.generator"):
        FINDS.check(server_context(small(generator="plan")))
    with pytest.raises(ConfigError, match="share"):
        FINDS.check(server_context(small(generator_options={"share": 2.0})))


def test_the_engine_is_the_one_that_follows_trajectories():
    parts = synthesis(server_context(small(generator="plane", generator_options={"seed": 3})))
    assert (parts.objective, parts.pool, parts.store, parts.init) == ("trajectory", "path", "latent", "noise")
    assert parts.store_options == {"generator": "plane", "settings": {"seed": 3}}
