"""DYNAFED: FedAvg on the wire; the server distils the path of its models and refines them on what it finds.

Pi, Zhang, Xie, Gao, Wang, Kim and Chen, DYNAFED: Tackling Client Data Heterogeneity with Global Dynamics, CVPR 2023.
"""

from __future__ import annotations

from ddfed.recipes import Preset
from ddfed_federated.methods.base import FederatedMethod, Phase
from ddfed_federated.methods.presets import DEFAULTS, PRESETS
from ddfed_federated.parts.dynamics import DynafedOptions, FollowsDynamics, begin_with_trajectory
from ddfed_federated.parts.local import Trains

#: Made once after two rounds, in seconds; local training is ten passes a round, so a few models say much.
_DIGITS = {
    "begins": 3,
    "span": 2,
    "average": [1, 2],
    "ipc": 10,
    "steps": 80,
    "student_steps": 10,
    "student_lr": 0.5,
    "student_lr_lr": 1e-4,
    "augment": "none",
}

DYNAFED = FederatedMethod(
    name="dynafed",
    title="the server distils the path of its global models and refines every average on the set",
    citation="Pi, Zhang, Xie, Gao, Wang, Kim and Chen, DYNAFED: Tackling Client Data Heterogeneity with Global "
    "Dynamics, CVPR 2023",
    phases=(Phase("weights", Trains(), FollowsDynamics()),),
    options=DynafedOptions,
    defaults=DEFAULTS,
    presets=(
        *PRESETS,
        Preset({"options": {"augment": "dsa"}}, source="the paper's code", domains=("image",)),
        Preset({"options": _DIGITS}, ("digits",), source="ours, for seconds on a laptop", domains=("image",)),
    ),
    departures=(
        "the student's step size is learned by SGD with momentum, as the engine does it, not by Adam",
        "the average is refined from the round on in which the set is made, not only in the rounds after it",
        "the derivative goes through the student's training by the adjoint, in the memory of one step",
        "clients train as those of the other averaging methods do here (local.*), not one epoch of Adam",
        "the accuracy after the last round counts; the published figures are the best round's on the test split",
    ),
    begin=begin_with_trajectory,
)
