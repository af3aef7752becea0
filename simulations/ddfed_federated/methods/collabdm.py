"""CollabDM: one round, in which clients answer the questions of the server's distribution matching.

Holland, Thapa, Siddiqui, Shao and Camtepe, Collaborative Distribution Matching, ECAI 2024 (arXiv 2408.02266).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ddfed.central import check_parts
from ddfed.distill import distill
from ddfed.federation import Broadcast, Expectation, Release
from ddfed.gate import Gate
from ddfed.recipes import Preset
from ddfed.seeds import Streams, isolated
from ddfed.settings import PartSettings, Settings
from ddfed_federated.methods.base import (
    ClientContext,
    ClientState,
    FederatedMethod,
    Phase,
    ServerContext,
    ServerPart,
    ServerState,
    begin_with_network,
)
from ddfed_federated.methods.presets import DEFAULTS, digits
from ddfed_federated.parts.answers import Replayed, answered, checksums
from ddfed_federated.parts.distil import Distils
from ddfed_federated.parts.tables import pooled
from ddfed_federated.parts.union import train_on_union, union_of_sets
from ddfed_federated.settings import SimulateSettings

#: Standard deviation, in model space, of what tells repeats of an item apart.
_APART = 0.1


class CollabDMOptions(Settings):
    """CollabDM's own settings (the released code's)."""

    networks: int = Field(401, ge=1, description="shared random networks, one for each step of the server")
    rows: int | None = Field(100, ge=1, description="real rows a class that a mean is of; none for all")
    client_ipc: int = Field(
        0, ge=0, description="items a class that a client sends; 0 for distill.ipc // clients + 1 (the server's budget)"
    )
    lr: float = Field(10.0, gt=0, description="step size of the server's items; momentum is distill.momentum")
    weighting: Literal["count", "uniform"] = Field(
        "count", description="how means of several clients become one: by their rows, or each holder alike (the paper)"
    )
    dtype: Literal["float32", "float16"] = Field("float32", description="of the class means on the wire")


def _asking(settings: SimulateSettings, options: CollabDMOptions) -> PartSettings:
    """The parts of the server's distillation, whose questions clients answer."""
    return settings.distill.model_copy(
        update={
            "objective": "mean",
            "objective_options": {"rows": options.rows},
            "terms": (),
            "pool": "R",
            "pool_options": {},
            "sampler": "uniform",
            "sampler_options": {},
            "scope": "joint",
            "init": "noise",
            "steps": options.networks,
            "optimizer": "sgd",
            "lr": options.lr,
            "min_count": 1,
        }
    )


def _shared(seed: Tensor) -> Streams:
    return Streams(int(seed)).child("shared networks")


def _begin(context: ServerContext) -> ServerState:
    """The seed that networks and augmentations are shared by, and what shows that they are the same."""
    seed = torch.tensor(context.streams.seed("shared networks"))
    asking = _asking(context.settings, context.options)
    network = context.network()
    with isolated(0), torch.no_grad():
        width = network.eval().embed(torch.zeros(1, *context.task.info.shape, device=context.device)).shape[1]
    sums = checksums(context.domain, context.task.info, asking, _shared(seed))
    return begin_with_network(context).having(seed=seed, checksums=sums, width=width)


def _send_seed(state: ServerState, context: ServerContext) -> Broadcast:
    """P6: eight bytes."""
    return Broadcast(0, arrays={"seed": state.memory["seed"]})


def _client_ipc(settings: SimulateSettings, options: CollabDMOptions) -> int:
    return options.client_ipc or settings.distill.ipc // settings.federation.clients + 1


@dataclass(frozen=True)
class Answers(Distils):
    """As `Distils` with the client's part of the server's budget, and class means under every shared network.

    Tables: ``means`` (networks, classes, width), zeros for classes that the client does not hold; ``counts``
    (classes,), rows of the classes answered for; ``checksums`` (networks,).
    """

    def check(self, context: ServerContext) -> None:
        super().check(context)
        check_parts(_asking(context.settings, context.options), context.domain, context.task.info)

    def expects(self, client: int, state: ServerState, context: ServerContext) -> Expectation:
        options, classes = context.options, context.task.info.num_classes
        return Expectation(
            ("set", "statistics"),
            _client_ipc(context.settings, options) * classes,
            statistics={"means": (options.networks, classes, int(state.memory["width"])), "counts": (classes,)},
            equal={"checksums": state.memory["checksums"]},
        )

    def __call__(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        settings, options = context.settings, context.options
        own = settings.distill.model_copy(update={"ipc": _client_ipc(settings, options)})
        release, state = super().__call__(
            state, gate, broadcast, replace(context, settings=settings.model_copy(update={"distill": own}))
        )
        if not release.payload:
            return release, state
        asking, shared = _asking(settings, options), _shared(broadcast.arrays["seed"])
        held = gate.held(settings.distill.min_count)
        scope = f"client {context.client}, class means"
        means = answered(gate, context.domain, asking, shared, context.streams, held, scope, context.device)
        counts = torch.zeros(gate.info.num_classes)
        counts[list(held)] = gate.counts()[list(held)].to(counts)
        tables = {
            "means": means.to(getattr(torch, options.dtype)),
            "counts": counts,
            "checksums": checksums(context.domain, gate.info, asking, shared),
        }
        return replace(release, payload={**release.payload, "statistics": tables}), state


@dataclass(frozen=True)
class Redistils(ServerPart):
    """Distribution matching against the pooled means, from the clients' items, and a fresh network trained on it."""

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        settings, options = context.settings, context.options
        tables = pooled_answers(releases, options.weighting)
        gate = Replayed(context.task.info, tables)
        start = starting_items(releases, gate.held(), settings.distill.ipc, context.streams.torch("repeats"))
        syn = distill(
            gate,
            context.domain,
            _asking(settings, options),
            _shared(state.memory["seed"]),
            scope="server",
            start={"x": start},
            device=context.device,
        )
        x, y = syn.decoded()
        made = {"client": -1, "x": x, "y": y, "counts": [int(n) for n in tables[0, :, 0].tolist()]}
        net = context.network(state.weights if settings.server.warm_start else None)
        train_on_union(net, union_of_sets([[made]], context), context, state.round + 1)
        return state.having(net, sets=[[made]])


def pooled_answers(releases: Sequence[Release], weighting: str = "count") -> Tensor:
    """The clients' means as those of everybody's rows, (networks, classes, 1 + width) with the count first."""

    def table(release: Release) -> Tensor:
        means, counts = release.statistics["means"].to(torch.float32), release.statistics["counts"]
        return torch.cat([counts.view(1, -1, 1).expand(len(means), -1, 1), means], 2)

    return pooled([table(r) for r in releases], weighting)


def starting_items(releases: Sequence[Release], classes: Sequence[int], ipc: int, noise: torch.Generator) -> Tensor:
    """The clients' items, ``ipc`` of each class: the first of every holder, then the second of every holder, and so on.

    Where a class has fewer they are repeated, with a little noise: equal items would stay equal under a loss of means.

    Returns:
        (classes * ipc, *item), class after class.
    """
    found = []
    for c in classes:
        mine = [r.set["x"][r.set["y"] == c] for r in releases if bool((r.set["y"] == c).any())]
        slots = [(i, k) for k, x in enumerate(mine) for i in range(len(x))]
        items = torch.stack([mine[k][i] for i, k in sorted(slots)])
        chosen = items[torch.arange(ipc) % len(items)]
        chosen[len(items) :] += _APART * torch.randn(chosen[len(items) :].shape, generator=noise)
        found.append(chosen)
    return torch.cat(found)


COLLABDM = FederatedMethod(
    name="collabdm",
    title="one round: class means under shared random networks, which the server distils from",
    citation="Holland, Thapa, Siddiqui, Shao and Camtepe, Collaborative Distribution Matching, ECAI 2024",
    phases=(Phase("answers", Answers(), Redistils(), down=_send_seed),),
    options=CollabDMOptions,
    defaults={
        **DEFAULTS,
        "distill": {
            **DEFAULTS["distill"],
            "objective_options": {"rows": 256, "top_up": False, "logits": False},
            "pool": "R",
            "pool_options": {},
            "augment": "dsa",
            "steps": 400,
        },
        "server": {"epochs": 1000, "augment": "dsa", "warm_start": False},
    },
    presets=(
        digits(steps=50),
        Preset(
            {"server": {"epochs": 300, "weighting": "uniform"}, "options": {"networks": 100, "rows": None}},
            ("digits",),
            source="fewer networks: means of 64 features, and a set of a tenth of the paper's items",
            domains=("image",),
        ),
    ),
    departures=(
        "means are weighed by how many rows of the class a client has, which gives the mean of the pooled rows; the "
        "authors weigh clients alike (options.weighting = 'uniform')",
        "networks have instance norm and all classes step together; the authors' have a group-wise batch norm and "
        "step class by class",
        "one seed is sent, from which both sides draw networks and augmentations; checksums of the networks come back",
        "a client need not hold every class: means are over its holders. A class with fewer items than the server's "
        "set has them repeated with a little noise",
        "the server's step size of network training is constant",
    ),
    one_shot=True,
    begin=_begin,
)

__all__ = ["COLLABDM", "CollabDMOptions", "pooled_answers", "starting_items"]
