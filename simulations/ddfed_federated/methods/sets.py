"""Methods whose clients send small labelled sets: FedDM and its two controls.

FedDM: Xiong, Wang, Cheng, Yu and Hsieh, Iterative Distribution Matching for Communication-Efficient Federated
Learning, CVPR 2023. Averaging local optima models the global loss badly when clients differ; a client
therefore sends a set whose loss surface imitates its own near the current global weights, and the server
minimises the sum of these surrogates.

The controls send real items of the same budget, untouched. ``random-once`` chooses them once per client;
``random-fresh`` anew in every round, which hands out the budget again each time and so flatters a
comparison: the byte ledger counts it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddfed.distill import distill
from ddfed.errors import FederationError
from ddfed.evaluate import Protocol, train
from ddfed.federation import Broadcast, Release
from ddfed.gate import Gate
from ddfed.recipes import Preset
from ddfed.seeds import isolated
from ddfed.store import HardLabels
from ddfed_federated.methods.base import ClientContext, ClientState, FederatedMethod, ServerContext, ServerState
from ddfed_federated.methods.presets import DEFAULTS, PRESETS
from ddfed_federated.settings import ServerSettings, SimulateSettings


@dataclass(frozen=True)
class SetMethod(FederatedMethod):
    """Clients send sets, the server trains on their union.

    Args:
        distils: False for the controls: the initial real items are sent as they are.
        restart: overrides ``federation.restart`` where the method's meaning depends on it.
    """

    name: str
    title: str
    citation: str
    sends: str = "set"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    presets: tuple[Preset, ...] = ()
    departures: tuple[str, ...] = ()
    distils: bool = True
    restart: str = ""

    def restart_of(self, settings: SimulateSettings) -> str:
        return self.restart or settings.federation.restart

    def client(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        """Distil the client's data around the global weights (Algorithm 1, client side)."""
        settings, number = context.settings, broadcast.round
        held = gate.held(settings.distill.min_count)
        if not held:
            return Release(context.client, number, "empty"), state
        restart = self.restart_of(settings)
        parts = settings.distill if self.distils else settings.distill.model_copy(update={"steps": 0})
        previous = {k: v for k, v in state.items() if k == "x"} if restart == "previous" else {}
        syn = distill(
            gate,
            context.domain,
            parts,
            context.streams if restart == "same" else context.streams.child("round", number),
            scope=f"client {context.client}, round {number}",
            classes=held,
            center=broadcast.weights,
            start=previous or None,
            device=context.device,
        )
        x, y = syn.decoded()
        seeds = 0 if previous or parts.init == "noise" else len(y)
        counts = gate.counts().tolist()
        release = Release(
            client=context.client,
            round=number,
            kind="set",
            arrays={"x": x, "y": y},
            examples=sum(counts),
            class_counts=tuple(counts),
            metrics={"seeds": float(seeds)},  # real records the items started from in this round
        )
        return release, {"x": x} if restart == "previous" else state

    def server(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        """Concatenate the sets and train on them from the last global weights (Algorithm 1, server side)."""
        settings = context.settings.server
        round_sets = [_packed(r) for r in releases if r.kind == "set" and len(r.arrays["y"])]
        past = [*state.memory.get("sets", []), round_sets][-settings.history :]
        sets = [item for one_round in past for item in one_round]
        if not sets:
            raise FederationError(f"round {state.round + 1}: no client released a set, so there is nothing to train on")
        net = context.network()
        if settings.warm_start:
            net.load_state_dict(state.weights)
        x = torch.cat([s["x"] for s in sets]).to(context.device)
        y = torch.cat([s["y"] for s in sets]).to(context.device)
        weight = _weights(sets, settings).to(context.device)

        def loss(logits: Tensor, rows: Tensor) -> Tensor:
            return weight[rows] * HardLabels.loss(logits, y[rows])

        streams = context.streams.child("server", state.round + 1)
        with isolated(streams.seed("noise")):  # a network's own randomness, such as dropout
            train(
                net,
                lambda rows: (x[rows], rows.to(context.device)),
                len(y),
                loss,
                server_protocol(context.settings),
                context.domain.augmentation(settings.augment, context.task.info),
                streams,
            )
        weights = {k: v.detach().cpu().clone() for k, v in net.state_dict().items()}
        return ServerState(state.round + 1, weights, {"sets": past})


def server_protocol(settings: SimulateSettings) -> Protocol:
    """The server's training as a protocol: constant step size, no augmentation by default."""
    server = settings.server
    return Protocol(
        name="server",
        epochs=server.epochs,
        lr=server.lr,
        momentum=server.momentum,
        weight_decay=server.weight_decay,
        batch=server.batch,
        optimizer=server.optimizer,
        augment=server.augment,
        drops=(),
    )


def _packed(release: Release) -> dict[str, Any]:
    return {
        "client": release.client,
        "x": release.arrays["x"],
        "y": release.arrays["y"].to(torch.int64),
        "counts": list(release.class_counts),
    }


def _weights(sets: Sequence[Mapping[str, Any]], settings: ServerSettings) -> Tensor:
    """Weight of each item in the loss, mean 1."""
    if settings.weighting == "uniform":
        return torch.ones(sum(len(s["y"]) for s in sets))
    parts = []
    for s in sets:
        records = torch.tensor(s["counts"], dtype=torch.float32)
        items = torch.bincount(s["y"], minlength=len(records)).clamp(min=1)
        parts.append((records / items)[s["y"]])
    weight = torch.cat(parts)
    return weight / weight.mean()


_FEDDM = "Xiong, Wang, Cheng, Yu and Hsieh, Iterative Distribution Matching for Communication-Efficient FL, CVPR 2023"

FEDDM = SetMethod(
    name="feddm",
    title="clients distil around the global weights, the server trains on the union",
    citation=_FEDDM,
    defaults=DEFAULTS,
    presets=PRESETS,
    departures=(
        "clients start every round from the same real items (federation.restart = 'same'); the public "
        "reimplementation draws fresh ones, which hands out new records in every round",
    ),
)
RANDOM_ONCE = SetMethod(
    name="random-once",
    title="control: real items of the same budget, chosen once per client",
    citation="baseline (the 0-step control)",
    defaults=DEFAULTS,
    presets=PRESETS,
    distils=False,
    restart="same",
)
RANDOM_FRESH = SetMethod(
    name="random-fresh",
    title="control: real items of the same budget, chosen anew in every round",
    citation="baseline; releases the budget again in every round",
    defaults=DEFAULTS,
    presets=PRESETS,
    distils=False,
    restart="fresh",
)
