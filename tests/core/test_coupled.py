"""Rows that a network must see together: engines against versions by hand, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddfed.data import RealData, Task, TaskInfo
from ddfed.distill import Checkpointing, distill
from ddfed.domain import Augmentation, Domain, Network
from ddfed.errors import ConfigError, DataError
from ddfed.evaluate import evaluate
from ddfed.evaluate.protocols import E_DC, Protocol
from ddfed.evaluate.training import train
from ddfed.gate import PlainGate
from ddfed.match import GradientMatching, Judgement, MomentMatching
from ddfed.match.gradients import row_cosines
from ddfed.outer import Outer
from ddfed.registry import Registry, registry
from ddfed.seeds import Streams, isolated
from ddfed.settings import PartSettings
from ddfed.space import Space
from ddfed.store import HardLabels, Store

INFO = TaskInfo("linked", "clouds", (4,), ("a", "b", "c"), Space(low=-float("inf"), high=float("inf")))
CLASSES = torch.tensor([0, 0, 1, 1, 1, 2, 2])


class LinkedNet(Network):
    """Features plus what the linked rows have, then tanh: rows (k, 4), or (k, 4 + k) with the links."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, outputs)

    def embed(self, x: Tensor) -> Tensor:
        own, links = x[:, :4], x[:, 4:]
        return torch.tanh(self.body(own + links @ own if links.shape[1] else own))


class Linked(Store):
    """Features and a free link for each pair, learned in turns."""

    name = "linked"
    coupled = True
    defaults: Mapping[str, Any] = {"turns": False}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"x": (self.items, 4), "links": (self.items, self.items)}

    def decode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        links = self.params["links"][items][:, items]
        return torch.cat([self.params["x"][items], links + links.T], 1), torch.arange(len(items))

    def fill(self, rows: Tensor, streams: Streams = Streams(0)) -> None:  # noqa: B008
        with torch.no_grad():
            self.params["x"].copy_(rows[:, 0, :4])
            self.params["links"].fill_(0.1)

    def constrain(self) -> None:
        pass

    def learns(self, step: int) -> frozenset[str]:
        if not self.options["turns"]:
            return frozenset(self.params)
        return frozenset({"links" if step % 2 == 0 else "x"})

    def rates(self) -> dict[str, float]:
        return {"links": 0.5}


class LinkedData(RealData):
    """Knows of no links among its rows, and says so by zeros."""

    def items(self, rows: Tensor, coupled: bool = False) -> Tensor:
        x = super().items(rows)
        return torch.cat([x, torch.zeros(len(x), len(x))], 1) if coupled else x


class LinkedDomain(Domain):
    name = "linked"
    models = ("net",)
    baselines = ("random", "full")

    def load(self, dataset: str, root: Path | None, options: Mapping[str, Any]) -> Task:
        return TASK

    def network(self, name: str, info: TaskInfo) -> Network:
        return LinkedNet(info.num_classes)

    def augmentation(self, name: str, info: TaskInfo) -> Augmentation | None:
        return None

    def render(self, syn: Any, path: Path, per_class: int = 10) -> Path:
        raise NotImplementedError

    def export(self, syn: Any, folder: Path, fmt: str) -> list[Path]:
        raise NotImplementedError


def _cloud(each: int, seed: int) -> LinkedData:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat_interleave(each)
    centres = torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 2.0, 0]])
    return LinkedData(centres[labels] + 0.8 * torch.randn(len(labels), 4, generator=generator), labels, INFO)


TASK = Task(INFO, _cloud(20, 0), _cloud(30, 1), _cloud(10, 2))


@pytest.fixture(autouse=True)
def store_in_the_registry(monkeypatch):
    plain = registry().load

    def load(self: Registry, kind: str, name: str, origin: str = "") -> Any:
        return Linked if (kind, name) == ("decoder", "linked") else plain(kind, name, origin)

    monkeypatch.setattr(Registry, "load", load)


def judgement(**changes: Any) -> Judgement:
    with isolated(0):
        net = LinkedNet().requires_grad_(False)
    x = torch.randn(7, 4 + 7, generator=torch.Generator().manual_seed(3))
    labels = HardLabels(CLASSES, 3)
    values: dict[str, Any] = {
        "net": net, "x": x.requires_grad_(), "y": labels.targets(torch.arange(7)), "row_class": CLASSES,
        "classes": (0, 1, 2), "gate": PlainGate(TASK.train), "augmentation": None, "label_loss": labels.loss,
        "skill": 0.0, "step": 0, "streams": Streams(1), "coupled": True,
    }  # fmt: skip
    return Judgement(**{**values, **changes})


def parts(**changes: Any) -> PartSettings:
    usual: dict[str, Any] = {
        "ipc": 2, "steps": 6, "store": "linked", "objective": "gradient", "objective_options": {"rows": None},
        "pool": "RS", "pool_options": {"length": 3, "epochs": 2, "optimizer": "adam"}, "lr": 0.05, "protocol": "E-dc",
    }  # fmt: skip
    return PartSettings(**{**usual, **changes})


def made(**changes: Any) -> Any:
    return distill(PlainGate(TASK.train), LinkedDomain(), parts(**changes), Streams(0))


# --- engines -----------------------------------------------------------------------------------------------------


def test_gradients_of_coupled_rows_equal_a_pass_for_each_class():
    j = judgement()
    found = GradientMatching(rows=None)(j)
    x, net = j.x.detach().clone().requires_grad_(), LinkedNet()
    net.load_state_dict(j.net.state_dict())
    loss = torch.zeros(())
    for c in range(3):
        weights = [p for p in net.parameters() if p.ndim > 1]
        real = TASK.train.batch(TASK.train.class_index[c])
        theirs = torch.autograd.grad(F.cross_entropy(net(real.inputs), real.classes), weights)
        # The whole graph passes the network; the rows of the class make the loss.
        mine = torch.autograd.grad(
            F.cross_entropy(net(x)[c == CLASSES], CLASSES[c == CLASSES]), weights, create_graph=True
        )
        loss = loss + row_cosines(theirs, mine)
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    torch.testing.assert_close(found.x, torch.autograd.grad(loss, x)[0], rtol=1e-4, atol=1e-6)
    assert bool((found.x[:, 4:] != 0).any()), "links must receive a gradient"


def test_one_gradient_for_all_classes_of_coupled_rows():
    j = judgement()
    found = GradientMatching(rows=None, joint=True)(j)
    x, net = j.x.detach().clone().requires_grad_(), LinkedNet()
    net.load_state_dict(j.net.state_dict())
    weights = [p for p in net.parameters() if p.ndim > 1]
    theirs = [torch.zeros_like(w) for w in weights]
    for c in range(3):
        real = TASK.train.batch(TASK.train.class_index[c])
        for total, g in zip(theirs, torch.autograd.grad(F.cross_entropy(net(real.inputs), real.classes), weights)):
            total += g / 3
    mine = torch.autograd.grad(F.cross_entropy(net(x), CLASSES), weights, create_graph=True)
    torch.testing.assert_close(found.loss, float(row_cosines(theirs, mine)), rtol=1e-4, atol=1e-6)


def test_moments_of_coupled_rows_see_all_rows():
    j = judgement()
    found = MomentMatching(rows=None, syn_chunk=2)(j)
    x = j.x.detach().clone().requires_grad_()
    features = j.net.embed(x)
    loss = torch.zeros(())
    for c in range(3):
        with torch.no_grad():
            theirs = j.net.embed(TASK.train.batch(TASK.train.class_index[c]).inputs).mean(0)
        loss = loss + (features[c == CLASSES].mean(0) - theirs).square().sum()
    assert found.loss == pytest.approx(float(loss), rel=1e-5)
    torch.testing.assert_close(found.x, torch.autograd.grad(loss, x)[0], rtol=1e-4, atol=1e-6)


def test_engines_refuse_what_takes_coupled_rows_apart():
    with pytest.raises(ConfigError, match="syn_rows"):
        GradientMatching(rows=None, syn_rows=1)(judgement())
    with pytest.raises(ConfigError, match="class after class"):
        GradientMatching(rows=None)(judgement(row_class=CLASSES.flip(0)[torch.tensor([0, 2, 1, 3, 4, 5, 6])]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "statistics", "pool": "R", "pool_options": {}}, "objective 'statistics' takes them apart"),
        ({"scope": "sequential"}, "scope = 'sequential' steps class by class"),
        ({"labels": "teacher", "teacher": {"steps": 2}}, "labels 'teacher' are made row by row"),
        ({"objective": "unroll", "objective_options": {"order": "shuffled"}, "pool_options": {}, "pool": "R"}, "order"),
    ],
)
def test_parts_that_take_coupled_rows_apart_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        made(**{"objective_options": {}, **changes})


def test_rows_without_links_fill_no_coupled_store():
    plain = RealData(TASK.train.inputs, TASK.train.labels, INFO)
    with pytest.raises(DataError, match="nothing between them"):
        distill(PlainGate(plain), LinkedDomain(), parts(), Streams(0))


# --- the loop ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["gradient", "moments", "unroll", "ridge"])
def test_every_engine_that_takes_coupled_rows_moves_links_and_features(objective):
    rows = {"unroll": {"steps": 3, "rows": 20}, "ridge": {"rows": 20}}.get(objective, {"rows": None})
    begun = made(steps=0)
    syn = made(objective=objective, objective_options=rows, optimizer="adam", lr=0.01)
    for name in ("x", "links"):
        moved = (syn.store.params[name] - begun.store.params[name]).abs().max()
        assert float(moved) > 1e-4, f"{objective} must move {name}"


def test_turns_move_one_part_at_a_time():
    path: list[dict[str, Tensor]] = []
    checkpointing = Checkpointing(lambda tree: path.append({k: v.clone() for k, v in tree["store"].items()}), every=1)
    distill(
        PlainGate(TASK.train), LinkedDomain(), parts(store_options={"turns": True}, optimizer="adam", steps=4),
        Streams(0), checkpointing=checkpointing,
    )  # fmt: skip
    for step, (before, after) in enumerate(zip(path, path[1:]), 1):
        still, moved = ("x", "links") if step % 2 == 0 else ("links", "x")
        assert torch.equal(before[still], after[still])
        assert not torch.equal(before[moved], after[moved])


def test_parts_have_step_sizes_of_their_own():
    store = Linked(INFO, CLASSES)
    outer = Outer(store, HardLabels(CLASSES, 3), parts())
    assert [(len(g["params"]), g["lr"]) for g in outer.optimizer.param_groups] == [(1, 0.05), (1, 0.5)]


# --- training on them, and choosing ------------------------------------------------------------------------------


def test_coupled_rows_are_trained_on_together_and_in_order():
    seen: list[list[int]] = []

    def rows(index: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(index.tolist())
        return torch.zeros(len(index), 4), CLASSES[index]

    train(LinkedNet(), rows, 7, HardLabels.loss, Protocol("p", 2, batch=3), None, Streams(0), coupled=True)
    assert seen == [list(range(7))] * 2
    with pytest.raises(ConfigError, match="seen together"):
        train(LinkedNet(), rows, 7, HardLabels.loss, Protocol("p", 2, mixup=0.8), None, Streams(0), coupled=True)


def test_the_best_epoch_on_validation_rows_is_kept_the_first_of_equals():
    net, scores, weights = LinkedNet(), iter([0.2, 0.9, 0.9, 0.1]), []

    def judge(trained: Network) -> float:
        weights.append(trained.head.weight.detach().clone())  # type: ignore[union-attr, operator]
        return next(scores)

    x, protocol = torch.randn(7, 4), Protocol("p", 9, lr=0.5, choose=2)
    train(net, lambda i: (x[i], CLASSES[i]), 7, HardLabels.loss, protocol, None, Streams(0), judge=judge)
    assert len(weights) == 4
    assert torch.equal(net.head.weight, weights[1])  # type: ignore[arg-type]


def test_a_protocol_that_chooses_says_so_where_there_is_nothing_to_choose_by(monkeypatch):
    syn = made()
    chooses = Protocol("chooses", 4, batch=0, choose=2)
    plain = registry().load

    def load(self: Registry, kind: str, name: str, origin: str = "") -> Any:
        return chooses if name == "chooses" else plain(kind, name, origin)

    monkeypatch.setattr(Registry, "load", load)
    rows = evaluate(syn, TASK, LinkedDomain(), protocol="chooses", repeats=1)
    assert [(row.subject, row.protocol) for row in rows] == [
        ("distilled", "chooses"), ("random", "chooses"), ("full data", "chooses")
    ]  # fmt: skip
    blind = Task(INFO, TASK.train, TASK.test)
    rows = evaluate(syn, blind, LinkedDomain(), protocol="chooses", repeats=1, baselines=())
    assert rows[0].protocol == "chooses, last epoch"


def test_the_best_iterate_is_kept_and_survives_a_stop():
    scores = {2: 0.3, 4: 0.8, 6: 0.5}
    path: dict[int, Tensor] = {}
    tries: list[int] = []

    def run(resume: dict[str, Any] | None = None) -> Any:
        saved: list[dict[str, Any]] = []

        def judge(syn: Any) -> float:
            tries.append(1)
            return scores[2 * len(tries)]

        checkpointing = Checkpointing(
            lambda tree: (saved.append(tree), path.__setitem__(tree["step"], tree["store"]["x"].clone())),  # type: ignore[func-returns-value]
            every=1, resume=resume,
        )  # fmt: skip
        syn = distill(
            PlainGate(TASK.train), LinkedDomain(), parts(keep={"every": 2}), Streams(0), checkpointing=checkpointing,
            judge=judge,
        )  # fmt: skip
        return syn, saved

    syn, saved = run()
    assert torch.equal(syn.store.params["x"], path[4])
    assert syn.provenance["kept"] == {"step": 4, "validation": 0.8}
    tries[:] = [1, 1]  # two looks were made before the stop
    resumed, _ = run(resume=next(tree for tree in saved if tree["step"] == 5))
    assert torch.equal(resumed.store.params["x"], path[4])


def test_keeping_without_validation_rows_is_refused():
    with pytest.raises(ConfigError, match="validation"):
        made(keep={"every": 2})


# --- rows beside the result --------------------------------------------------------------------------------------


def test_any_selector_may_stand_beside_a_result():
    syn = made()
    rows = evaluate(syn, TASK, LinkedDomain(), epochs=3, repeats=2, baselines=("random:3", "dq"))
    assert [(row.subject, row.items) for row in rows] == [("distilled", 6), ("random:3", 9), ("dq", 6)]
    assert E_DC.name in rows[0].protocol


@pytest.mark.parametrize("name", ["herdng", "random:0", "random:x", "random:", "full:2"])
def test_unknown_rows_beside_a_result_are_refused(name):
    if name == "random:":
        name = "nobody:"
    with pytest.raises(ConfigError, match="baseline"):
        evaluate(made(), TASK, LinkedDomain(), epochs=1, baselines=(name,))
