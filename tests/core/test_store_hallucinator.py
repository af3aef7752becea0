"""Hallucinators against one row at a time in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ddfed.errors import ConfigError
from ddfed.seeds import Streams
from ddfed.space import Space
from ddfed.store import Hallucinators
from ddfed.testing import twin_task

INFO = twin_task().info


def info(*shape: int, cells: tuple[int, ...] = (-2, -1)):
    return replace(INFO, shape=shape, cell_axes=cells, space=Space())


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_every_base_meets_every_hallucinator():
    store = Hallucinators(info(2, 6, 8), torch.arange(3), hallucinators=4, channels=3, share=0.5)
    store.fill(random(3, 1, 2, 6, 8))
    with torch.no_grad():
        for tensor in store.params.values():
            tensor.add_(0.3 * random(*tensor.shape))
    p = {name: tensor.detach().double() for name, tensor in store.params.items()}
    rows, origin = store.decode(torch.tensor([2, 0]))
    assert origin.tolist() == [0] * 4 + [1] * 4 and store.rows_per_item == 4
    for place, (base, h) in enumerate([(i, h) for i in (2, 0) for h in range(4)]):
        encoded = F.conv2d(p["bases"][base][None], p["encoder"], padding=1)
        small = F.conv2d(p["scale"][h] * encoded + p["shift"][h], p["decoder"], padding=1)
        want = F.interpolate(small, (6, 8), mode="bilinear", align_corners=False)[0]
        assert torch.allclose(rows[place].double(), want, atol=1e-5)


@pytest.mark.parametrize(("shape", "cells"), [((2, 6, 8), (-2, -1)), ((2, 9), (-1,)), ((2, 3, 4, 5), (-3, -2, -1))])
def test_without_noise_every_hallucinator_starts_as_the_identity(shape: tuple[int, ...], cells: tuple[int, ...]):
    store = Hallucinators(info(*shape, cells=cells), torch.arange(2), hallucinators=3, spread=0.0)
    x = random(2, 1, *shape)
    store.fill(x)
    rows, _ = store.decode(torch.arange(2))
    assert torch.allclose(rows.unflatten(0, (2, 3)), x.expand(2, 3, *shape), atol=1e-5)


def test_noise_tells_hallucinators_apart_and_comes_from_the_streams():
    stores = [Hallucinators(info(2, 6, 6), torch.arange(2), hallucinators=2) for _ in range(3)]
    for store, seed in zip(stores, (0, 0, 1)):
        store.fill(random(2, 1, 2, 6, 6), Streams(seed))
    one, same, other = (store.decode(torch.tensor([0]))[0] for store in stores)
    assert float((one[0] - one[1]).detach().abs().max()) > 0.05
    assert torch.equal(one, same) and not torch.allclose(one, other)
    assert not any(
        torch.equal(stores[0].params[name], stores[2].params[name]) for name in ("scale", "shift", "encoder")
    )


def test_what_is_shared_counts_once_for_all_classes():
    shared = 5 * 2 * 3 * 32 * 32 + 2 * 3 * 3 * 9
    for ipc, classes in ((3, 10), (10, 10), (10, 100)):
        want = (ipc * classes * 3072 - shared) // (classes * 3072)
        assert Hallucinators.items_per_class(info(3, 32, 32), ipc, classes) == want > 0


def test_bases_are_not_clamped_by_the_range_of_rows():
    store = Hallucinators(info(2, 6, 6), torch.arange(2))
    store.fill(9 * random(2, 1, 2, 6, 6))
    before = store.params["bases"].detach().clone()
    store.constrain()
    assert torch.equal(store.params["bases"], before)


def test_taken_items_keep_the_whole_of_what_is_shared():
    store = Hallucinators(info(2, 6, 6), torch.arange(3))
    store.fill(random(3, 1, 2, 6, 6))
    taken = store.take(torch.tensor([1]))
    assert torch.equal(taken.params["scale"], store.params["scale"]) and taken.params["bases"].shape[0] == 1


def test_more_axes_than_convolutions_have_are_refused():
    with pytest.raises(ConfigError, match="takes up to 3 cell axes, got 4"):
        Hallucinators(info(2, 3, 3, 3, 3, cells=(-4, -3, -2, -1)), torch.arange(2))
