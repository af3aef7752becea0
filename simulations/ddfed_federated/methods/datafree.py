"""Methods that need neither records nor sets at the server, only trained networks: DENSE."""

from __future__ import annotations

from typing import Any

from ddfed.recipes import Preset
from ddfed_federated.methods.base import FederatedMethod, Phase, send_nothing
from ddfed_federated.methods.presets import DEFAULTS, PRESETS
from ddfed_federated.parts.ensemble import DenseSettings, DistilsEnsemble, ensemble_beside
from ddfed_federated.parts.local import TrainsOwn

#: The released code's: 400 local epochs of 128 rows, 200 generated batches, KL at 20 with weight decay nought.
_DEFAULTS: dict[str, Any] = {
    **DEFAULTS,
    "local": {"epochs": 400, "batch": 128},
    "server": {"epochs": 200, "lr": 0.01, "weight_decay": 0.0, "batch": 256},
}

DENSE = FederatedMethod(
    name="dense",
    title="clients send networks once; a student learns from their ensemble on made-up rows",
    citation="Zhang, Chen, Li, Lyu, Wu, Ding, Shen and Wu, DENSE: Data-Free One-Shot Federated Learning, NeurIPS 2022",
    phases=(Phase("weights", TrainsOwn(), DistilsEnsemble(), send_nothing),),
    options=DenseSettings,
    defaults=_DEFAULTS,
    presets=(
        *PRESETS,
        # Local training as long as that of the other methods in all their rounds.
        Preset(
            {
                "local": {"epochs": 30, "batch": 64},
                "server": {"epochs": 50, "lr": 0.05, "batch": 64},
                "options": {"steps": 10, "batch": 64},
            },
            ("digits",),
            domains=("image",),
        ),
    ),
    departures=(
        "the generator knows the class of each row and divides by the root mean square of the channels; the paper's "
        "knows noise alone and has batch norms, which mix rows",
        "the last student counts; the paper reports the best test accuracy of all epochs",
        "made-up rows are kept as numbers, not as 8-bit pictures",
        "the student's momentum begins anew with each pass over the made-up rows",
    ),
    one_shot=True,
    beside=ensemble_beside,
)
