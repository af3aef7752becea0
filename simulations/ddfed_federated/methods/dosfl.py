"""DOSFL: one round, in which clients send lessons instead of weights and the server learns them in turn.

Zhou, Pu, Ma, Li and Wu, Distilled One-Shot Federated Learning, 2020 (arXiv 2009.07999).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from ddfed.central import check_parts
from ddfed.data import TaskInfo
from ddfed.distill import distill
from ddfed.domain import Domain, Network
from ddfed.errors import ConfigError, FederationError
from ddfed.federation import Broadcast, Expectation, Release
from ddfed.gate import Gate
from ddfed.match.adjoint import flat_weights
from ddfed.recipes import Preset
from ddfed.seeds import isolated
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
from ddfed_federated.parts.replay import check_no_buffers, replayed, travelling
from ddfed_federated.settings import SimulateSettings


class DosflOptions(Settings):
    """DOSFL's own settings (the paper's)."""

    batches: int = Field(5, ge=1, description="synthetic batches of a client; distill.ipc must be a multiple of it")
    passes: int = Field(10, ge=1, description="times that they are gone through")
    lr: float = Field(0.01, gt=0, description="first value of the step sizes, which are learned")
    lr_lr: float = Field(0.01, gt=0, description="Adam's step size for the step sizes")
    rows: int = Field(512, ge=1, description="real rows of an outer step")
    reset: float = Field(0.02, ge=0, description="soft reset: how far starts are moved from the shared one, a weight")
    mask: float = Field(0.2, ge=0, lt=1, description="share of the batches that are noise in an outer step")


def _teaching(settings: SimulateSettings, options: DosflOptions) -> PartSettings:
    """The parts that make lessons: unrolling from around the shared start."""
    return settings.distill.model_copy(
        update={
            "objective": "unroll",
            "objective_options": {
                "steps": options.batches * options.passes,
                "order": "blocks",
                "blocks": options.batches,
                "lr": options.lr,
                "learn_lrs": True,
                "lr_lr": options.lr_lr,
                "rows": options.rows,
                "augment": False,
                "mask": options.mask,
            },
            "terms": (),
            "pool": "ball",
            "pool_options": {"rho": 0.0, "rho_per_sqrt_param": options.reset},
            "labels": "logits",
            "labels_options": {},
            "augment": "none",
            "scope": "joint",
        }
    )


def shared_start(domain: Domain, name: str, info: TaskInfo, seed: Tensor) -> Network:
    """The network that everybody draws from one seed."""
    with isolated(int(seed)):
        return domain.network(name or domain.default_network(info), info)


def checksum(net: Network) -> Tensor:
    """CRC-32 of all parameters, scalar int64: lessons from another start teach nothing."""
    return torch.tensor(zlib.crc32(flat_weights(net).cpu().numpy().tobytes()))


def _begin(context: ServerContext) -> ServerState:
    seed = torch.tensor(context.streams.seed("shared start"))
    net = shared_start(context.domain, context.settings.distill.network, context.task.info, seed)
    return ServerState(0, weights_of(net), {"seed": seed, "checksum": checksum(net)})


def _send_seed(state: ServerState, context: ServerContext) -> Broadcast:
    """P6: eight bytes."""
    return Broadcast(0, arrays={"seed": state.memory["seed"]})


@dataclass(frozen=True)
class Teaches(ClientPart):
    """Distils a sequence of batches, with a step size for each step, that trains the shared start on its rows."""

    distils_sets = True

    def check(self, context: ServerContext) -> None:
        settings, options = context.settings, context.options
        if settings.distill.ipc % options.batches:
            raise ConfigError(
                f"method 'dosfl' deals the items of a class to {options.batches} batches, and distill.ipc = "
                f"{settings.distill.ipc} is not a multiple of that. Change distill.ipc or options.batches."
            )
        check_one_network(context, "lessons are for one start")
        check_no_buffers(context)
        check_parts(_teaching(settings, options), context.domain, context.task.info)

    def expects(self, client: int, state: ServerState, context: ServerContext) -> Expectation:
        options = context.options
        return Expectation(
            ("set", "statistics"),
            context.settings.distill.ipc * context.task.info.num_classes,
            soft=True,
            statistics={"lrs": (options.batches * options.passes,)},
            equal={"checksum": state.memory["checksum"]},
        )

    def __call__(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        settings = context.settings
        held = gate.held(settings.distill.min_count)
        if not held:
            return context.release(broadcast), state
        start = shared_start(context.domain, settings.distill.network, gate.info, broadcast.arrays["seed"])
        syn = distill(
            gate,
            context.domain,
            _teaching(settings, context.options),
            context.streams,
            scope=f"client {context.client}",
            classes=held,
            center=weights_of(start),
            device=context.device,
        )
        counts = gate.counts().tolist()
        tables = {"lrs": torch.tensor(syn.training["lrs"]), "checksum": checksum(start)}
        release = context.release(
            broadcast,
            {"set": travelling(syn, settings.federation.codec), "statistics": tables},
            examples=sum(counts),
            class_counts=tuple(counts),
        )
        return release, state


@dataclass(frozen=True)
class Learns(ServerPart):
    """Replays all lessons from the shared start: batch 1 of every client, then batch 2 of every client, and so on."""

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        net, batches = context.network(state.weights), context.options.batches
        lrs, rows = interleaved(releases, batches)
        x, soft = (torch.cat([r.set[name] for r in releases]).to(context.device) for name in ("x", "soft"))
        after = replayed(net, flat_weights(net), x, soft, lrs, rows)
        if not bool(torch.isfinite(after).all()):
            raise FederationError(
                f"the weights are not finite after {len(lrs)} steps on the lessons of {len(releases)} clients. Each "
                f"client's lessons are for itself; lower options.lr, or raise options.reset and options.mask."
            )
        vector_to_parameters(after, net.parameters())
        sets = [
            {"client": r.client, "x": r.set["x"], "y": r.set["y"].long(), "counts": list(r.class_counts)}
            for r in releases
        ]
        return state.having(net, sets=[sets])


def interleaved(releases: Sequence[Release], batches: int) -> tuple[Tensor, Callable[[int], Tensor]]:
    """The step sizes of all steps, and the items of each, for items that stand client after client.

    Step (pass, batch, client), the client fastest: item i of a client belongs to its batch i mod ``batches``.
    """
    sizes = [r.items for r in releases]
    begins = [sum(sizes[:k]) for k in range(len(sizes))]
    lrs = torch.stack([r.statistics["lrs"] for r in releases], 1).flatten()

    def rows(step: int) -> Tensor:
        turn, who = divmod(step, len(releases))
        return begins[who] + torch.arange(turn % batches, sizes[who], batches)

    return lrs, rows


DOSFL = FederatedMethod(
    name="dosfl",
    title="one round: sequences of soft-labelled batches that train a shared start, learned in turn by the server",
    citation="Zhou, Pu, Ma, Li and Wu, Distilled One-Shot Federated Learning, 2020",
    phases=(Phase("lessons", Teaches(), Learns(), down=_send_seed),),
    options=DosflOptions,
    defaults={
        "distill": {
            **DEFAULTS["distill"],
            "objective_options": {},
            "pool": "R",
            "pool_options": {},
            "init": "noise",
            "optimizer": "adam",
            "lr": 0.01,
            "label_lr": 0.01,
            "steps": 1000,
            "ipc": 5,
            "min_count": 1,
        },
    },
    presets=(
        digits(objective_options={}, pool_options={}, steps=100),
        Preset(
            {"distill": {"lr": 0.05, "label_lr": 0.05}, "options": {"passes": 2, "lr": 0.05}},
            ("digits",),
            source="a tenth of the outer steps and a fifth of the passes",
            domains=("image",),
        ),
    ),
    departures=(
        "every step has a step size of its own, where the paper's passes share those of the batches",
        "a soft reset moves the start by a fixed distance in a random direction instead of by normal noise, which is "
        "the same up to a per cent in so many dimensions",
        "the outer optimiser is Adam with a constant step size; the paper halves it every so many epochs",
    ),
    one_shot=True,
    begin=_begin,
)

__all__ = ["DOSFL", "DosflOptions", "checksum", "interleaved", "shared_start"]
