"""The contract of a parametrisation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddfed.data import TaskInfo
from ddfed.errors import ArtifactError, ConfigError


class Store(ABC):
    """Learnable tensors and the differentiable map from them to network inputs.

    An *item* is a unit of storage and of the budget; a *row* is what a network sees. One item may decode to
    several rows of its class.

    Args:
        info: public facts about the task.
        items: number of stored items.
        options: the parametrisation's own settings, JSON values; kept unchanged.
    """

    name: ClassVar[str]
    #: defaults of the options this parametrisation knows
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, info: TaskInfo, items: int, **options: Any) -> None:
        unknown = sorted(set(options) - set(self.defaults))
        if unknown:
            raise ConfigError(f"store {self.name!r} has no option {unknown[0]!r}; it knows {sorted(self.defaults)}")
        self.info = info
        self.items = items
        self.options = {**self.defaults, **options}
        self.params: dict[str, Tensor] = {
            name: torch.zeros(shape, requires_grad=True) for name, shape in self.shapes().items()
        }

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each learnable tensor; the first axis of ``items`` length where items are separate."""

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
        """A store that holds the given items only (items must be separate along axis 0)."""
        taken = type(self)(self.info, len(items), **self.options)
        taken.load({name: t.detach()[items].clone() for name, t in self.params.items()})
        return taken

    @property
    def size_bytes(self) -> int:
        """Bytes of the stored tensors."""
        return sum(t.numel() * t.element_size() for t in self.params.values())

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over stored values. Raises `ArtifactError` when names or shapes do not fit."""
        want = self.shapes()
        got = {name: tuple(t.shape) for name, t in tensors.items()}
        if got != want:
            raise ArtifactError(f"parametrisation {self.name!r} stores {want}, got {got}")
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                raise ArtifactError(f"parametrisation {self.name!r} stores floats, got {name!r} of {tensor.dtype}")
        self.params = {name: tensors[name].detach().clone().requires_grad_() for name in want}
