"""One round and many: for each phase ask, collect, screen, merge; then test, account, save.

The same engine drives every method on every back end. Clients are identified by partition id throughout;
node ids are random and arrival order means nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ddfed.data import Task
from ddfed.domain import Domain
from ddfed.errors import FederationError, ReleaseError
from ddfed.evaluate import accuracy
from ddfed.federation import Broadcast, Expectation, Release, check_release, coverage
from ddfed.ledger import Ledger
from ddfed.registry import registry
from ddfed_federated.cohort import drawn_clients
from ddfed_federated.faults import FaultPlan
from ddfed_federated.flower import wire
from ddfed_federated.flower.loop import collect, still_out
from ddfed_federated.methods import FederatedMethod, Phase, ServerContext, ServerState
from ddfed_federated.parts.union import items_of
from ddfed_federated.settings import SimulateSettings, options_of
from ddfed_federated.standins import Shelf
from ddfed_federated.targets import Targets

#: What no client needs to know; leaving it out also makes the bytes the same on every back end.
_SERVER_ONLY: Any = {
    "baselines": True,
    "references": True,
    "targets": True,
    "methods": True,
    "forget": True,
    "server": True,
    "run": {"out", "name", "threads", "checkpoint_every"},
    "federation": {
        *("backend", "workers", "ray_address", "server_threads", "deadline_s", "min_replies"),
        *("late", "absent", "reuse_age", "reuse_decay"),
    },
}


@dataclass(frozen=True)
class RoundRow:
    """What a round did, as plain numbers: one line of the tables and of ``events.jsonl``.

    Args:
        method: whose round.
        round: 1-based; 0 for what is done once beforehand.
        accuracy: of the global model after the round, on the whole test split, in [0, 1]; where clients keep models of
            their own, the mean of what they report.
        asked: clients that were sent the broadcast of the first phase.
        releases: valid releases merged in the last phase.
        lost: ``client: reason`` of those that failed, answered garbage or not at all.
        items: synthetic or real items the server trained on; 0 for averaging.
        missing_classes: classes no set of the round holds.
        bytes_up: serialised bytes from clients, by what they were spent on.
        bytes_down: serialised bytes to clients.
        real_seeds: real records handed out so far as the items' starting values, summed over clients.
        seconds: wall time of the round.
        client_seconds: longest and total compute time of clients.
        note: anything a reader must know, such as a skipped round.
        ledger: what the clients of the valid releases say was asked of their records.
        rehearsed: ``client: kind`` of the faults that were rehearsed; see `ddfed_federated.faults`.
        stood_in: ``client: age`` of old sets that stood in for missing ones; see `ddfed_federated.standins`.
        told: accuracies of other models of the round, in [0, 1], by name; see `FederatedMethod.beside`.
    """

    method: str
    round: int
    accuracy: float
    asked: int
    releases: int
    lost: tuple[str, ...] = ()
    items: int = 0
    missing_classes: tuple[int, ...] = ()
    bytes_up: Mapping[str, int] = field(default_factory=dict)
    bytes_down: Mapping[str, int] = field(default_factory=dict)
    real_seeds: int = 0
    seconds: float = 0.0
    client_seconds: tuple[float, float] = (0.0, 0.0)
    note: str = ""
    ledger: tuple[dict[str, Any], ...] = ()
    rehearsed: tuple[str, ...] = ()
    stood_in: tuple[str, ...] = ()
    told: Mapping[str, float] = field(default_factory=dict)

    @property
    def up(self) -> int:
        return sum(self.bytes_up.values())

    @property
    def down(self) -> int:
        return sum(self.bytes_down.values())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> RoundRow:
        lists = ("lost", "missing_classes", "client_seconds", "ledger", "rehearsed", "stood_in")
        fields: dict[str, Any] = {k: tuple(v) if k in lists else v for k, v in row.items()}
        return cls(**fields)


@dataclass
class Progressing:
    """Who is told what as rounds go: (method, round, clients answered, clients asked) and finished rows."""

    replied: Callable[[str, int, int, int], None] = lambda *_: None
    finished: Callable[[RoundRow], None] = lambda _: None


@dataclass(eq=False)
class Rounds:
    """The rounds of one method.

    Args:
        settings: the run's settings with ``method`` set to this one's name.
        domain: modality adapter.
        task: the data; only its public facts and its test split are used here.
        grid: Flower grid.
        nodes: partition id -> node id.
        progress: see `Progressing`.
    """

    settings: SimulateSettings
    domain: Domain
    task: Task
    grid: Any
    nodes: Mapping[int, int]
    progress: Progressing

    def __post_init__(self) -> None:
        self.method: FederatedMethod = registry().load("federated", self.settings.method)
        options = None if self.method.control else options_of(self.settings)
        self.context = ServerContext.of(self.settings, self.domain, self.task, options)
        self._client_settings = self.settings.model_dump_json(exclude=_SERVER_ONLY)
        self._seeds: dict[int, int] = {}
        self._plan = FaultPlan.of(self.settings)
        self._shelf = Shelf(self.settings)
        self._out: dict[str, int] = {}
        self._questions: dict[str, _Question] = {}
        self._memories: dict[int, dict[str, Tensor]] = {}

    def begin(self) -> ServerState:
        return self.method.begin(self.context)

    @property
    def last(self) -> int:
        """Number of the last round."""
        return self.method.rounds(self.settings)

    # --- memory --------------------------------------------------------------------------------------------------

    def resume(self, memory: Mapping[str, Any]) -> None:
        """Take over what `remember` gave."""
        self._seeds = {int(k): int(v) for k, v in memory["seeds"]}
        self._memories = {int(k): dict(v) for k, v in memory["clients"]}
        self._shelf.resume(memory["shelf"])
        if self._memories:
            self._remind(self._memories)

    def clear(self) -> None:
        """Let simulated clients that remember something forget it all, for a run from the beginning."""
        if self.method.remembers(self.settings):
            self._remind({client: {} for client in self.nodes})

    def remember(self) -> dict[str, Any]:
        """What a checkpoint holds beside the server's state."""
        return {
            "seeds": [[k, v] for k, v in sorted(self._seeds.items())],
            "clients": [[k, v] for k, v in sorted(self._memories.items())],
            "shelf": self._shelf.remember(),
        }

    def _remind(self, memories: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Give simulated clients back the memory that died with the old process.

        Not traffic of the federation: a deployed client keeps its memory, so nothing is booked.
        """
        from flwr.app import Message, RecordDict

        messages = [
            Message(RecordDict({"state": wire.pack(memory)}), self.nodes[client], "query.set_state")
            for client, memory in memories.items()
        ]
        replies, missing = collect(self.grid, messages)
        failed = [wire.error_text(reply) for reply in replies if reply.has_error()]
        if failed or missing:
            raise FederationError(f"{len(failed) + len(missing)} clients could not be resumed: {'; '.join(failed[:3])}")

    def _recall(self, clients: list[int]) -> None:
        """Learn what simulated clients remember, so that a checkpoint holds it. Not booked either."""
        from flwr.app import Message, RecordDict

        if not self.method.remembers(self.settings) or self.settings.federation.backend == "deployed":
            return
        client_of = {self.nodes[client]: client for client in clients}
        asked = [Message(RecordDict(), node, "query.get_state") for node in client_of]
        replies, _ = collect(self.grid, asked)
        for reply in replies:
            if not reply.has_error():
                memory = wire.unpack(reply.content["state"], "state")  # type: ignore[arg-type]
                self._memories[client_of[reply.metadata.src_node_id]] = memory

    # --- a round -------------------------------------------------------------------------------------------------

    def participants(self, number: int, everyone: bool = False) -> list[int]:
        """Clients asked in a round: drawn without replacement from seed and round alone.

        A client that has not answered yet is not asked again: two messages at once could overwrite its state.
        """
        federation = self.settings.federation
        share = 1.0 if everyone else federation.participation
        drawn = drawn_clients(self.settings.run.seed, number, federation.clients, share)
        busy = set(self._out.values())
        return [k for k in drawn if k in self.nodes and self.nodes[k] not in busy]

    def whole(self) -> tuple[ServerState, list[RoundRow]]:
        """All rounds from the beginning, without a checkpoint."""
        state, rows = self.begin(), []
        if self.method.setup:
            state, row = self.set_up(state)
            rows.append(row)
        while state.round < self.last:
            state, row = self.hold(state)
            rows.append(row)
        return state, rows

    def forget(self, state: ServerState, targets: Targets) -> tuple[ServerState, list[RoundRow]]:
        """Let the method forget, with all clients; a row for each round that this takes."""
        how = self.method.forgets
        assert how is not None
        # What is forgotten must not stand in for anybody.
        self._shelf = Shelf(self.settings)
        state, rows = how.begin(state, targets, self.context), []
        for name in how.rounds(self.context):
            state, row = self._hold(state, state.round + 1, (self.method.phase(name),), everyone=True)
            rows.append(row)
        return state, rows

    def set_up(self, state: ServerState) -> tuple[ServerState, RoundRow]:
        """What the method does once, before the first round: round 0."""
        return self._hold(state, 0, self.method.setup, everyone=True)

    def hold(self, state: ServerState) -> tuple[ServerState, RoundRow]:
        """One round; a round without enough valid releases keeps the model and says so."""
        return self._hold(state, state.round + 1, self.method.phases)

    def _hold(
        self, before: ServerState, number: int, phases: tuple[Phase, ...], everyone: bool = False
    ) -> tuple[ServerState, RoundRow]:
        begun = time.perf_counter()
        tally, state, note = _Tally(), before, ""
        self._take_late(number, tally)
        asked = self.participants(number, everyone)
        clients, releases = asked, list[Release]()
        for phase in phases:
            state, releases, note = self._exchange(phase, number, state, clients, tally)
            if note:
                # What earlier phases merged is undone: a round counts whole or not at all.
                state = before
                break
            # Who was not asked in this phase may be in the next; who was asked in vain is not.
            missing = set(tally.asked) - {r.client for r in releases}
            clients = [k for k in clients if k not in missing]
        state = replace(state, round=number)
        if not note:
            self._shelf.settle(number, [*tally.releases, *tally.stand_ins])
        self._count_seeds(tally.heard)
        self._recall(asked)
        row = RoundRow(
            method=self.method.name,
            round=number,
            accuracy=self._test(state, releases),
            asked=len(asked),
            releases=len(releases),
            lost=tuple(f"client {k}: {why}" for k, why in sorted(tally.lost.items())),
            items=sum(r.items for r in (*tally.releases, *tally.stand_ins)),
            missing_classes=self._missing(phases, [*tally.releases, *tally.stand_ins]),
            bytes_up=tally.up,
            bytes_down=tally.down,
            real_seeds=sum(self._seeds.values()),
            seconds=round(time.perf_counter() - begun, 3),
            client_seconds=_client_seconds(tally.heard),
            note=note,
            ledger=tuple(_merged(tally.heard).to_json()),
            rehearsed=tuple(tally.rehearsed),
            stood_in=tuple(f"client {r.client}: {r.age}" for r in tally.stand_ins),
            told={} if note else self._told(releases),
        )
        self.progress.finished(row)
        return state, row

    def _missing(self, phases: tuple[Phase, ...], releases: list[Release]) -> tuple[int, ...]:
        """Classes that no set holds, where sets are what is sent."""
        sets = any(phase.client.distils_sets for phase in phases)
        return tuple(coverage(releases, self.task.info.num_classes)) if sets else ()

    def _exchange(
        self, phase: Phase, number: int, state: ServerState, clients: list[int], tally: _Tally
    ) -> tuple[ServerState, list[Release], str]:
        """One phase: the new state, the valid releases, and why the round is skipped, if it is."""
        broadcasts = phase.broadcasts(number, state, self.context, clients)
        tally.asked = tuple(broadcasts)
        if not broadcasts:
            return state, [], f"skipped: none of the round's clients has a part in {phase.name!r}"
        releases = self._ask(phase, broadcasts, state, tally)
        needed = self.settings.federation.min_replies
        if len(broadcasts) < len(clients):
            needed = min(needed, len(broadcasts))
        if len(releases) < needed:
            return state, releases, f"skipped: {len(releases)} valid releases, {needed} needed"
        old = self._shelf.stand_ins(phase.name, number, releases, self.task.info.num_classes)
        useful = sorted([*(r for r in releases if r.payload), *old], key=lambda r: r.client)
        if not useful:
            return state, releases, "skipped: nobody had anything to release"
        tally.stand_ins += old
        return phase.server(state, useful, self.context), releases, ""

    def _ask(
        self, phase: Phase, broadcasts: Mapping[int, Broadcast], state: ServerState, tally: _Tally
    ) -> list[Release]:
        """Send each client its broadcast, and screen what comes as it comes; valid releases in order of client."""
        from flwr.app import Message

        contents, messages = self._contents(broadcasts), []
        number = next(iter(broadcasts.values())).round
        for client in broadcasts:
            _add_bytes(tally.down, wire.payload_bytes(contents[client]))
            messages.append(
                Message(
                    contents[client],
                    dst_node_id=self.nodes[client],
                    message_type="train",
                    group_id=str(number),
                )
            )
        questions = self._questions_of(phase, broadcasts, state)
        self._rehearse(phase, number, list(broadcasts), tally)
        good: list[Release] = []

        def replied(done: int, total: int, reply: Any) -> None:
            release = self._screen(questions[reply.metadata.src_node_id], reply, tally)
            good.extend([release] if release is not None else [])
            self.progress.replied(self.method.name, number, done, total)

        _, left = collect(
            self.grid,
            messages,
            timeout=self.settings.federation.deadline_s,
            on_reply=replied,
            keep=False,
            stop_late=self.settings.federation.late == "drop" or number >= self.last,
        )
        self._out = {**self._out, **left}
        self._questions.update({message_id: questions[node] for message_id, node in left.items()})
        tally.lost.update({questions[node].client: "no answer before the deadline" for node in left.values()})
        good.sort(key=lambda r: r.client)
        tally.releases += good
        return good

    def _questions_of(
        self, phase: Phase, broadcasts: Mapping[int, Broadcast], state: ServerState
    ) -> dict[int, _Question]:
        """What is asked of each node and what it may answer; without the payload, which would be kept for long."""
        return {
            self.nodes[client]: _Question(
                client,
                replace(broadcast, weights={}, arrays={}),
                phase.client.expects(client, state, self.context),
            )
            for client, broadcast in broadcasts.items()
        }

    def _rehearse(self, phase: Phase, number: int, clients: list[int], tally: _Tally) -> None:
        """Note the faults that are rehearsed in this exchange."""
        where = f" in {phase.name}" if len(self.method.phases) > 1 else ""
        for client, kind in self._plan.told(number, phase.name, clients):
            tally.rehearsed.append(f"client {client}: {kind}{where}")

    def _contents(self, broadcasts: Mapping[int, Broadcast]) -> dict[int, Any]:
        """Records by client; those that are sent the same share its bytes."""
        alike: dict[int, list[int]] = {}
        for client, broadcast in broadcasts.items():
            alike.setdefault(id(broadcast), []).append(client)
        return {
            client: content
            for clients in alike.values()
            for client, content in zip(
                clients, wire.encode_broadcasts(broadcasts[clients[0]], [self._order(k) for k in clients])
            )
        }

    def _order(self, client: int) -> wire.Order:
        federation = self.settings.federation
        return wire.Order(
            client=client,
            method=self.method.name,
            settings=self._client_settings,
            codec=self.settings.federation.codec,
            client_threads=self.settings.federation.client_threads,
            # Elsewhere a late client is stopped from outside; on Ray it would keep its worker until the run ends.
            limit_s=(federation.deadline_s or 0.0) if federation.backend == "ray" else 0.0,
        )

    def _screen(self, question: _Question, reply: Any, tally: _Tally, late: bool = False) -> Release | None:
        """The release, if it is valid and in time; otherwise the tally gets the reason."""
        client = question.client
        if reply.has_error():
            tally.lost[client] = wire.error_text(reply)
            return None
        # Garbage used the link too.
        _add_bytes(tally.up, wire.payload_bytes(reply.content))
        try:
            release = wire.decode_release(reply.content)
            if release.client != client:
                raise ReleaseError(f"client {client} signed its release as client {release.client}")
            check_release(release, self.task.info, question.broadcast, question.expected)
        except ReleaseError as error:
            tally.lost[client] = str(error)
            return None
        if self._plan.at(release.round, release.phase, client).name == "late":
            tally.lost[client], late = "its release came when the round was over (rehearsed)", True
        self._shelf.keep(release, late)
        tally.late += [release] if late else []
        return None if late else release

    def _take_late(self, number: int, tally: _Tally) -> None:
        """Take in what came since the last round; who is still at work on an older one is given up."""
        self._out = still_out(
            self.grid, self._out, lambda i, reply: self._screen(self._questions[i], reply, tally, late=True)
        )
        discard = getattr(self.grid, "discard", None)
        if discard is not None:
            stale = [i for i in self._out if self._questions[i].broadcast.round < number - 1]
            discard(stale)
            self._out = {i: node for i, node in self._out.items() if i not in stale}
        self._questions = {i: self._questions[i] for i in self._out}

    def _count_seeds(self, releases: list[Release]) -> None:
        """Real records handed out so far as starting values: a fixed choice counts once, fresh ones add up.

        An upper bound for fresh choices, since two rounds may draw the same record; never more than there are.
        """
        for release in releases:
            now, before = int(release.metrics.get("seeds", 0.0)), self._seeds.get(release.client, 0)
            total = before + now if release.metrics.get("fresh") else max(before, now)
            self._seeds[release.client] = min(total, release.examples) if now else before

    def _test(self, state: ServerState, releases: list[Release]) -> float:
        if self.method.personal:
            told = [r.metrics["accuracy"] for r in releases if "accuracy" in r.metrics]
            return sum(told) / len(told) if told else 0.0
        return accuracy(self.context.network(state.weights), self.task.test)

    def _told(self, releases: list[Release]) -> dict[str, float]:
        """How good the models beside the global one are."""
        beside = self.method.beside(releases, self.context)
        return {name: accuracy(net, self.task.test) for name, net in beside.items()}


@dataclass
class _Tally:
    """What the phases of a round add up to."""

    up: dict[str, int] = field(default_factory=lambda: dict.fromkeys(wire.SPENT, 0))
    down: dict[str, int] = field(default_factory=lambda: dict.fromkeys(wire.SPENT, 0))
    lost: dict[int, str] = field(default_factory=dict)
    releases: list[Release] = field(default_factory=list)
    late: list[Release] = field(default_factory=list)
    stand_ins: list[Release] = field(default_factory=list)
    rehearsed: list[str] = field(default_factory=list)
    #: clients that were sent the broadcast of the phase at hand
    asked: tuple[int, ...] = ()

    @property
    def heard(self) -> list[Release]:
        """All valid releases that came, in time or not: their records were used."""
        return sorted([*self.releases, *self.late], key=lambda r: r.client)


@dataclass(frozen=True)
class _Question:
    """What an answer is held against.

    Args:
        client: who was asked.
        broadcast: round and phase; what it carried is not kept.
        expected: see `Expectation`.
    """

    client: int
    broadcast: Broadcast
    expected: Expectation


def _merged(releases: list[Release]) -> Ledger:
    """The clients' ledgers as one, in order of client."""
    ledger = Ledger()
    for release in releases:
        ledger.merge(release.ledger)
    return ledger


def _client_seconds(releases: list[Release]) -> tuple[float, float]:
    spent = [float(r.metrics.get("seconds", 0.0)) for r in releases]
    return round(max(spent, default=0.0), 3), round(sum(spent), 3)


def _add_bytes(total: dict[str, int], more: Mapping[str, int]) -> None:
    for name, count in more.items():
        total[name] += count


def union_of(state: ServerState) -> tuple[Tensor, Tensor, list[int]] | None:
    """Items, classes and the client of each item of the last round's sets; None when there are none."""
    sets = list(items_of(state))
    if not sets:
        return None
    clients = [int(s["client"]) for s in sets for _ in range(len(s["y"]))]
    return torch.cat([s["x"] for s in sets]), torch.cat([s["y"] for s in sets]), clients


__all__ = ["Progressing", "RoundRow", "Rounds", "union_of"]
