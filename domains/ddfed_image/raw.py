"""What the loaders share: the form of a data set as stored, the fixed split, and the checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfed.errors import DataError, MissingDataError, one_of
from ddfed.seeds import Streams

#: Seed of the splits made here. Constant: a test set that changes with the run's seed is no test set.
SPLIT_SEED = 20_240_101

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


def stratified_split(labels: Tensor, share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Row numbers of a training and a test part, the same share of every class, always the same.

    A class gives at least one test row if it has two or more, and keeps its only row for training.
    """
    streams = Streams(SPLIT_SEED).child("split")
    train, test = [], []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=streams.torch(label))]
        held = min(max(1, round(share * len(rows))), len(rows) - 1)
        test.append(rows[:held])
        train.append(rows[held:])
    return torch.cat(train).sort().values, torch.cat(test).sort().values


def check_labels(labels: Tensor, classes: int, where: str) -> None:
    if not len(labels):
        raise DataError(f"{where} holds no rows")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(f"{where} has labels from {low} to {high}, expected 0 to {classes - 1}; is it another set?")


def data_folder(root: Path | None, name: str, expected: Iterable[str]) -> Path:
    if root is None:
        raise MissingDataError(
            f"data set 'image/{name}' is read from files and no folder was given. Name the folder that "
            f"holds: {'; '.join(expected)}"
        )
    if not Path(root).is_dir():
        state = "is no folder" if Path(root).exists() else "does not exist"
        raise MissingDataError(
            f"data set 'image/{name}': {root} {state}. Expected a folder with: {'; '.join(expected)}"
        )
    return Path(root)


def missing(name: str, folder: Path, expected: Iterable[str]) -> MissingDataError:
    found = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    return MissingDataError(
        f"data set 'image/{name}': expected in {folder}: {'; '.join(expected)}. "
        f"Found there: {one_of(found, 12) if found else 'nothing'}"
    )


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
