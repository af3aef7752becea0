"""Keeping the iterate that does best on validation rows.

Matching objectives go on falling while the set they make gets worse (gradient matching on graphs loses twenty points
within a few hundred steps), so published code looks at its set every so often. Here that look is at validation rows
alone; test rows choose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ddfed.errors import ConfigError
from ddfed.kit import Kit
from ddfed.settings import PartSettings

#: Kit as it is, outer steps made -> how good its set is, the higher the better.
Judge = Callable[[Kit, int], float]


class Keeper:
    """Remembers the best stored values and labels of a run; the first of equals.

    Args:
        parts: says when to look (``keep``).
        judge: says how good a set is; None where there is nobody to ask.

    Raises:
        ConfigError: a look is asked for and there is no judge, or the set is made in stages.
    """

    def __init__(self, parts: PartSettings, judge: Judge | None) -> None:
        self.settings, self.steps, self.judge = parts.keep, parts.steps, judge
        self.score, self.step = -math.inf, 0
        self.kept: dict[str, dict[str, Tensor]] = {}
        if self.settings.every and parts.stages.count > 1:
            raise ConfigError("a set made in stages has no iterate to go back to; set distill.keep.every = 0")
        if self.settings.every and judge is None:
            raise ConfigError(
                "distill.keep.every asks for trials on validation rows, and there are none here: the data set has no "
                "validation split, or this is a client of a federation. Set distill.keep.every = 0 to keep the last."
            )

    def look(self, kit: Kit, step: int) -> None:
        """Try the set after ``step`` outer steps, if it is time."""
        every = self.settings.every
        if not every or self.judge is None or (step % every and step != self.steps):
            return
        if step <= self.settings.begins * self.steps:
            return
        score = self.judge(kit, step)
        if score > self.score:
            self.score, self.step = score, step
            self.kept = {"store": _copied(kit.store.params), "labels": _copied(kit.labels.params)}

    def restore(self, kit: Kit) -> None:
        """Put the best values in place of the last ones."""
        if not self.kept:
            return
        with torch.no_grad():
            for name, tensor in kit.store.params.items():
                tensor.copy_(self.kept["store"][name])
            for name, tensor in kit.labels.params.items():
                tensor.copy_(self.kept["labels"][name])

    @property
    def provenance(self) -> dict[str, Any]:
        """For the card: which iterate was kept, and how it did."""
        return {"kept": {"step": self.step, "validation": self.score}} if self.kept else {}

    def state(self) -> dict[str, Any]:
        return {"score": self.score, "step": self.step, "kept": self.kept} if self.kept else {}

    def load(self, state: Mapping[str, Any]) -> None:
        if state:
            self.score, self.step, self.kept = float(state["score"]), int(state["step"]), dict(state["kept"])


def _copied(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in params.items()}
