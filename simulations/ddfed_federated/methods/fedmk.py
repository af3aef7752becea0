"""FedMK: sets that teach the global model what it does not know yet, begun from the other clients' sets.

Liu, Yu and Zhou, Meta Knowledge Condensation for Federated Learning, ICLR 2023 (arXiv 2209.14851).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ddfed.domain import Network
from ddfed.errors import ConfigError
from ddfed.federation import Broadcast, Release
from ddfed.match.terms.base import class_means
from ddfed.registry import registry
from ddfed.seeds import Streams, isolated
from ddfed.settings import Settings
from ddfed.store.latent import check_made
from ddfed_federated.methods.base import (
    ClientContext,
    ClientState,
    FederatedMethod,
    Phase,
    ServerContext,
    ServerState,
)
from ddfed_federated.methods.presets import DEFAULTS, digits
from ddfed_federated.parts.distil import Distils
from ddfed_federated.parts.union import (
    TrainsOnUnion,
    Union,
    items_of,
    remembered,
    train_on_union,
    union_of_sets,
)


class FedMKOptions(Settings):
    """FedMK's own settings."""

    pseudo: int = Field(10, ge=0, description="generated items of every class seen so far, in training; 0 for none")
    generator: str = Field("mlp", description="generator of items; conv needs cell axes, mlp takes any")
    generator_options: dict[str, Any] = Field(default_factory=dict, description="of the generator, such as latent")
    generator_steps: int = Field(100, ge=1, description="steps of the generator in each round")
    generator_lr: float = Field(1e-3, gt=0, description="Adam's step size in them")
    generator_batch: int = Field(8, ge=1, description="items of each class that a step makes")


def _send_sets(state: ServerState, context: ServerContext) -> Broadcast:
    """P6: the model, and the last round's sets with whose they are."""
    sets = list(items_of(state))
    arrays = {}
    if sets:
        arrays = {name: torch.cat([s[name] for s in sets]) for name in ("x", "y")}
        arrays["client"] = torch.cat([torch.full((len(s["y"]),), int(s["client"])) for s in sets])
    return Broadcast(0, weights=state.weights, arrays=arrays)


@dataclass(frozen=True)
class StartsFromPeers(Distils):
    """As `Distils`, begun from other clients' last items of the same classes, and its own where these are too few.

    Where nobody sent a class that the client holds, it begins as in the first round (``distill.init``).
    """

    restart: str = "same"

    def _known(
        self, state: ClientState, broadcast: Broadcast, context: ClientContext, held: tuple[int, ...]
    ) -> Mapping[str, Tensor]:
        known = broadcast.arrays
        if not self.distils or "x" not in known or not set(held) <= set(known["y"].tolist()):
            return {}
        ipc, found = context.settings.distill.ipc, []
        for c in held:
            of_class = torch.nonzero(known["y"] == c).flatten()
            stream = context.streams.torch("peers", broadcast.round, c)
            mixed = of_class[torch.randperm(len(of_class), generator=stream)]
            own = known["client"][mixed] == context.client
            ordered = torch.cat([mixed[~own], mixed[own]])
            found.append(known["x"][ordered[torch.arange(ipc) % len(ordered)]])
        return {"x": torch.cat(found)}


# --- the generator ------------------------------------------------------------------------------------------------


def new_generator(context: ServerContext, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """The generator with the given weights, else as the run's seed gives it."""
    factory = registry().load("generator", context.options.generator, "options.generator")
    with isolated(context.streams.seed("generator")):
        made: nn.Module = factory(context.task.info, **context.options.generator_options).to(context.device)
    if weights:
        made.load_state_dict(dict(weights))
    return made


def drawn(generator: nn.Module, classes: Tensor, stream: torch.Generator) -> Tensor:
    """An item of each of the given classes."""
    z = torch.randn(len(classes), *generator.latent_shape, generator=stream)  # type: ignore[misc]
    found: Tensor = generator(z.to(classes.device), classes)
    return found


def fit(
    generator: nn.Module, net: Network, union: Union, seen: Sequence[int], context: ServerContext, streams: Streams
) -> None:
    """Train a generator in place so that its items look like the sets to the model, and like their classes.

    Mean over items of CE(f(G(z, c)), c), and mean over the classes of the union of |mean h(G(z, c)) - mean h(S_c)|^2.

    Args:
        generator: conditional on the class.
        net: the global model, frozen, in evaluation mode.
        union: the sets of the round.
        seen: classes that any round had.
        context: the server's.
        streams: noise hangs below these.
    """
    options, count = context.options, context.task.info.num_classes
    present = union.y.unique()
    with torch.no_grad():
        wanted = class_means(net.embed(union.x), union.y, count)[present]
    classes = torch.tensor(list(seen), device=union.y.device).repeat_interleave(options.generator_batch)
    optimizer = torch.optim.Adam(generator.parameters(), options.generator_lr)
    for step in range(options.generator_steps):
        features = net.embed(drawn(generator, classes, streams.torch("noise", step)))
        apart = (class_means(features, classes, count)[present] - wanted).square().sum(1).mean()
        loss = F.cross_entropy(net.head(features), classes) + apart
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@dataclass(frozen=True)
class TrainsWithGenerated(TrainsOnUnion):
    """As `TrainsOnUnion`, with items of a generator for every class that any round so far had."""

    def check(self, context: ServerContext) -> None:
        super().check(context)
        if not context.options.pseudo:
            return
        made = new_generator(context)
        with torch.no_grad():
            classes = torch.zeros(2, dtype=torch.int64, device=context.device)
            items = drawn(made, classes, context.streams.torch("check"))
        try:
            check_made(items, 2, context.task.info, context.options.generator)
        except ConfigError as error:
            raise ConfigError(f"method 'fedmk': {error} Or set options.pseudo = 0.") from error

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        past = remembered(state, releases, context)
        union = union_of_sets(past, context)
        seen = sorted({*state.memory.get("seen", []), *union.y.tolist()})
        number, memory = state.round + 1, {}
        if context.options.pseudo:
            generator = new_generator(context, state.memory.get("generator"))
            judge = context.network(state.weights).eval().requires_grad_(False)
            fit(generator, judge, union, seen, context, context.streams.child("generator", number))
            union = _with_generated(union, generator, seen, context, context.streams.torch("pseudo", number))
            memory = {"generator": {k: v.detach().cpu() for k, v in generator.state_dict().items()}}
        net = context.network(state.weights if context.settings.server.warm_start else None)
        train_on_union(net, union, context, number)
        return state.having(net, sets=past, seen=seen, **memory)


def _with_generated(
    union: Union, generator: nn.Module, seen: Sequence[int], context: ServerContext, stream: torch.Generator
) -> Union:
    """Generated items weigh as much as an item of the sets on average."""
    classes = torch.tensor(list(seen), device=union.y.device).repeat_interleave(context.options.pseudo)
    with torch.no_grad():
        x = drawn(generator, classes, stream)
    return replace(
        union,
        x=torch.cat([union.x, x]),
        y=torch.cat([union.y, classes]),
        weight=torch.cat([union.weight, torch.ones(len(classes), device=union.weight.device)]),
        client=torch.cat([union.client, torch.full((len(classes),), -1)]),
    )


FEDMK = FederatedMethod(
    name="fedmk",
    title="bilevel sets, begun from peers' sets and made for rows the model does not know; a generator at the server",
    citation="Liu, Yu and Zhou, Meta Knowledge Condensation for Federated Learning, ICLR 2023",
    phases=(Phase("set", StartsFromPeers(), TrainsWithGenerated(), down=_send_sets),),
    options=FedMKOptions,
    defaults={
        "distill": {
            **DEFAULTS["distill"],
            "objective": "unroll",
            "objective_options": {"steps": 10, "lr": 0.05, "rows": 512, "augment": False, "weighting": "hard"},
            "pool": "exact",
            "pool_options": {},
            "optimizer": "adam",
            "lr": 0.05,
            "steps": 200,
            "ipc": 20,
        },
        "federation": {"rounds": 10, "participation": 0.5},
    },
    presets=(
        digits(
            objective_options={"steps": 10, "lr": 0.05, "rows": 512, "augment": False, "weighting": "hard"},
            pool_options={},
            steps=30,
        ),
    ),
    departures=(
        "no code exists and constants that the paper does not give are ours: Adam on the items, ten inner steps",
        "the derivative through the inner training is exact (the adjoint), not a first-order approximation",
        "a row's weight is the sigmoid of its loss under the global model, by its own loss alone",
        "the generator is fitted to the sets' class-mean features and to the model's classes, and kept between rounds",
    ),
)

__all__ = ["FEDMK", "FedMKOptions", "StartsFromPeers", "TrainsWithGenerated", "fit"]
