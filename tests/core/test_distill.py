"""The loop: reproducible, resumable bit for bit, and clear when it cannot go on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ddfed.artifact import SyntheticSet
from ddfed.data import RealData
from ddfed.distill import Checkpointing, StepEvent, distill
from ddfed.errors import (
    BudgetError,
    ConfigError,
    DataError,
    DivergedError,
    GateError,
    MemoryExceededError,
    UnknownNameError,
)
from ddfed.files import read_state, write_state
from ddfed.gate import PlainGate
from ddfed.hookspecs import hookimpl
from ddfed.match import Cotangent, MeanMatching
from ddfed.outer import Outer
from ddfed.registry import manager
from ddfed.seeds import Streams
from ddfed.settings import PartSettings
from ddfed.store import HardLabels, Pixels
from ddfed.testing import TwinDomain, twin_task

TASK = twin_task()
SMALL: dict[str, Any] = {"ipc": 2, "steps": 6, "lr": 0.2, "network": "small", "objective_options": {"rows": 8}}
IDM: dict[str, Any] = {
    "store": "multi-formation", "scope": "sequential", "pool": "Q", "augment": "shift",
    "pool_options": {"start": 2, "grow_every": 2, "capacity": 3, "steps": 2, "batch": 16},
    "objective_options": {"rows": 8, "ce_weight": 0.5}, "lr": 0.01,
}  # fmt: skip


class Watcher:
    """A plugin that keeps what it is shown."""

    def __init__(self) -> None:
        self.events: list[StepEvent] = []

    @hookimpl
    def ddfed_on_step(self, event: StepEvent) -> None:
        self.events.append(event)


@pytest.fixture
def watcher():
    plugin = Watcher()
    manager().register(plugin)
    yield plugin
    manager().unregister(plugin)


def made(data: RealData = TASK.train, seed: int = 0, gate: PlainGate | None = None, **parts: Any) -> SyntheticSet:
    more = {k: parts.pop(k) for k in ("classes", "center", "start", "checkpointing", "scope_name") if k in parts}
    if "scope_name" in more:
        more["scope"] = more.pop("scope_name")
    settings = PartSettings(**{**SMALL, **parts})
    return distill(gate or PlainGate(data), TwinDomain(), settings, Streams(seed), **more)


CASES: dict[str, dict[str, Any]] = {
    "dm, R": {"augment": "shift"},
    "dm, RS": {"pool": "RS", "pool_options": {"length": 4, "epochs": 2, "batch": 4, "momentum": 0.5},
               "augment": "shift"},
    "dm, RT": {"pool": "RT", "pool_options": {"length": 4, "steps": 2, "batch": 16}},
    "idm, Q": IDM,
    "averaged": {"ema": 0.7},
    "adam": {"optimizer": "adam", "lr": 0.05},
    "falling and clipped": {"optimizer": "adam", "lr": 0.05, "betas": (0.5, 0.9), "schedule": "cosine", "clip": 1.1},
    "learned logits": {"labels": "logits", "pool": "Q", "pool_options": IDM["pool_options"], "label_lr": 0.1,
                       "objective_options": {"rows": 8, "ce_weight": 0.1}, "lr": 0.01},
    "learned logits, adam": {"labels": "logits", "optimizer": "adam", "lr": 0.05, "pool": "RS"},
    "clamped": {"clamp": True, "lr": 5.0},
    "noise, mirrored": {"init": "noise", "store": "mirrored"},
}  # fmt: skip


@pytest.mark.parametrize("cut", [1, 3, 5])
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(case: str, cut: int, tmp_path: Path):
    parts = CASES[case]
    whole = made(**parts)

    def save(tree: dict[str, Any]) -> None:
        write_state(tmp_path / str(tree["step"]), tree)

    made(**parts, checkpointing=Checkpointing(save, every=cut))
    tree = read_state(tmp_path / str(cut))
    assert tree["step"] == cut
    again = made(**parts, checkpointing=Checkpointing(lambda _: None, resume=tree))
    assert again.content_hash == whole.content_hash
    assert again.privacy == whole.privacy


def test_a_finished_run_that_is_resumed_gives_its_set(tmp_path: Path):
    made(checkpointing=Checkpointing(lambda tree: write_state(tmp_path / "s", tree), every=4))
    tree = read_state(tmp_path / "s")
    assert tree["step"] == 6
    assert made(checkpointing=Checkpointing(lambda _: None, resume=tree)).content_hash == made().content_hash


def test_saving_changes_nothing_and_happens_every_so_often_and_at_the_end():
    steps: list[int] = []
    syn = made(checkpointing=Checkpointing(lambda tree: steps.append(tree["step"]), every=4))
    assert steps == [4, 6] and syn.content_hash == made().content_hash


@pytest.mark.parametrize("case", CASES)
def test_the_same_seed_gives_the_same_set_and_another_seed_another(case: str):
    assert made(**CASES[case]).content_hash == made(**CASES[case]).content_hash
    assert made(**CASES[case]).content_hash != made(**CASES[case], seed=1).content_hash


@pytest.mark.parametrize("case", CASES)
def test_the_global_generator_is_left_alone(case: str):
    before = torch.get_rng_state()
    made(**CASES[case])
    assert torch.equal(before, torch.get_rng_state())


def test_matching_lowers_the_loss(watcher: Watcher):
    made(steps=60, lr=1.0, init="noise", objective_options={"rows": 40})
    losses = [e.values["loss"] for e in watcher.events]
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])


def test_class_by_class_equals_together_where_nothing_is_drawn():
    # All real rows, no augmentation, no momentum: the loss is a sum over classes, so the order is free.
    parts = {"momentum": 0.0, "objective_options": {"rows": None}, "steps": 4}
    joint, single = made(**parts), made(**parts, scope="sequential")
    assert torch.allclose(joint.store.params["x"], single.store.params["x"], atol=1e-5)


def test_class_by_class_differs_from_together_in_draws_and_momentum():
    assert made().content_hash != made(scope="sequential").content_hash


def test_observers_see_every_step_as_plain_numbers(watcher: Watcher):
    made(scope_name="client 3, round 2")
    assert [(e.scope, e.step, e.steps) for e in watcher.events] == [("client 3, round 2", i, 6) for i in range(1, 7)]
    for event in watcher.events:
        assert (
            type(event.step) is int and all(type(v) is float for v in event.values.values()) and "loss" in event.values
        )


def test_an_exception_of_an_observer_stops_the_run():
    class Stop:
        @hookimpl
        def ddfed_on_step(self, event: StepEvent) -> None:
            raise KeyboardInterrupt

    plugin = Stop()
    manager().register(plugin)
    try:
        with pytest.raises(KeyboardInterrupt):
            made()
    finally:
        manager().unregister(plugin)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_diverged_run_names_the_step_and_what_to_lower(optimizer: str):
    with pytest.raises(DivergedError, match=r"client 4: the loss of outer step [23] is (inf|nan).*Lower distill.lr"):
        made(lr=1e25, scope_name="client 4", optimizer=optimizer)


def test_a_run_that_diverges_in_its_last_step_is_not_released():
    """Bug found by this test: only losses were looked at, so the last step could write infinities."""
    with pytest.raises(DivergedError, match="stored values are not finite.*Lower distill.lr"):
        # Far from the data the gradient is above 1, so that a step of the largest size leaves the numbers.
        made(lr=3e38, steps=1, start={"x": torch.full((6, *TASK.info.shape), 100.0)})


def test_one_class_gives_that_class_only():
    syn = made(TASK.train.subset(TASK.train.class_index[1]))
    assert syn.classes_held == (1,) and len(syn) == 2


def test_chosen_classes_and_minimal_counts_are_kept():
    assert made(classes=(0, 2)).classes_held == (0, 2)
    data = TASK.train.subset(torch.cat([TASK.train.class_index[0][:5], TASK.train.class_index[2]]))
    assert made(data, min_count=6).classes_held == (2,)


def test_nothing_to_distil_is_an_error_that_says_so():
    with pytest.raises(DataError, match="no class of 'blobs' has 41 rows or more"):
        made(min_count=41)
    with pytest.raises(DataError, match="nothing to distil"):
        made(TASK.train.subset([]))


@pytest.mark.parametrize("init", ["noise", "random"])
def test_a_class_that_nobody_holds_is_refused(init: str):
    """Bug found by this test: its items were drawn to the mean of no rows."""
    data = TASK.train.subset(torch.cat([TASK.train.class_index[0], TASK.train.class_index[2]]))
    with pytest.raises(DataError, match="'blob 1'"):
        made(data, classes=(0, 1), init=init, top_up=True)


def test_an_ipc_larger_than_the_class_is_refused_or_topped_up():
    with pytest.raises(BudgetError, match="41 real items.*has 40. Lower ipc"):
        made(ipc=41, steps=0)
    assert len(made(ipc=41, steps=0, top_up=True)) == 123
    with pytest.raises(BudgetError, match="44 real items"):
        made(ipc=11, store="multi-formation", steps=0)


def test_clamping_keeps_the_natural_range_and_is_needed_here():
    def outside(syn: SyntheticSet) -> float:
        natural = TASK.info.space.decode(syn.store.params["x"].detach())
        return max(float(-natural.min()), float(natural.max()) - 1)

    assert outside(made(clamp=True, lr=20.0)) < 1e-5 < outside(made(lr=20.0))
    assert outside(made(clamp=True, init="noise", steps=0)) < 1e-5


def test_noise_touches_no_records():
    class Shy(PlainGate):
        def raw(self, purpose: str) -> RealData:
            raise GateError("no records")

    syn = made(gate=Shy(TASK.train), init="noise")
    assert {e["mechanism"] for e in syn.privacy["events"]} == {"none"}
    assert made(init="noise", steps=0).privacy["statement"] == "No real data was touched."
    with pytest.raises(GateError):
        made(gate=Shy(TASK.train))


def test_no_steps_keep_the_real_items_chosen_and_build_no_network():
    syn = made(steps=0, ipc=3)
    rows, classes = syn.decoded()
    real = TASK.train.all()
    for row, c in zip(rows, classes):
        assert bool((real.inputs[real.classes == c] == row).flatten(1).all(1).any())
    assert [(e["mechanism"], e["count"]) for e in syn.privacy["events"]] == [("raw", 1)]


def test_a_start_replaces_the_initialisation():
    start = {"x": torch.full((6, 2, 4, 4), 0.25)}
    syn = made(start=start, steps=0)
    assert torch.equal(syn.store.params["x"], start["x"]) and not syn.privacy["events"]
    made(start=start, steps=2)
    assert bool((start["x"] == 0.25).all())


def test_an_average_with_decay_releases_the_mean_of_the_path():
    path: list[torch.Tensor] = []
    made(steps=3, checkpointing=Checkpointing(lambda t: path.append(t["store"]["x"].clone()), every=1))
    mean = made(steps=0).store.params["x"].detach().clone()
    for x in path:
        mean = 0.9 * mean + 0.1 * x
    assert torch.allclose(made(steps=3, ema=0.9).store.params["x"], mean, atol=1e-6)


def test_the_outer_step_is_sgd_with_momentum_on_the_decoded_cotangent(watcher: Watcher):
    path: list[torch.Tensor] = [made(steps=0).store.params["x"].detach().clone()]
    made(lr=0.3, momentum=0.5, checkpointing=Checkpointing(lambda t: path.append(t["store"]["x"].clone()), every=1))
    for before, now, after in zip(path, path[1:], path[2:]):
        step = after - now - 0.5 * (now - before)  # what the gradient alone moved: never the momentum's part
        assert float(step.abs().max()) > 0
    first = made(lr=0.3, momentum=0.0, steps=1).store.params["x"]
    assert torch.allclose(first, path[1])


def test_step_sizes_fall_by_the_cosine_to_their_floor():
    """Seen in the steps themselves: a sum of features has the same gradient wherever the rows are."""
    outer = Outer(*_parts(schedule="cosine", lr_floor=0.1, lr=2.0, momentum=0.0, steps=4))
    sizes = []
    for number in range(4):
        _follow(outer, torch.ones(1, 4), number)
        sizes.append(outer.optimizer.param_groups[0]["lr"])
    want = [2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * n / 4))) for n in range(4)]
    assert sizes == pytest.approx(want)
    assert outer.store.params["x"].detach().flatten().tolist() == pytest.approx([-sum(want)] * 4)


def test_gradients_longer_than_usual_are_shortened():
    outer = Outer(*_parts(clip=2.0, lr=1.0, momentum=0.0))
    for length, moved, usual in ((1.0, 1.0, 1.0), (1.5, 1.5, 1.05), (100.0, 2.1, 1.155), (1.0, 1.0, 1.1395)):
        before = outer.store.params["x"].detach().clone()
        _follow(outer, torch.full((1, 4), length / 2), 0)
        assert float((outer.store.params["x"].detach() - before).norm()) == pytest.approx(moved, rel=1e-4)
        assert outer.usual_norm == pytest.approx(usual, rel=1e-4)


def test_a_step_that_the_engine_refuses_is_not_made(monkeypatch: pytest.MonkeyPatch):
    class Refusing(MeanMatching):
        def __call__(self, judgement: Any) -> Any:
            found = super().__call__(judgement)
            return replace(found, skip=judgement.step >= 2)

    monkeypatch.setattr("ddfed.match.MeanMatching", Refusing)
    refused, short = made(steps=6), made(steps=2)
    assert torch.equal(refused.store.params["x"], short.store.params["x"])
    monkeypatch.undo()
    assert not torch.equal(made(steps=6).store.params["x"], short.store.params["x"])


def _parts(**parts: Any):
    info = replace(TASK.info, shape=(1, 4))
    store = Pixels(info, torch.tensor([0]))
    return store, HardLabels(store.classes, info.num_classes), PartSettings(**parts)


def _follow(outer: Outer, gradient: torch.Tensor, number: int) -> None:
    rows, _ = outer.store.decode(torch.tensor([0]))
    outer.step(rows, torch.tensor([0]), Cotangent(gradient.view_as(rows), None, 0.0), number)


def test_learned_labels_move_only_when_a_term_looks_at_them():
    still = made(labels="logits")
    assert torch.equal(
        still.labels.targets(torch.arange(6)), made(labels="logits", steps=0).labels.targets(torch.arange(6))
    )
    moved = made(**CASES["learned logits"])
    assert not torch.equal(moved.labels.targets(torch.arange(6)), still.labels.targets(torch.arange(6)))


def test_given_weights_are_used_by_the_ball_and_asked_for():
    center = TwinDomain().network("small", TASK.info).state_dict()
    assert made(pool="ball", center=center).content_hash == made(pool="ball", center=center).content_hash
    with pytest.raises(ConfigError, match="none were given"):
        made(pool="ball")


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"pool": "exakt"}, "unknown pool 'exakt' .from distill.pool.*Did you mean 'exact'"),
        ({"store": "pixel"}, "Did you mean 'pixels'"),
        ({"objective": "meen"}, "Did you mean 'mean'"),
        ({"init": "herdin"}, "Did you mean 'herding'"),
        ({"labels": "logit"}, "Did you mean 'logits'"),
        ({"network": "smal"}, "Did you mean 'small'"),
        ({"augment": "shfit"}, "Did you mean 'shift'"),
    ],
)
def test_unknown_parts_suggest_the_near_one(parts: dict[str, Any], words: str):
    with pytest.raises(UnknownNameError, match=words):
        made(**parts)


@pytest.mark.parametrize(
    "parts", [{"pool_options": {"evry": 2}}, {"objective_options": {"row": 2}}, {"init_options": {"stepz": 2}}]
)
def test_unknown_options_of_a_part_are_refused(parts: dict[str, Any]):
    with pytest.raises(ConfigError, match=f"{list(next(iter(parts.values())))[0]}"):
        made(**parts)


def test_unknown_options_of_a_store_are_refused():
    """Bug found by this test: a mistyped option was kept in the card and otherwise ignored."""
    with pytest.raises(ConfigError, match="'multi-formation' has no option 'factr'"):
        made(store="multi-formation", store_options={"factr": 4})


def test_the_card_says_how_the_set_was_made():
    syn = made(seed=5)
    assert syn.provenance["seed"] == 5 and syn.provenance["settings"]["ipc"] == 2 and syn.protocol == "E-dsa"


def test_a_step_that_does_not_fit_in_memory_says_what_to_make_smaller(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(MeanMatching, "__call__", lambda self, judgement: torch.empty(2**55))
    with pytest.raises(MemoryExceededError, match=r"outer step 1: out of memory .*Lower distill.chunk .*now 128"):
        made(steps=1)


def test_other_errors_of_a_step_stay_what_they_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(MeanMatching, "__call__", lambda self, judgement: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size|size"):
        made(steps=1)
