"""Class means of what a network makes of real rows, asked of the gate (P3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddfed.data import Batch
from ddfed.domain import Network
from ddfed.federation import Broadcast, Expectation, Release
from ddfed.gate import Gate, Query
from ddfed_federated.methods.base import (
    ClientContext,
    ClientPart,
    ClientState,
    ServerContext,
    ServerPart,
    ServerState,
    check_one_network,
)


def per_class(
    gate: Gate, what: Callable[[Tensor], Tensor], width: int, context: ClientContext, *names: str | int
) -> Tensor:
    """Means of ``what(inputs)`` (rows, width) over the rows of each class.

    Returns:
        (classes, 1 + width): the number of rows of the class, then the mean; zeros for a class without rows. The
        count travels with the mean so that means of several clients compose.
    """
    table = torch.zeros(gate.info.num_classes, 1 + width)
    held = gate.held()
    if not held:
        return table

    def contribution(batch: Batch) -> Tensor:
        return what(batch.inputs.to(context.device))

    answer = gate.sums(Query("class means", held), contribution, context.streams.torch("class means", *names))
    table[list(held), 0] = answer.counts.cpu()
    table[list(held), 1:] = answer.means.cpu()
    return table


def pooled(tables: list[Tensor], weighting: str = "count") -> Tensor:
    """Tables of `per_class` of several clients as one.

    Args:
        tables: each (..., classes, 1 + width).
        weighting: ``count`` weighs a client's mean by its rows, which gives the mean of the pooled rows; ``uniform``
            takes every client that holds the class alike (as the published codes do).

    Returns:
        (..., classes, 1 + width); zeros, with count 0, for a class that nobody holds.
    """
    stacked = torch.stack(tables)
    counts = stacked[..., :1]
    weights = counts if weighting == "count" else (counts > 0).to(counts)
    means = (weights * stacked[..., 1:]).sum(0) / weights.sum(0).clamp(min=1e-12)
    return torch.cat([counts.sum(0), means], -1)


@dataclass(frozen=True)
class Table:
    """Class means of a statistic of the global model's answers.

    Args:
        name: in the release.
        of: (network, inputs, context) -> (rows, number of classes).
    """

    name: str
    of: Callable[[Network, Tensor, ClientContext], Tensor]

    def shape(self, context: ServerContext) -> tuple[int | None, ...]:
        return (context.task.info.num_classes, 1 + context.task.info.num_classes)

    def __call__(self, gate: Gate, broadcast: Broadcast, context: ClientContext) -> Tensor:
        net = context.network(gate.info, broadcast.weights).eval().requires_grad_(False)
        return per_class(
            gate, lambda x: self.of(net, x, context), gate.info.num_classes, context, self.name, broadcast.round
        )


@dataclass(frozen=True)
class Keeps(ServerPart):
    """Keep the clients' tables of a name as one, for what is sent down next.

    How they become one is the method's option ``weighting``; see `pooled`.
    """

    name: str

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        tables = [r.statistics[self.name] for r in releases]
        return replace(state, memory={**state.memory, self.name: pooled(tables, context.options.weighting)})


@dataclass(frozen=True)
class Measures(ClientPart):
    """Send class means of the real rows and nothing else."""

    tables: tuple[Table, ...]

    def check(self, context: ServerContext) -> None:
        check_one_network(context, "clients send what the global model answers")

    def expects(self, client: int, state: ServerState, context: ServerContext) -> Expectation:
        return Expectation(("statistics",), statistics={t.name: t.shape(context) for t in self.tables})

    def __call__(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        if not gate.held():
            return context.release(broadcast), state
        return context.release(
            broadcast, {"statistics": {t.name: t(gate, broadcast, context) for t in self.tables}}
        ), state


@dataclass(frozen=True)
class TellsCounts(ClientPart):
    """Sends how many rows of each class there are."""

    def expects(self, client: int, state: ServerState, context: ServerContext) -> Expectation:
        return Expectation(("statistics",), statistics={"counts": (context.task.info.num_classes,)})

    def __call__(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        if not gate.held():
            return context.release(broadcast), state
        counts = gate.counts()
        return context.release(broadcast, {"statistics": {"counts": counts}}, examples=int(counts.sum())), state
