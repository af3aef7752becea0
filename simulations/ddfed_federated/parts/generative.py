"""Server part: for each client a set inside a generator, from where its training began and ended (P4 ``latent_tm``).

Source: Jia, Vahidian, Sun, Zhang, Kungurtsev, Gong and Chen, Unlocking the Potential of Federated Learning: The
Symphony of Dataset Distillation via Deep Generative Latents (FedDGM), ECCV 2024, and its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field

from ddfed.central import check_parts
from ddfed.distill import distill
from ddfed.federation import Broadcast, Release
from ddfed.gate import EmptyGate, Gate
from ddfed.pool.buffer import snapshot_of
from ddfed.pool.given import TRAJECTORY
from ddfed.registry import registry
from ddfed.settings import PartSettings, Settings
from ddfed_federated.methods.base import ClientContext, ClientState, ServerContext, ServerPart, ServerState
from ddfed_federated.parts.dynamics import student_of
from ddfed_federated.parts.local import Trains
from ddfed_federated.parts.union import train_on_union, union_of_sets


class GenerativeOptions(Settings):
    """The generator, and how the server looks for sets in it."""

    generator: str = Field("resize", description="name of the kind 'generator'; plugins register theirs")
    generator_options: dict[str, Any] = Field({}, description="its settings, such as the file of its weights")
    ipc: int = Field(10, ge=1, description="items per class and client")
    steps: int = Field(100, ge=1, description="outer steps for each client and round")
    lr: float = Field(0.05, gt=0, description="step size of the latents (Adam)")
    student_steps: int = Field(20, ge=1, description="training steps of the student on the whole set")
    student_lr: float = Field(
        0.01, gt=0, description="its first step size, learned, for a loss that is the mean over classes"
    )
    student_lr_lr: float = Field(1e-5, ge=0, description="step size of that step size; 0 keeps it")
    augment: str = Field("none", description="augmentation of the set while it is made")


def synthesis(context: ServerContext) -> PartSettings:
    """The parts of the central engine by which a client's set is made."""
    o = context.options
    return PartSettings(
        ipc=o.ipc,
        steps=o.steps,
        network=context.settings.distill.network,
        store="latent",
        store_options={"generator": o.generator, "settings": o.generator_options},
        init="noise",
        labels="hard",
        augment=o.augment,
        objective="trajectory",
        objective_options=student_of(o, context.task.info.num_classes),
        pool="path",
        pool_options={"span": 1, "average": [1, 1], "max_start": 1},
        optimizer="adam",
        lr=o.lr,
    )


@dataclass(frozen=True)
class TrainsAndCounts(Trains):
    """As `Trains`, and how many rows of each class the client has: only those classes are looked for.

    A client with too few rows of every class (``distill.min_count``) has nothing to send, as where sets are sent.
    """

    def __call__(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        if not gate.held(context.settings.distill.min_count):
            return context.release(broadcast), state
        release, state = super().__call__(state, gate, broadcast, context)
        return replace(release, class_counts=tuple(gate.counts().tolist())), state


class FindsSets(ServerPart):
    """For every client a set on which the network goes from the weights it was sent to those it sent; train on all.

    A set is made of latents of a generator that does not change, so it is rows that the generator can make. Nothing
    real is looked at: the gate of the making has no records.
    """

    def check(self, context: ServerContext) -> None:
        """Refuse a generator that is not there or does not fit the items, and parts that do not fit the task.

        Raises:
            ConfigError: says which.
        """
        registry().load("generator", context.options.generator, "options.generator")
        check_parts(synthesis(context), context.domain, context.task.info)

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        found = [one for release in releases if (one := self._found(state, release, context)) is not None]
        if not found:  # nobody's counts were honest
            return state
        union = union_of_sets([found], context)
        net = context.network(state.weights if context.settings.server.warm_start else None)
        return state.having(train_on_union(net, union, context, state.round + 1))

    def _found(self, state: ServerState, release: Release, context: ServerContext) -> dict[str, Any] | None:
        """One client's set as a union takes it, or None for one that sent weights and tells of too few rows."""
        least = context.settings.distill.min_count
        held = tuple(c for c, rows in enumerate(release.class_counts) if rows >= least)
        if not held:
            return None
        path = torch.stack([snapshot_of(context.network(w)).cpu() for w in (state.weights, release.weights)])
        syn = distill(
            EmptyGate(context.task.info),
            context.domain,
            synthesis(context),
            context.streams.child("synthesis", state.round + 1, release.client),
            scope=f"client {release.client}, round {state.round + 1}",
            classes=held,
            public={TRAJECTORY: path},
            device=context.device,
        )
        x, y = syn.decoded()
        counts = list(release.class_counts)
        return {"client": release.client, "x": x.detach().cpu(), "y": y.cpu(), "counts": counts}
