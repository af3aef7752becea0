"""The pool of a given path, and the gate without records, with which trajectory matching needs no data."""

from __future__ import annotations

import pytest
import torch

from ddfed.distill import distill, outer_step
from ddfed.domain import Network
from ddfed.errors import ConfigError, GateError
from ddfed.gate import EmptyGate, Query
from ddfed.kit import assemble
from ddfed.pool import GivenPath, PoolContext
from ddfed.pool.buffer import put_snapshot, snapshot_of
from ddfed.seeds import Streams, isolated
from ddfed.settings import PartSettings
from ddfed.store import HardLabels
from ddfed.testing import TwinDomain, twin_task

TASK = twin_task()
DOMAIN = TwinDomain()
STEPS, RATE = 5, 0.1


def network() -> Network:
    with isolated(3):
        return DOMAIN.network("small", TASK.info)


def known_set() -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.cat([members[:2] for members in TASK.train.class_index])
    batch = TASK.train.batch(rows)
    return batch.inputs, batch.classes


def known_path(snapshots: int = 6) -> torch.Tensor:
    """Snapshots of plain gradient descent on the known set, every ``STEPS`` steps."""
    net, (x, y) = network(), known_set()
    path = [snapshot_of(net)]
    for _ in range((snapshots - 1) * STEPS):
        grads = torch.autograd.grad(HardLabels.loss(net(x), y).mean(), list(net.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(net.parameters(), grads):
                parameter -= RATE * grad
        path.append(snapshot_of(net))
    return torch.stack(path[::STEPS])


def parts(**changes) -> PartSettings:
    return PartSettings(
        **{
            "ipc": 2,
            "steps": 40,
            "network": "small",
            "init": "noise",
            "objective": "trajectory",
            "objective_options": {"steps": STEPS, "lr": RATE, "lr_lr": 0.0},
            "pool": "path",
            "pool_options": {"span": 1, "average": [1, 1]},
            "optimizer": "adam",
            "lr": 0.05,
            **changes,
        }
    )


def losses(settings: PartSettings, start=None) -> list[float]:
    """Matching loss of every outer step."""
    gate, streams = EmptyGate(TASK.info), Streams(0)
    kit = assemble(gate, DOMAIN, settings, streams, public={"trajectory": known_path()}, start=start)
    return [outer_step(kit, settings, gate, kit.context.streams, step, "test") for step in range(settings.steps)]


def test_the_set_that_made_the_path_matches_it():
    assert max(losses(parts(steps=3), {"x": known_set()[0]})) < 1e-8


@pytest.mark.parametrize("labels", ["hard", "logits"])
def test_noise_comes_to_match_the_path_far_better_than_standing_still(labels):
    """Standing still has loss 1."""
    found = losses(parts(steps=300, labels=labels, label_lr=0.05))
    assert sum(found[-10:]) / 10 < 0.1 < 0.5 < sum(found[:3]) / 3


def test_nothing_real_is_asked_for():
    syn = distill(EmptyGate(TASK.info), DOMAIN, parts(steps=2), Streams(0), public={"trajectory": known_path()})
    assert syn.privacy["statement"] == "No real data was touched."
    assert sorted(syn.labels.classes.tolist()) == [0, 0, 1, 1, 2, 2]


def test_the_gate_without_records_refuses_every_question():
    gate, query, draws = EmptyGate(TASK.info), Query("means", (0,)), torch.Generator()
    asked = (
        lambda: gate.raw("initialisation"),
        lambda: gate.sums(query, lambda batch: batch.inputs.flatten(1), draws),
        lambda: gate.gradient(query, [], lambda batch: batch.inputs.sum(), draws),
        lambda: gate.each(query, lambda batch: batch.inputs.flatten(1), draws),
        lambda: gate.counts(),
        lambda: gate.fingerprint(),
    )
    for question in asked:
        with pytest.raises(GateError):
            question()


def pool(path: torch.Tensor | None, **options) -> GivenPath:
    public = {} if path is None else {"trajectory": path}
    return GivenPath(PoolContext(network, EmptyGate(TASK.info), Streams(0), (0, 1, 2), public=public), **options)


def test_a_target_is_the_mean_of_snapshots_after_the_start():
    path = known_path()
    drawing, span = pool(path, span=2, average=[2, 2]), 2
    ahead = {(a, b) for a in (1, 2) for b in (1, 2)}
    starts = set()
    for step in range(40):
        start = int((path - snapshot_of(drawing.draw(step))).abs().sum(1).argmin())
        starts.add(start)
        target = snapshot_of(drawing.expert)
        possible = [path[[start + a, start + b]].mean(0) for a, b in ahead]
        assert min(float((target - one).abs().max()) for one in possible) < 1e-6
    assert starts == set(range(len(path) - span))


def test_starts_may_be_kept_early():
    path = known_path()
    drawing = pool(path, span=1, average=[1, 1], max_start=1)
    assert all(torch.equal(snapshot_of(drawing.draw(step)), path[0]) for step in range(5))


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        (None, {}, "none were given"),
        (torch.zeros(6, 7), {}, "have .* values"),
        ("short", {"span": 6}, "needs 7"),
        ("short", {"average": [0, 1]}, "from 1"),
        ("short", {"span": 0}, "1 or more"),
    ],
)
def test_a_path_that_cannot_be_followed_is_refused(path, options, said):
    with pytest.raises(ConfigError, match=said):
        pool(known_path() if isinstance(path, str) else path, **options)


def test_a_snapshot_goes_back_into_a_network():
    net, path = network(), known_path()
    put_snapshot(net, path[3])
    assert torch.equal(snapshot_of(net), path[3])
