"""FedLGD: clients train on distilled rows; a global set, distilled from what rounds do to the weights, ties them.

Huang, Jin, Zhao, Xu and Li, Federated Virtual Learning on Heterogeneous Data with Local-Global Distillation, TMLR 2024.
"""

from __future__ import annotations

from typing import Any

from ddfed.recipes import Preset
from ddfed_federated.methods.base import FederatedMethod, Phase
from ddfed_federated.methods.presets import DEFAULTS, PRESETS, without_engine
from ddfed_federated.parts.virtual import (
    BeginsGlobalSet,
    DistilsGradients,
    FedlgdOptions,
    TellsMoments,
    TrainsOnVirtual,
    send_weights_and_set,
)

#: DM at the global weights.
_DISTILL: dict[str, Any] = {
    **DEFAULTS["distill"],
    "objective_options": {"rows": 256, "top_up": False},
    "pool": "exact",
    "pool_options": {},
    "steps": 100,
    "min_count": 1,
}
_DIGITS = {"every": 2, "warm_up": 50, "global_steps": 50, "contrast": 1.0}

FEDLGD = FederatedMethod(
    name="fedlgd",
    title="clients train on distilled rows, held together by a global set of matched gradients",
    citation="Huang, Jin, Zhao, Xu and Li, Federated Virtual Learning on Heterogeneous Data with Local-Global "
    "Distillation, TMLR 2024",
    setup=(Phase("moments", TellsMoments(), BeginsGlobalSet()),),
    phases=(Phase("weights", TrainsOnVirtual(), DistilsGradients(), send_weights_and_set),),
    options=FedlgdOptions,
    defaults={**DEFAULTS, "distill": _DISTILL},
    presets=(
        *without_engine(PRESETS),
        Preset({"distill": {"augment": "dsa"}}, source="the paper's code", domains=("image",)),
        Preset(
            {"options": _DIGITS, "distill": {"steps": 50, "augment": "none"}},
            ("digits",),
            source="ours, for seconds on a laptop",
            domains=("image",),
        ),
    ),
    departures=(
        "the global set is sent in every round, not only where it changed: a client may have missed it",
        "the clients' mean gradient is what the round did to the weights, which is a gradient only for one plain step; "
        "local training is as local.* says, with momentum",
        "items are clipped to their natural range where they begin, not in a whitened space",
        "all clients share the task's normalisation; the paper's have one each",
    ),
)
