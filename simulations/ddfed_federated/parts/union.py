"""Server part: concatenate the sets and train the global model on them (P4, P5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddfed.domain import Network
from ddfed.errors import FederationError
from ddfed.evaluate import Protocol, train
from ddfed.federation import Release
from ddfed.seeds import isolated
from ddfed.store import HardLabels
from ddfed_federated.methods.base import ServerContext, ServerPart, ServerState
from ddfed_federated.settings import SimulateSettings


@dataclass(frozen=True)
class Union:
    """The items that the server trains on.

    Args:
        x: (items, *item).
        y: classes, (items,).
        soft: targets in place of the classes, (items, classes); None where labels are hard.
        weight: of each item in the loss, mean 1.
        client: whose item, (items,).
    """

    x: Tensor
    y: Tensor
    weight: Tensor
    client: Tensor
    soft: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)


#: Adds to the loss of a batch: (logits (rows, classes), classes of the rows) -> scalar.
BatchTerm = Callable[[Tensor, Tensor], Tensor]
#: Makes such a term for a round, or None where it has nothing to say.
TermMaker = Callable[[ServerState, Sequence[Release], ServerContext], BatchTerm | None]
#: Makes the test that ends training early, looked at after every step.
Stop = Callable[[ServerState, Sequence[Release], ServerContext, Network], Callable[[], bool] | None]


@dataclass(frozen=True)
class TrainsOnUnion(ServerPart):
    """Train the global model on the sets of the last ``server.history`` rounds.

    Args:
        terms: what is added to the cross-entropy.
        stop: ends training early.
    """

    terms: tuple[TermMaker, ...] = ()
    stop: Stop | None = None

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        past = remembered(state, releases, context)
        union = union_of_sets(past, context)
        net = context.network(state.weights if context.settings.server.warm_start else None)
        terms = [term for make in self.terms if (term := make(state, releases, context)) is not None]
        stop = self.stop(state, releases, context, net) if self.stop else None
        train_on_union(net, union, context, state.round + 1, terms, stop)
        return state.having(net, sets=past)


def remembered(state: ServerState, releases: Sequence[Release], context: ServerContext) -> list[list[dict[str, Any]]]:
    """The sets of the last rounds, this one's last, as checkpoints hold them."""
    fresh = [_packed(r) for r in releases if r.items]
    return [*state.memory.get("sets", []), fresh][-context.settings.server.history :]


def union_of_sets(rounds: Sequence[Sequence[Mapping[str, Any]]], context: ServerContext) -> Union:
    """All remembered sets as one.

    Raises:
        FederationError: there is none.
    """
    sets = [s for one_round in rounds for s in one_round]
    if not sets:
        raise FederationError("no client released a set, so there is nothing to train on")

    def joined(name: str) -> Tensor:
        return torch.cat([s[name] for s in sets]).to(context.device)

    return Union(
        x=joined("x"),
        y=joined("y"),
        soft=joined("soft") if "soft" in sets[0] else None,
        weight=_weights(sets, context.settings).to(context.device),
        client=torch.cat([torch.full((len(s["y"]),), int(s["client"])) for s in sets]),
    )


def train_on_union(
    net: Network,
    union: Union,
    context: ServerContext,
    number: int,
    terms: Sequence[BatchTerm] = (),
    stop: Callable[[], bool] | None = None,
) -> Network:
    """Train a network in place as ``server`` says; its randomness hangs on the round."""
    settings = context.settings

    def loss(logits: Tensor, rows: Tensor) -> Tensor:
        return union.weight[rows] * _row_loss(logits, union, rows) + sum(t(logits, union.y[rows]) for t in terms)

    streams = context.streams.child("server", number)
    with isolated(streams.seed("noise")):  # a network's own randomness, such as dropout
        return train(
            net,
            lambda rows: (union.x[rows], rows.to(context.device)),
            len(union),
            loss,
            server_protocol(settings),
            context.domain.augmentation(settings.server.augment, context.task.info),
            streams,
            stop=stop,
        )


def _row_loss(logits: Tensor, union: Union, rows: Tensor) -> Tensor:
    if union.soft is None:
        return HardLabels.loss(logits, union.y[rows])
    return torch.nn.functional.cross_entropy(logits, union.soft[rows], reduction="none")


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
    soft = {"soft": release.set["soft"]} if "soft" in release.set else {}
    return {
        "client": release.client,
        "x": release.set["x"],
        "y": release.set["y"].to(torch.int64),
        "counts": list(release.class_counts),
        "age": release.age,
        **soft,
    }


def _weights(sets: Sequence[Mapping[str, Any]], settings: SimulateSettings) -> Tensor:
    """Weight of each item in the loss, mean 1."""
    decay = settings.federation.reuse_decay
    weigh = _alike if settings.server.weighting == "uniform" else _by_records
    weight = torch.cat([weigh(s) * decay ** s.get("age", 0) for s in sets])
    return weight / weight.mean()


def _alike(one: Mapping[str, Any]) -> Tensor:
    return torch.ones(len(one["y"]))


def _by_records(one: Mapping[str, Any]) -> Tensor:
    """Each item as many records as it stands for."""
    records = torch.tensor(one["counts"], dtype=torch.float32)
    items = torch.bincount(one["y"], minlength=len(records)).clamp(min=1)
    return (records / items)[one["y"]]


def items_of(state: ServerState) -> Iterator[dict[str, Any]]:
    """The sets of the last round that the server remembers, one a client."""
    rounds = state.memory.get("sets") or []
    yield from rounds[-1] if rounds else []
