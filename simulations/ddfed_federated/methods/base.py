"""What a federated method is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddfed.data import Task
from ddfed.domain import Domain, Network
from ddfed.federation import Broadcast, Release
from ddfed.gate import Gate
from ddfed.recipes import Preset
from ddfed.seeds import Streams, isolated
from ddfed_federated.settings import SimulateSettings

ClientState = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class ClientContext:
    """What a client function may use beside its data.

    Args:
        client: partition id.
        settings: the run's settings.
        domain: modality adapter.
        streams: hang on the run's seed and the partition id, never on order or node ids.
    """

    client: int
    settings: SimulateSettings
    domain: Domain
    streams: Streams
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True, eq=False)
class ServerContext:
    """What a server function may use.

    Args:
        settings: the run's settings.
        domain: modality adapter.
        task: only its public facts may be used; the test split is for evaluation outside.
        streams: the server's streams.
    """

    settings: SimulateSettings
    domain: Domain
    task: Task
    streams: Streams
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def network(self) -> Network:
        """The global network, initialised from the run's seed."""
        info = self.task.info
        with isolated(self.streams.seed("global network")):
            name = self.settings.distill.network or self.domain.default_network(info)
            return self.domain.network(name, info).to(self.device)


@dataclass(frozen=True)
class ServerState:
    """The server's memory between rounds; tensors and JSON only, so that a round is a checkpoint.

    Args:
        round: last finished round, 0 before the first.
        weights: the global model's state dict.
        memory: whatever else the method keeps.
    """

    round: int
    weights: dict[str, Tensor]
    memory: dict[str, Any] = field(default_factory=dict)


class FederatedMethod(ABC):
    """A method as a declaration and two pure functions.

    Attributes:
        name: the paper's short name.
        title: one line.
        citation: authors, title, venue.
        sends: ``"set"`` or ``"weights"``.
        defaults: settings (by section) that differ from the common ones.
        presets: differences for data sets and budgets.
        departures: where this departs from the paper.
    """

    name: str
    title: str
    citation: str
    sends: str
    defaults: Mapping[str, Any] = {}
    presets: tuple[Preset, ...] = ()
    departures: tuple[str, ...] = ()

    def restart_of(self, settings: SimulateSettings) -> str:
        """Where a client's set starts each round: ``same``, ``fresh`` or ``previous``."""
        return settings.federation.restart

    @abstractmethod
    def client(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        """One client, one round."""

    @abstractmethod
    def server(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        """Merge the valid releases of a round, sorted by client, and train the global model."""

    def begin(self, context: ServerContext) -> ServerState:
        """The state before the first round."""
        return ServerState(0, {k: v.cpu().clone() for k, v in context.network().state_dict().items()})

    def broadcast(self, state: ServerState) -> Broadcast:
        """What is sent to every client of the round after ``state.round``."""
        return Broadcast(round=state.round + 1, weights=state.weights)
