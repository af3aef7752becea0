"""Parts of methods in which a client trains on other clients' items beside its own rows (HFLDD, DCFL)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ddfed.federation import Broadcast, Expectation, Release
from ddfed.gate import Gate
from ddfed_federated.methods.base import (
    ClientContext,
    ClientPart,
    ClientState,
    ServerContext,
    ServerPart,
    ServerState,
    check_one_network,
    weights_of,
)
from ddfed_federated.parts.local import train_on_records
from ddfed_federated.parts.union import remembered


@dataclass(frozen=True)
class KeepsSets(ServerPart):
    """The members' sets, for their heads."""

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        return state.having(sets=remembered(state, releases, context))


@dataclass(frozen=True)
class TakesSets(ClientPart):
    """A client keeps the sets that it is handed, and says how many items they are."""

    stateful = True

    def expects(self, client: int, state: ServerState, context: ServerContext) -> Expectation:
        return Expectation(("statistics",), statistics={"taken": ()})

    def __call__(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        taken: dict[str, Any] = {"statistics": {"taken": torch.tensor(len(broadcast.arrays["y"]))}}
        return context.release(broadcast, taken), {**state, **broadcast.arrays}


@dataclass(frozen=True)
class Nothing(ServerPart):
    """What came is only that it came."""

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        return state


@dataclass(frozen=True)
class TrainsForCluster(ClientPart):
    """A client trains the global model on its own rows and the items that it was handed; on its rows alone without any.

    In HFLDD this is a head with its members' items, in DCFL any client with those of its group.
    """

    stateful = True

    def check(self, context: ServerContext) -> None:
        check_one_network(context, "clients train the global weights")

    def expects(self, client: int, state: ServerState, context: ServerContext) -> Expectation:
        return Expectation(("weights",), weights=state.weights)

    def __call__(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        data = gate.raw("local training")
        if not len(data):
            return context.release(broadcast), state
        net = context.network(gate.info, broadcast.weights)
        beside = (state["x"], state["y"]) if "x" in state and len(state["y"]) else None
        streams = context.streams.child("local", broadcast.round)
        train_on_records(net, data, context.settings.local, streams, context.device, beside=beside)
        return context.release(broadcast, {"weights": weights_of(net)}, examples=len(data)), state
