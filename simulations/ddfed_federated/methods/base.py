"""What a federated method is: phases, each a part for the client and a part for the server.

The parts are the slots of the common map of the field: how a client makes what it sends (engine, networks that judge,
release: P1 to P3), what the server makes of it (merge, training: P4, P5) and what it sends down (P6). They are plain
functions of typed records, so a round is a checkpoint and every back end runs the same code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ddfed.data import Task
from ddfed.devices import resolve_device
from ddfed.domain import Domain, Network
from ddfed.errors import ConfigError, one_of
from ddfed.federation import Broadcast, Expectation, Release
from ddfed.gate import Gate
from ddfed.recipes import Preset
from ddfed.seeds import Streams, isolated
from ddfed.settings import Settings
from ddfed_federated.cohort import Cohorts
from ddfed_federated.settings import SimulateSettings
from ddfed_federated.targets import Targets

ClientState = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class ClientContext:
    """What a client's part may use beside its data.

    Args:
        client: partition id.
        settings: the run's settings, resolved for this method.
        domain: modality adapter.
        streams: hang on the run's seed and the partition id, never on order or node ids.
        options: the method's own settings.
        device: where networks live.
        test: the client's own test rows, for methods with a model of its own; None where it has none.
        cohorts: clients that train locally together (`federation.batched`); None for each alone.
    """

    client: int
    settings: SimulateSettings
    domain: Domain
    streams: Streams
    options: Any = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    test: Any = None
    cohorts: Cohorts | None = None

    def release(self, broadcast: Broadcast, payload: Mapping[str, Any] | None = None, **about: Any) -> Release:
        """An answer to a broadcast; without a payload the client has nothing to send."""
        return Release(self.client, broadcast.round, payload or {}, phase=broadcast.phase, **about)

    def network(self, info: Any, weights: Mapping[str, Tensor] | None = None) -> Network:
        """This client's network: with the given weights, else initialised from the client's own stream."""
        name = network_name(self.settings, self.client) or self.domain.default_network(info)
        # Given weights overwrite the initial ones, so those need no stream of their own.
        with isolated(0 if weights is not None else self.streams.seed("network")):
            net = self.domain.network(name, info).to(self.device)
        if weights is not None:
            net.load_state_dict(dict(weights))
        return net


@dataclass(frozen=True, eq=False)
class ServerContext:
    """What a server's part may use.

    Args:
        settings: the run's settings, resolved for this method.
        domain: modality adapter.
        task: only its public facts may be used; the test split is for evaluation outside.
        streams: the server's streams.
        options: the method's own settings.
        device: where networks live.
    """

    settings: SimulateSettings
    domain: Domain
    task: Task
    streams: Streams
    options: Any = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def of(cls, settings: SimulateSettings, domain: Domain, task: Task, options: Any = None) -> ServerContext:
        """That of a run: streams do not name the method, so every method starts from the same global network."""
        streams = Streams(settings.run.seed).child("server side")
        return cls(settings, domain, task, streams, options, resolve_device(settings.run.device))

    def network(self, weights: Mapping[str, Tensor] | None = None, *names: str | int) -> Network:
        """The global network: with the given weights, else initialised from the run's seed (and ``names``)."""
        info = self.task.info
        with isolated(self.streams.seed("global network", *names)):
            name = self.settings.distill.network or self.domain.default_network(info)
            net = self.domain.network(name, info).to(self.device)
        if weights is not None:
            net.load_state_dict(dict(weights))
        return net

    def network_of(self, client: int, weights: Mapping[str, Tensor] | None = None) -> Network:
        """A network of the structure that a client has."""
        name = network_name(self.settings, client) or self.domain.default_network(self.task.info)
        with isolated(0):
            net = self.domain.network(name, self.task.info).to(self.device)
        if weights is not None:
            net.load_state_dict(dict(weights))
        return net


def check_one_network(context: ServerContext, why: str) -> None:
    """Refuse clients with networks of another structure than the server's.

    Args:
        why: they must be alike, as the beginning of the message.

    Raises:
        ConfigError: ``federation.networks`` names others.
    """
    default = context.domain.default_network(context.task.info)
    own = context.settings.distill.network or default
    others = sorted({name or default for name in context.settings.federation.networks} - {own})
    if others:
        raise ConfigError(
            f"method {context.settings.method!r}: {why}, so every client must have the server's network {own!r}; "
            f"federation.networks names {one_of(others)}. Leave it empty, or take methods whose clients may differ: "
            f"'dense', or sets made with distill.pool = 'R'. Look at the method and at baselines."
        )


def network_name(settings: SimulateSettings, client: int) -> str:
    """The structure that a client trains; empty for the domain's default."""
    several = settings.federation.networks
    return several[client % len(several)] if several else settings.distill.network


@dataclass(frozen=True)
class ServerState:
    """The server's memory between phases; tensors and JSON only, so that a round is a checkpoint.

    Args:
        round: last finished round, 0 before the first.
        weights: the global model's state dict.
        memory: whatever else the method keeps.
    """

    round: int
    weights: dict[str, Tensor]
    memory: dict[str, Any] = field(default_factory=dict)

    def having(self, net: Network | None = None, **memory: Any) -> ServerState:
        """The same with a trained network's weights and with other memories."""
        weights = self.weights if net is None else weights_of(net)
        return replace(self, weights=weights, memory={**self.memory, **memory})


def weights_of(net: Network) -> dict[str, Tensor]:
    """A state dict that nobody changes any more, on the CPU."""
    return {k: v.detach().cpu().clone() for k, v in net.state_dict().items()}


class ClientPart(ABC):
    """What a client does in a phase: engine, networks that judge, release (P1 to P3)."""

    #: it remembers something from round to round
    stateful: bool = False
    #: what it sends is made of sets, so a class that nobody holds is missed
    distils_sets: bool = False

    @abstractmethod
    def __call__(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        """Answer one broadcast."""

    @abstractmethod
    def expects(self, client: int, state: ServerState, context: ServerContext) -> Expectation:
        """What the server may be sent by this part; anything else is refused."""

    def remembers(self, settings: SimulateSettings) -> bool:
        """Whether a client's memory matters under these settings."""
        return self.stateful

    def check(self, context: ServerContext) -> None:  # noqa: B027 - optional
        """Refuse settings or data that this part cannot work with, before a client exists.

        Raises:
            ConfigError: says what to do instead.
        """


class ServerPart(ABC):
    """What the server makes of a phase's valid releases: merge and training (P4, P5)."""

    @abstractmethod
    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        """Merge ``releases``, sorted by client, none of them empty. The engine counts the round."""

    def check(self, context: ServerContext) -> None:  # noqa: B027 - optional
        """As `ClientPart.check`."""


Down = Callable[[ServerState, ServerContext], Broadcast]


def send_weights(state: ServerState, context: ServerContext) -> Broadcast:
    """P6: the global model."""
    return Broadcast(0, weights=state.weights)


def send_nothing(state: ServerState, context: ServerContext) -> Broadcast:
    """P6: the task is all that a client needs to know."""
    return Broadcast(0)


#: (client, what all are sent, state, context) -> what this client is sent, or None where it is not asked.
To = Callable[[int, Broadcast, ServerState, ServerContext], Broadcast | None]


def to_everybody(client: int, broadcast: Broadcast, state: ServerState, context: ServerContext) -> Broadcast:
    """All clients are sent the same."""
    return broadcast


@dataclass(frozen=True)
class Phase:
    """One exchange: broadcast, answers, merge.

    Args:
        name: for messages and ledgers.
        client: see `ClientPart`.
        server: see `ServerPart`.
        down: what is sent to the clients; round and phase are filled in.
        to: who is sent it, and what is different for whom; see `To`.
    """

    name: str
    client: ClientPart
    server: ServerPart
    down: Down = send_weights
    to: To = to_everybody

    def broadcast(self, number: int, state: ServerState, context: ServerContext) -> Broadcast:
        return replace(self.down(state, context), round=number, phase=self.name)

    def broadcasts(
        self, number: int, state: ServerState, context: ServerContext, clients: Sequence[int]
    ) -> dict[int, Broadcast]:
        """What each of the clients is sent; those that are not asked are left out."""
        common = self.broadcast(number, state, context)
        sent = {client: self.to(client, common, state, context) for client in clients}
        return {client: broadcast for client, broadcast in sent.items() if broadcast is not None}


@dataclass(frozen=True)
class Forgetting:
    """How a trained federation forgets a client or a class (P8), from what the method keeps in its stores.

    Args:
        title: in words, for tables.
        begin: what the server does before it asks anybody: (state, what is forgotten, context) -> state.
        phases: exchanges with all clients; each counts as a round.
        rounds: names of the phases in the order in which they are held; each may come several times.
    """

    title: str
    begin: Callable[[ServerState, Targets, ServerContext], ServerState]
    phases: tuple[Phase, ...] = ()
    rounds: Callable[[ServerContext], Sequence[str]] = lambda context: ()


def begin_with_network(context: ServerContext) -> ServerState:
    """Before the first round: the global network as the seed gives it."""
    return ServerState(0, weights_of(context.network()))


def nothing_beside(releases: Sequence[Release], context: ServerContext) -> Mapping[str, Network]:
    """The global model is the only one."""
    return {}


class NoOptions(Settings):
    """A method without settings of its own."""


@dataclass(frozen=True)
class FederatedMethod:
    """A method as a declaration.

    Args:
        name: the paper's short name.
        title: one line.
        citation: authors, title, venue.
        phases: of every round, in their order.
        setup: held once, before the first round; booked as round 0.
        options: its own settings, with their defaults.
        defaults: settings (by section) that differ from the common ones.
        presets: differences for data sets and budgets.
        departures: where this departs from the paper.
        one_shot: there is one round, whatever the other methods of a comparison have.
        control: it is compared with the main method, so it takes over that method's settings.
        personal: clients keep models of their own; accuracy is the mean of what they report.
        begin: the server's state before anything is sent.
        beside: other models of a round, by name, whose accuracy is told beside that of the global one.
        forgets: how it forgets; None for a method without stores, which cannot.
    """

    name: str
    title: str
    citation: str
    phases: tuple[Phase, ...]
    setup: tuple[Phase, ...] = ()
    options: type[Settings] = NoOptions
    defaults: Mapping[str, Any] = field(default_factory=dict)
    presets: tuple[Preset, ...] = ()
    departures: tuple[str, ...] = ()
    one_shot: bool = False
    control: bool = False
    personal: bool = False
    begin: Callable[[ServerContext], ServerState] = begin_with_network
    beside: Callable[[Sequence[Release], ServerContext], Mapping[str, Network]] = nothing_beside
    forgets: Forgetting | None = None

    def phase(self, name: str) -> Phase:
        """The phase of that name.

        Raises:
            KeyError: there is none.
        """
        forgetting = self.forgets.phases if self.forgets else ()
        return {p.name: p for p in (*self.setup, *self.phases, *forgetting)}[name]

    def rounds(self, settings: SimulateSettings) -> int:
        """How many it holds."""
        return 1 if self.one_shot else settings.federation.rounds

    def check(self, context: ServerContext) -> None:
        """Refuse what one of the parts cannot work with.

        Raises:
            ConfigError: says what to do instead.
        """
        for phase in (*self.setup, *self.phases):
            phase.client.check(context)
            phase.server.check(context)

    def remembers(self, settings: SimulateSettings) -> bool:
        """Whether its clients have a memory that a resumed simulation must give back."""
        return any(p.client.remembers(settings) for p in (*self.setup, *self.phases))

    def described(self) -> dict[str, Any]:
        """For `ddfed methods show`: exchanges, settings of its own, and where it departs from the paper."""
        held = [*(f"once: {p.name}" for p in self.setup), *(p.name for p in self.phases)]
        options = {
            f"options.{name}": f"{field.get_default(call_default_factory=True)!r}: {field.description}"
            for name, field in self.options.model_fields.items()
        }
        return {
            "citation": self.citation,
            "rounds": "one" if self.one_shot else "many",
            "exchanges": ", then ".join(held),
            **({"models": "one a client"} if self.personal else {}),
            **({"forgets": self.forgets.title} if self.forgets else {}),
            **options,
            **{f"departure {i}": text for i, text in enumerate(self.departures, 1)},
        }

    @property
    def sends_sets(self) -> bool:
        """Whether clients make sets, as opposed to training on their records alone."""
        return any(p.client.distils_sets for p in (*self.setup, *self.phases))


__all__ = [
    "ClientContext",
    "ClientPart",
    "ClientState",
    "Down",
    "FederatedMethod",
    "Forgetting",
    "NoOptions",
    "Phase",
    "ServerContext",
    "ServerPart",
    "ServerState",
    "begin_with_network",
    "check_one_network",
    "network_name",
    "send_nothing",
    "send_weights",
    "weights_of",
]
