"""The contract of a parametrisation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddfed.data import TaskInfo
from ddfed.errors import ArtifactError, ConfigError


class Store(ABC):
    """Learnable tensors and the differentiable map from them to network inputs.

    An *item* is a unit of storage that has a class; a *row* is what a network sees. One item may decode to
    several rows of its class.

    Args:
        info: public facts about the task.
        classes: class of each stored item, (items,) int64.
        options: the parametrisation's own settings, JSON values; kept unchanged.

    Attributes:
        params: learnable tensors by name, one row per item but for those in `shared`.
        buffers: tensors that are stored and not learned (masks, indices), likewise.
    """

    name: ClassVar[str]
    #: defaults of the options this parametrisation knows
    defaults: ClassVar[Mapping[str, Any]] = {}
    #: names of params and buffers that all items use together, such as a basis
    shared: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, info: TaskInfo, classes: Tensor, **options: Any) -> None:
        unknown = sorted(set(options) - set(self.defaults))
        if unknown:
            raise ConfigError(f"store {self.name!r} has no option {unknown[0]!r}; it knows {sorted(self.defaults)}")
        self.info = info
        self.classes = classes
        self.items = len(classes)
        self.options = {**self.defaults, **options}
        self.params: dict[str, Tensor] = {
            name: torch.zeros(shape, requires_grad=True) for name, shape in self.shapes().items()
        }
        self.buffers: dict[str, Tensor] = {
            name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in self.buffer_shapes().items()
        }

    @classmethod
    def items_per_class(cls, info: TaskInfo, ipc: int, classes: int, **options: Any) -> int:
        """Items of each class that fit in the bytes of ``ipc`` plain items.

        Args:
            info: public facts about the task.
            ipc: the budget, in plain items per class.
            classes: classes that share what is shared.
            options: the parametrisation's settings.

        Raises:
            BudgetError: not even one fits.
        """
        return ipc

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each learnable tensor; the first axis of ``items`` length where items are separate."""

    def buffer_shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each tensor that is stored and not learned."""
        return {}

    @abstractmethod
    def decode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the given items, differentiable in `params`.

        Args:
            items: item numbers, shape (k,).

        Returns:
            The rows in model space, (rows, *info.shape), and for each row the position in ``items`` of the
            item it came from, (rows,).
        """

    @property
    def rows_per_item(self) -> int:
        """Decoded rows per stored item."""
        return 1

    @property
    def seeds_per_item(self) -> int:
        """How many network inputs `fill` takes per item."""
        return 1

    @abstractmethod
    def fill(self, rows: Tensor) -> None:
        """Initialise from inputs in model space, shape (items, seeds_per_item, *info.shape)."""

    def constrain(self) -> None:
        """Put the stored values back where they mean something (clamp to the natural range). Idempotent."""
        with torch.no_grad():
            for tensor in self.params.values():
                tensor.copy_(self.info.space.clamp(tensor))

    def take(self, items: Tensor) -> Store:
        """A store that holds the given items only; what is shared stays whole."""
        taken = type(self)(self.info, self.classes[items], **self.options)
        taken.load({name: t if name in self.shared else t[items] for name, t in self.tensors().items()})
        return taken

    def tensors(self) -> dict[str, Tensor]:
        """Everything that must be stored, detached."""
        return {**{name: t.detach() for name, t in self.params.items()}, **self.buffers}

    @property
    def size_bytes(self) -> int:
        """Bytes of the stored tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    @property
    def plain_items_per_class(self) -> float:
        """The stored bytes in plain items per class: what a budget is counted in."""
        plain = 4 * math.prod(self.info.shape)
        return self.size_bytes / (plain * max(1, len(self.classes.unique())))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over stored values. Raises `ArtifactError` when names, shapes or types do not fit."""
        learned, fixed = self.shapes(), self.buffer_shapes()
        want = {**learned, **{name: shape for name, (shape, _) in fixed.items()}}
        got = {name: tuple(t.shape) for name, t in tensors.items()}
        if got != want:
            raise ArtifactError(f"parametrisation {self.name!r} stores {want}, got {got}")
        for name in learned:
            if not tensors[name].is_floating_point():
                kind = tensors[name].dtype
                raise ArtifactError(f"parametrisation {self.name!r} stores floats, got {name!r} of {kind}")
        for name, (_, dtype) in fixed.items():
            if tensors[name].dtype != dtype:
                raise ArtifactError(
                    f"parametrisation {self.name!r}: {name!r} must be {dtype}, is {tensors[name].dtype}"
                )
        self.params = {name: tensors[name].detach().clone().requires_grad_() for name in learned}
        self.buffers = {name: tensors[name].detach().clone() for name in fixed}
        self.check_buffers()

    def check_buffers(self) -> None:  # noqa: B027 - optional
        """Raise `ArtifactError` when a stored index points outside; called after `load`."""


def view_of(origin: Tensor) -> Tensor:
    """For each row, which view of its item it is: 0 for the first row of an item, 1 for its second, ...

    Args:
        origin: item of each row, (rows,), as `Store.decode` gives it.
    """
    order = torch.argsort(origin, stable=True)
    counts = torch.bincount(origin)
    first = (counts.cumsum(0) - counts)[origin[order]]
    view = torch.empty_like(origin)
    view[order] = torch.arange(len(origin)) - first
    return view
