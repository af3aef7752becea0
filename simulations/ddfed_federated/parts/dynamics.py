"""Server part: distil the path of the global models once, then refine every average on the set (P4 ``redistil_tm``).

Source: Pi, Zhang, Xie, Gao, Wang, Kim and Chen, DYNAFED: Tackling Client Data Heterogeneity with Global Dynamics,
CVPR 2023, section 3 and its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from ddfed.central import check_parts
from ddfed.distill import distill
from ddfed.domain import Network
from ddfed.errors import ConfigError
from ddfed.federation import Release
from ddfed.gate import EmptyGate
from ddfed.pool.buffer import snapshot_of
from ddfed.pool.given import TRAJECTORY
from ddfed.seeds import isolated
from ddfed.settings import PartSettings, Settings
from ddfed_federated.methods.base import ServerContext, ServerPart, ServerState, weights_of
from ddfed_federated.parts.averaging import Averages, fedavg
from ddfed_federated.parts.union import Union, train_on_union


class DynafedOptions(Settings):
    """How the set is made and used (DYNAFED's code)."""

    begins: int = Field(
        25, ge=2, description="the set is made once so many global models are known, the first included"
    )
    ipc: int = Field(15, ge=1, description="items per class of the server's set")
    steps: int = Field(3000, ge=1, description="outer steps of its making")
    lr: float = Field(0.05, gt=0, description="step size of the items (Adam)")
    label_lr: float = Field(0.01, gt=0, description="step size of the logits of the labels (Adam)")
    student_steps: int = Field(20, ge=1, description="training steps of the student on the whole set")
    student_lr: float = Field(
        0.04, gt=0, description="its first step size, learned, for a loss that is the mean over classes"
    )
    student_lr_lr: float = Field(1e-5, ge=0, description="step size of that step size; 0 keeps it")
    span: int = Field(3, ge=1, description="the target lies up to so many rounds after the start")
    average: tuple[int, int] = Field((2, 3), description="least and most models that a target is the mean of")
    max_start: int = Field(50, ge=1, description="starts lie below this round")
    augment: str = Field("none", description="augmentation of the set in its making and in refining")
    refine_epochs: int = Field(20, ge=1, description="passes over the set after each later average")
    refine_lr: float = Field(1e-4, gt=0, description="step size of Adam")
    refine_batch: int = Field(256, ge=0, description="items per step; 0 for all")
    refresh: int = Field(3, ge=0, description="passes before, which only move the statistics of norms")

    @field_validator("average")
    @classmethod
    def _rising(cls, average: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= average[0] <= average[1]:
            raise ValueError(f"least and most models, from 1; got {list(average)}")
        return average


def student_of(options: Any, classes: int) -> dict[str, float]:
    """The student's options for the engine, whose loss is a sum over classes where these are for a mean."""
    rates = {"lr": options.student_lr / classes, "lr_lr": options.student_lr_lr / classes}
    return {"steps": options.student_steps, **rates}


def synthesis(context: ServerContext) -> PartSettings:
    """The parts of the central engine by which the set is made."""
    o, classes = context.options, context.task.info.num_classes
    return PartSettings(
        ipc=o.ipc,
        steps=o.steps,
        network=context.settings.distill.network,
        init="noise",
        labels="logits",
        labels_options={"strength": 0.0},
        augment=o.augment,
        objective="trajectory",
        objective_options=student_of(o, classes),
        pool="path",
        pool_options={"span": o.span, "average": o.average, "max_start": o.max_start},
        optimizer="adam",
        lr=o.lr,
        label_lr=o.label_lr,
    )


def begin_with_trajectory(context: ServerContext) -> ServerState:
    """The global network as the seed gives it, which is where the path begins."""
    net = context.network()
    return ServerState(0, weights_of(net), {"trajectory": [snapshot_of(net).cpu()]})


class AveragesAlike(Averages):
    """One aggregation in which every client that sent weights counts alike, whatever it holds."""

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        return super().__call__(state, [replace(r, examples=1) if r.examples else r for r in releases], context)


@dataclass(frozen=True)
class FollowsDynamics(ServerPart):
    """Merge; keep the path of merged models until it is long enough; make the set once; refine on it from then on.

    Nothing real is looked at: the gate of the making has no records.

    Args:
        merge: what makes the global model of the releases.
    """

    merge: ServerPart = field(default_factory=lambda: AveragesAlike(fedavg))

    def check(self, context: ServerContext) -> None:
        """Refuse what could never make a set: too few rounds, too short a path, or parts that do not fit the task.

        Raises:
            ConfigError: says which.
        """
        options, rounds = context.options, context.settings.federation.rounds
        if rounds + 1 < options.begins:
            raise ConfigError(
                f"method 'dynafed' makes its set once {options.begins} global models are known, and {rounds} rounds "
                f"give {rounds + 1}: it would be fedavg. Ask for {options.begins - 1} rounds or more, or set "
                f"options.begins to {rounds + 1} or less."
            )
        if options.begins <= options.span:
            raise ConfigError(
                f"method 'dynafed': {options.begins} models hold no start with {options.span} rounds after it. Set "
                f"options.begins above options.span."
            )
        check_parts(synthesis(context), context.domain, context.task.info)

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        state = self.merge(state, releases, context)
        if "pseudo" not in state.memory:
            path = [*state.memory["trajectory"], snapshot_of(context.network(state.weights)).cpu()]
            if len(path) < context.options.begins:
                return state.having(trajectory=path)
            state = state.having(trajectory=[], pseudo=pseudo_set(torch.stack(path), context))
        return state.having(refined(context.network(state.weights), state.memory["pseudo"], context, state.round + 1))


def pseudo_set(path: Tensor, context: ServerContext) -> dict[str, Tensor]:
    """Distil a path of weights, (snapshots, values): items, classes and soft labels."""
    syn = distill(
        EmptyGate(context.task.info),
        context.domain,
        synthesis(context),
        context.streams.child("synthesis"),
        scope="synthesis",
        public={TRAJECTORY: path},
        device=context.device,
    )
    x, y = syn.decoded()
    soft = syn.labels.targets(torch.arange(len(y))).detach().softmax(1)
    return {"x": x.cpu(), "y": y, "soft": soft.cpu()}


def refined(net: Network, pseudo: dict[str, Tensor], context: ServerContext, number: int) -> Network:
    """Train the averaged network on the set, in place, after passes that only move the statistics of its norms."""
    o, device, count = context.options, context.device, len(pseudo["y"])
    union = Union(
        x=pseudo["x"].to(device),
        y=pseudo["y"].to(device),
        weight=torch.ones(count, device=device),
        client=torch.full((count,), -1),
        soft=pseudo["soft"].to(device),
    )
    net.train()
    with torch.no_grad(), isolated(context.streams.seed("refresh", number)):
        for _ in range(o.refresh):
            net(union.x)
    server = context.settings.server.model_copy(
        update={
            "epochs": o.refine_epochs,
            "lr": o.refine_lr,
            "weight_decay": 0.0,
            "batch": o.refine_batch,
            "optimizer": "adam",
            "augment": o.augment,
        }
    )
    refining = replace(context, settings=context.settings.model_copy(update={"server": server}))
    return train_on_union(net, union, refining, number)
