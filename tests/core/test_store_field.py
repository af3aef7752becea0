"""Fields against one network at a time in float64, and on real digits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddfed.seeds import Streams
from ddfed.space import Space
from ddfed.store import Fields
from ddfed.testing import twin_task
from ddfed_image.domain import ImageDomain

INFO = twin_task().info


def info(*shape: int, cells: tuple[int, ...] = (-2, -1)):
    return replace(INFO, shape=shape, cell_axes=cells, space=Space())


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("shape", "cells"), [((3, 4, 5), (-2, -1)), ((2, 9), (-1,)), ((2, 3, 4, 5), (-3, -2, -1))])
def test_items_decode_as_networks_of_the_position(shape: tuple[int, ...], cells: tuple[int, ...]):
    store = Fields(info(*shape, cells=cells), torch.arange(3), width=4, layers=2, fit_steps=3)
    store.fill(random(3, 1, *shape), Streams(1))
    p = {name: tensor.detach().double() for name, tensor in store.params.items()}
    rows, origin = store.decode(torch.tensor([2, 0]))
    assert origin.tolist() == [0, 1]
    axes = [torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape[1:]]
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    for row, i in zip(rows, (2, 0)):
        hidden = torch.sin(30 * (positions @ p["weight0"][i] + p["bias0"][i, 0]))
        hidden = torch.sin(10 * (hidden @ p["weight1"][i] + p["bias1"][i, 0]))
        want = (hidden @ p["weight2"][i] + p["bias2"][i, 0]).movedim(-1, 0)
        assert torch.allclose(row.double(), want, atol=1e-3)


def test_real_digits_are_fitted_beyond_25_decibels():
    task = ImageDomain().load("digits", None, {})
    x = task.train.batch(torch.arange(20)).inputs
    store = Fields(task.info, torch.arange(20) % 10, width=6)
    store.fill(x[:, None])
    space = task.info.space
    error = (space.decode(store.decode(torch.arange(20))[0].detach()) - space.decode(x)).square().flatten(1).mean(1)
    assert float((-10 * error.log10()).min()) > 25
    start = Fields(task.info, torch.arange(20) % 10, width=6, fit_steps=0)
    start.fill(x[:, None])
    assert float((start.decode(torch.arange(20))[0] - x).detach().square().mean()) > 0.5


def test_each_item_is_fitted_as_if_it_were_alone():
    """Same start, one item or two: the fit of the first must not feel the second."""
    one, two = (Fields(info(1, 4, 4), torch.arange(n), width=3, fit_steps=30) for n in (1, 2))
    x = random(2, 1, 1, 4, 4)
    two._start(Streams(0))
    begun = {name: tensor.detach().clone() for name, tensor in two.params.items()}
    one._start = lambda streams: one.load({name: t[:1] for name, t in begun.items()})  # type: ignore[method-assign]
    one.fill(x[:1])
    two.fill(x)
    assert torch.allclose(one.decode(torch.tensor([0]))[0], two.decode(torch.tensor([0]))[0], atol=1e-3)


def test_a_field_counts_its_weights():
    weights = 2 * 6 + 6 + 6 * 6 + 6 + 6 * 3 + 3
    assert Fields.items_per_class(info(3, 32, 32), 10, 10) == 10 * 3072 // weights == 379


def test_the_fit_leaves_no_gradient_behind():
    store = Fields(info(1, 4, 4), torch.arange(2), fit_steps=2)
    store.fill(random(2, 1, 1, 4, 4))
    assert all(tensor.grad is None and tensor.is_leaf for tensor in store.params.values())


def test_weights_are_not_clamped():
    store = Fields(info(1, 4, 4), torch.arange(2), fit_steps=0)
    store.fill(random(2, 1, 1, 4, 4))
    with torch.no_grad():
        store.params["weight0"].mul_(50)
    before = store.params["weight0"].detach().clone()
    store.constrain()
    assert torch.equal(store.params["weight0"], before)
