"""Palettes: indices, colours and what they cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddfed.errors import ArtifactError, ConfigError
from ddfed.space import Space
from ddfed.store import Palette
from ddfed.store.palette import packed, quantised, unpacked
from ddfed.testing import twin_task

INFO = twin_task().info


def info(*shape: int):
    return replace(INFO, shape=shape, space=Space((0.25,) * shape[0], (0.5,) * shape[0]))


def random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("length", [1, 7, 8, 15])
def test_packing_is_undone(bits: int, length: int):
    numbers = torch.randint(2**bits, (3, length), generator=torch.Generator().manual_seed(0))
    stored = packed(numbers, bits)
    assert stored.dtype == torch.uint8 and stored.shape == (3, -(-length * bits // 8))
    assert torch.equal(unpacked(stored, bits)[:, :length], numbers)


def test_the_first_index_is_in_the_lowest_bits():
    assert packed(torch.tensor([[1, 0, 2, 3, 1]]), 2).tolist() == [[1 + 2 * 16 + 3 * 64, 1]]


@pytest.mark.parametrize(("shape", "colours"), [((3, 4, 4), 16), ((1, 5, 3), 15), ((2, 6), 6), ((3, 2, 2, 2), 9)])
def test_as_many_colours_as_values_reproduce_the_rows(shape: tuple[int, ...], colours: int):
    store, x = Palette(info(*shape), torch.arange(4), colours=colours), random(4, 1, *shape)
    store.fill(x)
    rows, origin = store.decode(torch.tensor([3, 0]))
    assert torch.allclose(rows, x[[3, 0], 0], atol=1e-6) and origin.tolist() == [0, 1]


def test_items_of_few_values_are_exact_with_more_colours_than_values():
    x = torch.randint(3, (4, 1, 1, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    store = Palette(info(1, 4, 4), torch.arange(4), colours=8)
    store.fill(x)
    assert torch.allclose(store.decode(torch.arange(4))[0], x[:, 0], atol=1e-6)


def test_quantisation_ends_where_lloyd_ends():
    """Each position has its nearest colour, each colour is the mean of its positions."""
    values = random(3, 60, 2)
    colours, numbers = quantised(values, 4)
    for item in range(3):
        assert torch.equal(numbers[item], torch.cdist(values[item], colours[item]).argmin(1))
        for k in range(4):
            assert torch.allclose(colours[item, k], values[item][numbers[item] == k].mean(0), atol=0.02)
    best = (values - values.mean(1, keepdim=True)).square().sum()
    assert float((values - colours.gather(1, numbers[..., None].expand(-1, -1, 2))).square().sum()) < 0.4 * float(best)


def test_colours_are_learned_by_all_positions_that_show_them():
    store, x = Palette(info(2, 4, 4), torch.arange(2), colours=4), random(2, 1, 2, 4, 4)
    store.fill(x)
    rows, _ = store.decode(torch.arange(2))
    weight = random(*rows.shape)
    rows.backward(weight)
    numbers = unpacked(store.buffers["indices"], 2)
    want = torch.zeros(2, 4, 2)
    for item in range(2):
        for position in range(16):
            want[item, numbers[item, position]] += weight[item, :, position // 4, position % 4]
    assert torch.allclose(store.params["colours"].grad, want, atol=1e-5)


@pytest.mark.parametrize(("colours", "bits"), [(2, 1), (4, 2), (5, 4), (16, 4), (17, 8), (64, 8)])
def test_a_palette_counts_its_colours_and_the_bits_of_its_indices(colours: int, bits: int):
    each = 4 * colours * 3 + 32 * 32 * bits // 8
    assert Palette.items_per_class(info(3, 32, 32), 10, 10, colours=colours) == 10 * 4 * 3072 // each


def test_colours_are_clamped_channel_by_channel():
    store = Palette(info(2, 4, 4), torch.arange(2), colours=4)
    store.info = replace(store.info, space=Space((0.25, 0.5), (0.5, 0.25)))
    store.fill(40 * (random(2, 1, 2, 4, 4) - 0.5))
    store.constrain()
    natural = store.info.space.decode(store.decode(torch.arange(2))[0].detach())
    assert float(natural.min()) >= -1e-6 and float(natural.max()) <= 1 + 1e-6
    assert float(natural.max()) > 0.99


def test_indices_beyond_the_palette_are_refused():
    store = Palette(info(1, 4, 4), torch.arange(2), colours=3)
    with pytest.raises(ArtifactError, match="indices leave the palette of 3 colours"):
        store.load({**store.tensors(), "indices": torch.full((2, 4), 255, dtype=torch.uint8)})


def test_items_of_one_axis_have_no_positions():
    with pytest.raises(ConfigError, match=r"needs items of channels over positions, got shape \(12,\)"):
        Palette(replace(INFO, shape=(12,), cell_axes=()), torch.arange(2), colours=4)
