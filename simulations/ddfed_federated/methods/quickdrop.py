"""QUICKDROP: FedAvg whose clients distil a set for themselves while they train, and forget by it.

Dhasade, Ding, Guo, Kermarrec, de Vos and Wu, QuickDrop: Efficient Federated Unlearning via Synthetic Data Generation,
Middleware 2024.
"""

from __future__ import annotations

from typing import Any

from ddfed.recipes import Preset
from ddfed_federated.methods.base import FederatedMethod, Phase
from ddfed_federated.methods.presets import DEFAULTS, PRESETS, without_engine
from ddfed_federated.parts.averaging import Averages, fedavg
from ddfed_federated.parts.quickdrop import ASCENDS, QuickdropOptions, TrainsAndDistils

#: Gradients class by class, matched at the weights that the client trains (DC's distance and step sizes).
_DISTILL: dict[str, Any] = {
    "objective": "gradient",
    "objective_options": {"rows": 256, "distance": "rows"},
    "pool": "exact",
    "pool_options": {},
    "store": "pixels",
    "labels": "hard",
    "augment": "none",
    "init": "random",
    "scope": "joint",
    "lr": 0.1,
    "momentum": 0.5,
    "steps": 50,
    "ipc": 10,
    "min_count": 1,
    "protocol": "E-dsa",
}
#: Clients hold about thirty rows of a class, of which a hundredth would be one item.
_DIGITS = {"scale": 0.1, "ascent_lr": 0.05, "ascent_epochs": 50, "recovery_lr": 0.02, "recovery_epochs": 5}

QUICKDROP = FederatedMethod(
    name="quickdrop",
    title="clients distil a set at home while they train, and forget by going up its loss",
    citation="Dhasade, Ding, Guo, Kermarrec, de Vos and Wu, QuickDrop: Efficient Federated Unlearning via Synthetic "
    "Data Generation, Middleware 2024",
    phases=(Phase("weights", TrainsAndDistils(), Averages(fedavg)),),
    options=QuickdropOptions,
    defaults={**DEFAULTS, "distill": _DISTILL},
    presets=(
        *without_engine(PRESETS),
        Preset(
            {"options": _DIGITS, "distill": {"steps": 10}},
            ("digits",),
            source="ours, for seconds on a laptop",
            domains=("image",),
        ),
    ),
    departures=(
        "training and matching are not fused: a client trains a pass exactly as FedAvg does and then matches at the "
        "weights it has come to, so the real side costs twice; the paper reuses the gradients of the training",
        "the set's momentum begins anew after each pass",
        "recovery is on the sets alone; the paper mixes in a few original rows",
        "the ascent stops where the loss of what is forgotten is that of a guess, which the published code does not do",
    ),
    forgets=ASCENDS,
)
