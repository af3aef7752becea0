"""What loaders of every domain share: the folder of a data set's files, what is missing in it, and splits made here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ddfed.errors import DataError, MissingDataError, one_of
from ddfed.seeds import Streams

#: Seed of the splits made here. Constant: a test set that changes with the run's seed is no test set.
SPLIT_SEED = 20_240_101


def data_folder(root: Path | None, dataset: str, expected: Iterable[str]) -> Path:
    """The folder that was given for a data set's files.

    Args:
        root: as given.
        dataset: ``DOMAIN/NAME``.
        expected: what should be in it, for the message.

    Raises:
        MissingDataError: none was given, or it is no folder.
    """
    if root is None:
        raise MissingDataError(
            f"data set {dataset!r} is read from files and no folder was given. Name the folder that "
            f"holds: {'; '.join(expected)}"
        )
    if not Path(root).is_dir():
        state = "is no folder" if Path(root).exists() else "does not exist"
        raise MissingDataError(f"data set {dataset!r}: {root} {state}. Expected a folder with: {'; '.join(expected)}")
    return Path(root)


def missing(dataset: str, folder: Path, expected: Iterable[str]) -> MissingDataError:
    """The error for files that a folder should hold and does not; it says what is there."""
    found = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    return MissingDataError(
        f"data set {dataset!r}: expected in {folder}: {'; '.join(expected)}. "
        f"Found there: {one_of(found, 12) if found else 'nothing'}"
    )


def first_line(error: BaseException) -> str:
    """What a library's error says, without what it goes on to say."""
    return (str(error) or type(error).__name__).splitlines()[0]


def check_labels(labels: Tensor, classes: int, where: str) -> None:
    """Raise `DataError` when there are no rows, or a label is outside ``range(classes)``."""
    if not len(labels):
        raise DataError(f"{where} holds no rows")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(f"{where} has labels from {low} to {high}, expected 0 to {classes - 1}; is it another set?")


def stratified_split(labels: Tensor, share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Row numbers of a training and a test part, the same share of every class, always the same.

    A class gives at least one test row if it has two or more, and keeps its only row for training.

    Args:
        labels: (rows,) int64.
        share: of each class, for testing.

    Returns:
        Both parts in ascending order, int64.
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
