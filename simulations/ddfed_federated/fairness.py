"""How well the global model serves each client, and how far clients are apart.

The official test split stays whole; what differs is whose share of it counts:

- where clients are groups (natural splits) and the test split has rows of every client's groups: those rows;
- elsewhere all rows, weighted by the client's own label shares p_k: sum_c p_k(c) a(c), a(c) the accuracy on class c.

Under feature skew a client's test rows are seen as it sees its own.

References:
    Caldas et al., LEAF: A Benchmark for Federated Settings, 2018 (mean with 10th and 90th percentile).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddfed.data import RealData, Task
from ddfed.domain import Network
from ddfed.errors import ConfigError
from ddfed.evaluate import accuracy
from ddfed_federated.partition import Partition

#: A client and rows -> the rows as it sees them.
Seeing = Callable[[int, RealData], RealData]

BY_GROUPS = "test rows of the client's own groups"
BY_LABELS = "test rows weighted by the client's label shares"


def per_client(net: Network, task: Task, partition: Partition, seeing: Seeing | None = None) -> dict[str, Any]:
    """Accuracy of one model for each client.

    Args:
        net: the global model, or one that all clients share.
        task: the data; evaluated is the test split.
        partition: who holds which training rows.
        seeing: how clients see rows; None where all see them alike, which saves a pass per client.

    Returns:
        ``basis`` (in words), ``accuracies`` (of each client in [0, 1]; None for one without rows, or whose classes the
        test split lacks), and what `spread` makes of them.
    """
    own = _own_rows(task, partition)
    if own is not None:
        found: list[float | None] = [
            accuracy(net, seeing(k, data) if seeing else data) for k, data in enumerate(map(task.test.subset, own))
        ]
    else:
        found = _by_labels(net, task, partition, seeing)
    return {
        "basis": BY_LABELS if own is None else BY_GROUPS,
        "accuracies": found,
        **spread(found, partition.counts.sum(axis=1).tolist()),
    }


def _own_rows(task: Task, partition: Partition) -> list[Tensor] | None:
    """Test rows of each client's groups; None where the split or the test rows do not go by groups."""
    groups, tested = task.train.groups, task.test.groups
    if groups is None or tested is None or partition.scheme != "natural":
        return None
    rows = [torch.nonzero(torch.isin(tested, groups[torch.from_numpy(part)])).flatten() for part in partition.parts]
    return rows if all(map(len, rows)) else None


def _by_labels(net: Network, task: Task, partition: Partition, seeing: Seeing | None) -> list[float | None]:
    plain = None if seeing else class_accuracies(net, task.test)
    found: list[float | None] = []
    for client, counts in enumerate(partition.counts):
        each = plain
        if seeing is not None:
            # Classes it does not hold have no weight, and need no pass.
            held = torch.from_numpy(counts)[task.test.labels] > 0
            each = class_accuracies(net, seeing(client, task.test.subset(torch.nonzero(held).flatten())))
        assert each is not None
        weights = np.where(np.isnan(each), 0, counts)
        found.append(float(weights @ np.nan_to_num(each) / weights.sum()) if weights.sum() else None)
    return found


def class_accuracies(net: Network, data: RealData) -> np.ndarray:
    """Share of each class's rows that the network classifies right, (classes,) float64; NaN where it has no rows."""
    return np.array([accuracy(net, data.subset(rows)) if len(rows) else math.nan for rows in data.class_index])


def spread(accuracies: Sequence[float | None], sizes: Sequence[int]) -> dict[str, float]:
    """How far clients are apart.

    Args:
        accuracies: of each client; None is left out.
        sizes: training rows of each client, which ``weighted`` weighs by.

    Returns:
        ``mean``, ``weighted`` (mean by rows), ``sd`` (over clients, population), ``min``, ``p10``, ``p50``, ``p90``
        (percentiles, interpolated) and ``worst_tenth`` (mean of the worst tenth of the clients, at least one).

    Raises:
        ConfigError: no client has an accuracy, or there are not as many sizes as accuracies.
    """
    if len(accuracies) != len(sizes):
        raise ConfigError(f"{len(accuracies)} accuracies but {len(sizes)} sizes of clients")
    known = [(a, size) for a, size in zip(accuracies, sizes) if a is not None]
    if not known:
        raise ConfigError("no client has an accuracy: none holds rows of a class that is tested")
    found, weights = (np.array(both, dtype=np.float64) for both in zip(*known))
    worst = np.sort(found)[: -(-len(found) // 10)]
    p10, p50, p90 = np.percentile(found, [10, 50, 90])
    return {
        "mean": float(found.mean()),
        "weighted": float(found @ weights / weights.sum()),
        "sd": float(found.std()),
        "min": float(found.min()),
        "p10": float(p10),
        "p50": float(p50),
        "p90": float(p90),
        "worst_tenth": float(worst.mean()),
    }
