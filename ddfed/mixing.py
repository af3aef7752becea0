"""Mixing rows of a batch while a network trains. What was drawn is a value, so that a batch can be replayed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddfed.errors import ConfigError, one_of, suggest

KINDS = ("none", "mixup", "cutmix")


@dataclass(frozen=True)
class Mix:
    """How the rows of a batch are mixed.

    Args:
        kind: ``"mixup"`` or ``"cutmix"``.
        partner: the row that each is mixed with, (rows,) int64.
        numbers: mixup: the share that is a row's own, (1,) float; cutmix: first and last (excluded) position of the
            box along each cell axis, (axes, 2) int64.
    """

    kind: str
    partner: Tensor
    numbers: Tensor

    def __call__(self, x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, float]:
        """The rows so mixed, and the share of each that is its own.

        Args:
            x: (rows, *item).
            axes: negative item axes of the box.
        """
        other = x[self.partner.to(x.device)]
        if self.kind == "mixup":
            kept = float(self.numbers)
            return kept * x + (1 - kept) * other, kept
        return in_box(x, other, axes, self.numbers)


def draw_mix(
    kind: str, rows: int, shape: tuple[int, ...], axes: tuple[int, ...], generator: torch.Generator, alpha: float = 1.0
) -> Mix | None:
    """How a batch is mixed; None for ``"none"``.

    Args:
        kind: one of `KINDS`.
        rows: in the batch.
        shape: of an item.
        axes: negative item axes of CutMix's box.
        generator: CPU generator.
        alpha: mixup's share is drawn from Beta(alpha, alpha); CutMix's always from Beta(1, 1).
    """
    if kind == "none":
        return None
    partner = torch.randperm(rows, generator=generator)
    if kind == "mixup":
        return Mix(kind, partner, torch.tensor([beta(alpha, generator)]))
    return Mix(kind, partner, draw_box([shape[axis] for axis in axes], generator))


def check_kind(kind: str, axes: tuple[int, ...], where: str) -> None:
    """Raises `ConfigError` when rows cannot be mixed so."""
    if kind not in KINDS:
        raise ConfigError(f"{where} must be one of {one_of(KINDS)}, got {kind!r}.{suggest(str(kind), KINDS)}")
    if kind == "cutmix" and not axes:
        raise ConfigError(f"{where} = 'cutmix' cuts a box along cell axes, and these items have none. Use 'mixup'.")


def beta(alpha: float, generator: torch.Generator) -> float:
    """A number from Beta(alpha, alpha), alpha at most 1 or a little more (Joehnk 1964, exact; torch's takes no
    generator)."""
    while True:
        one, two = (torch.rand(2, generator=generator, dtype=torch.float64) ** (1 / alpha)).tolist()
        if 0 < one + two <= 1:
            return one / (one + two)


def draw_box(lengths: list[int], generator: torch.Generator) -> Tensor:
    """A box whose share of the item is drawn from Beta(1, 1), clipped at the borders, (axes, 2) int64."""
    edge = (1 - float(torch.rand((), generator=generator))) ** (1 / len(lengths))
    box = []
    for length in lengths:
        centre = int(torch.randint(length, (), generator=generator))
        half = int(length * edge) // 2
        box.append([max(centre - half, 0), min(centre + half, length)])
    return torch.tensor(box)


def in_box(x: Tensor, other: Tensor, axes: tuple[int, ...], box: Tensor) -> tuple[Tensor, float]:
    """``x`` with a box of ``other`` in it, and the share of each item that is its own."""
    mask = x.new_ones(x.shape[1:], dtype=torch.bool)
    inside = 1.0
    for axis, (low, high) in zip(axes, box.tolist()):
        length = x.shape[axis]
        along = torch.zeros(length, dtype=torch.bool, device=x.device)
        along[low:high] = True
        mask &= along.view(-1, *[1] * (-axis - 1))
        inside *= (high - low) / length
    return torch.where(mask, other, x), 1 - inside


def cutmix(x: Tensor, order: Tensor, axes: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, float]:
    """Put a box of the rows ``x[order]`` into ``x``.

    The kept share is drawn from Beta(1, 1) and then set to what the box, clipped at the borders, really
    leaves (Yun et al., CutMix, ICCV 2019).

    Args:
        x: (rows, *item).
        order: partner of each row.
        axes: negative item axes of the box.
        generator: CPU generator.

    Returns:
        The mixed rows, and the share of each item that is its own.
    """
    return in_box(x, x[order], axes, draw_box([x.shape[axis] for axis in axes], generator))
