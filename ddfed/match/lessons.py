"""What a student sees at each step of its training; the same whenever it is asked, so that the way back replays it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddfed.domain import Augmentation
from ddfed.match.adjoint import Minibatch
from ddfed.seeds import Streams

#: Step -> positions of the rows it is made on.
Pick = Callable[[int], Tensor]


@dataclass(frozen=True)
class Lessons:
    """Rows of each step, each row with an augmentation draw of its own.

    Args:
        pick: one of the orders below.
        augmentation: or None.
        streams: of the outer step.
    """

    pick: Pick
    augmentation: Augmentation | None
    streams: Streams

    def __call__(self, t: int) -> Minibatch:
        rows = self.pick(t)
        if self.augmentation is None:
            return Minibatch(rows)
        return Minibatch(rows, self.augmentation.draw(len(rows), self.streams.torch("draw", t), one_op=True))


def shuffled(rows: int, batch: int, streams: Streams) -> Pick:
    """``batch`` rows of a random order, a new one when it is used up; all rows where there are no more."""

    def pick(t: int) -> Tensor:
        if batch >= rows:
            return torch.arange(rows)
        epoch, chunk = divmod(t, -(-rows // batch))
        return torch.randperm(rows, generator=streams.torch("order", epoch)).split(batch)[chunk]

    return pick


def balanced(members: Sequence[Tensor], batch: int, streams: Streams) -> Pick:
    """``batch`` rows of each class, drawn anew at every step.

    Args:
        members: positions of the rows of each class.
        batch: how many of each; all where there are fewer.
        streams: of the outer step.
    """

    def pick(t: int) -> Tensor:
        stream = streams.torch("order", t)
        return torch.cat([rows[torch.randperm(len(rows), generator=stream)[:batch]] for rows in members])

    return pick


def blocks(rows: int, count: int) -> Pick:
    """Row i belongs to block i mod ``count``, and blocks take turns."""
    return lambda t: torch.arange(t % count, rows, count)
