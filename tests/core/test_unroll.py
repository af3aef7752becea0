"""Meta-learning against one long graph by hand, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ddfed.distill import Checkpointing, distill
from ddfed.domain import Capabilities, Network
from ddfed.errors import ConfigError
from ddfed.files import read_state, write_state
from ddfed.gate import PlainGate, Query
from ddfed.match import Judgement, Unrolling
from ddfed.match.adjoint import SGD, Adam, flat_weights
from ddfed.match.lessons import balanced, blocks, shuffled
from ddfed.seeds import Streams, isolated
from ddfed.settings import PartSettings
from ddfed.store import HardLabels, LogitLabels
from ddfed.testing import TwinDomain, twin_task
from ddfed.testing.twin import TwinShift

TASK = twin_task(per_class=15)
ALL = (0, 1, 2)


class Smooth(Network):
    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Linear(32, 6)
        self.head = nn.Linear(6, 3)

    def embed(self, x: Tensor) -> Tensor:
        return F.softplus(self.middle(x.flatten(1)))


class Remembering(PlainGate):
    def __post_init__(self) -> None:
        super().__post_init__()
        self.drawn: list[int] = []

    def _draw(self, query: Query, generator: torch.Generator) -> Tensor:
        rows = super()._draw(query, generator)
        self.drawn += rows.tolist()
        return rows


def judgement(learned: bool = False, ipc: int = 2, **changes: Any) -> Judgement:
    with isolated(0):
        net = Smooth().double().requires_grad_(False)
    row_class = torch.arange(3).repeat_interleave(ipc)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(len(row_class), *TASK.info.shape, generator=generator, dtype=torch.float64)
    labels = LogitLabels(row_class, 3, strength=2.0) if learned else HardLabels(row_class, 3)
    y = labels.targets(torch.arange(len(row_class))).detach()
    y = y.double().requires_grad_() if learned else y
    values: dict[str, Any] = {
        "net": net, "x": x.requires_grad_(), "y": y, "row_class": row_class, "classes": ALL,
        "gate": Remembering(TASK.train, chunk=7), "augmentation": None, "label_loss": labels.loss, "skill": 0.0,
        "step": 4, "streams": Streams(1),
    }  # fmt: skip
    return Judgement(**{**values, **changes})


def by_hand(j: Judgement, rule: Any, lrs: Tensor, first: int, batches: list[list[int]]) -> tuple[Tensor, list[Tensor]]:
    """Train in one graph from step ``first`` on, then the mean loss of the real rows that the gate drew."""
    x, lrs = j.x.detach().requires_grad_(), lrs.double().requires_grad_()
    y = j.y.detach().requires_grad_(j.y.is_floating_point())
    names = {name: p.shape for name, p in j.net.named_parameters()}

    def outputs(weights: Tensor, rows: Tensor) -> Tensor:
        parts = weights.split([shape.numel() for shape in names.values()])
        return functional_call(j.net, {n: p.view(s) for (n, s), p in zip(names.items(), parts)}, (rows,))

    state = rule.begin(flat_weights(j.net).requires_grad_())
    for t, batch in enumerate(batches):
        loss = j.label_loss(outputs(state[0], x[batch]), y[batch]).mean()
        state = rule.step(state, torch.autograd.grad(loss, state[0], create_graph=True)[0], lrs[t], t)
        if t < first:
            state = tuple(s.detach().requires_grad_() for s in state)
    real = TASK.train.batch(torch.tensor(j.gate.drawn))
    value = F.cross_entropy(outputs(state[0], real.inputs.double()), real.classes)
    leaves = [x, lrs, *([y] if y.is_floating_point() else [])]
    return value, list(torch.autograd.grad(value, leaves, materialize_grads=True))


@pytest.mark.parametrize("inner", [("sgd", 0.0), ("sgd", 0.9), ("adam", 0.0)], ids=["sgd", "momentum", "adam"])
@pytest.mark.parametrize("learned", [False, True], ids=["hard", "learned"])
def test_the_cotangent_is_the_derivative_of_the_real_loss(inner: tuple[str, float], learned: bool):
    j = judgement(learned)
    rule = SGD(inner[1]) if inner[0] == "sgd" else Adam()
    engine = Unrolling(steps=4, inner=inner[0], momentum=inner[1], lr=0.3, rows=20)
    found = engine(j)
    value, (x, _, *y) = by_hand(j, rule, torch.full((4,), 0.3), 0, [list(range(6))] * 4)
    assert found.loss == pytest.approx(float(value.detach()), rel=1e-6) and len(j.gate.drawn) == 20
    # The gate sums in float32.
    assert torch.allclose(found.x, x, rtol=1e-5, atol=1e-8)
    assert (found.y is None) is not learned and (not learned or torch.allclose(found.y, y[0], rtol=1e-5, atol=1e-8))


def test_blocks_take_turns_and_each_step_learns_its_size():
    j = judgement(ipc=2)
    engine = Unrolling(steps=3, order="blocks", blocks=2, learn_lrs=True, lr_lr=0.1, lr=0.2, rows=30)
    engine(j)
    _, (_, by_lr) = by_hand(j, SGD(), torch.full((3,), 0.2), 0, [[0, 2, 4], [1, 3, 5], [0, 2, 4]])
    raw = torch.full((3,), 0.2).expm1().log().requires_grad_()
    raw.grad = by_lr.float() * (1 - torch.exp(torch.tensor(-0.2)))  # the softplus of raw is 0.2
    twin = torch.optim.Adam([raw], 0.1, betas=(0.5, 0.999))
    twin.step()
    asked = engine.training()
    assert asked["blocks"] == 2 and asked["lrs"] == pytest.approx(F.softplus(raw.detach()).tolist(), rel=1e-5)
    assert asked["lrs"] != pytest.approx([0.2] * 3, rel=1e-3)


@pytest.mark.parametrize(("ipc", "count"), [(1, 1), (4, 4), (6, 3), (5, 1)])
def test_blocks_share_the_rows_of_a_class_evenly(ipc: int, count: int):
    engine = Unrolling(steps=1, order="blocks", blocks=4, learn_lrs=True, rows=5)
    j = judgement(ipc=ipc)
    engine(j)
    assert engine.training()["blocks"] == count
    for block in range(count):
        chosen = j.row_class[blocks(len(j.x), count)(block)]
        assert torch.bincount(chosen).tolist() == [ipc // count] * 3


def test_a_window_at_the_end_differentiates_the_last_steps_only():
    j = judgement()
    found = Unrolling(steps=5, window=2, place="end", lr=0.3, rows=20)(j)
    _, (x, _) = by_hand(j, SGD(), torch.full((5,), 0.3), 3, [list(range(6))] * 5)
    assert torch.allclose(found.x, x, rtol=1e-5, atol=1e-8)


def test_a_random_window_moves_and_stays_for_as_long_as_it_is_told():
    engine = Unrolling(steps=20, window=5, redraw=3)
    places = [engine._window(judgement(step=step)) for step in range(60)]
    assert all(last - first == 5 and 0 <= first <= 15 for first, last in places)
    assert places[0] == places[1] == places[2] and len({first for first, _ in places}) > 8


def test_every_order_shows_what_it_says():
    j, streams = judgement(ipc=4), Streams(0)
    chunks = shuffled(12, 5, streams)
    seen = [chunks(t).tolist() for t in range(6)]
    assert [len(s) for s in seen] == [5, 5, 2] * 2
    assert sorted(sum(seen[:3], [])) == sorted(sum(seen[3:], [])) == list(range(12)) and seen[:3] != seen[3:]
    assert chunks(1).tolist() == seen[1] and shuffled(12, 12, streams)(7).tolist() == list(range(12))
    few = balanced([torch.nonzero(j.row_class == c).flatten() for c in ALL], 2, streams)(0)
    assert j.row_class[few].tolist() == [0, 0, 1, 1, 2, 2]
    assert [blocks(5, 2)(t).tolist() for t in range(3)] == [[0, 2, 4], [1, 3], [0, 2, 4]]


def test_augmented_training_is_replayed_on_the_way_back():
    """Two judgements of the same step are equal, and differ from those without augmentation."""
    twice = [Unrolling(steps=3, rows=20)(judgement(augmentation=TwinShift())) for _ in range(2)]
    assert torch.equal(twice[0].x, twice[1].x)
    assert not torch.allclose(twice[0].x, Unrolling(steps=3, rows=20, augment=False)(judgement()).x, atol=1e-8)


@pytest.mark.parametrize(
    "options", [{"order": "blocks", "blocks": 2, "learn_lrs": True}, {"inner": "adam", "lr": 1e-3}]
)
def test_a_resumed_run_equals_the_uninterrupted_one(options: dict[str, Any], tmp_path: Any):
    parts = PartSettings(ipc=2, steps=4, network="small", objective="unroll", augment="shift", optimizer="adam",
                         lr=0.05, objective_options={"steps": 4, "window": 3, "rows": 16, **options})  # fmt: skip
    saved: list[Any] = []

    def save(tree: Any) -> None:
        write_state(tmp_path / str(len(saved)), tree)
        saved.append(read_state(tmp_path / str(len(saved))))

    def made(resume: Any = None) -> Any:
        return distill(PlainGate(TASK.train), TwinDomain(), parts, Streams(3),
                       checkpointing=Checkpointing(save, every=2, resume=resume))  # fmt: skip

    whole = made()
    again = made(saved[0])
    assert torch.equal(whole.store.params["x"], again.store.params["x"]) and whole.training == again.training


def test_matching_lowers_the_real_loss():
    parts = PartSettings(ipc=1, steps=25, network="small", objective="unroll", init="noise", optimizer="adam", lr=0.05,
                         objective_options={"steps": 8, "lr": 0.2, "rows": 60})  # fmt: skip
    gate = PlainGate(TASK.train)
    losses = []
    for steps in (0, 25):
        syn = distill(gate, TwinDomain(), parts.model_copy(update={"steps": steps}), Streams(0))
        rows, targets = syn.decoded()
        with isolated(7):
            net = TwinDomain().network("small", TASK.info)
        j = judgement(net=net, x=rows.requires_grad_(), y=targets, row_class=syn.labels.classes)
        losses.append(Unrolling(steps=8, lr=0.2, rows=120)(j).loss)
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": "sorted"}, "no order 'sorted'.*Possible"),
        ({"window": 40}, "window must lie between 1 and steps = 30, got 40"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"stepps": 3}, "no option 'stepps'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        Unrolling(**options)


def test_stepping_class_by_class_is_refused():
    parts = PartSettings(ipc=1, steps=1, objective="unroll", scope="sequential")
    with pytest.raises(ConfigError, match="judges all classes together.*scope = 'joint'"):
        distill(PlainGate(TASK.train), TwinDomain(), parts, Streams(0))


def test_networks_that_drop_units_are_refused():
    net = Smooth()
    net.middle = nn.Sequential(nn.Linear(32, 6), nn.Dropout(0.5))
    with pytest.raises(ConfigError, match=r"drops units at random \(middle.1\)"):
        Unrolling().check(net)


def test_networks_that_cannot_be_differentiated_twice_are_refused():
    class Once(TwinDomain):
        capabilities = replace(Capabilities(), second_order=False)

    with pytest.raises(ConfigError, match="differentiates the network twice"):
        distill(PlainGate(TASK.train), Once(), PartSettings(ipc=1, steps=1, objective="unroll"), Streams(0))
