"""Part 6: which real rows an engine is shown.

A sampler narrows a query before it reaches the gate; the drawing itself stays the gate's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddfed.data import Batch
from ddfed.domain import Network
from ddfed.errors import ConfigError
from ddfed.gate import Gate, Query
from ddfed.seeds import Streams
from ddfed.select import choose_kmeans, nearest_centres


class Sampler(ABC):
    """A rule for the real rows of a step.

    Args:
        options: the sampler's own settings.

    Raises:
        ConfigError: an unknown option.
    """

    name: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, **options: Any) -> None:
        unknown = sorted(set(options) - set(self.defaults))
        if unknown:
            raise ConfigError(f"sampler {self.name!r} has no option {unknown[0]!r}; it knows {sorted(self.defaults)}")
        self.options = {**self.defaults, **options}

    @abstractmethod
    def narrow(self, query: Query, gate: Gate, net: Network, step: int, streams: Streams) -> Query:
        """The query that is asked in place of ``query`` at outer step ``step`` under network ``net``."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold beyond the streams."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - optional
        """Inverse of `state`."""


class UniformSampler(Sampler):
    """uniform: every row of a class is as likely as any other."""

    name = "uniform"

    def narrow(self, query: Query, gate: Gate, net: Network, step: int, streams: Streams) -> Query:
        return query


class KMeansSampler(Sampler):
    """kmeans: the row nearest each centre of a class, clustered anew every ``every`` steps (DREAM).

    As many clusters as the query asks rows; rows are embedded by the network of the step at which they are
    clustered, and used until the next clustering.

    Source: Liu et al., DREAM: Efficient Dataset Distillation by Representative Matching, ICCV 2023, section 3.
    Departure: a clustering starts from the rows that the one before chose, embedded anew, which is near the end
    already; the first starts with k-means++.

    Options:
        every: outer steps between clusterings.
        pool: rows of a class that are clustered, drawn anew each time; None for all, as in the paper.
    """

    name = "kmeans"
    defaults = {"every": 10, "pool": None}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.options["every"] < 1:
            raise ConfigError(f"sampler 'kmeans': every must be at least 1, got {self.options['every']}")
        self._chosen: dict[int, Tensor] = {}

    def narrow(self, query: Query, gate: Gate, net: Network, step: int, streams: Streams) -> Query:
        if query.rows is None:
            return query
        due = step % self.options["every"] == 0
        missing = tuple(c for c in query.classes if due or c not in self._chosen)
        if missing:
            self._cluster(replace(query, classes=missing), gate, net, step, streams)
        return replace(query, among=torch.cat([self._chosen[c] for c in query.classes]))

    def _cluster(self, query: Query, gate: Gate, net: Network, step: int, streams: Streams) -> None:
        assert query.rows is not None
        device = next(net.parameters()).device
        embed: Callable[[Batch], Tensor] = lambda batch: net.embed(batch.inputs.to(device))  # noqa: E731
        every_row = replace(query, name="embeddings to cluster", rows=self.options["pool"], top_up=False, among=None)
        found = gate.each(every_row, embed, streams.torch("sampler", step, *query.classes))
        for group, (c, values) in enumerate(zip(query.classes, found.split(len(query.classes)))):
            rows = found.rows[found.groups == group]
            k = min(query.rows, len(rows))
            generator = streams.torch("sampler", "kmeans", step, c)
            if not k:
                self._chosen[c] = rows
                continue
            values = values.cpu()
            start = values[torch.isin(rows, self._chosen.get(c, rows[:0]))]
            picks = nearest_centres(values, start) if len(start) == k else choose_kmeans(values, k, generator)
            self._chosen[c] = rows[picks]

    def state(self) -> dict[str, Any]:
        return {"chosen": {str(c): rows for c, rows in self._chosen.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        self._chosen = {int(c): rows for c, rows in state["chosen"].items()}
