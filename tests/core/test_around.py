"""What federated methods ask of the engines: pools around given weights, given logits, gradients used again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from judging import TASK, net, uneven
from torch import Tensor

from ddfed.errors import ConfigError
from ddfed.gate import PlainGate
from ddfed.match import GradientMatching, MomentMatching
from ddfed.pool import BlendPool, PoolContext, TrustPool
from ddfed.seeds import Streams
from ddfed.store import HardLabels
from ddfed.testing import TwinDomain

CENTER = TwinDomain().network("small", TASK.info).state_dict()


def context(**changes: Any) -> PoolContext:
    values: dict[str, Any] = {
        "build": lambda: TwinDomain().network("small", TASK.info),
        "gate": PlainGate(TASK.train),
        "streams": Streams(3),
        "classes": (0, 1, 2),
        "center": CENTER,
    }
    return PoolContext(**{**values, **changes})


def flat(net: Any) -> Tensor:
    return torch.nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def given() -> Tensor:
    there = TwinDomain().network("small", TASK.info)
    there.load_state_dict(CENTER)
    return flat(there)


def test_a_blend_is_the_stated_mixture_of_given_and_fresh_weights():
    pool = BlendPool(context(), gamma=0.7)
    mixed = flat(pool.draw(4))
    fresh = context().fresh("blend", 4)
    assert torch.allclose(mixed, 0.7 * given() + 0.3 * flat(fresh), atol=1e-6)
    assert torch.equal(mixed, flat(pool.draw(4))), "a draw depends on the step alone"
    assert not torch.equal(mixed, flat(pool.draw(5)))


def test_a_blend_of_the_given_weights_alone_is_those():
    assert torch.equal(flat(BlendPool(context(), gamma=1.0).draw(0)), given())
    with pytest.raises(ConfigError, match="gamma must be from 0 to 1"):
        BlendPool(context(), gamma=1.5)


def syn() -> tuple[Tensor, Tensor]:
    batch = TASK.train.batch(torch.arange(0, len(TASK.train), 5))
    return batch.inputs, batch.classes


def walk(pool: TrustPool, steps: int) -> list[float]:
    """How far from the given weights each step's network is."""
    found = []
    for step in range(steps):
        pool.draw(step)
        found.append(pool.travelled)
        pool.advance(step, syn, HardLabels.loss)
    return found


def test_a_walk_stays_at_a_point_moves_on_and_returns():
    path = walk(TrustPool(context(), length=2, points=3, radius=1e6, epochs=1, lr=0.1), 8)
    assert path[0] == path[1] == 0.0
    assert 0 < path[2] == path[3] < path[4] == path[5]
    assert path[6] == path[7] == 0.0, "after three points the next walk begins"


def test_a_walk_ends_at_the_radius():
    path = walk(TrustPool(context(), length=1, points=100, radius=1e-9, epochs=1, lr=0.1), 4)
    assert path == [0.0] * 4
    still = walk(TrustPool(context(), length=1, points=100, radius=1.0, epochs=0), 4)
    assert still == [0.0] * 4


def test_a_walk_goes_on_from_a_checkpoint():
    options = {"length": 1, "points": 4, "radius": 1e6, "epochs": 1, "lr": 0.1}
    whole = walk(TrustPool(context(), **options), 7)
    first = TrustPool(context(), **options)
    for step in range(2):
        first.draw(step)
        first.advance(step, syn, HardLabels.loss)
    second = TrustPool(context(), **options)
    second.load(copy.deepcopy(first.state()))
    found = []
    for step in range(2, 7):
        second.draw(step)
        found.append(second.travelled)
        second.advance(step, syn, HardLabels.loss)
    assert found == whole[2:]


@pytest.mark.parametrize("kind", [BlendPool, TrustPool])
def test_pools_around_nothing_are_refused(kind: Any):
    with pytest.raises(ConfigError, match="none were given"):
        kind(context(center=None))


# --- given logits ------------------------------------------------------------------------------------------------


def table(known: tuple[int, ...] = (0, 1, 2)) -> Tensor:
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    values[:, 0] = torch.tensor([10.0 if c in known else 0.0 for c in range(3)])
    return values


def public(known: tuple[int, ...] = (0, 1, 2), **options: Any) -> tuple[Any, Any]:
    j = uneven((0, 1, 2), public={"class logits": table(known)}, augmentation=None)
    return j, MomentMatching(terms={"public": {"weight": 1.0, **options}})(j)


def test_given_logits_pull_at_the_rows():
    """The published third-party code computes this distance without a gradient."""
    j, found = public()
    assert found.loss > 0
    assert float(found.x.abs().max()) > 0


def test_the_distance_is_the_one_by_hand():
    j, found = public(directions=16, power=2.0)
    directions = torch.nn.functional.normalize(
        torch.randn(16, 3, generator=j.streams.torch("directions", j.step)), dim=1
    )
    x = j.x.detach().clone().requires_grad_()
    logits, loss = j.net(x), torch.zeros(())
    for c in range(3):
        apart = logits[j.row_class == c].mean(0) - table()[c, 1:]
        loss = loss + sum((direction @ apart) ** 2 for direction in directions) / 16
    assert found.loss == pytest.approx(float(loss), rel=1e-4)
    assert torch.allclose(found.x, torch.autograd.grad(loss, x)[0], atol=1e-5)


def test_the_distance_grows_with_that_of_the_vectors_alone():
    """With one vector a class nothing is sorted: the sliced distance is |u - v|^2 / classes in expectation."""
    j, found = public(directions=20_000)
    with torch.no_grad():
        logits = j.net(j.x)
        apart = torch.stack([logits[j.row_class == c].mean(0) for c in range(3)]) - table()[:, 1:]
    assert found.loss == pytest.approx(float(apart.square().sum()) / 3, rel=0.05)


def test_classes_that_nobody_holds_say_nothing():
    j, found = public(known=(0, 2))
    assert float(found.x[j.row_class == 1].abs().max()) == 0
    assert float(found.x[j.row_class == 0].abs().max()) > 0
    assert public(known=())[1].loss == 0


def test_sets_of_vectors_are_sorted_along_each_direction():
    j, sets = public(reading="set", directions=8)
    _, classes = public(reading="class", directions=8)
    assert 0 < sets.loss <= classes.loss + 1e-5, "sorting finds the cheapest pairing along a line"
    with pytest.raises(ConfigError, match="they pass in parts"):
        MomentMatching(syn_chunk=1, terms={"public": {"reading": "set"}})(j)


def test_without_a_table_the_term_says_what_it_needs():
    with pytest.raises(ConfigError, match=r"needs the table 'class logits' of shape \(3, 4\)"):
        MomentMatching(terms={"public": 1.0})(uneven((0, 1, 2)))


# --- real gradients used again -----------------------------------------------------------------------------------


class Counting(PlainGate):
    asked = 0

    def class_gradients(self, *args: Any, **named: Any) -> Any:
        self.asked += 1
        return super().class_gradients(*args, **named)


@pytest.mark.parametrize("joint", [False, True])
def test_steps_against_the_same_gradients_ask_once(joint: bool):
    gate = Counting(TASK.train)
    engine = GradientMatching(rows=5, reuse=3, joint=joint)
    alone = GradientMatching(rows=5, joint=joint)
    network, calls = net(0), []
    for step in range(6):
        j = uneven((0, 1, 2), net=network, gate=gate, step=step, place=(0, step))
        found = engine(j)
        calls.append(gate.asked)
        wanted = alone(uneven((0, 1, 2), net=network, step=step - step % 3, place=(0, step - step % 3)))
        assert torch.allclose(found.x, wanted.x, atol=1e-6)
    each = calls[0]
    assert calls == [each] * 3 + [2 * each] * 3
