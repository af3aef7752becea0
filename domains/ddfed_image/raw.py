"""What the loaders share: the form of a data set as stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Options = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class RawImages:
    """A data set as stored.

    Args:
        train_inputs: (rows, C, H, W) uint8.
        train_labels: (rows,) int64.
        test_inputs: as ``train_inputs``.
        test_labels: as ``train_labels``.
        classes: class names; the position is the label.
        source: what was read, in words for the card.
        licence: as the source states it.
        scale: factor from stored values to pixels in [0, 1].
        mean: published channel means of the pixels; empty to compute them from the training split.
        std: published channel deviations; empty with ``mean``.
        mirrors: whether a mirror image keeps its class.
        train_groups: (rows,) int64, whose each image is; None where that is not known.
        test_groups: as ``train_groups``, numbered alike.
    """

    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    source: str
    licence: str = "not stated"
    scale: float = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    mirrors: bool = True
    train_groups: Tensor | None = None
    test_groups: Tensor | None = None
