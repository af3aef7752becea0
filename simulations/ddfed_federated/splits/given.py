"""Splits that lie in the data, or in a file: by who made a row, or as somebody split them before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddfed.data import Task
from ddfed.errors import ConfigError, DataError
from ddfed_federated.partition import Partition
from ddfed_federated.splits.common import check_clients


def natural(task: Task, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows of one group (writer, speaker, site) stay together; where there are more groups than clients, several each.

    Groups go, the largest first, to the client with the fewest rows. With as many clients as groups each client is
    one group, the largest is client 0.

    Args:
        task: with groups (`ddfed.data.RealData.groups`).
        clients: 1 to the number of groups.
        rng: not drawn from.

    Returns:
        Sorted int64 units of each client; every unit once.

    Raises:
        ConfigError: the data do not say who made a row, or there are more clients than groups.
    """
    data = task.train
    check_clients(data.labels.numpy(), clients)
    if data.groups is None:
        raise ConfigError(
            f"partition 'natural' goes by groups (writers, speakers, sites), and the data of {task.info.domain}/"
            f"{task.info.dataset} do not say whose a row is. Take data that do (image folders: "
            f"--set data.options.groups=PATTERN), or a partition by labels, such as 'dirichlet'."
        )
    numbers, sizes = (found.numpy() for found in data.groups.unique(return_counts=True))
    if clients > len(numbers):
        raise ConfigError(
            f"partition 'natural': {clients} clients for {len(numbers)} groups; a group is not cut, so use 1 to "
            f"{len(numbers)} clients"
        )
    held, mine = np.zeros(clients, dtype=np.int64), np.zeros(len(numbers), dtype=np.int64)
    for group in np.argsort(-sizes, kind="stable"):
        mine[group] = held.argmin()
        held[mine[group]] += sizes[group]
    owner = mine[np.searchsorted(numbers, data.groups.numpy())]
    rows = [torch.from_numpy(np.flatnonzero(owner == client)) for client in range(clients)]
    return [units.numpy() for units in data.units_of(rows)]


def from_file(task: Task, clients: int, rng: np.random.Generator, *, path: str) -> list[np.ndarray]:
    """A saved split, such as ``partition.json`` of a run folder: the same whatever version made it.

    Args:
        task: the data it was made for.
        clients: as many as it has.
        rng: not drawn from.
        path: the file, as `Partition.to_json` writes it.

    Returns:
        Sorted int64 units of each client; every unit once.

    Raises:
        DataError: no such file, no split file, changed since it was written, or made for other data.
        ConfigError: it has another number of clients.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"partition 'file': {path} cannot be read: {error}. federation.partition_options.path names a split file, "
            f"such as partition.json of a run folder."
        ) from error
    made = Partition.from_json(text)
    if made.clients != clients:
        raise ConfigError(
            f"partition 'file': {path} splits among {made.clients} clients and federation.clients is {clients}; "
            f"set federation.clients = {made.clients}"
        )
    made.check(task.train.labels.numpy())
    return made.parts if made.units is None else made.units


def own(
    task: Task,
    clients: int,
    rng: np.random.Generator,
    *,
    holder: int | None = None,
    space: Mapping[str, Any] | None = None,
) -> list[np.ndarray]:
    """Whoever reads the data holds them all: each site of a deployment has a folder of its own.

    Args:
        task: what this site has.
        clients: number of sites.
        rng: not used.
        holder: the site's partition id, which it sets itself.
        space: the server's, which all sites use (`ddfed_federated.worker.load_task`).

    Returns:
        ``clients`` arrays of units, all in the holder's.

    Raises:
        ConfigError: no deployment, where nobody is the holder.
    """
    if holder is None or not 0 <= holder < clients:
        raise ConfigError(
            "the split 'own' means that each site of a deployment holds a folder of its own, and a simulation has "
            "none; see `ddfed deploy`, or choose another partition"
        )
    nothing = np.zeros(0, dtype=np.int64)
    return [np.arange(task.train.units) if k == holder else nothing for k in range(clients)]
