"""Labels that are learned with the items."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from ddfed.errors import ConfigError
from ddfed.store.labels.base import LabelStore, checked_options, stored_classes, stored_values


class _Learned(LabelStore):
    """One learned vector of class values per item.

    Attributes:
        params: the one tensor `values_name`, (items, classes).
    """

    values_name: ClassVar[str]

    def __init__(self, classes: Tensor, num_classes: int, views: int = 1, **options: Any) -> None:
        super().__init__(classes, num_classes, views, **options)
        values = F.one_hot(classes, num_classes).float() - self.base
        self.params = {self.values_name: (values * self.options["strength"]).requires_grad_()}

    @property
    def base(self) -> float:
        """What a class that is not the item's own starts below zero."""
        return 0.0

    def targets(self, items: Tensor, views: Tensor | None = None) -> Tensor:
        return self.params[self.values_name][items]

    def tensors(self) -> dict[str, Tensor]:
        return {"classes": self.classes, self.values_name: self.params[self.values_name].detach()}

    @classmethod
    def load(cls, tensors: dict[str, Tensor], num_classes: int, **options: Any) -> LabelStore:
        store = cls(stored_classes(tensors, num_classes), num_classes, **checked_options(cls, options))
        shape = (len(store.classes), num_classes)
        store.params = {cls.values_name: stored_values(tensors, cls.name, cls.values_name, shape).requires_grad_()}
        return store


class LogitLabels(_Learned):
    """Learned logits, consumed by cross-entropy against their softmax (DATM's form).

    The stored values are logits: a second softmax elsewhere halves the accuracy.

    Options:
        start: ``class``, a logit for the item's own class; or ``trained``, the mean logits of networks trained on real
            data that classify the item as its own (DATM).
        strength: of start ``class``: the logit of the item's own class; 0 elsewhere.
    """

    name = "logits"
    loss_name = "soft cross-entropy of softmax(logits)"
    values_name = "logits"
    defaults = {"strength": 5.0, "start": "class"}

    def __init__(self, classes: Tensor, num_classes: int, views: int = 1, **options: Any) -> None:
        super().__init__(classes, num_classes, views, **options)
        if self.options["start"] not in ("class", "trained"):
            raise ConfigError(f"label store 'logits': start is 'class' or 'trained', got {self.options['start']!r}")

    @property
    def begins_taught(self) -> bool:
        return self.options["start"] == "trained"

    def begin(self, logits: Tensor) -> None:
        self.params[self.values_name].data.copy_(logits)

    @staticmethod
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return -(targets.softmax(1) * logits.log_softmax(1)).sum(1)

    def vectors(self, targets: Tensor) -> Tensor:
        return targets.softmax(1) - 1 / self.num_classes


class VectorLabels(_Learned):
    """Learned vectors that start as the centred one-hot of the class, consumed by squared distance.

    The label of kernel and ridge-regression methods: y = strength (e_c - 1/K), free afterwards.

    Source: Nguyen et al., KIP, ICLR 2021 (strength 1); Zhou et al., FRePo, NeurIPS 2022 (strength
    1 / sqrt(K / 10)).

    Options:
        strength: length factor of the initial vectors.
    """

    name = "vectors"
    loss_name = "half the squared distance to the vector"
    values_name = "vectors"
    defaults = {"strength": 1.0}

    @property
    def base(self) -> float:
        return 1 / self.num_classes

    @staticmethod
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (logits - targets).square().sum(1)

    def vectors(self, targets: Tensor) -> Tensor:
        return targets
