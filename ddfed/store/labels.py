"""Label stores. The loss that consumes a label belongs to it, because evaluation must use the same one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.domain import Network
from ddfed.errors import ArtifactError, ConfigError


class LabelStore(ABC):
    """Labels of the stored items.

    Args:
        classes: the class each item was made for, (items,) int64.
        num_classes: number of classes of the task.
        views: rows that an item decodes to; a store of labels may keep one for each.
        options: the store's own settings, JSON values; kept unchanged.

    Raises:
        ConfigError: an unknown option.
    """

    name: ClassVar[str]
    loss_name: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {}
    #: `teach` must be called: the labels are a trained network's answers
    taught: ClassVar[bool] = False

    def __init__(self, classes: Tensor, num_classes: int, views: int = 1, **options: Any) -> None:
        unknown = sorted(set(options) - set(self.defaults))
        if unknown:
            raise ConfigError(
                f"label store {self.name!r} has no option {unknown[0]!r}; it knows {sorted(self.defaults)}"
            )
        self.classes = classes
        self.num_classes = num_classes
        self.views = views
        self.options = {**self.defaults, **options}
        self.params: dict[str, Tensor] = {}

    @abstractmethod
    def targets(self, items: Tensor, views: Tensor | None = None) -> Tensor:
        """What `loss` takes.

        Args:
            items: item of each row, (rows,).
            views: which view of its item each row is, (rows,); see `ddfed.store.view_of`. None for the first.
        """

    def teach(self, teacher: Network, rows: Tensor, items: Tensor, views: Tensor) -> None:  # noqa: B027 - optional
        """Take labels from a network trained on real data.

        Called when items are filled, and again when they are finished.

        Args:
            teacher: in evaluation mode.
            rows: decoded rows in model space on the teacher's device.
            items: item of each row.
            views: view of each row.
        """

    @staticmethod
    @abstractmethod
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, shape (rows,)."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything that must be stored."""

    @classmethod
    @abstractmethod
    def load(cls, tensors: dict[str, Tensor], num_classes: int, **options: Any) -> LabelStore:
        """Inverse of `tensors`. Raises `ArtifactError` when something is missing or out of range."""


def _classes(tensors: dict[str, Tensor], num_classes: int) -> Tensor:
    classes = tensors.get("classes")
    if classes is None or classes.is_floating_point() or classes.ndim != 1:
        raise ArtifactError("labels need the integer tensor 'classes' of shape (items,)")
    if len(classes) and (int(classes.min()) < 0 or int(classes.max()) >= num_classes):
        raise ArtifactError(f"stored classes leave the range 0 to {num_classes - 1}")
    return classes.to(torch.int64)


class HardLabels(LabelStore):
    """One class per item, consumed by cross-entropy."""

    name = "hard"
    loss_name = "cross-entropy"

    def targets(self, items: Tensor, views: Tensor | None = None) -> Tensor:
        return self.classes[items]

    @staticmethod
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, reduction="none")

    def tensors(self) -> dict[str, Tensor]:
        return {"classes": self.classes}

    @classmethod
    def load(cls, tensors: dict[str, Tensor], num_classes: int, **options: Any) -> HardLabels:
        return cls(_classes(tensors, num_classes), num_classes, **options)


class LogitLabels(LabelStore):
    """Learned logits, consumed by cross-entropy against their softmax (DATM's form).

    The stored values are logits: a second softmax elsewhere halves the accuracy.

    Options:
        strength: initial logit of the item's own class; 0 elsewhere.
    """

    name = "logits"
    loss_name = "soft cross-entropy of softmax(logits)"
    defaults = {"strength": 5.0}

    def __init__(self, classes: Tensor, num_classes: int, views: int = 1, **options: Any) -> None:
        super().__init__(classes, num_classes, views, **options)
        logits = F.one_hot(classes, num_classes) * self.options["strength"]
        self.params = {"logits": logits.float().requires_grad_()}

    def targets(self, items: Tensor, views: Tensor | None = None) -> Tensor:
        return self.params["logits"][items]

    @staticmethod
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return -(targets.softmax(1) * logits.log_softmax(1)).sum(1)

    def tensors(self) -> dict[str, Tensor]:
        return {"classes": self.classes, "logits": self.params["logits"].detach()}

    @classmethod
    def load(cls, tensors: dict[str, Tensor], num_classes: int, **options: Any) -> LogitLabels:
        store = cls(_classes(tensors, num_classes), num_classes, **options)
        logits = tensors.get("logits")
        if logits is None or logits.shape != store.params["logits"].shape:
            raise ArtifactError(f"label store 'logits' needs logits of shape {tuple(store.params['logits'].shape)}")
        store.params = {"logits": logits.detach().clone().float().requires_grad_()}
        return store
