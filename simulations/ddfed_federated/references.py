"""What a federation is held against: clients that train alone, and all records in one place.

These are trainings on real rows as the clients of averaging methods do them, for as many epochs as those do in all
rounds together, from the same initial weights. The last epoch counts; test rows are seen in the task as it is, with
nothing cut.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from ddfed.data import RealData, Task
from ddfed.errors import ConfigError
from ddfed.evaluate import accuracy
from ddfed_federated.methods import ServerContext
from ddfed_federated.partition import Partition
from ddfed_federated.parts.local import train_on_records
from ddfed_federated.skew import NONE, pooled, seen_by

TITLES = {
    "local": "each client trains on its own records; mean over clients",
    "central": "all records in one place",
    "central-cut": "all records in one place, without what ties those of different clients",
}


def check_references(wanted: Sequence[str], task: Task, partition: Partition) -> None:
    """Refuse a reference that has no meaning for the data.

    Raises:
        ConfigError: nothing is cut between clients, so ``central-cut`` would be ``central``.
    """
    if "central-cut" in wanted and not task.train.ties(partition.shares):
        raise ConfigError(
            f"reference 'central-cut' leaves out what ties rows of different clients, and rows of "
            f"{task.info.domain}/{task.info.dataset} are not tied. Leave it out of references; 'central' is the same."
        )


def refer(name: str, context: ServerContext, partition: Partition) -> dict[str, Any]:
    """One reference, as the summary holds it.

    Returns:
        title, accuracy in [0, 1], those of single trainings (of clients with records), seconds.
    """
    begun = time.perf_counter()
    found = [_trained(data, context, name, k) for k, data in enumerate(_data(name, context, partition)) if len(data)]
    return {
        "title": TITLES[name],
        "accuracy": statistics.fmean(found),
        "accuracies": found,
        "seconds": round(time.perf_counter() - begun, 2),
    }


def _data(name: str, context: ServerContext, partition: Partition) -> list[RealData]:
    task, settings = context.task, context.settings
    if name == "local" or settings.federation.skew != NONE:
        shares = [seen_by(k, task.train.within(share), settings) for k, share in enumerate(partition.shares)]
        return shares if name == "local" else [pooled(shares)]
    return [task.train if name == "central" else task.train.severed(partition.shares)]


def _trained(data: RealData, context: ServerContext, name: str, number: int) -> float:
    settings = context.settings
    streams = context.streams.child("reference", name, number)
    epochs = settings.local.epochs * settings.federation.rounds
    net = context.network()
    train_on_records(net, data, settings.local, streams, context.device, epochs=epochs)
    return accuracy(net, context.task.test)
