"""What the server of a deployment asks each site before the first round, and what a site answers.

In a simulation everybody reads the same data. Sites read their own folders, so it must be seen that they fit: either
all hold the same set, of which the split gives each a share, or, with the split ``own``, each folder is that site's
share.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from ddfed.data import Task
from ddfed.errors import FederationError
from ddfed_federated.partition import Partition
from ddfed_federated.settings import SimulateSettings
from ddfed_federated.worker import load_partition, load_task

#: The split in which a site's folder is its share.
OWN = "own"
#: Name of the record that asks.
QUESTION = "settings"
_FACTS, _COUNTS = "data", "counts"


def localised(settings: str, node_config: Mapping[str, Any], client: int) -> str:
    """A run's settings as they hold at one site.

    Args:
        settings: JSON text from the server.
        node_config: of the SuperNode; its ``data`` is the site's folder, whatever the server says.
        client: partition id.
    """
    found = json.loads(settings)
    own = found.get("federation", {}).get("partition") == OWN
    if "data" not in node_config and not own:
        return settings
    if "data" in node_config:
        found["data"]["root"] = str(node_config["data"])
    if own:
        found["federation"].setdefault("partition_options", {})["holder"] = client
    return json.dumps(found)


Facts = dict[str, ConfigRecord | MetricRecord]


def facts(question: ConfigRecord, node_config: Mapping[str, Any], client: int) -> Facts:
    """A site's answer. How many records of each class it holds is told only where the split is the site's own.

    Raises:
        DdfedError: its data cannot be read.
    """
    settings = SimulateSettings.model_validate_json(localised(str(question[QUESTION]), node_config, client))
    _, task = load_task(settings)
    told: Facts = {
        _FACTS: ConfigRecord(
            {"classes": list(task.info.classes), "shape": list(task.info.shape), "sha256": task.train.content_hash}
        )
    }
    if settings.federation.partition == OWN:
        told[_COUNTS] = MetricRecord({_COUNTS: task.train.class_counts.tolist()})
    return told


class Survey:
    """The server's side.

    Args:
        settings: of the run.
        task: the server's own data; its test rows judge, its training rows are nobody's.
    """

    def __init__(self, settings: SimulateSettings, task: Task) -> None:
        self._settings, self._task = settings, task
        self._counts: dict[int, list[int]] = {}
        asked = settings.model_dump_json(include={"data", "federation", "run"}, exclude={"run": {"out", "name"}})
        self.question = RecordDict({QUESTION: ConfigRecord({QUESTION: asked})})

    @property
    def _own(self) -> bool:
        return self._settings.federation.partition == OWN

    def hear(self, client: int, reply: Message) -> None:
        """Take a site's answer.

        Raises:
            FederationError: its data do not fit the others'.
        """
        told, info = reply.content[_FACTS], self._task.info
        classes, shape = tuple(told["classes"]), tuple(told["shape"])  # type: ignore[arg-type]
        if (classes, shape) != (tuple(info.classes), tuple(info.shape)):
            raise FederationError(
                f"the data of client {client} have items of shape {shape} in classes {', '.join(map(str, classes))}; "
                f"those of the server have {tuple(info.shape)} in {', '.join(info.classes)}"
            )
        if self._own:
            self._counts[client] = [int(n) for n in reply.content[_COUNTS][_COUNTS]]  # type: ignore[union-attr]
        elif told["sha256"] != self._task.train.content_hash:
            raise FederationError(
                f"client {client} reads other training data than the server, so their splits differ; give all the same "
                f"files, or set federation.partition = {OWN!r} where each site's folder is its share"
            )

    def partition(self) -> Partition:
        """Who holds what, as far as it is known."""
        if not self._own:
            return load_partition(self._settings)
        classes, clients = self._task.info.num_classes, self._settings.federation.clients
        counts = np.array([self._counts.get(k, [0] * classes) for k in range(clients)], dtype=np.int64)
        ends = np.cumsum(counts.sum(axis=1))
        # Rows are numbered through, site after site: the server has no numbers of theirs.
        parts = [np.arange(end - size, end) for end, size in zip(ends, counts.sum(axis=1))]
        return Partition(parts, counts, OWN)
