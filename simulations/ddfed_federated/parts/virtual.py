"""Parts of federated virtual learning: clients train on distilled rows, the server distils the clients' gradients.

Source: Huang, Jin, Zhao, Xu and Li, Federated Virtual Learning on Heterogeneous Data with Local-Global Distillation
(FedLGD), TMLR 2024, algorithm 1, and its code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ddfed.central import check_parts
from ddfed.data import TaskInfo
from ddfed.distill import distill
from ddfed.domain import Network
from ddfed.evaluate import Protocol, train
from ddfed.federation import Broadcast, Expectation, Release
from ddfed.gate import Gate, GivenGradient
from ddfed.match.base import FeaturesAndLogits
from ddfed.seeds import Streams, isolated
from ddfed.settings import PartSettings, Settings
from ddfed_federated.methods.base import (
    ClientContext,
    ClientPart,
    ClientState,
    ServerContext,
    ServerPart,
    ServerState,
    check_one_network,
    weights_of,
)
from ddfed_federated.parts.averaging import Averages, fedavg
from ddfed_federated.parts.tables import per_class, pooled


class FedlgdOptions(Settings):
    """How sets are made and used (FedLGD, section 4 and its code)."""

    every: int = Field(5, ge=1, description="sets are moved in the rounds that this number divides")
    warm_up: int = Field(100, ge=0, description="outer steps of a client's set on random networks, at the beginning")
    global_ipc: int = Field(10, ge=1, description="items per class of the server's set")
    global_steps: int = Field(500, ge=1, description="outer steps of the server's set in such a round")
    global_lr: float = Field(0.1, gt=0, description="step size of the server's items (SGD, momentum 0.5)")
    contrast: float = Field(10.0, ge=0, description="weight of the contrast with the server's items")
    temperature: float = Field(0.07, gt=0, description="of the contrast")


# --- starting values ---------------------------------------------------------------------------------------------


def pixel_moments(gate: Gate, context: ClientContext) -> Tensor:
    """Means of the values of each channel and of their squares over the rows of each class.

    Returns:
        (classes, 1 + 2 channels), as `ddfed_federated.parts.tables.per_class`; an item's first axis is its channels.
    """

    def values(inputs: Tensor) -> Tensor:
        flat = inputs.flatten(2) if inputs.ndim > 2 else inputs.unsqueeze(2)
        return torch.cat([flat.mean(2), flat.square().mean(2)], 1)

    return per_class(gate, values, 2 * gate.info.shape[0], context, "pixel moments")


def noise_like(
    moments: Tensor, classes: Sequence[int], per_class: int, info: TaskInfo, draws: torch.Generator
) -> Tensor:
    """Items of independent normal values with the mean and deviation of their class and channel.

    Args:
        moments: see `pixel_moments`.
        classes: whose.
        per_class: items of each.
        info: of the task; items are clipped to its natural range.
        draws: of the noise.

    Returns:
        (len(classes) * per_class, *item), class after class.
    """
    channels = info.shape[0]
    mean, square = moments[list(classes), 1:].split(channels, 1)
    spread = (square - mean.square()).clamp(min=0).sqrt()
    shape = (-1, channels, *[1] * (len(info.shape) - 1))
    mean, spread = (v.repeat_interleave(per_class, 0).view(shape) for v in (mean, spread))
    x = mean + spread * torch.randn(len(mean), *info.shape, generator=draws)
    return x if info.space.whitening else info.space.clamp(x)


@dataclass(frozen=True)
class TellsMoments(ClientPart):
    """Send the mean and mean square of every channel by class; make the own set around them, and warm it up."""

    stateful = True

    def expects(self, client: int, state: ServerState, context: ServerContext) -> Expectation:
        info = context.task.info
        return Expectation(("statistics",), statistics={"moments": (info.num_classes, 1 + 2 * info.shape[0])})

    def __call__(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        held = gate.held(context.settings.distill.min_count)
        if not held:
            return context.release(broadcast), state
        moments = pixel_moments(gate, context)
        parts = context.settings.distill
        start = noise_like(moments, held, parts.ipc, gate.info, context.streams.torch("noise of the set"))
        warm = parts.model_copy(update={"pool": "R", "pool_options": {}, "steps": context.options.warm_up})
        kept = moved(gate, {"x": start}, warm, context.streams.child("warm up"), context, held, None)
        return context.release(broadcast, {"statistics": {"moments": moments}}), kept


def moved(
    gate: Gate,
    kept: Mapping[str, Tensor],
    parts: PartSettings,
    streams: Streams,
    context: ClientContext | ServerContext,
    classes: Sequence[int],
    center: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """A set after the outer steps of ``parts``: ``x`` and ``y``."""
    syn = distill(
        gate,
        context.domain,
        parts,
        streams,
        scope="set of virtual rows",
        classes=classes,
        center=center,
        start={"x": kept["x"]},
        device=context.device,
    )
    x, y = syn.decoded()
    return {"x": x.cpu(), "y": y.cpu()}


@dataclass(frozen=True)
class BeginsGlobalSet(ServerPart):
    """Make the server's set around the pooled moments; classes that nobody holds have no items."""

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        moments = pooled([r.statistics["moments"] for r in releases])
        classes = moments[:, 0].nonzero().flatten().tolist()
        per = context.options.global_ipc
        x = noise_like(moments, classes, per, context.task.info, context.streams.torch("noise of the global set"))
        return state.having(x=x, y=torch.tensor(classes).repeat_interleave(per))


# --- rounds ------------------------------------------------------------------------------------------------------


def send_weights_and_set(state: ServerState, context: ServerContext) -> Broadcast:
    """P6: the global model and the server's set."""
    return Broadcast(0, weights=state.weights, arrays={"x": state.memory["x"], "y": state.memory["y"]})


def contrast(features: Tensor, y: Tensor, anchors: Tensor, of: Tensor, temperature: float) -> Tensor:
    """Supervised contrast of rows with anchors: rows should be near the anchors of their class.

    L_i = -1/|P(i)| sum_{p in P(i)} log (exp(z_i a_p / T) / sum_j exp(z_i a_j / T)), unit vectors z and a, P(i) the
    anchors of the row's class.

    Source: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, equation 2, with the anchors as contrast.

    Args:
        features: (rows, width). y: (rows,). anchors: (anchors, width). of: their classes, (anchors,).
        temperature: T.

    Returns:
        (rows,); 0 for a class without anchors.
    """
    z, a = F.normalize(features, dim=1), F.normalize(anchors, dim=1)
    told = (z @ a.T / temperature).log_softmax(1)
    same = (y[:, None] == of[None, :]).to(told)
    return -(told * same).sum(1) / same.sum(1).clamp(min=1)


@dataclass(frozen=True)
class TrainsOnVirtual(ClientPart):
    """Train the global model on the own set and the server's; in some rounds move the own set first.

    In those rounds there is no contrast, so that the server's difference of weights is that of the cross-entropy.
    """

    stateful = True

    def check(self, context: ServerContext) -> None:
        check_one_network(context, "clients train the global weights")
        check_parts(context.settings.distill, context.domain, context.task.info)

    def expects(self, client: int, state: ServerState, context: ServerContext) -> Expectation:
        return Expectation(("weights",), weights=state.weights)

    def __call__(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        if not state:
            return context.release(broadcast), state
        o, parts, number = context.options, context.settings.distill, broadcast.round
        moves = number % o.every == 0
        if moves:
            streams, classes = context.streams.child("round", number), sorted(set(state["y"].tolist()))
            state = moved(gate, state, parts, streams, context, classes, broadcast.weights)
        net = context.network(gate.info, broadcast.weights)
        self._train(net, state, broadcast, 0.0 if moves else o.contrast, context)
        return context.release(broadcast, {"weights": weights_of(net)}, examples=int(gate.counts().sum())), state

    def _train(
        self, net: Network, mine: ClientState, broadcast: Broadcast, weight: float, context: ClientContext
    ) -> None:
        local, device, temperature = context.settings.local, context.device, context.options.temperature
        theirs = {k: broadcast.arrays[k].to(device) for k in ("x", "y")}
        x, y = (torch.cat([mine[k].to(device), theirs[k]]) for k in ("x", "y"))

        def loss(shown: tuple[Tensor, Tensor], classes: Tensor) -> Tensor:
            features, logits = shown
            rows = F.cross_entropy(logits, classes, reduction="none")
            if not weight:
                return rows
            return rows + weight * contrast(features, classes, net.embed(theirs["x"]), theirs["y"], temperature)

        protocol = Protocol(
            name="virtual",
            epochs=local.epochs,
            lr=local.lr,
            momentum=local.momentum,
            weight_decay=local.weight_decay,
            batch=local.batch,
            optimizer=local.optimizer,
            drops=(),
        )
        streams = context.streams.child("local", broadcast.round)
        tap: Callable[..., object] = FeaturesAndLogits(net)
        with isolated(streams.seed("noise")):
            train(tap, lambda rows: (x[rows], y[rows]), len(y), loss, protocol, None, streams)  # type: ignore[arg-type]


@dataclass(frozen=True)
class DistilsGradients(ServerPart):
    """Average; in some rounds move the server's set so that its gradient is the mean one of the clients.

    That gradient is what the round did to the weights, w_r - w_{r+1}, up to a length that the distance, cosines of
    rows, does not look at.

    Args:
        merge: what makes the global model of the releases.
    """

    merge: ServerPart = field(default_factory=lambda: Averages(fedavg))

    def check(self, context: ServerContext) -> None:
        check_parts(gradient_parts(context), context.domain, context.task.info)

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        merged, number, o = self.merge(state, releases, context), state.round + 1, context.options
        if number % o.every:
            return merged
        # The engine matches every weight of two axes or more.
        names = [name for name, weight in context.network().named_parameters() if weight.ndim > 1]
        change = [state.weights[name] - merged.weights[name] for name in names]
        x, y = state.memory["x"], state.memory["y"]
        found = moved(
            GivenGradient(context.task.info, given=change),
            {"x": x},
            gradient_parts(context),
            context.streams.child("global set", number),
            context,
            sorted(set(y.tolist())),
            state.weights,
        )
        return merged.having(x=found["x"])


def gradient_parts(context: ServerContext) -> PartSettings:
    """The parts of the central engine by which the server's set is moved."""
    o = context.options
    return PartSettings(
        ipc=o.global_ipc,
        steps=o.global_steps,
        network=context.settings.distill.network,
        init="noise",
        objective="gradient",
        objective_options={"joint": True, "distance": "rows"},
        pool="exact",
        lr=o.global_lr,
        momentum=0.5,
    )
