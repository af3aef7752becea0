"""Items as grids of cells, and what stores count and refuse alike."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddfed.config import Layer
from ddfed.distill import Checkpointing, distill, empty_store
from ddfed.errors import BudgetError, ConfigError
from ddfed.gate import PlainGate
from ddfed.registry import registry
from ddfed.seeds import Streams
from ddfed.settings import PartSettings, resolve_distill
from ddfed.space import Space
from ddfed.store import Fields, Frequencies, Hallucinators, MultiFormation, Palette, Pixels, SharedBasis, Store
from ddfed.store.cells import Grid, along, resizing, small_integer
from ddfed.testing import TwinDomain, twin_task

TASK = twin_task()
INFO = TASK.info


def info(*shape: int, cells: tuple[int, ...]):
    return replace(INFO, shape=shape, cell_axes=cells, space=Space())


@pytest.mark.parametrize(
    ("shape", "cells", "channels", "lengths"),
    [
        ((3, 4, 5), (-2, -1), 3, (4, 5)),
        ((3, 4, 5), (-1, -2), 3, (4, 5)),
        ((2, 7), (-1,), 2, (7,)),
        ((4, 3, 5), (-3, -1), 3, (4, 5)),
        ((2, 3, 4, 5), (-4, -2, -1), 3, (2, 4, 5)),
        ((6,), (-1,), 1, (6,)),
    ],
)
def test_grids_split_and_join(shape, cells, channels, lengths):
    grid = Grid(info(*shape, cells=cells), "test")
    rows = torch.arange(2 * torch.tensor(shape).prod()).view(2, *shape).float()
    split = grid.split(rows)
    assert split.shape == (2, channels, *lengths) and (grid.channels, grid.lengths) == (channels, lengths)
    assert torch.equal(grid.join(split), rows)


def test_a_channel_between_cell_axes_is_moved_to_the_front():
    grid = Grid(info(4, 3, 5, cells=(-3, -1)), "test")
    rows = torch.rand(2, 4, 3, 5)
    assert torch.equal(grid.split(rows)[:, 1], rows[:, :, 1])


def test_matrices_along_axes_are_a_sum_over_each():
    x, a, b = torch.rand(2, 3, 4), torch.rand(5, 3), torch.rand(6, 4)
    assert torch.allclose(along(x, [a, b]), torch.einsum("nij,ai,bj->nab", x, a, b), atol=1e-6)


def test_resizing_keeps_constants_and_equal_lengths():
    assert torch.allclose(resizing(7, 3).sum(1), torch.ones(3))
    assert torch.equal(resizing(5, 5), torch.eye(5))


def test_small_integers_hold_what_they_number():
    for count in (1, 256, 257, 2**15, 2**15 + 1):
        assert torch.iinfo(small_integer(count)).max >= count - 1
    assert small_integer(256) is torch.uint8 and small_integer(1024) is torch.int16


@pytest.mark.parametrize("kind", [Frequencies, Hallucinators, Fields])
def test_stores_of_cells_refuse_items_without(kind: type[Store]):
    with pytest.raises(ConfigError, match="needs items with cell axes; 'twin' has none"):
        kind(replace(INFO, cell_axes=()), torch.arange(2))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Frequencies, {"share": 0}, "share must be a number above 0 and up to 1, got 0"),
        (Frequencies, {"share": 1.5}, "share must be"),
        (Frequencies, {"share": True}, "share must be"),
        (Frequencies, {"by": "size"}, "by must be 'variance' or 'energy', got 'size'"),
        (Hallucinators, {"hallucinators": 0}, "hallucinators must be an integer of at least 1"),
        (Hallucinators, {"channels": 1}, "channels must be an integer of at least 2"),
        (Hallucinators, {"kernel": 2}, "kernel must be odd"),
        (Hallucinators, {"spread": -1}, "spread must be a number of at least 0, got -1"),
        (SharedBasis, {"rank": 33}, "rank must be an integer from 1 to 32"),
        (SharedBasis, {"rank": 2.0}, "rank must be an integer"),
        (Fields, {"width": 0}, "width must be an integer of at least 1"),
        (Fields, {"fit_lr": "fast"}, "fit_lr must be a number above 0, got 'fast'"),
        (Fields, {"omega": 0}, "omega must be a number above 0, got 0"),
        (Palette, {"colours": 1}, "colours must be an integer from 2 to 256"),
        (Palette, {"colours": 257}, "colours must be"),
        (Palette, {"colors": 4}, "no option 'colors'"),
    ],
)
def test_options_out_of_range_are_refused(kind: type[Store], options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        kind(INFO, torch.arange(3), **options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Hallucinators, {"channels": 2}),
        (SharedBasis, {"rank": 16}),
        (Fields, {"width": 6}),
        (Palette, {"colours": 64}),
    ],
)
def test_a_budget_for_nothing_names_the_first_that_is_enough(kind: type[Store], options: dict):
    with pytest.raises(BudgetError, match=r"ipc 1 gives 384\. It fits from ipc \d+ on") as caught:
        kind.items_per_class(INFO, 1, 3, **options)
    enough = int(str(caught.value).split("from ipc ")[1].split(" ")[0])
    assert kind.items_per_class(INFO, enough, 3, **options) >= 1
    with pytest.raises(BudgetError):
        kind.items_per_class(INFO, enough - 1, 3, **options)


@pytest.mark.parametrize("kind", [Pixels, MultiFormation])
@pytest.mark.parametrize("ipc", [1, 7, 50])
def test_stores_of_inputs_hold_as_many_items_as_the_budget_says(kind: type[Store], ipc: int):
    assert kind.items_per_class(INFO, ipc, 10) == ipc


def test_counting_takes_no_memory():
    huge = replace(INFO, shape=(3, 10**4, 10**4))
    assert Pixels.items_per_class(huge, 10**4, 3) == 10**4


@pytest.mark.parametrize(
    ("store", "options"),
    [
        ("dct", {}),
        ("hallucinator", {"hallucinators": 2, "channels": 2, "kernel": 1, "share": 0.5}),
        ("basis", {"rank": 2}),
        ("field", {"width": 2, "layers": 1, "fit_steps": 5}),
        ("palette", {"colours": 4}),
    ],
)
def test_a_resumed_run_equals_the_uninterrupted_one(store: str, options: dict):
    """What a store does not learn is no part of a checkpoint: filling anew gives it again."""
    parts = PartSettings(
        ipc=2,
        steps=4,
        lr=0.05,
        store=store,
        store_options=options,
        objective_options={"rows": 8},
        network="small",
        optimizer="adam",
    )
    trees: list[dict] = []

    def run(resume: dict | None = None):
        save = Checkpointing(lambda tree: trees.append(torch.utils._pytree.tree_map(_copied, tree)), 2, resume)
        return distill(PlainGate(TASK.train), TwinDomain(), parts, Streams(0), checkpointing=save)

    assert run().content_hash == run(trees[0]).content_hash


def _copied(leaf: object) -> object:
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf


@pytest.mark.parametrize("method", ["haba", "fred", "nsd", "ddif", "auto-palette"])
def test_recipes_hold_more_rows_than_plain_items_at_every_published_budget(method: str):
    tasks = {"mnist": (1, 28, 10), "fashion": (1, 28, 10), "cifar10": (3, 32, 10), "cifar100": (3, 32, 100)}
    for figure in registry().load("recipe", method).published:
        channels, side, classes = tasks[figure.dataset]
        layer = Layer("test", {"method": method, "data": {"dataset": figure.dataset}, "distill": {"ipc": figure.ipc}})
        parts = resolve_distill([layer]).settings.distill
        names = tuple(map(str, range(classes)))
        task = replace(INFO, shape=(channels, side, side), classes=names, cell_axes=(-2, -1), space=Space())
        store = empty_store(parts, task, range(classes))
        assert figure.ipc < store.items * store.rows_per_item / classes
        assert store.plain_items_per_class <= figure.ipc
