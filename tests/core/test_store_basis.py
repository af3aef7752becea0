"""Shared bases against the best approximations that exist."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddfed.errors import ConfigError
from ddfed.space import Space
from ddfed.store import SharedBasis
from ddfed.testing import twin_task

INFO = twin_task().info


def info(*shape: int, cells: tuple[int, ...] = (-2, -1)):
    return replace(INFO, shape=shape, cell_axes=cells, space=Space())


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("share", [1.0, 0.99])
def test_as_many_elements_as_rows_reproduce_the_rows(share: float):
    store, x = SharedBasis(info(2, 6, 4), torch.arange(5), rank=5, share=share), random(5, 1, 2, 6, 4)
    store.fill(x)
    rows, origin = store.decode(torch.tensor([3, 1]))
    assert torch.allclose(rows, x[[3, 1], 0], atol=1e-4) and origin.tolist() == [0, 1]
    assert ("factor0" in store.params) is (share < 1)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_filling_is_the_best_approximation_of_that_rank(rank: int):
    store, x = SharedBasis(info(2, 6, 4), torch.arange(7), rank=rank), random(7, 1, 2, 6, 4)
    store.fill(x)
    error = (store.decode(torch.arange(7))[0] - x[:, 0]).detach().square().sum()
    assert torch.allclose(error, torch.linalg.svdvals(x.flatten(1))[rank:].square().sum(), rtol=1e-4)


@pytest.mark.parametrize(("shape", "cells"), [((2, 6, 8), (-2, -1)), ((2, 9), (-1,)), ((4, 3, 6), (-3, -1))])
def test_factors_span_the_basis_along_each_axis(shape: tuple[int, ...], cells: tuple[int, ...]):
    store = SharedBasis(info(*shape, cells=cells), torch.arange(4), rank=3, share=0.5)
    store.fill(random(4, 1, *shape))
    rows, _ = store.decode(torch.arange(4))
    p = store.params
    if len(cells) == 1:
        want = torch.einsum("nr,rci,ai->nca", p["coefficients"], p["core"], p["factor0"])
    elif cells == (-2, -1):
        want = torch.einsum("nr,rcij,ai,bj->ncab", p["coefficients"], p["core"], p["factor0"], p["factor1"])
    else:
        want = torch.einsum("nr,rcij,ai,bj->nacb", p["coefficients"], p["core"], p["factor0"], p["factor1"])
    assert torch.allclose(rows, want, atol=1e-5)


def test_filling_takes_memory_by_the_axis_and_not_by_its_square_of_rows():
    """CIFAR-10 at ten items per class asked for 97 GB: all right singular vectors, to drop them."""
    rows = 60_000
    store = SharedBasis(info(1, 4, 4), torch.arange(rows), rank=2, share=0.5)
    store.fill(random(rows, 1, 1, 4, 4))
    assert torch.allclose(store.params["factor0"].T @ store.params["factor0"], torch.eye(2), atol=1e-5)


def test_rows_that_are_of_low_rank_along_the_axes_are_reproduced():
    x = torch.einsum("ncij,ai,bj->ncab", random(5, 2, 3, 2), random(6, 3), random(4, 2))
    store = SharedBasis(info(2, 6, 4), torch.arange(5), rank=5, share=0.5)
    store.fill(x[:, None])
    assert torch.allclose(store.decode(torch.arange(5))[0], x, atol=1e-3)


def test_the_budget_is_that_of_addressable_memories():
    """Deng and Russakovsky: IPC' = (IPC K C H W - r C H W) / (K r)."""
    size = 3 * 32 * 32
    for ipc, classes, rank in ((1, 10, 8), (10, 10, 16), (1, 100, 64)):
        want = (ipc * classes * size - rank * size) // (classes * rank)
        assert SharedBasis.items_per_class(info(3, 32, 32), ipc, classes, rank=rank) == want > 0


def test_the_budget_of_a_basis_counts_core_and_factors():
    shared = 128 * 3 * 16 * 16 + 2 * 32 * 16
    want = (10 * 10 * 3072 - shared) // (10 * 128)
    assert SharedBasis.items_per_class(info(3, 32, 32), 10, 10, rank=128, share=0.5) == want


def test_more_elements_than_rows_start_small_but_alive():
    store, x = SharedBasis(info(2, 6, 4), torch.arange(2), rank=6), random(2, 1, 2, 6, 4)
    store.fill(x)
    rows, _ = store.decode(torch.arange(2))
    assert torch.allclose(rows, x[:, 0], atol=0.01)
    rows.backward(random(*rows.shape))
    assert all(bool((t.grad != 0).all()) for t in store.params.values())


def test_items_without_cells_may_have_a_memory_but_no_factors():
    flat = replace(INFO, shape=(12,), cell_axes=(), space=Space())
    store, x = SharedBasis(flat, torch.arange(4), rank=4), random(4, 1, 12)
    store.fill(x)
    assert torch.allclose(store.decode(torch.arange(4))[0], x[:, 0], atol=1e-4)
    with pytest.raises(ConfigError, match="needs items with cell axes"):
        SharedBasis(flat, torch.arange(4), rank=4, share=0.5)


def test_coefficients_are_not_clamped_by_the_range_of_values():
    store = SharedBasis(info(2, 6, 4), torch.arange(3), rank=2)
    store.fill(9 * random(3, 1, 2, 6, 4))
    before = {name: tensor.detach().clone() for name, tensor in store.params.items()}
    store.constrain()
    assert all(torch.equal(store.params[name], tensor) for name, tensor in before.items())
