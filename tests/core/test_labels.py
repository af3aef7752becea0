"""Label stores: what a network is trained on, and that a stranger's file cannot make it nonsense."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddfed.artifact import SyntheticSet
from ddfed.central import check_parts
from ddfed.distill import distill
from ddfed.domain import Augmentation, Draw, Network
from ddfed.errors import ArtifactError, ConfigError
from ddfed.evaluate import Protocol, train
from ddfed.gate import PlainGate
from ddfed.match import Judgement, MeanMatching
from ddfed.seeds import Streams
from ddfed.settings import PartSettings
from ddfed.store import (
    BlockLabels,
    DenseLabels,
    GiftLabels,
    HardLabels,
    LabelStore,
    Lesson,
    LogitLabels,
    Pixels,
    TeacherLabels,
    VectorLabels,
)
from ddfed.store.labels.taught import windows
from ddfed.testing import TwinDomain, twin_task
from ddfed.testing.twin import TwinShift

TASK = twin_task()
INFO = TASK.info
CLASSES = torch.tensor([0, 2, 1, 2])
SOFT = (TeacherLabels, GiftLabels, DenseLabels, BlockLabels)


class Teacher(Network):
    """Fixed linear map: its answer to a row is known."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.randn(32, 3, generator=torch.Generator().manual_seed(5))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix


def rows(count: int = 4) -> Tensor:
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def shift(name: str) -> Augmentation | None:
    return TwinShift() if name == "shift" else None


def taught(kind: type[TeacherLabels], x: Tensor | None = None, origin: Tensor | None = None, **options: Any) -> Any:
    labels = kind(CLASSES, 3, **options)
    x = rows() if x is None else x
    made, items, views = labels.expand(INFO, x, torch.arange(len(x)) if origin is None else origin)
    labels.teach(Lesson(Teacher(), made, items, views, shift, Streams(0)))
    return labels


# --- losses, against the formula written for one row ------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_cross_entropy_is_that_of_both_softened_sides_without_the_square_of_the_temperature(temperature: float):
    labels = taught(TeacherLabels, temperature=temperature)
    z, t = rows().double().flatten(1)[:, :3], rows(8).double()[4:].flatten(1)[:, :3]
    for i, loss in enumerate(labels.loss(z, t)):
        p = [math.exp(float(v) / temperature) for v in t[i]]
        q = [math.exp(float(v) / temperature) for v in z[i]]
        want = -sum(a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q))
        assert float(loss) == pytest.approx(want, rel=1e-12)


def test_gift_turns_logits_towards_the_refined_label():
    labels = taught(GiftLabels, refine=0.3, smoothing=0.2)
    y = labels.targets(torch.arange(4))
    z = rows().flatten(1)[:, :3]
    for i, c in enumerate(CLASSES.tolist()):
        p = Teacher()(rows())[i].softmax(0)
        s = torch.tensor([0.8 if k == c else 0.1 for k in range(3)])
        want = p / p.norm() + 0.3 * s / s.norm()
        assert torch.allclose(y[i], want, atol=1e-6)
        cosine = float((z[i] * want).sum() / z[i].norm() / want.norm())
        assert float(labels.loss(z, y)[i]) == pytest.approx(1 - cosine, abs=1e-6)
    assert torch.allclose(labels.loss(7 * z, y), labels.loss(z, y), atol=1e-6)


def test_vectors_start_centred_and_lose_by_half_the_squared_distance():
    labels = VectorLabels(CLASSES, 3, strength=2.0)
    y = labels.targets(torch.arange(4)).detach()
    assert torch.allclose(y.sum(1), torch.zeros(4), atol=1e-6) and y[1].tolist() == pytest.approx(
        [-2 / 3, -2 / 3, 4 / 3]
    )
    z = rows().flatten(1)[:, :3]
    want = [0.5 * sum((float(a) - float(b)) ** 2 for a, b in zip(z[i], y[i])) for i in range(4)]
    assert labels.loss(z, y).tolist() == pytest.approx(want, rel=1e-5)


def test_vectors_are_learned_through_the_loop():
    """An engine that looks at labels moves them by the derivative of their own loss."""
    labels = VectorLabels(CLASSES, 3)
    z = rows().flatten(1)[:, :3]
    y = labels.targets(torch.arange(4))
    (grad,) = torch.autograd.grad(labels.loss(z, y).sum(), labels.params["vectors"])
    assert torch.allclose(grad, y.detach() - z, atol=1e-6)
    # A network in training has the skill that the mean engine's class term asks for.
    queue = {"pool": "Q", "pool_options": {"steps": 2, "batch": 16}, "steps": 3}
    parts = {"labels": "vectors", "objective_options": {"rows": 8, "ce_weight": 0.5}, "label_lr": 0.1, **queue}
    moved, still = made(**parts), made(**{**parts, "label_lr": 1e-9})
    assert float((moved.labels.tensors()["vectors"] - still.labels.tensors()["vectors"]).abs().max()) > 1e-4


@pytest.mark.parametrize("kind", [HardLabels, LogitLabels, VectorLabels, *SOFT])
def test_what_a_regression_is_fitted_to_is_centred_and_right(kind: Any):
    labels: LabelStore = (
        taught(kind, grid=2) if kind is DenseLabels else taught(kind) if kind in SOFT else kind(CLASSES, 3)
    )
    y = labels.vectors(labels.targets(torch.arange(4))).detach()
    assert y.shape == (4, 3) and torch.allclose(y.sum(1), torch.zeros(4), atol=1e-6)
    want = Teacher()(rows()).argmax(1) if kind in SOFT else CLASSES
    assert torch.equal(y.argmax(1), want)


# --- teaching ---------------------------------------------------------------------------------------------------


def test_every_view_of_an_item_has_the_teachers_answer_to_it():
    x, origin = rows(8), torch.tensor([0, 1, 2, 3, 3, 1, 0, 2])
    labels = taught(TeacherLabels, x, origin)
    views = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    assert torch.allclose(labels.targets(origin, views), Teacher()(x), atol=1e-5)
    assert torch.allclose(labels.targets(torch.arange(4)), Teacher()(x[[0, 1, 2, 3]]), atol=1e-5)


def test_labels_that_nobody_taught_are_refused_not_guessed():
    with pytest.raises(ConfigError, match="call teach"):
        TeacherLabels(CLASSES, 3).targets(torch.arange(4))
    with pytest.raises(ConfigError, match="call teach"):
        SyntheticSet(INFO, Pixels(INFO, CLASSES), BlockLabels(CLASSES, 3), "E-dc")


def test_windows_are_the_parts_of_a_row_resized_to_the_whole():
    x = rows(2)
    found = windows(x, (-2, -1), grid=3, share=0.5)
    assert found.shape == (2, 9, 2, 4, 4)
    for w in range(9):
        top, left = w // 3, w % 3  # starts 0, 1, 2 along each axis
        part = x[:, :, top : top + 2, left : left + 2]
        want = nn.functional.interpolate(part, (4, 4), mode="bilinear", align_corners=False)
        assert torch.allclose(found[:, w], want, atol=1e-6)
    assert torch.allclose(windows(x, (-2, -1), 1, 1.0)[:, 0], x, atol=1e-6)


def test_dense_labels_train_on_rows_and_windows_each_with_its_own_label():
    for store in ("pixels", "multi-formation"):
        syn = made(store=store, labels="dense", labels_options={"grid": 2, "share": 0.5})
        views = syn.store.rows_per_item
        x, y = syn.decoded()
        assert len(x) == len(y) == len(syn) * views * 5 and y.shape[1] == 3
        plain, origin = syn.store.decode(torch.arange(len(syn)))
        assert torch.equal(x[: len(plain)], plain.detach())
        # The teacher is the network of the run, so its answers to the same rows are the same labels.
        again = made(store=store, labels="teacher")
        assert torch.allclose(y[: len(plain)], again.decoded()[1], atol=1e-4)
        assert torch.allclose(
            x[len(plain) :].view(-1, 4, 2, 4, 4), windows(plain.detach(), (-2, -1), 2, 0.5), atol=1e-6
        )


def test_dense_labels_of_windows_are_the_teachers_answers_to_them():
    x = rows()
    labels = taught(DenseLabels, x, grid=2, share=0.5)
    made_rows, items, views = labels.expand(INFO, x, torch.arange(4))
    assert torch.allclose(labels.targets(items, views), Teacher()(made_rows), atol=1e-5)
    assert len(set(zip(items.tolist(), views.tolist()))) == len(made_rows) == 20


def test_dense_labels_need_cell_axes_before_an_hour_is_spent():
    flat = replace(INFO, cell_axes=())
    with pytest.raises(ConfigError, match="needs items with cell axes.*Use 'teacher'"):
        check_parts(PartSettings(labels="dense"), TwinDomain(), flat)


# --- blocks -----------------------------------------------------------------------------------------------------


def test_blocks_hold_the_teachers_answers_to_their_own_augmented_rows():
    labels = taught(BlockLabels, augment="shift", blocks=5, batch=3)
    replay = labels.replay
    assert replay.rows.shape == (5, 3) and replay.augment == "shift" and len(replay) == 5
    for block in range(5):
        x = TwinShift()(rows()[replay.rows[block]], replay.draws[block], torch.arange(3))
        assert torch.allclose(replay.targets[block], Teacher()(x), atol=1e-5)
    # Orders of all rows one after another: the first four places name every row.
    assert sorted(replay.rows.flatten()[:4].tolist()) == [0, 1, 2, 3]


def test_training_replays_the_blocks_in_turn_and_mixes_nothing():
    labels = taught(BlockLabels, augment="shift", blocks=3, batch=2)
    replay, x = labels.replay, rows()
    seen: list[tuple[Tensor, Tensor]] = []

    class Watched(Network):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, given: Tensor) -> Tensor:
            seen.append((given, torch.empty(0)))
            return self.weight * given.flatten(1)[:, :3]

    def loss(z: Tensor, y: Tensor) -> Tensor:
        seen[-1] = (seen[-1][0], y)
        return labels.loss(z, y)

    protocol = Protocol("p", 4, cutmix=1.0, batch=1)
    train(
        Watched(), lambda i: (x[i], labels.targets(i)), 4, loss, protocol, TwinShift(), Streams(0),
        cell_axes=(-2, -1), replay=replay,
    )  # fmt: skip
    # Four rows in blocks of two: two steps an epoch, whatever the protocol's batch.
    assert len(seen) == 8
    for step, (given, targets) in enumerate(seen):
        block = step % 3
        assert torch.equal(given, TwinShift()(x[replay.rows[block]], replay.draws[block], torch.arange(2)))
        assert torch.equal(targets, replay.targets[block])


def test_stored_draws_of_another_augmentation_are_refused():
    labels = taught(BlockLabels, augment="shift", blocks=2, batch=2)
    replay = replace(labels.replay, draws=tuple(Draw(d.op, torch.rand(2, 4)) for d in labels.replay.draws))
    x = rows()
    with pytest.raises(ArtifactError, match="4 numbers for each row"):
        train(
            Teacher2(), lambda i: (x[i], labels.targets(i)), 4, labels.loss, Protocol("p", 1), TwinShift(), Streams(0),
            replay=replay,
        )  # fmt: skip


class Teacher2(Teacher):
    """A `Teacher` that can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * super().forward(x)


# --- the loop, files and strangers ------------------------------------------------------------------------------


OPTIONS: dict[str, dict[str, Any]] = {
    "vectors": {},
    "teacher": {"temperature": 2.0},
    "gift": {"refine": 0.2},
    "dense": {"grid": 2},
    "blocks": {"augment": "shift", "blocks": 3, "batch": 4},
}


def made(**parts: Any) -> SyntheticSet:
    settings = {"ipc": 2, "steps": 2, "lr": 0.1, "teacher": {"steps": 5}, "objective_options": {"rows": 8}, **parts}
    return distill(PlainGate(TASK.train), TwinDomain(), PartSettings(**settings), Streams(0))


@pytest.mark.parametrize("store", ["pixels", "multi-formation"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_set_with_any_labels_survives_saving(name: str, store: str, tmp_path: Any):
    syn = made(labels=name, labels_options=OPTIONS[name], store=store)
    again = SyntheticSet.load(syn.save(tmp_path / "set"))
    for mine, theirs in zip(syn.decoded(), again.decoded()):
        assert torch.equal(mine, theirs)
    assert again.labels.options == syn.labels.options and again.content_hash == syn.content_hash
    assert syn.labels.size_bytes == sum(t.numel() * t.element_size() for t in syn.labels.tensors().values())
    if name == "blocks":
        assert torch.equal(syn.labels.replay.targets, again.labels.replay.targets)
        assert torch.equal(syn.labels.replay.draws[2].u, again.labels.replay.draws[2].u)


def test_a_finished_set_has_the_teachers_answers_to_its_finished_items(monkeypatch: Any):
    lessons: list[Lesson] = []
    teach = TeacherLabels.teach

    def listening(self: TeacherLabels, lesson: Lesson) -> None:
        lessons.append(lesson)
        teach(self, lesson)

    monkeypatch.setattr(TeacherLabels, "teach", listening)
    syn = made(labels="teacher", lr=5.0)
    first, last = lessons
    x, y = syn.decoded()
    assert torch.equal(last.rows, x) and not torch.equal(first.rows, x)
    assert torch.allclose(y, first.teacher(x).detach(), atol=1e-5) and first.teacher is last.teacher


def broken(name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], **options: Any) -> None:
    from ddfed.registry import registry

    syn = made(labels=name, labels_options=OPTIONS[name])
    tensors = change({k: v.clone() for k, v in syn.labels.tensors().items()})
    labels = registry().load("labels", name).load(tensors, 3, **{**OPTIONS[name], **options})
    SyntheticSet(INFO, syn.store, labels, "E-dc")


@pytest.mark.parametrize("name", OPTIONS)
def test_labels_of_wrong_shape_type_or_value_are_refused(name: str):
    main = "vectors" if name == "vectors" else "logits"
    broken(name, lambda t: t)
    for change in (
        lambda t: {k: v for k, v in t.items() if k != main},
        lambda t: {**t, main: t[main][:-1]},
        lambda t: {**t, main: t[main][..., :2]},
        lambda t: {**t, main: t[main].long()},
        lambda t: {**t, main: t[main] * float("nan")},
        lambda t: {**t, "classes": t["classes"] + 2},
        lambda t: {**t, "classes": t["classes"].float()},
    ):
        with pytest.raises(ArtifactError):
            broken(name, change)


@pytest.mark.parametrize("name", ["teacher", "gift", "dense", "blocks"])
def test_labels_for_other_views_than_the_items_have_are_refused(name: str):
    with pytest.raises(ArtifactError, match="labels per item, but"):
        broken(name, lambda t: {**t, "logits": torch.cat([t["logits"], t["logits"]], 1)})


@pytest.mark.parametrize(
    "change",
    [
        {"block_rows": lambda t: t + 6},
        {"block_rows": lambda t: t - 6},
        {"block_rows": lambda t: t.int()},
        {"block_op": lambda t: t[:, :-1]},
        {"block_op": lambda t: t - 9},
        {"block_u": lambda t: t + 1},
        {"block_u": lambda t: t[:-1]},
        {"block_answers": lambda t: t[..., :-1]},
        {"block_answers": lambda t: t / 0},
        {"block_rows": lambda t: t[:0], "block_answers": lambda t: t[:0]},
    ],
    ids=lambda change: "+".join(change),
)
def test_blocks_that_point_outside_or_do_not_fit_each_other_are_refused(change: dict[str, Callable[[Tensor], Tensor]]):
    with pytest.raises(ArtifactError):
        broken("blocks", lambda t: {**t, **{name: do(t[name]) for name, do in change.items()}})


@pytest.mark.parametrize(
    ("kind", "options", "word"),
    [
        (TeacherLabels, {"temperature": 0}, "temperature"),
        (TeacherLabels, {"temprature": 1}, "no option 'temprature'"),
        (GiftLabels, {"smoothing": 1.0}, "smoothing"),
        (DenseLabels, {"grid": 0}, "grid"),
        (DenseLabels, {"share": 1.5}, "share"),
        (BlockLabels, {"blocks": 0}, "blocks"),
        (BlockLabels, {"batch": 2.5}, "batch"),
    ],
)
def test_options_that_mean_nothing_are_refused(kind: Any, options: dict[str, Any], word: str):
    with pytest.raises(ConfigError, match=word):
        kind(CLASSES, 3, **options)


def test_options_of_the_wrong_type_in_a_card_are_refused():
    tensors = taught(TeacherLabels).tensors()
    for value in ("x", None, [], True):
        with pytest.raises(ArtifactError, match="'temperature' cannot be"):
            TeacherLabels.load(tensors, 3, temperature=value)
    with pytest.raises(ArtifactError, match="'augment' cannot be"):
        BlockLabels.load(taught(BlockLabels).tensors(), 3, augment=3)


# --- what a set asks of its training ----------------------------------------------------------------------------


def test_a_step_size_that_an_engine_learned_travels_with_the_set(tmp_path: Any, monkeypatch: Any):
    monkeypatch.setattr(MeanMatching, "training", lambda self: {"lr": 0.02})
    syn = made()
    again = SyntheticSet.load(syn.save(tmp_path / "set"))
    assert again.training == {"lr": 0.02}
    monkeypatch.undo()
    plain = made()
    assert plain.training == {} and "training" not in plain.card("x")


@pytest.mark.parametrize("value", [0, -0.1, float("inf"), float("nan"), "0.1", None, True])
def test_a_step_size_that_cannot_be_one_is_refused(value: Any):
    with pytest.raises(ArtifactError, match="lr"):
        SyntheticSet(INFO, Pixels(INFO, CLASSES), HardLabels(CLASSES, 3), "E-dc", training={"lr": value})


def test_judgements_know_the_loss_of_the_labels(monkeypatch: Any):
    """Engines take the loss from the store, so a temperature reaches them."""
    seen: list[Callable[[Tensor, Tensor], Tensor]] = []
    judge = MeanMatching.__call__

    def watching(self: MeanMatching, judgement: Judgement) -> Any:
        seen.append(judgement.label_loss)
        return judge(self, judgement)

    monkeypatch.setattr(MeanMatching, "__call__", watching)
    made(labels="teacher", labels_options={"temperature": 3.0})
    z, t = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[3.0, 0.0, 0.0]])
    assert len(seen) == 2
    assert float(seen[0](z, t)) == float(taught(TeacherLabels, temperature=3.0).loss(z, t))
