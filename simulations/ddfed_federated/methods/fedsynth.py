"""FedSynth: FedAvg whose clients send a tiny set that moves the weights as their rows did.

Hu, Goetz, Malik, Zhan, Liu and Liu, FedSynth: Gradient Compression via Synthetic Data in Federated Learning, 2022
(arXiv 2204.01273); Goetz and Tewari, Federated Learning via Synthetic Data, 2020 (arXiv 2008.04489).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from ddfed.central import check_parts
from ddfed.distill import distill
from ddfed.domain import Network
from ddfed.federation import Arrays, Broadcast, Expectation, Release
from ddfed.gate import Gate
from ddfed.match.adjoint import flat_weights
from ddfed.pool.given import TRAJECTORY
from ddfed.recipes import Preset
from ddfed.settings import PartSettings, Settings
from ddfed_federated.methods.base import (
    ClientContext,
    ClientPart,
    ClientState,
    FederatedMethod,
    Phase,
    ServerContext,
    ServerPart,
    ServerState,
    check_one_network,
    weights_of,
)
from ddfed_federated.methods.presets import DEFAULTS, digits
from ddfed_federated.parts.averaging import Averages, fedavg
from ddfed_federated.parts.local import train_on_records
from ddfed_federated.parts.replay import check_no_buffers, replayed, travelling
from ddfed_federated.settings import SimulateSettings


class FedSynthOptions(Settings):
    """FedSynth's own settings."""

    steps: int = Field(5, ge=1, description="steps of gradient descent on the set that stand for local training")
    lr: float = Field(0.1, gt=0, description="first value of their step size, which is learned and sent")
    lr_lr: float = Field(1e-3, ge=0, description="of learning the step size; 0 keeps it")
    feedback: bool = Field(True, description="what a set could not say is added to the client's next update")


def _encoding(settings: SimulateSettings, options: FedSynthOptions) -> PartSettings:
    """The parts that make a set: trajectory matching with the client's update as the only trajectory."""
    return settings.distill.model_copy(
        update={
            "objective": "trajectory",
            "objective_options": {"steps": options.steps, "lr": options.lr, "lr_lr": options.lr_lr},
            "terms": (),
            "pool": "path",
            "pool_options": {"span": 1, "average": [1, 1], "max_start": 1},
            "labels": "logits",
            "labels_options": {},
            "augment": "none",
            "scope": "joint",
        }
    )


@dataclass(frozen=True)
class Encodes(ClientPart):
    """Trains as FedAvg's clients do, and sends a set that makes the same way from the same weights.

    The set minimises |w_J - (w_r + u)|^2 / |u|^2, with w_J where ``steps`` steps on it lead and u the update, what
    earlier sets could not say included. Server and client make w_J from the arrays that travel.
    """

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        return True

    def remembers(self, settings: SimulateSettings) -> bool:
        return bool(settings.options.get("feedback", True))

    def check(self, context: ServerContext) -> None:
        check_one_network(context, "clients train the global weights")
        check_no_buffers(context)
        check_parts(_encoding(context.settings, context.options), context.domain, context.task.info)

    def expects(self, client: int, state: ServerState, context: ServerContext) -> Expectation:
        quota = context.settings.distill.ipc * context.task.info.num_classes
        return Expectation(("set", "statistics"), quota, soft=True, statistics={"lr": (), "apart": ()})

    def __call__(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        settings, options = context.settings, context.options
        held = gate.held(settings.distill.min_count)
        if not held:
            return context.release(broadcast), state
        data = gate.raw("local training")
        net = context.network(gate.info, broadcast.weights)
        before = flat_weights(net)
        train_on_records(net, data, settings.local, context.streams.child("local", broadcast.round), context.device)
        update = flat_weights(net) - before + state.get("unsaid", torch.zeros(())).to(before)
        syn = distill(
            gate,
            context.domain,
            _encoding(settings, options),
            context.streams.child("round", broadcast.round),
            scope=f"client {context.client}, round {broadcast.round}",
            classes=held,
            public={TRAJECTORY: torch.stack([before, before + update]).cpu()},
            device=context.device,
        )
        sent, lr = travelling(syn, settings.federation.codec), torch.tensor(float(syn.training["lr"]))  # type: ignore[arg-type]
        said = said_by(net, before, sent, lr, options.steps) - before
        unsaid = (update - said).cpu()
        apart = torch.tensor(float(unsaid.norm() / update.norm().cpu().clamp(min=1e-12)))
        release = context.release(
            broadcast, {"set": sent, "statistics": {"lr": lr, "apart": apart}}, examples=len(data)
        )
        return release, {"unsaid": unsaid} if options.feedback else {}


def said_by(net: Network, start: Tensor, items: Arrays, lr: Tensor, steps: int) -> Tensor:
    """Weights that a set leads to from ``start``: ``steps`` steps of size ``lr``, each on all items."""
    everything = torch.arange(len(items["x"]))
    return replayed(net, start, items["x"], items["soft"], lr.repeat(steps), lambda step: everything)


@dataclass(frozen=True)
class Decodes(ServerPart):
    """Makes each client's weights from its set, and averages them as FedAvg does."""

    average: ServerPart = Averages(fedavg)

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        told = [replace(r, payload={"weights": decoded(r, state, context)}) for r in releases]
        merged = self.average(state, told, context)
        # How much of the updates sets could not say: what to look at when the curve lags behind FedAvg's.
        apart = [float(r.statistics["apart"]) for r in releases]
        return merged.having(apart=sum(apart) / len(apart))


def decoded(release: Release, state: ServerState, context: ServerContext) -> dict[str, Tensor]:
    """The state dict that a client's set leads to from the global weights."""
    net = context.network(state.weights)
    after = said_by(net, flat_weights(net), release.set, release.statistics["lr"], context.options.steps)
    vector_to_parameters(after, net.parameters())
    return weights_of(net)


FEDSYNTH = FederatedMethod(
    name="fedsynth",
    title="FedAvg with updates sent as tiny soft-labelled sets that make them again",
    citation="Hu, Goetz, Malik, Zhan, Liu and Liu, FedSynth: Gradient Compression via Synthetic Data in Federated "
    "Learning, 2022",
    phases=(Phase("update", Encodes(), Decodes()),),
    options=FedSynthOptions,
    defaults={
        "distill": {
            **DEFAULTS["distill"],
            "objective_options": {},
            "pool": "R",
            "pool_options": {},
            "init": "noise",
            "ipc": 1,
            "min_count": 1,
            "optimizer": "adam",
            "lr": 0.1,
            "label_lr": 0.1,
            "steps": 200,
        },
        "local": {"epochs": 1},
        "federation": {"rounds": 50},
    },
    presets=(
        digits(objective_options={}, pool_options={}, steps=200),
        Preset({"local": {"epochs": 10}}, ("digits",), source="as FedAvg", domains=("image",)),
    ),
    departures=(
        "the set reproduces the update in weights (the distance of Goetz and Tewari, over several steps) instead of "
        "minimising the real loss after it: the update, and so the averaging, stays FedAvg's",
        "every step sees all items, so J batches of B items are one batch seen J times: fewer bytes for the same steps",
        "what a set could not say is carried to the next round (error feedback, as later relatives do)",
    ),
)

__all__ = ["FEDSYNTH", "FedSynthOptions", "decoded"]
