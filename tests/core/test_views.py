"""Labels of stored views with mixing, and crops that a teacher finds clear."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddfed.artifact import SyntheticSet
from ddfed.central import check_parts
from ddfed.cropping import parts_of, resampling
from ddfed.data import TaskInfo
from ddfed.distill import distill
from ddfed.domain import Augmentation, Network
from ddfed.errors import ArtifactError, BudgetError, ConfigError
from ddfed.evaluate import Protocol, train
from ddfed.gate import PlainGate
from ddfed.mixing import Mix, beta, draw_mix
from ddfed.pool import PoolContext
from ddfed.seeds import Streams
from ddfed.select import CROPS, initial_inputs
from ddfed.select.crops import tiled
from ddfed.settings import PartSettings
from ddfed.store import BlockLabels, LabelStore, Lesson
from ddfed.store.labels.taught import batch_statistics
from ddfed.testing import TwinDomain, twin_task
from ddfed.testing.twin import TwinNormNet, TwinShift

TASK = twin_task(per_class=30)
CLASSES = torch.tensor([0, 2, 1, 2])
AXES = (-2, -1)


class Fixed(Network):
    """A linear map that nobody trained."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(32, 3, generator=torch.Generator().manual_seed(5)))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix


def rows(count: int = 4) -> Tensor:
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def shift(name: str) -> Augmentation | None:
    return TwinShift() if name == "shift" else None


def lesson(teacher: Network | None = None, **changes: Any) -> Lesson:
    given = Lesson(
        teacher or Fixed(), rows(), torch.arange(4), torch.zeros(4, dtype=torch.int64), shift, Streams(0), AXES
    )
    return replace(given, **changes)


def taught(**options: Any) -> BlockLabels:
    labels = BlockLabels(CLASSES, 3, **{"augment": "shift", "blocks": 5, "batch": 3, **options})
    with torch.no_grad():
        labels.teach(lesson())
    return labels


def mixed_by_hand(x: Tensor, mix: Mix) -> Tensor:
    made = x.clone()
    for i, other in enumerate(mix.partner.tolist()):
        if mix.kind == "mixup":
            made[i] = float(mix.numbers) * x[i] + (1 - float(mix.numbers)) * x[other]
        else:
            (top, bottom), (left, right) = mix.numbers.tolist()
            made[i, :, top:bottom, left:right] = x[other, :, top:bottom, left:right]
    return made


# --- blocks with mixing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_a_stored_block_is_its_rows_augmented_mixed_and_answered(mix: str):
    labels = taught(mix=mix, blocks=8)
    replay = labels.replay
    assert replay is not None and len(replay.mixes) == 8
    changed = 0
    for block in range(8):
        x = TwinShift()(rows()[replay.rows[block]], replay.draws[block], torch.arange(3))
        made = mixed_by_hand(x, replay.mixes[block])
        changed += not torch.equal(made, x)
        assert torch.allclose(replay.targets[block], Fixed()(made).detach(), atol=1e-5)
    assert changed >= 4


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_training_shows_what_was_stored_and_mixes_nothing_on_top(mix: str):
    labels = taught(mix=mix, batch=2)
    seen: list[Tensor] = []

    class Watched(Fixed):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return super().forward(x)

    replay, x = labels.replay, rows()
    assert replay is not None
    train(
        Watched(), lambda i: (x[i], labels.targets(i)), 4, labels.loss, Protocol("p", 2, cutmix=1.0, mixup=0.8),
        TwinShift(), Streams(0), cell_axes=AXES, replay=replay,
    )  # fmt: skip
    assert len(seen) == 4
    for block, shown in enumerate(seen):
        views = TwinShift()(x[replay.rows[block]], replay.draws[block], torch.arange(2))
        torch.testing.assert_close(shown, mixed_by_hand(views, replay.mixes[block]))
        # Replayed and answered anew: the stored label, bit for bit.
        assert torch.equal(Fixed()(shown).detach(), replay.targets[block])


def test_blocks_of_whole_trainings_and_of_half_the_bytes():
    labels = taught(epochs=6, batch=3)
    assert labels.replay is not None and labels.replay.rows.shape == (12, 3)  # two blocks of three for four rows
    half = taught(epochs=6, batch=3, keep="float16")
    assert half.tensors()["block_answers"].dtype == torch.float16 and half.replay is not None
    assert half.replay.targets.dtype == torch.float32
    torch.testing.assert_close(half.replay.targets, labels.replay.targets, atol=1e-2, rtol=1e-3)
    assert labels.size_bytes - half.size_bytes == 12 * 3 * 3 * 2


def test_blocks_are_made_at_the_end_and_say_their_size_before():
    labels, told = BlockLabels(CLASSES, 3, augment="shift", blocks=5, batch=3), []
    labels.teach(lesson(finished=False))
    assert labels.replay is None and labels.targets(torch.arange(4)).shape == (4, 3)
    labels.teach(lesson(report=lambda what, done, total: told.append((what, done, total))))
    assert [done for _, done, _ in told] == [1, 2, 3, 4, 5] and "MB" in told[0][0]
    assert labels.replay is not None and len(labels.replay) == 5


def test_labels_with_the_statistics_of_the_batch_leave_the_teacher_as_it_was():
    net = TwinNormNet(TASK.info).eval().requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = rows(8)
    with batch_statistics(net):
        found = net(x)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not net.norm1.training and net.norm1.track_running_stats
    torch.testing.assert_close(found, net.train()(x))
    net.load_state_dict(before)
    labels = BlockLabels(CLASSES, 3, blocks=2, batch=4, norms="batch")
    labels.teach(lesson(net.eval()))
    assert labels.replay is not None
    torch.testing.assert_close(labels.replay.targets[1], net.train()(rows()[labels.replay.rows[1]]))


@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix"])
def test_a_set_with_mixed_views_survives_saving(mix: str, tmp_path: Any):
    parts = {
        "ipc": 2, "steps": 0, "teacher": {"steps": 3}, "labels": "blocks",
        "labels_options": {"augment": "shift", "epochs": 2, "batch": 4, "mix": mix, "keep": "float16"},
    }  # fmt: skip
    syn = distill(PlainGate(TASK.train), TwinDomain(), PartSettings(**parts), Streams(0))
    again = SyntheticSet.load(syn.save(tmp_path))
    one, two = syn.labels.replay, again.labels.replay
    assert one is not None and two is not None and again.content_hash == syn.content_hash
    assert torch.equal(one.targets, two.targets) and len(one.mixes) == len(two.mixes) == (0 if mix == "none" else 4)
    for mine, theirs in zip(one.mixes, two.mixes):
        assert torch.equal(mine.partner, theirs.partner) and torch.equal(mine.numbers, theirs.numbers)


def test_blocks_that_were_stored_before_mixing_still_load():
    old = {"temperature": 1.0, "augment": "shift", "blocks": 5, "batch": 3}
    labels = taught()
    again = BlockLabels.load(labels.tensors(), 3, **old)
    assert set(labels.tensors()) == {"classes", "logits", "block_rows", "block_op", "block_u", "block_answers"}
    assert again.replay is not None and labels.replay is not None
    assert again.replay.mixes == () and torch.equal(again.replay.targets, labels.replay.targets)


@pytest.mark.parametrize(
    ("mix", "name", "change"),
    [
        ("mixup", "block_partner", lambda t: t + 3),
        ("mixup", "block_partner", lambda t: t.float()),
        ("mixup", "block_mix", lambda t: t + 1),
        ("mixup", "block_mix", lambda t: t[:-1]),
        ("cutmix", "block_mix", lambda t: t + 9),
        ("cutmix", "block_mix", lambda t: t.flip(-1) + torch.tensor([1, 0])),
        ("cutmix", "block_mix", lambda t: t[:, :1]),
        ("cutmix", "block_mix", lambda t: t[:, 0, 0]),
    ],
)
def test_mixing_that_points_outside_is_refused(mix: str, name: str, change: Any):
    labels = taught(mix=mix)

    def load(tensors: dict[str, Tensor]) -> LabelStore:
        store = BlockLabels.load(tensors, 3, **labels.options)
        store.check_rows(TASK.info, 1)
        return store

    load(labels.tensors())
    with pytest.raises(ArtifactError, match="blocks"):
        load({**labels.tensors(), name: change(labels.tensors()[name])})
    with pytest.raises(ArtifactError, match="blocks"):
        load({k: v for k, v in labels.tensors().items() if k != name})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mix": "cutmiks"}, "mix must be one of"),
        ({"keep": "int8"}, "keep must be one of"),
        ({"norms": "mine"}, "norms must be one of"),
        ({"alpha": 0.0}, "alpha must lie"),
        ({"epochs": -1}, "epochs must be an integer from 0"),
    ],
)
def test_options_of_blocks_that_mean_nothing_are_refused(options: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        BlockLabels(CLASSES, 3, **options)


def test_a_box_needs_cell_axes_before_an_hour_is_spent():
    flat = replace(TASK.info, cell_axes=())
    with pytest.raises(ConfigError, match="cuts a box along cell axes"):
        check_parts(PartSettings(labels="blocks", labels_options={"mix": "cutmix"}), TwinDomain(), flat)


# --- mixing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.4, 0.8, 1.0])
def test_shares_come_from_the_beta_distribution(alpha: float):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([beta(alpha, generator) for _ in range(4000)])
    # Variance of Beta(a, a); five deviations of the estimates.
    variance = 1 / (4 * (2 * alpha + 1))
    assert float(drawn.mean()) == pytest.approx(0.5, abs=5 * (variance / 4000) ** 0.5)
    assert float(drawn.var()) == pytest.approx(variance, rel=0.1)


def test_a_protocol_mixes_rows_up_and_weighs_both_labels():
    x, y, seen = rows(), torch.tensor([0, 1, 2, 1]), []

    class Watched(Fixed):
        def forward(self, given: Tensor) -> Tensor:
            seen.append(given.detach().clone())
            return super().forward(given)

    def loss(z: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(z, t, reduction="none")

    net = Watched()
    before = net.matrix.detach().clone()
    protocol = Protocol("p", 1, lr=0.1, momentum=0.0, mixup=0.8, weight_decay=0.0)
    train(net, lambda i: (x[i], y[i]), 4, loss, protocol, None, Streams(0))
    generator = Streams(0).torch("epoch", 0)
    order = torch.randperm(4, generator=generator)
    kept = beta(0.8, generator)
    partner = order[torch.randperm(4, generator=generator)]
    mixed = kept * x[order] + (1 - kept) * x[partner]
    torch.testing.assert_close(seen[0], mixed)
    matrix = before.clone().requires_grad_()
    z = mixed.flatten(1) @ matrix
    value = kept * F.cross_entropy(z, y[order]) + (1 - kept) * F.cross_entropy(z, y[partner])
    torch.testing.assert_close(net.matrix.detach(), before - 0.1 * torch.autograd.grad(value, matrix)[0])


def test_no_mixing_is_no_mix():
    assert draw_mix("none", 4, (2, 4, 4), AXES, torch.Generator()) is None


# --- crops -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "out"), [(3, 8), (8, 8), (5, 4), (8, 3), (1, 4)])
def test_parts_are_resized_as_the_library_does(size: int, out: int):
    x = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    starts = torch.tensor([[0, 8 - size], [(8 - size) // 2, 0], [8 - size, 8 - size]])
    found = parts_of(x, AXES, starts, torch.full((3, 2), size), (out, out))
    for i, (top, left) in enumerate(starts.tolist()):
        part = x[i : i + 1, :, top : top + size, left : left + size]
        want = F.interpolate(part, (out, out), mode="bilinear", align_corners=False, antialias=out < size)
        torch.testing.assert_close(found[i : i + 1], want, atol=1e-6, rtol=1e-6)
    weights = resampling(8, out, starts[:, 0], torch.full((3,), size))
    torch.testing.assert_close(weights.sum(2), torch.ones(3, out, dtype=torch.float64))


def context(net: Network, classes: tuple[int, ...] = (0, 1, 2), seed: int = 3) -> PoolContext:
    return PoolContext(
        lambda: TwinDomain().network("small", TASK.info), PlainGate(TASK.train), Streams(seed), classes,
        teachers=lambda: (net,),
    )  # fmt: skip


@pytest.mark.parametrize(("factor", "band"), [(1, "clear"), (2, "clear"), (1, "medium")])
def test_the_clearest_crop_of_each_item_and_the_clearest_of_these_are_kept(factor: int, band: str):
    net = Fixed().requires_grad_(False)
    found = initial_inputs(
        TASK.train, CROPS, 2, context(net, (1,)), {"images": 12, "crops": 4, "factor": factor, "band": band},
        top_up=False,
    )  # fmt: skip
    generator = Streams(3).torch("crops", 1)
    members = TASK.train.class_index[1]
    members = members[torch.randperm(len(members), generator=generator)[:12]]
    numbers = {"generator": generator, "dtype": torch.float64}
    draws = [(torch.rand(12, 1, **numbers), torch.rand(12, 2, **numbers)) for _ in range(4)]
    side, best = 4 // factor, []
    for i, row in enumerate(TASK.train.batch(members).inputs):
        tried = []
        for share, place in draws:
            size = max(1, round(4 * (0.08 + 0.92 * float(share[i])) ** 0.5))
            top, left = (int(float(u) * (4 - size + 1)) for u in place[i])
            piece = F.interpolate(
                row[None, :, top : top + size, left : left + size], (side, side), mode="bilinear",
                align_corners=False, antialias=side < size,
            )  # fmt: skip
            middle = torch.zeros(1, 2, 4, 4)
            before = (4 - side) // 2
            middle[..., before : before + side, before : before + side] = piece
            tried.append((float(F.cross_entropy(net(middle), torch.tensor([1]))), piece[0]))
        best.append(min(tried, key=lambda one: one[0]))
    best.sort(key=lambda one: one[0])
    needed = 2 * factor**2
    kept = [piece for _, piece in (best[(12 - needed) // 2 :] if band == "medium" else best)][:needed]
    for i in range(2):
        cells = kept[i * factor**2 : (i + 1) * factor**2]
        want = torch.cat([torch.cat(cells[r * factor : (r + 1) * factor], -1) for r in range(factor)], -2)
        torch.testing.assert_close(found[i], want, atol=1e-5, rtol=1e-5)


def test_mosaics_are_laid_row_by_row():
    cells = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(1, 4, 1, 2, 2)
    assert tiled(cells, AXES, 2)[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


def test_whole_items_are_those_of_the_data_and_classes_do_not_hang_on_each_other():
    net = Fixed().requires_grad_(False)
    whole = {"images": 20, "crops": 1, "low": 1.0}
    found = initial_inputs(TASK.train, CROPS, 3, context(net), whole, top_up=False)
    for i, row in enumerate(found):
        members = TASK.train.batch(TASK.train.class_index[i // 3]).inputs
        assert float((members - row).flatten(1).abs().amax(1).min()) < 1e-5
    alone = initial_inputs(TASK.train, CROPS, 3, context(net, (2,)), whole, top_up=False)
    assert torch.equal(alone, found[6:])


def test_crops_that_cannot_be_had_are_refused_with_ways_out():
    net = Fixed().requires_grad_(False)
    with pytest.raises(BudgetError, match="16 crops of each class.*raise init_options.images .now 10."):
        initial_inputs(TASK.train, CROPS, 4, context(net), {"images": 10, "factor": 2}, top_up=False)
    assert len(initial_inputs(TASK.train, CROPS, 4, context(net), {"images": 10, "factor": 2}, top_up=True)) == 12
    with pytest.raises(ConfigError, match="factor = 3 must divide"):
        initial_inputs(TASK.train, CROPS, 1, context(net), {"factor": 3}, top_up=False)
    with pytest.raises(ConfigError, match="no option 'image'"):
        CROPS.settle({"image": 3})
    info: TaskInfo = replace(TASK.info, cell_axes=())
    data = replace(TASK.train, info=info)
    with pytest.raises(ConfigError, match="cuts items along their cell axes"):
        initial_inputs(data, CROPS, 1, context(net), {}, top_up=False)
