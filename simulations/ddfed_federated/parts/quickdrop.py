"""Client parts that distil while they train, keep the set at home, and forget by it (P1 ``gm``, P8 ascent).

Source: Dhasade, Ding, Guo, Kermarrec, de Vos and Wu, QuickDrop: Efficient Federated Unlearning via Synthetic Data
Generation, Middleware 2024, algorithms 1 and 2, and its code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from ddfed.central import check_parts
from ddfed.distill import distill
from ddfed.domain import Network
from ddfed.evaluate import Protocol, train
from ddfed.federation import Broadcast, Expectation, Release
from ddfed.gate import Gate
from ddfed.seeds import isolated
from ddfed.settings import Settings
from ddfed.store import HardLabels
from ddfed_federated.methods.base import (
    ClientContext,
    ClientPart,
    ClientState,
    Forgetting,
    Phase,
    ServerContext,
    ServerState,
    check_one_network,
    weights_of,
)
from ddfed_federated.parts.averaging import Averages, fedavg
from ddfed_federated.parts.local import train_on_records
from ddfed_federated.targets import Targets


class QuickdropOptions(Settings):
    """The set that stays at home, and how it is used to forget (QUICKDROP's code)."""

    scale: float = Field(0.01, gt=0, le=1, description="items kept for a class, as a share of the client's rows of it")
    ascent_lr: float = Field(0.004, gt=0, description="step size of the ascent on what is forgotten")
    ascent_epochs: int = Field(1, ge=1, description="most passes over it; it ends where its loss is that of a guess")
    recovery_rounds: int = Field(2, ge=0, description="rounds of training on what stays")
    recovery_lr: float = Field(0.02, gt=0, description="step size in them")
    recovery_epochs: int = Field(1, ge=1, description="local passes in each")
    batch: int = Field(256, ge=0, description="items per step of both; 0 for all")


class _SendsWeights(ClientPart):
    def expects(self, client: int, state: ServerState, context: ServerContext) -> Expectation:
        return Expectation(("weights",), weights=state.weights)


@dataclass(frozen=True)
class TrainsAndDistils(_SendsWeights):
    """Train on the client's rows as FedAvg does; after each local pass, move the set that stays at home.

    The set has ceil(scale * rows) items of every class. It matches the gradients of the class at the weights that
    the training has come to, so over a round it is matched along the local path. Training does not look at it: the
    weights sent are FedAvg's to the last bit.
    """

    stateful = True

    def check(self, context: ServerContext) -> None:
        check_one_network(context, "clients train the global weights")
        check_parts(context.settings.distill, context.domain, context.task.info)

    def __call__(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        data = gate.raw("local training")
        if not len(data):
            return context.release(broadcast), state
        net, kept = context.network(gate.info, broadcast.weights), state
        steps, epochs = context.settings.distill.steps, context.settings.local.epochs

        def after(epoch: int) -> None:
            nonlocal kept
            share = steps * epoch // epochs - steps * (epoch - 1) // epochs
            if share or not kept:
                kept = moved(gate, net, kept, share, (broadcast.round, epoch), context)

        streams = context.streams.child("local", broadcast.round)
        train_on_records(net, data, context.settings.local, streams, context.device, on_epoch=after)
        return context.release(broadcast, {"weights": weights_of(net)}, examples=len(data)), kept


def moved(
    gate: Gate, net: Network, kept: ClientState, steps: int, place: tuple[int, int], context: ClientContext
) -> ClientState:
    """The set after some outer steps of the method's engine around a network; begun where there is none.

    Classes of equal size are distilled together: matching is class by class, so this changes nothing else.

    Args:
        gate: the client's.
        net: its weights are the ones that judge.
        kept: ``x`` (items, *item) and ``y`` (items,), classes rising; empty for none yet.
        steps: outer steps.
        place: round and local pass, which name the draws.
        context: of the client.
    """
    counts = gate.counts()
    sizes = {c: math.ceil(context.options.scale * int(counts[c])) for c in gate.held()}
    found = []
    for size in sorted(set(sizes.values())):
        classes = [c for c, wanted in sizes.items() if wanted == size]
        syn = distill(
            gate,
            context.domain,
            context.settings.distill.model_copy(update={"ipc": size, "steps": steps}),
            context.streams.child("set at home", *place, size),
            scope=f"client {context.client}, round {place[0]}",
            classes=classes,
            center=weights_of(net),
            start={"x": kept["x"][torch.isin(kept["y"], torch.tensor(classes))]} if kept else None,
            device=context.device,
        )
        found.append(syn.decoded())
    x, y = (torch.cat(both) for both in zip(*found))
    order = torch.argsort(y, stable=True)
    return {"x": x[order].cpu(), "y": y[order].cpu()}


# --- forgetting --------------------------------------------------------------------------------------------------


def _targets(broadcast: Broadcast) -> Targets:
    return Targets.unpack(broadcast.arrays["forget"])


def _parted(state: ClientState, broadcast: Broadcast, context: ClientContext, meant: bool) -> ClientState:
    """The items that are forgotten, or those that stay; empty where there are none."""
    if not state:
        return {}
    chosen = _targets(broadcast).meant(context.client, state["y"]) == meant
    return {k: v[chosen] for k, v in state.items()} if bool(chosen.any()) else {}


def train_on_items(
    items: ClientState,
    broadcast: Broadcast,
    context: ClientContext,
    info: object,
    lr: float,
    epochs: int,
    sign: float = 1.0,
    stop: Callable[[Network, Tensor, Tensor], bool] | None = None,
) -> Network:
    """Plain SGD from the broadcast's weights on some items; ``sign`` -1 goes up instead of down.

    Args:
        items: ``x`` and ``y``.
        stop: looked at before the first step and after every one: (network, x, y).
    """
    net = context.network(info, broadcast.weights)
    x, y = items["x"].to(context.device), items["y"].to(context.device)
    if stop is not None and stop(net, x, y):
        return net
    protocol = Protocol(
        name=broadcast.phase,
        epochs=epochs,
        lr=lr,
        momentum=0.0,
        weight_decay=0.0,
        batch=context.options.batch,
        drops=(),
    )
    streams = context.streams.child(broadcast.phase, broadcast.round)
    with isolated(streams.seed("noise")):
        return train(
            net,
            lambda rows: (x[rows], y[rows]),
            len(y),
            lambda logits, classes: sign * HardLabels.loss(logits, classes),
            protocol,
            None,
            streams,
            stop=None if stop is None else lambda: stop(net, x, y),
        )


def no_better_than_a_guess(net: Network, x: Tensor, y: Tensor) -> bool:
    """The mean loss of the items is above ln C, that of a guess among C classes."""
    with torch.no_grad():
        logits = net(x)
        return float(HardLabels.loss(logits, y).mean()) > math.log(logits.shape[1])


@dataclass(frozen=True)
class Ascends(_SendsWeights):
    """Go up the loss of the items that are forgotten until it is that of a guess; who has none sends nothing."""

    stateful = True

    def __call__(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        items = _parted(state, broadcast, context, meant=True)
        if not items:
            return context.release(broadcast), state
        o = context.options
        net = train_on_items(
            items, broadcast, context, gate.info, o.ascent_lr, o.ascent_epochs, -1.0, no_better_than_a_guess
        )
        return context.release(broadcast, {"weights": weights_of(net)}, examples=len(items["y"])), state


@dataclass(frozen=True)
class Recovers(_SendsWeights):
    """Delete the items that are forgotten and train on those that stay; real rows are not looked at."""

    stateful = True

    def __call__(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        items = _parted(state, broadcast, context, meant=False)
        if not items:
            return context.release(broadcast), {}
        o = context.options
        net = train_on_items(items, broadcast, context, gate.info, o.recovery_lr, o.recovery_epochs)
        return context.release(broadcast, {"weights": weights_of(net)}, examples=len(items["y"])), items


def _named(state: ServerState, targets: Targets, context: ServerContext) -> ServerState:
    return state.having(forget=[str(target) for target in targets.targets])


def send_weights_and_targets(state: ServerState, context: ServerContext) -> Broadcast:
    """P6: the global model and what is to be forgotten."""
    return Broadcast(0, weights=state.weights, arrays={"forget": Targets.parse(state.memory["forget"]).pack()})


ASCENDS = Forgetting(
    "clients went up the loss of their items of it, and trained on the others",
    _named,
    (
        Phase("ascend", Ascends(), Averages(fedavg), send_weights_and_targets),
        Phase("recover", Recovers(), Averages(fedavg), send_weights_and_targets),
    ),
    lambda context: ("ascend", *["recover"] * context.options.recovery_rounds),
)
