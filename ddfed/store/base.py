"""The contract of a parametrisation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddfed.data import TaskInfo
from ddfed.errors import ArtifactError, BudgetError, ConfigError
from ddfed.seeds import Streams

#: Randomness of a store that is filled outside a run.
UNSEEDED = Streams(0)


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
    shared: frozenset[str] = frozenset()
    #: rows are samples: `redrawn` gives others each time, and whoever trains on hard labels asks it for every epoch
    drawn: ClassVar[bool] = False
    #: rows are what they are to each other as well (the nodes of a graph): `decode` gives (rows, features + rows), the
    #: latter what lies between a row and each of the rows decoded with it. A network must see them together
    coupled: ClassVar[bool] = False

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

        What is stored grows evenly with the items, so the sizes for one and for two of each class tell all. Coupled
        rows are counted themselves, as what lies between them grows with their square.

        Raises:
            BudgetError: not even one fits; the message says from which budget on it does.
        """
        if cls.coupled:
            return ipc
        with torch.device("meta"):  # sizes without memory
            one, two = (cls(info, _numbers(classes, each), **options).size_bytes for each in (1, 2))
        plain = 4 * math.prod(info.shape) * classes
        fitting = 1 + (ipc * plain - one) // (two - one)
        if fitting < 1:
            raise BudgetError(
                f"store {cls.name!r} takes {one} bytes with one item of each of {classes} classes, of which "
                f"{2 * one - two} do not grow with the items, and ipc {ipc} gives {ipc * plain}. It fits from ipc "
                f"{-(-one // plain)} on; or make it smaller by distill.store_options "
                f"({', '.join(cls.defaults) or 'it has none'})."
            )
        return fitting

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

    def redrawn(self, items: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """As `decode`, with rows drawn anew where rows are `drawn`; an item that is asked twice gives two rows."""
        return self.decode(items)

    @property
    def batch(self) -> int:
        """Rows of each class that a step of learning asks of `redrawn` at least."""
        return 1

    @property
    def rows_per_item(self) -> int:
        """Decoded rows per stored item."""
        return 1

    @property
    def seeds_per_item(self) -> int:
        """How many network inputs `fill` takes per item."""
        return 1

    @abstractmethod
    def fill(self, rows: Tensor, streams: Streams = UNSEEDED) -> None:
        """Initialise what is learned and what is not.

        Args:
            rows: inputs in model space, shape (items, seeds_per_item, *info.shape).
            streams: for what starts at random.
        """

    def fill_noise(self, streams: Streams = UNSEEDED) -> None:
        """Initialise without any real row: here by standard normal rows.

        Args:
            streams: for the rows, and for what starts at random beside them.
        """
        shape = (self.items, self.seeds_per_item, *self.info.shape)
        self.fill(torch.randn(shape, generator=streams.torch("init noise")), streams.child("store"))

    def constrain(self) -> None:
        """Put the stored values back where they mean something. Idempotent.

        Here: clamp to the natural range. A store whose values have no range of their own does nothing.
        """
        with torch.no_grad():
            for tensor in self.params.values():
                tensor.copy_(self.info.space.clamp(tensor))

    def learns(self, step: int) -> frozenset[str]:
        """Which params an outer step (0-based) moves: all, unless parts of a store take turns."""
        return frozenset(self.params)

    def rates(self) -> Mapping[str, float]:
        """Step sizes of params that have one of their own, in place of that of the run."""
        return {}

    def released(self) -> Store:
        """What is kept when nothing is learned any more: itself, or a plainer store that decodes to the same rows."""
        return self

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
        """The stored bytes in plain items per class: what a budget is counted in. The items themselves if coupled."""
        if self.coupled:
            return self.items / max(1, len(self.classes.unique()))
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

    def whole(self, option: str, low: int, high: int | None = None) -> int:
        """An option that must be a whole number from ``low`` to ``high``. Raises `ConfigError` otherwise."""
        value = self.options[option]
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= (value if high is None else high):
            return value
        allowed = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ConfigError(
            f"store {self.name!r}: {option} must be an integer {allowed} for items of shape {self.info.shape}, "
            f"got {value!r}"
        )

    def share(self, option: str) -> float:
        """An option that must be a number above 0 and up to 1. Raises `ConfigError` otherwise."""
        value = self.options[option]
        if _is_number(value) and 0 < value <= 1:
            return float(value)
        raise ConfigError(f"store {self.name!r}: {option} must be a number above 0 and up to 1, got {value!r}")

    def number(self, option: str, *, positive: bool = False) -> float:
        """An option that must be a number of at least 0, or above it. Raises `ConfigError` otherwise."""
        value = self.options[option]
        if _is_number(value) and 0 <= value < math.inf and (value or not positive):
            return float(value)
        least = "above" if positive else "of at least"
        raise ConfigError(f"store {self.name!r}: {option} must be a number {least} 0, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _numbers(classes: int, each: int) -> Tensor:
    """``each`` items of ``classes`` classes."""
    return torch.arange(classes, device="cpu").repeat_interleave(each)


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
