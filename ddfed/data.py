"""Real data: compact tensors in memory, a class index, splits, and the public facts about a task."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ddfed.errors import ConfigError, DataError
from ddfed.space import Space


@dataclass(frozen=True)
class TaskInfo:
    """Public facts about a task: whatever may be known without touching a single record.

    Args:
        domain: name of the modality adapter, such as ``"image"``.
        dataset: name of the data set within the domain.
        shape: shape of one item in model space, such as ``(3, 32, 32)``.
        classes: class names; the position is the label.
        space: map between natural and model values.
        cell_axes: negative axes of an item that may be cut in cells and upsampled (multi-formation); empty
            if the modality has none.
        mirror_axis: negative axis whose reversal leaves the class unchanged, or None (digits, text).
        licence: licence of the data as its source states it.
        source: what was loaded, in words for the card.
    """

    domain: str
    dataset: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    space: Space
    cell_axes: tuple[int, ...] = ()
    mirror_axis: int | None = None
    licence: str = "not stated"
    source: str = ""

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def with_outputs(self, count: int) -> TaskInfo:
        """The task for whose items a network gives ``count`` numbers, which need not be classes."""
        return self if count == self.num_classes else replace(self, classes=tuple(map(str, range(count))))


@dataclass(frozen=True)
class Batch:
    """Some real rows, ready for a network.

    Args:
        inputs: model-space values, shape (rows, *item), float32. Where a row cannot be seen apart from others (a node
            and its graph), an object of the domain's that has a length and ``to``, and that its networks understand.
        classes: hard class of each row, shape (rows,), int64; used for grouping.
    """

    inputs: Any
    classes: Tensor

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True, eq=False)
class RealData:
    """Labelled rows in memory, kept compact (uint8 images stay uint8) until a batch is asked for.

    Args:
        inputs: (rows, *item), any dtype; ``inputs * scale`` are natural values.
        labels: (rows,) int64 in ``range(info.num_classes)``.
        info: public facts.
        scale: factor from stored to natural values (1/255 for uint8 pixels).
        groups: (rows,) int64, whose each row is (writer, speaker, site), where the data say so; only equality counts,
            within a task. Natural partitions go by it. It does not enter `content_hash`.

    Raises:
        DataError: no rows, lengths differ, or a label is out of range.
    """

    inputs: Tensor
    labels: Tensor
    info: TaskInfo
    scale: float = 1.0
    groups: Tensor | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels):
            raise DataError(f"{self.info.dataset}: {len(self.inputs)} inputs but {len(self.labels)} labels")
        if len(self.labels) and (int(self.labels.min()) < 0 or int(self.labels.max()) >= self.info.num_classes):
            raise DataError(
                f"{self.info.dataset}: labels run from {int(self.labels.min())} to {int(self.labels.max())}, "
                f"but there are {self.info.num_classes} classes"
            )
        if self.groups is not None and self.groups.shape != self.labels.shape:
            raise DataError(f"{self.info.dataset}: {len(self.labels)} rows but groups {tuple(self.groups.shape)}")

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def class_index(self) -> tuple[Tensor, ...]:
        """Row numbers of each class, in order; empty for a class nobody holds."""
        order = torch.argsort(self.labels, stable=True)
        return tuple(order.split(self.class_counts.tolist()))

    @cached_property
    def class_counts(self) -> Tensor:
        """(classes,) int64."""
        return torch.bincount(self.labels, minlength=self.info.num_classes)

    def subset(self, rows: Tensor | Sequence[int]) -> RealData:
        """The given rows, copied, in the given order."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        return replace(self, inputs=self.inputs[index], labels=self.labels[index], groups=self._groups_of(index))

    def seen(self, view: Callable[[Tensor], Tensor]) -> RealData:
        """The same rows as an instrument shows them.

        Args:
            view: natural values, (rows, *item) float32, to natural values of the same shape.

        Raises:
            DataError: the view changes the shape or gives values that are not finite, or stored values are no
                measurements but numbers of things (nodes, words).
        """
        if not self.inputs.is_floating_point() and self.scale == 1.0:
            raise DataError(f"{self.info.dataset}: rows are numbers of things, which no instrument shows otherwise")
        natural = self.inputs.to(torch.float32) * self.scale
        natural = view(natural) if len(self) else natural
        if natural.shape != self.inputs.shape or not bool(torch.isfinite(natural).all()):
            raise DataError(
                f"{self.info.dataset}: a view must keep the shape {tuple(self.inputs.shape)} and give finite values; "
                f"it gave {tuple(natural.shape)}"
            )
        return replace(self, inputs=natural, scale=1.0)

    def _groups_of(self, rows: Tensor) -> Tensor | None:
        return None if self.groups is None else self.groups[rows]

    # What a federation divides among its clients. A domain whose rows are tied to each other says it in its own way.

    @property
    def units(self) -> int:
        """How many things there are to divide: the rows; of a graph all nodes, of which the rows are some."""
        return len(self)

    def rows_of(self, units: Tensor) -> Tensor:
        """Rows of somebody who holds some units, rising, (k,) int64."""
        return units

    def units_of(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Units of each client where a split has dealt the rows alone; every unit goes to one client."""
        return list(parts)

    def within(self, units: Tensor) -> RealData:
        """What somebody has who holds only some units."""
        return self.subset(units)

    def severed(self, parts: Sequence[Tensor]) -> RealData:
        """Everything, but without what ties units of different clients."""
        return self

    def ties(self, parts: Sequence[Tensor]) -> dict[str, tuple[int, int]]:
        """What ties units and is lost where two clients hold its ends: name -> (kept, all); empty where rows are free.

        Args:
            parts: units of each client.
        """
        return {}

    def batch(self, rows: Tensor) -> Batch:
        """Rows in model space."""
        natural = self.inputs[rows].to(torch.float32) * self.scale
        return Batch(self.info.space.encode(natural), self.labels[rows])

    def items(self, rows: Tensor, coupled: bool = False) -> Tensor:
        """Rows as a store is filled with them, (k, *item) in model space: what of a row is its own.

        Args:
            rows: row numbers, (k,).
            coupled: for a store of coupled rows (`ddfed.store.Store.coupled`), with what lies between them, in the form
                that such a store decodes to. Only a domain with coupled rows has one.
        """
        if coupled:
            raise DataError(f"rows of {self.info.dataset!r} have nothing between them; take a store of separate rows")
        return self.batch(rows).inputs

    def passes(self, rows: Tensor, chunk: int) -> tuple[Tensor, ...]:
        """The rows in as few passes through a network as ``chunk`` allows, of about equal size."""
        return rows.chunk(max(1, -(-len(rows) // chunk)))

    def all(self) -> Batch:
        """Every row in model space; mind the memory (32x32 colour images: 12 kB each)."""
        return self.batch(torch.arange(len(self)))

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over stored inputs and labels."""
        digest = hashlib.sha256()
        for tensor in (self.inputs, self.labels):
            digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Task:
    """A data set with its splits.

    Args:
        info: public facts.
        train: the data to distil.
        test: touched by evaluation only, once, at its end.
        validation: rows by which an epoch or an iterate is chosen; None where a data set has none of its own.
    """

    info: TaskInfo
    train: RealData
    test: RealData
    validation: RealData | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def limit(self, train: int | None, test: int | None) -> Task:
        """The first rows of each split after a class-balanced interleave; for reduced settings.

        Raises:
            ConfigError: a limit is smaller than the number of classes.
        """

        def cut(data: RealData, rows: int | None, name: str) -> RealData:
            if rows is None or rows >= len(data):
                return data
            if rows < data.info.num_classes:
                raise ConfigError(f"{name} = {rows} is smaller than the {data.info.num_classes} classes")
            # Rank of each row within its class; sorting by it takes one of each class in turn.
            rank = torch.empty(len(data), dtype=torch.int64)
            for members in data.class_index:
                rank[members] = torch.arange(len(members))
            return data.subset(torch.argsort(rank, stable=True)[:rows].sort().values)

        return replace(self, train=cut(self.train, train, "train_limit"), test=cut(self.test, test, "test_limit"))

    def in_space(self, space: Space) -> Task:
        """The same rows seen through another space: owners whose values were measured apart must agree on one."""
        info = replace(self.info, space=space)
        train, test = replace(self.train, info=info), replace(self.test, info=info)
        validation = None if self.validation is None else replace(self.validation, info=info)
        return replace(self, info=info, train=train, test=test, validation=validation)
