"""FedCache 2.0: personal models, and a cache of distilled items that serves clients what resembles their data.

Pan, Sun, Wu, Wang, Liu, Gao and Wang, FedCache 2.0: Federated Edge Learning with Knowledge Caching and Dataset
Distillation, 2024 (arXiv 2405.13378).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import Tensor

from ddfed.central import check_parts
from ddfed.evaluate import accuracy
from ddfed.federation import Broadcast, Release
from ddfed.gate import Gate
from ddfed.recipes import Preset
from ddfed.settings import Settings
from ddfed_federated import codecs
from ddfed_federated.methods.base import (
    ClientContext,
    ClientState,
    FederatedMethod,
    Phase,
    ServerContext,
    ServerPart,
    ServerState,
    send_nothing,
    weights_of,
)
from ddfed_federated.methods.presets import DEFAULTS, digits
from ddfed_federated.parts.distil import Distils
from ddfed_federated.parts.local import train_on_records
from ddfed_federated.parts.personal import having, judged, own_network
from ddfed_federated.parts.tables import TellsCounts
from ddfed_federated.parts.union import items_of, remembered
from ddfed_federated.settings import SimulateSettings


class FedCacheOptions(Settings):
    """FedCache's own settings (the demo code's)."""

    tau: float = Field(0.5, ge=0, le=1, description="0 serves a client's own mix of classes, 1 all classes alike")
    warmup: int = Field(10, ge=0, description="passes over its own rows that a client makes before its first round")
    keep: int = Field(2000, ge=0, description="served items that a client keeps, the newest")
    least: float = Field(0.3, ge=0, le=1, description="accuracy on its own rows from which a client sends items")


# --- the cache ----------------------------------------------------------------------------------------------------


def quotas(stock: Tensor, mix: Tensor, tau: float) -> Tensor:
    """Items of each class that a client is served, (classes,) int64.

    With weights w_c = (1 - tau) p(c) + tau, class c gets the smallest stock there is of any class, times w_c / max w,
    rounded up, so that a rare class is not lost; never more than there are.

    Source: the authors' demo, which rounds down.

    Args:
        stock: items in the cache, (classes,).
        mix: share of the client's rows that each class has, (classes,).
        tau: see `FedCacheOptions`.
    """
    weights = (1 - tau) * mix.double() + tau
    there = stock > 0
    if not bool(there.any()):
        return torch.zeros_like(stock)
    scaled = int(stock[there].min()) * weights / weights[there].max()
    # What is a whole number up to rounding stays it.
    return torch.minimum((scaled - 1e-9).ceil().long().clamp(min=0), stock)


def _serve(client: int, broadcast: Broadcast, state: ServerState, context: ServerContext) -> Broadcast | None:
    """P6: items of other clients by the client's mix of classes; who told no mix is not asked."""
    counts = state.memory["counts"].get(str(client))
    if counts is None:
        return None
    others = [s for s in items_of(state) if s["client"] != client]
    if not others:
        return replace(broadcast)
    x, y = torch.cat([s["x"] for s in others]), torch.cat([s["y"] for s in others])
    rows = torch.tensor(counts, dtype=torch.float64)
    wanted = quotas(torch.bincount(y, minlength=len(rows)), rows / rows.sum(), context.options.tau)
    chosen = []
    for c in torch.nonzero(wanted).flatten().tolist():
        members = torch.nonzero(y == c).flatten()
        stream = context.streams.torch("serve", state.round, client, c)
        chosen.append(members[torch.randperm(len(members), generator=stream)[: int(wanted[c])]])
    if not chosen:
        return replace(broadcast)
    index = torch.cat(chosen)
    arrays = {**codecs.encode(x[index], context.settings.federation.codec), "y": y[index].to(torch.int16)}
    return replace(broadcast, arrays=arrays)


@dataclass(frozen=True)
class KnowsMixes(ServerPart):
    """What each client told of its classes."""

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        return state.having(counts={str(r.client): r.statistics["counts"].tolist() for r in releases})


@dataclass(frozen=True)
class Caches(ServerPart):
    """A client's items take the place of its last ones; those of clients that sent none stay."""

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        fresh = remembered(state.having(sets=[]), releases, context)[-1]
        kept = {s["client"]: s for s in [*items_of(state), *fresh]}
        return state.having(sets=[[kept[k] for k in sorted(kept)]])


# --- clients ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LearnsAndDistils(Distils):
    """Trains the client's own model on its rows and what it was served, and distils its rows around that model."""

    restart: str = "same"

    def remembers(self, settings: SimulateSettings) -> bool:
        return True

    def check(self, context: ServerContext) -> None:
        # Each client's items are judged by its own model, so structures may differ.
        settings = context.settings
        for name in dict.fromkeys(settings.federation.networks or (settings.distill.network,)):
            check_parts(self._parts(settings, name), context.domain, context.task.info)

    def __call__(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        data, local, options = gate.raw("local training"), context.settings.local, context.options
        if not len(data):
            return context.release(broadcast), state
        fresh = not state
        net = own_network(state, gate.info, context)
        state = {**state, **_with_served(state, broadcast, context)}
        beside = (state["x"], state["y"]) if len(state.get("y", ())) else None
        epochs = local.epochs + (options.warmup if fresh else 0)
        streams = context.streams.child("local", broadcast.round)
        train_on_records(net, data, local, streams, context.device, beside=beside, epochs=epochs)
        told, state = judged(net, context), having(state, net)
        if accuracy(net, data) < options.least:
            return context.release(broadcast, examples=len(data), metrics=told), state
        around = replace(broadcast, weights=weights_of(net))
        release, _ = super().__call__({}, gate, around, context)
        return replace(release, metrics={**release.metrics, **told}), state


def _with_served(state: ClientState, broadcast: Broadcast, context: ClientContext) -> dict[str, Tensor]:
    """The newest items that the client was ever served, at most ``keep``."""
    if "y" not in broadcast.arrays or not context.options.keep:
        return {}
    parts = {k: v for k, v in broadcast.arrays.items() if k != "y"}
    served = {"x": codecs.decode(parts, context.settings.federation.codec), "y": broadcast.arrays["y"].long()}
    return {k: torch.cat([state[k], v] if k in state else [v])[-context.options.keep :] for k, v in served.items()}


FEDCACHE = FederatedMethod(
    name="fedcache",
    title="personal models of any structure; a cache of distilled items, served by each client's mix of classes",
    citation="Pan, Sun, Wu, Wang, Liu, Gao and Wang, FedCache 2.0: Federated Edge Learning with Knowledge Caching and "
    "Dataset Distillation, 2024",
    setup=(Phase("classes", TellsCounts(), KnowsMixes(), down=send_nothing),),
    phases=(Phase("cache", LearnsAndDistils(), Caches(), down=send_nothing, to=_serve),),
    options=FedCacheOptions,
    defaults={
        "distill": {
            **DEFAULTS["distill"],
            "objective": "ridge",
            "objective_options": {"kernel": "features", "ridge": 1e-6},
            "pool": "exact",
            "pool_options": {},
            "optimizer": "adam",
            "lr": 3e-4,
            "clamp": True,
            "steps": 100,
            "ipc": 1,
            "min_count": 1,
        },
        "local": {"epochs": 10, "optimizer": "adam", "lr": 0.01, "weight_decay": 1e-6},
        "federation": {"rounds": 12, "codec": "uint8"},
    },
    presets=(
        digits(objective_options={"kernel": "features", "ridge": 1e-6, "rows": 256}, pool_options={}, steps=50),
        Preset({"local": {"lr": 0.003}}, ("digits",), source="Adam needs smaller steps", domains=("image",)),
    ),
    departures=(
        "a client sends from 30 % of its own rows classified right; the demo compares a share with a percentage, so "
        "that everybody sends from the second phase on",
        "quotas are rounded up, so that rare classes are served; a client is not served its own items",
        "items are distilled around the model at the end of local training, by kernel regression on its features; the "
        "demo uses features of the last three epochs and a margin term that is constant",
        "step sizes are constant",
    ),
    personal=True,
)

__all__ = ["FEDCACHE", "FedCacheOptions", "quotas"]
