"""DESA: models of different structure learn from each other over anchors that nobody owns.

Huang, Srinivas, Zhang and Li, Overcoming Data and Model Heterogeneities in Decentralized Federated Learning via
Synthetic Anchors, ICML 2024 (arXiv 2405.11525).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ddfed.domain import Network
from ddfed.federation import Broadcast, Expectation, Release
from ddfed.gate import Gate
from ddfed.match.base import FeaturesAndLogits
from ddfed.recipes import Preset
from ddfed.settings import Settings
from ddfed.store import HardLabels
from ddfed_federated.methods.base import (
    ClientContext,
    ClientPart,
    ClientState,
    FederatedMethod,
    Phase,
    ServerContext,
    ServerPart,
    ServerState,
    send_nothing,
)
from ddfed_federated.methods.presets import DEFAULTS, digits
from ddfed_federated.parts.distil import Distils
from ddfed_federated.parts.local import train_on_records
from ddfed_federated.parts.personal import having, judged, own_network
from ddfed_federated.parts.union import remembered


class DesaOptions(Settings):
    """DESA's own settings (the released code's)."""

    anchors: Literal["mean", "concat"] = Field(
        "mean", description="what the sets become: the mean item of each class and slot, or all items side by side"
    )
    pretrain: int = Field(0, ge=0, description="passes of each client over its own rows before the first round")
    kd_weight: float = Field(1.0, ge=0, description="of learning the others' answers on the anchors")
    kd_share: float = Field(0.9, ge=0, le=1, description="of the answers in that; the rest is the anchors' classes")
    temperature: float = Field(20.0, gt=0, description="of the answers")
    contrast_weight: float = Field(1.0, ge=0, description="of drawing features to those of anchors of their class")
    contrast_temperature: float = Field(0.07, gt=0, description="of the similarities in it")


# --- what the server relays ---------------------------------------------------------------------------------------


def mean_items(sets: Sequence[dict[str, Tensor]], classes: int) -> dict[str, Tensor]:
    """Item i of class c is the mean of the i-th items of class c over those sets that have one.

    Args:
        sets: each with ``x`` (items, *item) and ``y`` (items,).
        classes: of the task.

    Returns:
        ``x`` and ``y``, class after class.
    """
    x, y = [], []
    for c in range(classes):
        mine = [s["x"][s["y"] == c] for s in sets]
        for slot in range(max(map(len, mine))):
            x.append(torch.stack([items[slot] for items in mine if len(items) > slot]).mean(0))
            y.append(c)
    return {"x": torch.stack(x), "y": torch.tensor(y)}


def joined(sets: Sequence[dict[str, Tensor]], classes: int) -> dict[str, Tensor]:
    """All items, in order of client."""
    return {name: torch.cat([s[name] for s in sets]) for name in ("x", "y")}


@dataclass(frozen=True)
class MakesAnchors(ServerPart):
    """The sets become the anchors."""

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        sets = [{"x": r.set["x"], "y": r.set["y"].to(torch.int64)} for r in releases]
        make = mean_items if context.options.anchors == "mean" else joined
        anchors = make(sets, context.task.info.num_classes)
        return state.having(anchors=anchors, sets=remembered(state, releases, context))


@dataclass(frozen=True)
class KeepsAnswers(ServerPart):
    """Every client's last answers to the anchors."""

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        told = {str(r.client): r.statistics["answers"] for r in releases}
        return state.having(answers={**state.memory.get("answers", {}), **told})


def _send_anchors(state: ServerState, context: ServerContext) -> Broadcast:
    return Broadcast(0, arrays=state.memory["anchors"])


def _send_answers(state: ServerState, context: ServerContext) -> Broadcast:
    """P6: the sum of everybody's answers, from which each client takes its own away."""
    answers = [state.memory["answers"][who] for who in sorted(state.memory["answers"], key=int)]
    return Broadcast(0, arrays={"sum": torch.stack(answers).sum(0)}, scalars={"publishers": float(len(answers))})


# --- losses -------------------------------------------------------------------------------------------------------


def distilled(student: Tensor, teacher: Tensor, classes: Tensor, options: DesaOptions) -> Tensor:
    """share * T^2 KL(teacher || student) / C + (1 - share) * CE, mean over rows.

    Source: the authors' code, whose KL is the mean over rows and classes: 1/C of the sum over classes.

    Args:
        student, teacher: logits (rows, C).
        classes: (rows,).
    """
    hot, wanted = (student / options.temperature).log_softmax(1), (teacher / options.temperature).log_softmax(1)
    apart = F.kl_div(hot, wanted, reduction="none", log_target=True).mean()
    own = F.cross_entropy(student, classes)
    return options.kd_share * options.temperature**2 * apart + (1 - options.kd_share) * own


def drawn_to(features: Tensor, classes: Tensor, anchors: Tensor, anchor_classes: Tensor, temperature: float) -> Tensor:
    """Supervised contrast of rows against anchors that stand still, (rows,).

    Of row i with P its anchors of the same class, -mean_{p in P} log(e^{cos(i, p) / t} / sum_a e^{cos(i, a) / t}); 0
    where its class has no anchor.

    Source: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, equation 2, with anchors in place of the
    batch.

    Args:
        features: (rows, width).
        classes: (rows,).
        anchors: (anchors, width), without gradient.
        anchor_classes: (anchors,).
        temperature: t.
    """
    alike = F.normalize(features, dim=1) @ F.normalize(anchors, dim=1).T / temperature
    same = (classes[:, None] == anchor_classes[None]).to(alike)
    return -(same * alike.log_softmax(1)).sum(1) / same.sum(1).clamp(min=1)


# --- clients ------------------------------------------------------------------------------------------------------


def _answers(net: Network, x: Tensor, context: ClientContext) -> Tensor:
    net.eval()
    with torch.no_grad():
        return net(x.to(context.device)).cpu()


class _Publishes(ClientPart):
    """Sends the client's answers to the anchors, and what it makes of test rows."""

    stateful = True

    def expects(self, client: int, state: ServerState, context: ServerContext) -> Expectation:
        shape = (len(state.memory["anchors"]["y"]), context.task.info.num_classes)
        return Expectation(("statistics",), statistics={"answers": shape})

    def published(
        self, net: Network, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        answers = _answers(net, state["anchors"], context)
        release = context.release(
            broadcast,
            {"statistics": {"answers": answers}},
            examples=int(gate.counts().sum()),
            metrics=judged(net, context),
        )
        return release, having(state, net, answers=answers)


@dataclass(frozen=True)
class Joins(_Publishes):
    """Takes the anchors, and answers them with a model of its own, fresh or trained alone for a while."""

    def __call__(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        data = gate.raw("local training")
        if not len(data):
            return context.release(broadcast), state
        net = own_network(state, gate.info, context)
        if context.options.pretrain:
            streams = context.streams.child("pretraining")
            epochs = context.options.pretrain
            train_on_records(net, data, context.settings.local, streams, context.device, epochs=epochs)
        state = {**state, "anchors": broadcast.arrays["x"], "classes": broadcast.arrays["y"]}
        return self.published(net, state, gate, broadcast, context)


@dataclass(frozen=True)
class TrainsWithAnchors(_Publishes):
    """Trains the client's model on its rows and the anchors, with the others' answers to these.

    A client that was not there when the anchors were handed out has nothing to answer, and stays out.
    """

    def __call__(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        if "anchors" not in state:
            return context.release(broadcast), state
        net = own_network(state, gate.info, context)
        streams = context.streams.child("local", broadcast.round)
        anchors = Anchors.known(state, broadcast, context)
        both = FeaturesAndLogits(net)
        batch = context.settings.local.batch
        batches = anchors.batches(batch or len(anchors.y), streams.torch("anchors"))
        train_on_records(
            both,
            gate.raw("local training"),
            context.settings.local,
            streams,
            context.device,
            row_loss=_loss(both, anchors, batches, context.options),  # type: ignore[arg-type]
        )
        return self.published(net, state, gate, broadcast, context)


@dataclass(frozen=True)
class Anchors:
    """Items that all clients have.

    Args:
        x: (anchors, *item).
        y: (anchors,).
        teacher: mean logits of the other clients for each, (anchors, classes); None where there are no others.
    """

    x: Tensor
    y: Tensor
    teacher: Tensor | None

    @classmethod
    def known(cls, state: ClientState, broadcast: Broadcast, context: ClientContext) -> Anchors:
        others = broadcast.scalars["publishers"] - 1
        teacher = (broadcast.arrays["sum"] - state["answers"]) / others if others > 0 else None
        return cls(
            state["anchors"].to(context.device),
            state["classes"].to(context.device),
            None if teacher is None else teacher.to(context.device),
        )

    def batches(self, rows: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Row numbers, in a new order whenever all were seen, without end."""
        while True:
            yield from torch.randperm(len(self.y), generator=generator).split(rows)


def _loss(
    both: nn.Module, anchors: Anchors, batches: Iterator[Tensor], options: DesaOptions
) -> Callable[[tuple[Tensor, Tensor], Tensor], Tensor]:
    """CE of the rows and a batch of anchors together, and the two terms, spread over the rows of a batch, (rows,)."""

    def loss(shown: tuple[Tensor, Tensor], classes: Tensor) -> Tensor:
        features, logits = shown
        rows = next(batches)
        y = anchors.y[rows]
        still, answers = both(anchors.x[rows])
        count = len(classes)
        own = (count * HardLabels.loss(logits, classes) + HardLabels.loss(answers, y).sum()) / (count + len(rows))
        near = drawn_to(features, classes, still.detach(), y, options.contrast_temperature)
        total = own + options.contrast_weight * near
        if anchors.teacher is not None:
            total = total + options.kd_weight * distilled(answers, anchors.teacher[rows], y, options)
        return total

    return loss


DESA = FederatedMethod(
    name="desa",
    title="personal models of any structure learn from each other's answers to shared synthetic anchors",
    citation="Huang, Srinivas, Zhang and Li, Overcoming Data and Model Heterogeneities in Decentralized Federated "
    "Learning via Synthetic Anchors, ICML 2024",
    setup=(
        Phase("sets", Distils(), MakesAnchors(), down=send_nothing),
        Phase("anchors", Joins(), KeepsAnswers(), down=_send_anchors),
    ),
    phases=(Phase("training", TrainsWithAnchors(), KeepsAnswers(), down=_send_answers),),
    options=DesaOptions,
    defaults={
        "distill": {
            **DEFAULTS["distill"],
            "objective_options": {"rows": 256, "top_up": False, "logits": False},
            "pool": "R",
            "pool_options": {},
            "augment": "dsa",
            "init": "noise",
            "ipc": 50,
        },
        "local": {"epochs": 1, "batch": 32},
        "federation": {"rounds": 100},
    },
    presets=(
        digits(steps=100),
        Preset({"local": {"epochs": 10}}, ("digits",), source="as many passes as FedAvg makes", domains=("image",)),
    ),
    departures=(
        "the server relays what peers would send each other: the anchors once, and a sum of answers in every round",
        "the teacher is the mean of every other client's last answers; the authors take those of the round's "
        "participants, which is the same where all take part",
        "means over slots are over the clients that hold the class; the authors mix in the noise of those that do not",
        "items are told apart by class at the server, which learns which classes a client has",
    ),
    personal=True,
)

__all__ = ["DESA", "Anchors", "DesaOptions", "distilled", "drawn_to", "joined", "mean_items"]
