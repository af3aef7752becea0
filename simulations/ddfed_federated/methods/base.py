"""What a federated method is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddfed.data import RealData, Task
from ddfed.devices import resolve_device
from ddfed.domain import Domain, Network
from ddfed.evaluate import Protocol, train
from ddfed.federation import Broadcast, Release
from ddfed.gate import Gate
from ddfed.recipes import Preset
from ddfed.seeds import Streams, isolated
from ddfed.store import HardLabels
from ddfed_federated.settings import LocalSettings, SimulateSettings

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

    @classmethod
    def of(cls, settings: SimulateSettings, domain: Domain, task: Task) -> ServerContext:
        """That of a run: streams do not name the method, so every method starts from the same global network."""
        streams = Streams(settings.run.seed).child("server side")
        return cls(settings, domain, task, streams, resolve_device(settings.run.device))

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


def train_on_records(
    net: Network,
    data: RealData,
    local: LocalSettings,
    streams: Streams,
    device: torch.device,
    *,
    epochs: int | None = None,
    pull: Callable[[], Tensor] | None = None,
) -> Network:
    """Train a network in place as clients of averaging methods train theirs.

    Args:
        net: on its device.
        data: real rows, at least one.
        local: how.
        streams: order and the network's own randomness (dropout) hang below these.
        device: that of the network.
        epochs: in place of those of ``local``.
        pull: what is added to the loss of every row, scalar; None for nothing.
    """

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        rows = HardLabels.loss(logits, targets)
        return rows if pull is None else rows + pull()

    def rows(index: Tensor) -> tuple[Tensor, Tensor]:
        batch = data.batch(index)
        return batch.inputs.to(device), batch.classes.to(device)

    protocol = Protocol(
        name="local",
        epochs=local.epochs if epochs is None else epochs,
        lr=local.lr,
        momentum=local.momentum,
        weight_decay=local.weight_decay,
        batch=local.batch,
        optimizer=local.optimizer,
        drops=(),
    )
    with isolated(streams.seed("noise")):
        return train(net, rows, len(data), loss, protocol, None, streams)
