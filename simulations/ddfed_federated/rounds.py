"""One round and many: ask, collect, screen, merge, test, account, save.

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
from ddfed.federation import Release, check_release, check_weights, coverage
from ddfed.ledger import Ledger
from ddfed.registry import registry
from ddfed.seeds import Streams
from ddfed_federated.flower import wire
from ddfed_federated.flower.loop import collect, still_out
from ddfed_federated.methods import FederatedMethod, ServerContext, ServerState
from ddfed_federated.settings import SimulateSettings

#: What no client needs to know; leaving it out also makes the bytes the same on every back end.
_SERVER_ONLY: Any = {
    "baselines": True,
    "references": True,
    "targets": True,
    "server": True,
    "run": {"out", "name", "threads", "checkpoint_every"},
    "federation": {"backend", "workers", "ray_address", "server_threads", "deadline_s", "min_replies"},
}


@dataclass(frozen=True)
class RoundRow:
    """What a round did, as plain numbers: one line of the tables and of ``events.jsonl``.

    Args:
        method: whose round.
        round: 1-based.
        accuracy: of the global model after the round, on the whole test split, in [0, 1].
        asked: clients that were sent the broadcast.
        releases: valid releases merged.
        lost: ``client: reason`` of those that failed, answered garbage or not at all.
        items: synthetic or real items the server trained on; 0 for averaging.
        missing_classes: classes no set of the round holds.
        bytes_up: serialised bytes from clients, by what they were spent on.
        bytes_down: serialised bytes to clients.
        real_seeds: real records handed out so far as the items' starting values, summed over clients.
        seconds: wall time of the round.
        client_seconds: longest and total compute time of clients.
        note: anything a reader must know, such as a skipped round.
        ledger: what the clients of the merged releases say was asked of their records.
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
        lists = ("lost", "missing_classes", "client_seconds", "ledger")
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
        self.streams = Streams(self.settings.run.seed)
        self.context = ServerContext.of(self.settings, self.domain, self.task)
        self._client_settings = self.settings.model_dump_json(exclude=_SERVER_ONLY)
        self._seeds: dict[int, int] = {}
        self._out: dict[str, int] = {}
        self._last_sets: dict[int, Tensor] = {}

    def begin(self) -> ServerState:
        return self.method.begin(self.context)

    def resume(self, memory: Mapping[str, Any]) -> None:
        """Take over what `remember` gave."""
        self._seeds = {int(k): int(v) for k, v in memory["seeds"]}
        self._last_sets = {int(k): v for k, v in memory["last_sets"]}
        if self._last_sets:
            self._remind()

    def _remind(self) -> None:
        """Give simulated clients back the sets that died with the old process.

        Not traffic of the federation: a deployed client keeps its memory, so nothing is booked.
        """
        from flwr.app import Message, RecordDict

        messages = [
            Message(
                RecordDict({"state": wire.pack({f"{self.method.name}/x": x})}), self.nodes[client], "query.set_state"
            )
            for client, x in self._last_sets.items()
        ]
        replies, missing = collect(self.grid, messages)
        failed = [wire.error_text(reply) for reply in replies if reply.has_error()]
        if failed or missing:
            raise FederationError(f"{len(failed) + len(missing)} clients could not be resumed: {'; '.join(failed[:3])}")

    def remember(self) -> dict[str, Any]:
        """What a checkpoint holds beside the server's state."""
        return {
            "seeds": [[k, v] for k, v in sorted(self._seeds.items())],
            "last_sets": [[k, v] for k, v in sorted(self._last_sets.items())],
        }

    @property
    def _keeps_state(self) -> bool:
        return self.method.sends == "set" and self.method.restart_of(self.settings) == "previous"

    def participants(self, number: int) -> list[int]:
        """Clients asked in a round: drawn without replacement from seed and round alone.

        A client that has not answered yet is not asked again: two messages at once could overwrite its state.
        """
        federation = self.settings.federation
        wanted = max(1, round(federation.participation * federation.clients))
        drawn = self.streams.numpy("participants", number).permutation(federation.clients)[:wanted]
        self._out = still_out(self.grid, self._out)
        busy = set(self._out.values())
        return sorted(k for k in drawn.tolist() if k in self.nodes and self.nodes[k] not in busy)

    def hold(self, state: ServerState) -> tuple[ServerState, RoundRow]:
        """One round; a round without enough valid releases keeps the model and says so."""
        number, begun = state.round + 1, time.perf_counter()
        asked = self.participants(number)
        down, replies, lost = self._ask(state, number, asked)
        releases, up, rejected = self._screen(state, replies, number)
        lost.update(rejected)
        note = ""
        if len(releases) < self.settings.federation.min_replies:
            note = f"skipped: {len(releases)} valid releases, {self.settings.federation.min_replies} needed"
        useful = [r for r in releases if r.kind != "empty"]
        if not note and not useful:
            note = "skipped: nobody had anything to release"
        new = replace(state, round=number) if note else self.method.server(state, useful, self.context)
        self._count_seeds(releases)
        row = RoundRow(
            method=self.method.name,
            round=number,
            accuracy=self._test(new),
            asked=len(asked),
            releases=len(releases),
            lost=tuple(f"client {k}: {why}" for k, why in sorted(lost.items())),
            items=sum(len(r.arrays["y"]) for r in useful if r.kind == "set"),
            missing_classes=tuple(coverage(useful, self.task.info.num_classes)) if self.method.sends == "set" else (),
            bytes_up=up,
            bytes_down=down,
            real_seeds=sum(self._seeds.values()),
            seconds=round(time.perf_counter() - begun, 3),
            client_seconds=_client_seconds(releases),
            note=note,
            ledger=tuple(_merged(releases).to_json()),
        )
        self.progress.finished(row)
        return new, row

    def _ask(
        self, state: ServerState, number: int, asked: list[int]
    ) -> tuple[dict[str, int], dict[int, Any], dict[int, str]]:
        """Send the broadcast and wait; returns bytes down, replies by client, and who never came."""
        from flwr.app import Message

        broadcast = self.method.broadcast(state)
        contents = dict(zip(asked, wire.encode_broadcasts(broadcast, [self._order(client) for client in asked])))
        messages, down = [], _no_bytes()
        for client in asked:
            _add_bytes(down, wire.payload_bytes(contents[client]))
            messages.append(
                Message(contents[client], dst_node_id=self.nodes[client], message_type="train", group_id=str(number))
            )
        client_of = {self.nodes[client]: client for client in asked}
        replies, left = collect(
            self.grid,
            messages,
            timeout=self.settings.federation.deadline_s,
            on_reply=lambda done, total, _: self.progress.replied(self.method.name, number, done, total),
        )
        found = {client_of[reply.metadata.src_node_id]: reply for reply in replies}
        self._out = {**self._out, **left}
        return down, found, {client_of[node]: "no answer before the deadline" for node in left.values()}

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

    def _screen(
        self, state: ServerState, replies: Mapping[int, Any], number: int
    ) -> tuple[list[Release], dict[str, int], dict[int, str]]:
        """Valid releases in order of client, bytes up (garbage used the link too), and who was refused why."""
        quota = self.settings.distill.ipc * self.task.info.num_classes
        good, up, refused = [], _no_bytes(), {}
        for client, reply in sorted(replies.items()):
            if reply.has_error():
                refused[client] = wire.error_text(reply)
                continue
            _add_bytes(up, wire.payload_bytes(reply.content))
            try:
                release = wire.decode_release(reply.content)
                if release.client != client:
                    raise ReleaseError(f"client {client} signed its release as client {release.client}")
                if release.kind not in (self.method.sends, "empty"):
                    raise ReleaseError(f"{self.method.name} expects {self.method.sends!r}, got {release.kind!r}")
                check_release(release, self.task.info, number, quota)
                if release.kind == "weights":
                    check_weights(release, state.weights)
            except ReleaseError as error:
                refused[client] = str(error)
                continue
            if self._keeps_state and release.kind == "set":
                self._last_sets[client] = release.arrays["x"]
            good.append(release)
        return good, up, refused

    def _count_seeds(self, releases: list[Release]) -> None:
        """Real records handed out so far as starting values: a fixed choice counts once, fresh ones add up.

        An upper bound for fresh choices, since two rounds may draw the same record; never more than there are.
        """
        for release in releases:
            now, before = int(release.metrics.get("seeds", 0.0)), self._seeds.get(release.client, 0)
            total = before + now if self.method.restart_of(self.settings) == "fresh" else max(before, now)
            self._seeds[release.client] = min(total, release.examples)

    def _test(self, state: ServerState) -> float:
        net = self.context.network()
        net.load_state_dict(state.weights)
        return accuracy(net, self.task.test)


def _merged(releases: list[Release]) -> Ledger:
    """The clients' ledgers as one, in order of client."""
    ledger = Ledger()
    for release in releases:
        ledger.merge(release.ledger)
    return ledger


def _client_seconds(releases: list[Release]) -> tuple[float, float]:
    spent = [float(r.metrics.get("seconds", 0.0)) for r in releases]
    return round(max(spent, default=0.0), 3), round(sum(spent), 3)


def _no_bytes() -> dict[str, int]:
    return {"weights": 0, "images": 0, "labels": 0, "control": 0}


def _add_bytes(total: dict[str, int], more: Mapping[str, int]) -> None:
    for name, count in more.items():
        total[name] += count


def union_of(state: ServerState) -> tuple[Tensor, Tensor, list[int]] | None:
    """Items, classes and the client of each item of the last round's sets; None when there are none."""
    rounds = state.memory.get("sets") or []
    if not rounds or not rounds[-1]:
        return None
    sets = rounds[-1]
    clients = [int(s["client"]) for s in sets for _ in range(len(s["y"]))]
    return torch.cat([s["x"] for s in sets]), torch.cat([s["y"] for s in sets]), clients


__all__ = ["Progressing", "RoundRow", "Rounds", "union_of"]
