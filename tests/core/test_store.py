"""Parametrisations decode what was filled in, and refuse what they cannot hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ddfed.errors import ArtifactError, ConfigError
from ddfed.space import Space
from ddfed.store import HardLabels, LogitLabels, Mirrored, MultiFormation, Pixels, Store, view_of
from ddfed.testing import twin_task

INFO = twin_task().info


def info(*shape: int, cells: tuple[int, ...] = (-2, -1)):
    space = Space((0.25,) * shape[0], (0.5,) * shape[0])
    return replace(INFO, shape=shape, cell_axes=cells, space=space)


def random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_pixels_decode_to_what_they_store():
    store, x = Pixels(INFO, torch.zeros(3, dtype=torch.int64)), random(3, 1, 2, 4, 4)
    store.fill(x)
    rows, origin = store.decode(torch.tensor([2, 0, 2]))
    assert torch.equal(rows, x[[2, 0, 2], 0]) and origin.tolist() == [0, 1, 2]
    assert store.size_bytes == 3 * 32 * 4


def test_mirrored_items_give_themselves_and_their_mirror_image():
    store, x = Mirrored(INFO, torch.zeros(2, dtype=torch.int64)), random(2, 1, 2, 4, 4)
    store.fill(x)
    rows, origin = store.decode(torch.arange(2))
    assert torch.equal(rows, torch.cat([x[:, 0], x[:, 0].flip(-1)])) and origin.tolist() == [0, 1, 0, 1]
    assert store.rows_per_item == 2 and store.seeds_per_item == 1


def test_mirroring_is_refused_where_it_changes_the_class():
    with pytest.raises(ConfigError, match="'blobs' has none. Use 'pixels'"):
        Mirrored(replace(INFO, mirror_axis=None), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 6), (2, 12, 6)])
@pytest.mark.parametrize("factor", [2, 3])
def test_constant_images_survive_filling_and_decoding(shape: tuple[int, ...], factor: int):
    if any(length % factor for length in shape[1:]):
        shape = (shape[0], 6, 12)
    store = MultiFormation(info(*shape), torch.zeros(3, dtype=torch.int64), factor=factor)
    x = random(3, factor**2, shape[0], 1, 1).expand(3, factor**2, *shape)
    store.fill(x)
    rows, origin = store.decode(torch.arange(3))
    assert torch.allclose(rows.view(x.shape), x, atol=1e-6)
    assert origin.tolist() == [i for i in range(3) for _ in range(factor**2)]


def test_cells_come_row_by_row_as_in_idc():
    store = MultiFormation(info(1, 4, 4), torch.zeros(1, dtype=torch.int64))
    canvas = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]])
    store.load({"x": canvas.view(1, 1, 4, 4)})
    rows, _ = store.decode(torch.tensor([0]))
    assert rows.flatten(1).mean(1).tolist() == [0.0, 1.0, 2.0, 3.0]
    assert bool((rows.flatten(1).std(1) == 0).all())


@pytest.mark.parametrize(("shape", "factor"), [((3, 8, 8), 2), ((2, 9, 6), 3), ((1, 32, 32), 2), ((2, 8, 4), 4)])
def test_upsampling_equals_bilinear_interpolation(shape: tuple[int, ...], factor: int):
    store = MultiFormation(info(*shape), torch.zeros(2, dtype=torch.int64), factor=factor)
    x = random(2, *shape)
    store.load({"x": x})
    rows, _ = store.decode(torch.arange(2))
    h, w = shape[1] // factor, shape[2] // factor
    cells = [x[:, :, i * h : (i + 1) * h, j * w : (j + 1) * w] for i in range(factor) for j in range(factor)]
    want = torch.stack([F.interpolate(c, shape[1:], mode="bilinear", align_corners=False) for c in cells], 1).flatten(
        0, 1
    )
    assert torch.allclose(rows, want, atol=1e-5)


def test_filling_downsamples_bilinearly():
    store, x = MultiFormation(info(2, 8, 8), torch.zeros(1, dtype=torch.int64)), random(1, 4, 2, 8, 8)
    store.fill(x)
    small = F.interpolate(x[0], (4, 4), mode="bilinear", align_corners=False)
    assert torch.allclose(store.params["x"][0, :, :4, 4:], small[1], atol=1e-6)
    assert torch.allclose(store.params["x"][0, :, 4:, :4], small[2], atol=1e-6)


def test_odd_sizes_are_padded_with_the_middle_of_the_range():
    store = MultiFormation(info(2, 5, 5), torch.zeros(1, dtype=torch.int64))
    x = random(1, 2, 5, 5)
    store.load({"x": x})
    rows, _ = store.decode(torch.tensor([0]))
    padded = F.pad(x, (0, 1, 0, 1), value=(0.5 - 0.25) / 0.5)
    cells = [padded[:, :, i : i + 3, j : j + 3] for i in (0, 3) for j in (0, 3)]
    want = torch.cat([F.interpolate(c, (5, 5), mode="bilinear", align_corners=False) for c in cells])
    assert rows.shape == (4, 2, 5, 5) and torch.allclose(rows, want, atol=1e-5)


def test_all_factors_decode_one_after_the_other():
    shape, classes = (2, 6, 12), torch.zeros(2, dtype=torch.int64)
    store, x = MultiFormation(info(*shape), classes, factor=3, multi=True), random(2, *shape)
    store.load({"x": x})
    rows, origin = store.decode(torch.tensor([1, 0]))
    assert store.rows_per_item == 1 + 4 + 9 and store.seeds_per_item == 9
    assert origin.tolist() == [0] * 14 + [1] * 14
    alone = []
    for factor in (2, 3):
        single = MultiFormation(info(*shape), classes, factor=factor)
        single.load({"x": x})
        alone.append(single.decode(torch.tensor([1, 0]))[0].unflatten(0, (2, -1)))
    want = torch.cat([x[[1, 0], None], *alone], 1).flatten(0, 1)
    assert torch.allclose(rows, want, atol=1e-6)


def test_all_factors_are_filled_as_the_finest_is():
    seeds = random(2, 4, 2, 4, 4)
    one, all_of_them = (MultiFormation(INFO, torch.arange(2), multi=multi) for multi in (False, True))
    one.fill(seeds)
    all_of_them.fill(seeds)
    assert torch.equal(one.params["x"], all_of_them.params["x"])
    with pytest.raises(ConfigError, match="multi must be true or false, got 3"):
        MultiFormation(INFO, torch.arange(2), multi=3)


def test_sequences_are_cut_along_their_one_axis():
    store = MultiFormation(info(2, 9, cells=(-1,)), torch.zeros(2, dtype=torch.int64), factor=3)
    store.fill(random(2, 3, 2, 1).expand(2, 3, 2, 9))
    rows, origin = store.decode(torch.arange(2))
    assert rows.shape == (6, 2, 9) and origin.tolist() == [0, 0, 0, 1, 1, 1] and store.rows_per_item == 3
    assert torch.allclose(rows.view(2, 3, 2, 9), random(2, 3, 2, 1).expand(2, 3, 2, 9), atol=1e-6)


@pytest.mark.parametrize("factor", [1, 0, -2, 5, 2.0, "2", None])
def test_impossible_factors_are_refused(factor: object):
    with pytest.raises(ConfigError, match="integer from 2 to 4"):
        MultiFormation(INFO, torch.zeros(2, dtype=torch.int64), factor=factor)


def test_items_without_cells_are_refused():
    with pytest.raises(ConfigError, match="'twin' has none"):
        MultiFormation(replace(INFO, cell_axes=()), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("kind", [Pixels, Mirrored, MultiFormation])
def test_taking_items_and_loading_values_keeps_them(kind: type[Store]):
    store = kind(INFO, torch.arange(4))
    store.fill(random(4, store.seeds_per_item, 2, 4, 4))
    taken = store.take(torch.tensor([3, 1]))
    assert taken.items == 2 and torch.equal(taken.params["x"], store.params["x"][[3, 1]])
    assert taken.params["x"].is_leaf and taken.params["x"].requires_grad
    with torch.no_grad():
        taken.params["x"].zero_()
    assert bool((store.params["x"] != 0).any())
    with pytest.raises(ArtifactError, match=r"\(4, 2, 4, 4\).*\(3, 2, 4, 4\)"):
        store.load({"x": torch.zeros(3, 2, 4, 4)})


def test_constraining_keeps_natural_values_in_range():
    store = Pixels(INFO, torch.zeros(2, dtype=torch.int64))
    store.fill(20 * (random(2, 1, 2, 4, 4) - 0.5))
    store.constrain()
    natural = INFO.space.decode(store.params["x"].detach())
    assert float(natural.min()) >= -1e-6 and float(natural.max()) <= 1 + 1e-6


def test_soft_cross_entropy_of_sharp_logits_is_cross_entropy():
    classes = torch.tensor([0, 2, 1])
    logits = random(3, 3)
    sharp = LogitLabels(classes, 3, strength=100.0)
    assert torch.allclose(
        sharp.loss(logits, sharp.targets(torch.arange(3))), HardLabels.loss(logits, classes), atol=1e-5
    )
    soft = LogitLabels(classes, 3, strength=1.0).targets(torch.arange(3))
    by_hand = torch.tensor([-(soft[i].softmax(0) * logits[i].log_softmax(0)).sum() for i in range(3)])
    assert torch.allclose(LogitLabels.loss(logits, soft), by_hand)


@pytest.mark.parametrize("kind", [HardLabels, LogitLabels])
def test_labels_survive_loading_and_bad_ones_are_refused(kind: type):
    labels = kind(torch.tensor([0, 2]), 3)
    again = kind.load(labels.tensors(), 3)
    assert torch.equal(again.targets(torch.arange(2)), labels.targets(torch.arange(2)))
    for wrong in ({}, {"classes": torch.tensor([0.0])}, {"classes": torch.tensor([[0]])}):
        with pytest.raises(ArtifactError, match="integer tensor 'classes'"):
            kind.load(wrong, 3)
    for outside in ([0, 3], [-1, 0]):
        with pytest.raises(ArtifactError, match="range 0 to 2"):
            kind.load({**labels.tensors(), "classes": torch.tensor(outside)}, 3)


def test_logits_of_the_wrong_shape_are_refused():
    with pytest.raises(ArtifactError, match=r"logits of shape \(2, 3\)"):
        LogitLabels.load({"classes": torch.tensor([0, 1]), "logits": torch.zeros(2, 4)}, 3)


def test_views_number_the_rows_of_an_item():
    assert view_of(torch.tensor([0, 1, 0, 2, 1, 0])).tolist() == [0, 0, 1, 0, 1, 2]
    assert view_of(torch.zeros(0, dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize("kind", [Pixels, MultiFormation])
def test_a_store_of_inputs_takes_the_bytes_of_its_budget(kind: type[Store]):
    store = kind(INFO, torch.arange(3).repeat_interleave(2))
    assert kind.items_per_class(INFO, 2, 3) == 2 and store.plain_items_per_class == 2.0
