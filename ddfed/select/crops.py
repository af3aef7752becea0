"""Crops of real items that a teacher finds clear, tiled to mosaics (RDED).

Source: Sun, Shi, Yu and Lin, On the Diversity and Realism of Distilled Dataset (RDED), CVPR 2024, algorithm 1.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ddfed.cropping import parts_of
from ddfed.data import RealData
from ddfed.errors import BudgetError, ConfigError
from ddfed.pool import PoolContext

AtLeastOne = Annotated[int, Field(ge=1)]
_PASS = 256


def compose_crops(
    data: RealData,
    ctx: PoolContext,
    per_class: int,
    top_up: bool,
    *,
    images: AtLeastOne = 300,
    crops: AtLeastOne = 5,
    low: Annotated[float, Field(gt=0, le=1)] = 0.08,
    factor: AtLeastOne = 1,
    band: Literal["clear", "medium"] = "clear",
) -> Tensor:
    """Of each of some real items the crop that the first teacher finds clearest; of these the clearest, tiled.

    The score is the teacher's cross-entropy with the item's class, of the crop at the size it will have, in the middle
    of an item that is zero in model space elsewhere.

    Departure: a crop is placed on whole cells along every cell axis, its lengths the same share of each axis, where
    the paper's is square.

    Args:
        data: the records.
        ctx: gives teachers, classes and streams.
        per_class: inputs of each class.
        top_up: repeat crops where a class has fewer items than are needed.
        images: real items looked at, of each class.
        crops: random crops of each.
        low: least share of a crop; 1 for whole items.
        factor: crops along each cell axis of an input.
        band: ``clear`` keeps the lowest scores, ``medium`` those around the median (DELT, CV-DD).

    Returns:
        (classes * per_class, *item), class after class.

    Raises:
        ConfigError: the items cannot be cut so.
        BudgetError: a class has fewer items than crops are needed, or fewer are looked at.
    """
    axes, lengths = _cells(data, factor)
    teacher = ctx.teachers()[0]
    needed = per_class * factor ** len(axes)
    found = []
    for c in ctx.classes:
        generator = ctx.streams.torch("crops", c)
        members = data.class_index[c]
        members = members[torch.randperm(len(members), generator=generator)[:images]]
        if len(members) < needed and not top_up:
            raise BudgetError(
                f"{needed} crops of each class are needed (ipc {per_class}, factor {factor}), and of class "
                f"{data.info.classes[c]!r} {len(members)} items are looked at. Lower ipc or factor, raise "
                f"init_options.images (now {images}), or allow repeats (--set distill.top_up=true)."
            )
        pieces, scores = [], []
        for part in members.split(_PASS):
            tried = torch.stack([_crop(data.batch(part).inputs, axes, lengths, low, generator) for _ in range(crops)])
            score = torch.stack([_score(teacher, one, c, data.info.shape, axes, ctx.device) for one in tried])
            best = score.argmin(0)
            here = torch.arange(len(part))
            pieces.append(tried[best, here])
            scores.append(score[best, here])
        chosen = torch.cat(pieces)[_keep(torch.cat(scores), needed, band)]
        found.append(tiled(chosen.view(per_class, -1, *chosen.shape[1:]), axes, factor))
    return torch.cat(found)


def _cells(data: RealData, factor: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The cell axes, and the length of a crop along each."""
    info = data.info
    if not info.cell_axes:
        raise ConfigError(
            f"selector 'crops' cuts items along their cell axes; {info.domain!r} has none. Use 'herding' or 'random'."
        )
    lengths = [info.shape[axis] for axis in info.cell_axes]
    if any(length % factor for length in lengths):
        raise ConfigError(f"init_options.factor = {factor} must divide the lengths {lengths} of an item")
    return info.cell_axes, tuple(length // factor for length in lengths)


def _crop(x: Tensor, axes: tuple[int, ...], lengths: tuple[int, ...], low: float, generator: torch.Generator) -> Tensor:
    """One random crop of each row, (rows, *item) with ``lengths`` along ``axes``."""
    whole = torch.tensor([x.shape[axis] for axis in axes])
    share = low + (1 - low) * torch.rand(len(x), 1, generator=generator, dtype=torch.float64)
    sizes = (whole * share ** (1 / len(axes))).round().clamp(min=1)
    place = torch.rand(len(x), len(axes), generator=generator, dtype=torch.float64)
    starts = torch.minimum((place * (whole - sizes + 1)).floor(), whole - sizes)
    return parts_of(x, axes, starts, sizes, lengths)


def _score(
    teacher: torch.nn.Module, x: Tensor, c: int, shape: tuple[int, ...], axes: tuple[int, ...], device: torch.device
) -> Tensor:
    """Cross-entropy of each crop with class ``c``, (rows,)."""
    for axis in axes:
        missing = shape[axis] - x.shape[axis]
        if missing:
            before = [0, 0] * (-axis - 1) + [missing // 2, missing - missing // 2]
            x = F.pad(x, before)
    with torch.no_grad():
        logits = teacher(x.to(device)).float().cpu()
    return F.cross_entropy(logits, torch.full((len(x),), c), reduction="none")


def _keep(scores: Tensor, count: int, band: str) -> Tensor:
    """Positions of those that stay, the clearest first; repeated in turn where there are too few."""
    order = torch.argsort(scores, stable=True)
    if band == "medium":
        order = order[max(0, (len(order) - count) // 2) :]
    return order[torch.arange(count) % len(order)]


def tiled(cells: Tensor, axes: tuple[int, ...], factor: int) -> Tensor:
    """Mosaics of ``factor`` cells along each axis.

    Args:
        cells: (inputs, factor ** axes, *cell); the last axis varies fastest.
        axes: negative item axes.
        factor: cells along each.

    Returns:
        (inputs, *item).
    """
    parts = list(cells.unbind(1))
    for axis in reversed(axes):
        parts = [torch.cat(parts[i : i + factor], axis) for i in range(0, len(parts), factor)]
    return parts[0]
