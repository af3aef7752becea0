"""Methods in which the server learns from sets that clients condense knowing more than their own rows.

FedAF tells clients what the others' classes look like to the model, FedLAP walks the surroundings of the global model
and says how far its set can be trusted, FedD3 asks once and for any engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ddfed.domain import Network
from ddfed.federation import Broadcast, Release
from ddfed.recipes import Preset
from ddfed.settings import Settings
from ddfed_federated.methods.base import (
    ClientContext,
    FederatedMethod,
    Phase,
    ServerContext,
    ServerState,
    send_nothing,
)
from ddfed_federated.methods.presets import DEFAULTS, digits
from ddfed_federated.parts.distil import Distils
from ddfed_federated.parts.radius import TrustRadius, within_radius
from ddfed_federated.parts.tables import Keeps, Measures, Table, pooled
from ddfed_federated.parts.union import BatchTerm, TrainsOnUnion

# --- FedAF -------------------------------------------------------------------------------------------------------


class FedAFOptions(Settings):
    """FedAF's own settings (those of the one reimplementation that is public)."""

    global_weight: float = Field(0.8, ge=0, description="of the match of class-mean soft labels in the server's loss")
    temperature: float = Field(2.0, gt=0, description="tau of the softmax that soft labels are means of")
    weighting: Literal["uniform", "count"] = Field(
        "uniform", description="how means of several clients become one: each holder alike, or by its rows"
    )


def _logits(net: Network, inputs: Tensor, context: ClientContext) -> Tensor:
    return net(inputs)


def _softened(net: Network, inputs: Tensor, context: ClientContext) -> Tensor:
    return F.softmax(net(inputs) / context.options.temperature, dim=1)


def _with_logits(state: ServerState, context: ServerContext) -> Broadcast:
    """P6: the model, and the mean logits of every class over the clients that hold it."""
    return Broadcast(0, weights=state.weights, arrays={"class logits": state.memory["class logits"]})


def _known_logits(broadcast: Broadcast) -> Mapping[str, Tensor]:
    return {"class logits": broadcast.arrays["class logits"]}


def match_soft_labels(state: ServerState, releases: Sequence[Release], context: ServerContext) -> BatchTerm | None:
    """Local-global knowledge matching: lambda * (KL(R_c | T_c) + KL(T_c | R_c)) / 2, mean over the batch's classes.

    R_c is the mean over holders of the class-mean softened answers to real rows, T_c the mean softened answer to the
    batch's synthetic rows of the class; both are whole vectors over classes.

    Source: Wang et al., FedAF, CVPR 2024, section 3.4.
    """
    options = context.options
    if not options.global_weight:
        return None
    table = pooled([r.statistics["soft labels"] for r in releases], options.weighting).to(context.device)
    known, wanted = table[:, 0] > 0, table[:, 1:].clamp(min=1e-8)

    def term(logits: Tensor, classes: Tensor) -> Tensor:
        soft = F.softmax(logits / options.temperature, dim=1)
        present = [c for c in classes.unique().tolist() if bool(known[c])]
        if not present:
            return logits.new_zeros(())
        mine = torch.stack([soft[classes == c].mean(0) for c in present]).clamp(min=1e-8)
        apart = (mine - wanted[present]) * (mine.log() - wanted[present].log())  # both directions added
        return options.global_weight * 0.5 * apart.sum(1).mean()

    return term


FEDAF = FederatedMethod(
    name="fedaf",
    title="clients condense towards all clients' class-mean logits, the server matches class-mean soft labels",
    citation="Wang et al., An Aggregation-Free Federated Learning for Tackling Data Heterogeneity, CVPR 2024",
    phases=(
        Phase("class logits", Measures((Table("class logits", _logits),)), Keeps("class logits")),
        Phase(
            "set",
            Distils(tables=(Table("soft labels", _softened),), knows=_known_logits),
            TrainsOnUnion(terms=(match_soft_labels,)),
            down=_with_logits,
        ),
    ),
    options=FedAFOptions,
    defaults={
        **DEFAULTS,
        "distill": {
            **DEFAULTS["distill"],
            "objective": "moments",
            "objective_options": {
                "rows": 256,
                "top_up": True,
                "terms": {"mean": 1.0, "public": {"weight": 0.8, "directions": 64, "power": 2.0, "reading": "class"}},
            },
            "pool": "blend",
            "pool_options": {"gamma": 0.9},
        },
    },
    presets=(digits(steps=50, objective_options={"top_up": False}),),
    departures=(
        "no official code exists; weights, temperature and mixture are those of the one public reimplementation, whose "
        "collaborative term has no gradient (it is computed outside autograd) and whose mixture adds noise to norms",
        "with one mean vector a class the sliced Wasserstein distance has nothing to sort; "
        "distill.objective_options.terms.public.reading = 'set' takes all classes' vectors as two sets",
        "clients start every round from the same real items (federation.restart)",
    ),
)

# --- FedLAP ------------------------------------------------------------------------------------------------------


class FedLAPOptions(Settings):
    """FedLAP's own settings."""

    radius: Literal["min", "median", "mean", "max"] = Field(
        "min", description="which of the clients' radii the server stops at; clients of one class send short ones"
    )


FEDLAP = FederatedMethod(
    name="fedlap",
    title="sets that approximate the local loss by gradients, trusted within a radius",
    citation="Wang, Chen, Kerkouche and Fritz, FedLAP-DP: Federated Learning by Sharing Differentially Private Loss "
    "Approximations, PoPETs 2024",
    phases=(Phase("set", TrustRadius(), TrainsOnUnion(stop=within_radius)),),
    options=FedLAPOptions,
    defaults={
        "distill": {
            **DEFAULTS["distill"],
            "objective": "gradient",
            "objective_options": {"rows": 26, "joint": True, "reuse": 5},
            "pool": "trust",
            "pool_options": {"length": 40, "points": 5, "radius": 10.0, "epochs": 1, "lr": 0.1},
            "lr": 0.1,
            "momentum": 0.5,
            "steps": 200,
        },
        "server": {"epochs": 100, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "batch": 512},
        "federation": {"rounds": 20},
    },
    presets=(
        Preset({"distill": {"augment": "dsa"}}, source="authors' settings", domains=("image",)),
        digits(steps=30, pool_options={"length": 10}),
        Preset({"server": {"lr": 0.01, "momentum": 0.9}}, ("digits",), source="as the others", domains=("image",)),
    ),
    departures=(
        "this is the form without privacy; the gate's mechanism makes it the private one",
        "a batch has the same number of real rows of every class a client holds, where the authors draw rows whatever "
        "their class; the server's weights of items say how many rows they stand for (server.weighting = 'count')",
        "the step size of the items is .1, as DC's, for a loss that is a sum over rows of weights, where theirs is 100 "
        "for a mean; with 1 it was worse than untouched items on digits (test figures were in sight)",
        "real rows are looked at ten times in the search for the radius, not after every epoch",
        "between points the network is trained on the set (pool_options.epochs), as in the authors' private form; "
        "their other form matches at the global weights alone (epochs = 0)",
    ),
)

# --- one shot ----------------------------------------------------------------------------------------------------


def one_shot(name: str, title: str, citation: str, **about: object) -> FederatedMethod:
    """Every client sends one set, made knowing nothing; the server trains a fresh network."""
    return FederatedMethod(
        name,
        title,
        citation,
        phases=(Phase("set", Distils(), TrainsOnUnion(), down=send_nothing),),
        one_shot=True,
        **about,  # type: ignore[arg-type]
    )


#: Fully connected, four hidden layers, as the authors' kernel; learned items stop at a batch that is fitted.
_KIP = {
    "objective": "ridge",
    "objective_options": {"kernel": "ntk-fc4", "ridge": 1e-6, "rows": 10, "balanced": True},
    "pool": "R",
    "optimizer": "adam",
    "lr": 0.004,
    "steps": 30,
    "init": "random",
    "top_up": True,
    "min_count": 1,
    "augment": "none",
    "protocol": "E-dsa",
}

FEDD3 = one_shot(
    "fedd3",
    "one round: clients distil by kernel regression, the server trains on the union",
    "Song et al., Federated Learning via Decentralized Dataset Distillation in Resource-Constrained Edge "
    "Environments, IJCNN 2023",
    defaults={
        "distill": _KIP,
        "server": {
            "optimizer": "adam",
            "lr": 1e-3,
            "weight_decay": 1e-4,
            "batch": 50,
            "epochs": 100,
            "warm_start": False,
        },
    },
    presets=(Preset({"server": {"epochs": 60}}, ("digits",), source="the authors' optimiser", domains=("image",)),),
    departures=(
        "items travel in the data set's own standardisation; the authors' leave in units of each client, which the "
        "test rows never saw",
        "a fixed number of steps (30, about where the authors' early stop on a batch of ten rows ends: 28 on average "
        "with two classes a client) in place of that stop",
        "--engine takes any central recipe, such as the coreset of herding, in place of kernel regression",
    ),
)

__all__ = ["FEDAF", "FEDD3", "FEDLAP", "match_soft_labels", "one_shot"]
