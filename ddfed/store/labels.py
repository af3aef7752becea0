"""Label stores. The loss that consumes a label belongs to it, because evaluation must use the same one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.errors import ArtifactError


class LabelStore(ABC):
    """Labels of the stored items.

    Args:
        classes: the class each item was made for, (items,) int64.
        num_classes: number of classes of the task.
    """

    name: ClassVar[str]
    loss_name: ClassVar[str]

    def __init__(self, classes: Tensor, num_classes: int) -> None:
        self.classes = classes
        self.num_classes = num_classes
        self.params: dict[str, Tensor] = {}

    @abstractmethod
    def targets(self, items: Tensor) -> Tensor:
        """What `loss` takes for the given items."""

    @staticmethod
    @abstractmethod
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, shape (rows,)."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything that must be stored."""

    @classmethod
    @abstractmethod
    def load(cls, tensors: dict[str, Tensor], num_classes: int) -> LabelStore:
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

    def targets(self, items: Tensor) -> Tensor:
        return self.classes[items]

    @staticmethod
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, reduction="none")

    def tensors(self) -> dict[str, Tensor]:
        return {"classes": self.classes}

    @classmethod
    def load(cls, tensors: dict[str, Tensor], num_classes: int) -> HardLabels:
        return cls(_classes(tensors, num_classes), num_classes)


class LogitLabels(LabelStore):
    """Learned logits, consumed by cross-entropy against their softmax (DATM's form).

    The stored values are logits: a second softmax elsewhere halves the accuracy.

    Args:
        strength: initial logit of the item's own class; 0 elsewhere.
    """

    name = "logits"
    loss_name = "soft cross-entropy of softmax(logits)"

    def __init__(self, classes: Tensor, num_classes: int, strength: float = 5.0) -> None:
        super().__init__(classes, num_classes)
        self.params = {"logits": (F.one_hot(classes, num_classes) * strength).float().requires_grad_()}

    def targets(self, items: Tensor) -> Tensor:
        return self.params["logits"][items]

    @staticmethod
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return -(targets.softmax(1) * logits.log_softmax(1)).sum(1)

    def tensors(self) -> dict[str, Tensor]:
        return {"classes": self.classes, "logits": self.params["logits"].detach()}

    @classmethod
    def load(cls, tensors: dict[str, Tensor], num_classes: int) -> LogitLabels:
        store = cls(_classes(tensors, num_classes), num_classes)
        logits = tensors.get("logits")
        if logits is None or logits.shape != store.params["logits"].shape:
            raise ArtifactError(f"label store 'logits' needs logits of shape {tuple(store.params['logits'].shape)}")
        store.params = {"logits": logits.detach().clone().float().requires_grad_()}
        return store
