"""What the splits share: checks with their words, rows by class, repair of clients that hold too little."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ddfed.errors import ConfigError

Scheme = Callable[..., list[np.ndarray]]


def check_clients(labels: np.ndarray, clients: int) -> None:
    if labels.ndim != 1:
        raise ConfigError(f"labels must be one-dimensional, got shape {labels.shape}")
    if clients < 1:
        raise ConfigError(f"clients = {clients}: a federation needs at least 1 client")
    if clients > len(labels):
        raise ConfigError(
            f"{clients} clients for {len(labels)} rows: each client needs a row on average; "
            f"use at most {len(labels)} clients or more data"
        )


def check_alpha(alpha: float, option: str = "alpha") -> None:
    if not (math.isfinite(alpha) and alpha > 0):
        flag = " (--alpha)" if option == "alpha" else ""
        raise ConfigError(
            f"federation.partition_options.{option}{flag} must be a finite number above 0 (0.1 is very skewed, 100 "
            f"nearly even); got {alpha}"
        )


def smallest_of(min_size: int | None, rows: int, clients: int) -> int:
    """``min_size``, or a default that always works.

    Raises:
        ConfigError: the rows do not suffice; the message holds the largest possible value.
    """
    if min_size is None:
        return min(10, rows // (2 * clients))
    if not 0 <= min_size <= rows // clients:
        raise ConfigError(
            f"min_size = {min_size}: {rows} rows for {clients} clients allow 0 to {rows // clients}; "
            f"leave it out for {min(10, rows // (2 * clients))}"
        )
    return min_size


def rows_by_class(labels: np.ndarray) -> list[np.ndarray]:
    """Row numbers of each class that occurs, by rising label."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def repair(parts: list[np.ndarray], min_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Move random rows from the largest to the smallest clients until all hold ``min_size``."""
    parts = [rng.permutation(part) for part in parts]
    sizes = np.array([len(part) for part in parts])
    while sizes.min() < min_size:
        poor, rich = int(sizes.argmin()), int(sizes.argmax())
        # Never push the giver below the level it lends to: the total suffices, so this ends.
        move = max(1, min(min_size - int(sizes[poor]), (int(sizes[rich]) - int(sizes[poor])) // 2))
        parts[poor] = np.concatenate([parts[poor], parts[rich][-move:]])
        parts[rich] = parts[rich][:-move]
        sizes[poor] += move
        sizes[rich] -= move
    return parts


def cut(rows: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    return np.split(rows, np.cumsum(sizes)[:-1])


def in_order(parts: list[np.ndarray]) -> list[np.ndarray]:
    return [np.sort(part).astype(np.int64) for part in parts]
