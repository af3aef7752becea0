"""Client part: make a small labelled set with a central engine (P1 to P3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ddfed.central import check_parts
from ddfed.distill import distill
from ddfed.federation import Broadcast, Expectation, Release
from ddfed.gate import Gate
from ddfed.registry import registry
from ddfed.settings import PartSettings
from ddfed_federated.methods.base import (
    ClientContext,
    ClientPart,
    ClientState,
    ServerContext,
    ServerState,
    check_one_network,
    network_name,
)
from ddfed_federated.parts.tables import Table
from ddfed_federated.settings import SimulateSettings


def _nothing(broadcast: Broadcast) -> Mapping[str, Tensor]:
    return {}


@dataclass(frozen=True)
class Distils(ClientPart):
    """Distil the client's rows with the parts of ``distill``, around the weights that the server sent.

    Where the set starts is ``federation.restart``: the same real items in every round, fresh ones, or the last set.

    Args:
        distils: False for the controls: the initial real items are sent as they are.
        restart: overrides ``federation.restart`` where the method's meaning depends on it.
        tables: class means of the real rows that are sent along.
        knows: what the engine may use beside the client's rows, from the broadcast (``Judgement.public``).
    """

    distils: bool = True
    restart: str = ""
    tables: tuple[Table, ...] = ()
    knows: Callable[[Broadcast], Mapping[str, Tensor]] = field(default=_nothing)
    distils_sets = True

    def restart_of(self, settings: SimulateSettings) -> str:
        return self.restart or settings.federation.restart

    def remembers(self, settings: SimulateSettings) -> bool:
        return self.restart_of(settings) == "previous"

    def _parts(self, settings: SimulateSettings, network: str) -> PartSettings:
        """The parts that a client with such a network distils with."""
        own: dict[str, Any] = {"network": network}
        if not self.distils:
            # Real items as they are, whatever the method that is controlled starts from.
            own |= {"steps": 0, **({"init": "random"} if settings.distill.init == "noise" else {})}
        return settings.distill.model_copy(update=own)

    def _known(
        self, state: ClientState, broadcast: Broadcast, context: ClientContext, held: tuple[int, ...]
    ) -> Mapping[str, Tensor]:
        """Stored values to start from instead of real items, by the store's names; empty where there are none."""
        previous = self.restart_of(context.settings) == "previous"
        return {k: v for k, v in state.items() if k == "x"} if previous else {}

    def check(self, context: ServerContext) -> None:
        settings, info = context.settings, context.task.info
        for name in dict.fromkeys(settings.federation.networks or (settings.distill.network,)):
            check_parts(self._parts(settings, name), context.domain, info)
        pool = settings.distill.pool
        if self.distils and settings.distill.steps and registry().load("pool", pool, "distill.pool").around:
            check_one_network(context, f"pool {pool!r} judges sets with networks around the global weights")
        if self.tables:
            check_one_network(context, "clients send what the global model answers")

    def expects(self, client: int, state: ServerState, context: ServerContext) -> Expectation:
        parts, info = context.settings.distill, context.task.info
        statistics = {t.name: t.shape(context) for t in self.tables}
        return Expectation(
            ("set", "statistics") if statistics else ("set",), parts.ipc * info.num_classes, statistics=statistics
        )

    def __call__(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        settings, number = context.settings, broadcast.round
        held = gate.held(settings.distill.min_count)
        if not held:
            return context.release(broadcast), state
        restart = self.restart_of(settings)
        parts = self._parts(settings, network_name(settings, context.client))
        known = self._known(state, broadcast, context, held)
        syn = distill(
            gate,
            context.domain,
            parts,
            context.streams if restart == "same" else context.streams.child("round", number),
            scope=f"client {context.client}, round {number}",
            classes=held,
            center=broadcast.weights or None,
            public=self.knows(broadcast),
            start=known or None,
            device=context.device,
        )
        x, y = syn.decoded()
        seeds = 0 if known or parts.init == "noise" else len(y)
        counts = gate.counts().tolist()
        tables = {t.name: t(gate, broadcast, context) for t in self.tables}
        release = context.release(
            broadcast,
            {"set": {"x": x, "y": y}, **({"statistics": tables} if tables else {})},
            examples=sum(counts),
            class_counts=tuple(counts),
            # Real records the items started from in this round, and whether those are new ones in every round.
            metrics={"seeds": float(seeds), "fresh": float(restart == "fresh")},
        )
        return release, {"x": x} if restart == "previous" else state
