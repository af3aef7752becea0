"""Parts of methods in which a client trains on other clients' items beside its own rows (HFLDD, DCFL)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddfed.federation import Broadcast, Expectation, Release
from ddfed.gate import Gate
from ddfed_federated.methods.base import (
    ClientContext,
    ClientPart,
    ClientState,
    ServerContext,
    ServerPart,
    ServerState,
)
from ddfed_federated.parts.local import Trains
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
class TrainsForCluster(Trains):
    """A client trains the global model on its own rows and the items that it was handed; on its rows alone without any.

    In HFLDD this is a head with its members' items, in DCFL any client with those of its group.
    """

    stateful = True

    def beside(self, state: ClientState) -> tuple[Tensor, Tensor] | None:
        return (state["x"], state["y"]) if "x" in state and len(state["y"]) else None
