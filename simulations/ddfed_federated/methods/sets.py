"""Methods whose clients send small labelled sets: FedDM and its two controls.

FedDM: Xiong, Wang, Cheng, Yu and Hsieh, Iterative Distribution Matching for Communication-Efficient Federated
Learning, CVPR 2023. Averaging local optima models the global loss badly when clients differ; a client
therefore sends a set whose loss surface imitates its own near the current global weights (Algorithm 1, client side),
and the server minimises the sum of these surrogates (server side).

The controls send real items of the same budget, untouched. ``random-once`` chooses them once per client;
``random-fresh`` anew in every round, which hands out the budget again each time and so flatters a
comparison: the byte ledger counts it.
"""

from __future__ import annotations

from ddfed_federated.methods.base import FederatedMethod, Phase
from ddfed_federated.methods.presets import DEFAULTS, PRESETS
from ddfed_federated.parts.distil import Distils
from ddfed_federated.parts.dropping import DROPS
from ddfed_federated.parts.union import TrainsOnUnion

FEDDM = FederatedMethod(
    name="feddm",
    title="clients distil around the global weights, the server trains on the union",
    citation="Xiong, Wang, Cheng, Yu and Hsieh, Iterative Distribution Matching for Communication-Efficient FL, "
    "CVPR 2023",
    phases=(Phase("set", Distils(), TrainsOnUnion()),),
    defaults=DEFAULTS,
    presets=PRESETS,
    departures=(
        "clients start every round from the same real items (federation.restart = 'same'); the public "
        "reimplementation draws fresh ones, which hands out new records in every round",
    ),
    forgets=DROPS,
)
RANDOM_ONCE = FederatedMethod(
    name="random-once",
    title="control: real items of the same budget, chosen once per client",
    citation="baseline (the 0-step control)",
    phases=(Phase("set", Distils(distils=False, restart="same"), TrainsOnUnion()),),
    defaults=DEFAULTS,
    presets=PRESETS,
    control=True,
    forgets=DROPS,
)
RANDOM_FRESH = FederatedMethod(
    name="random-fresh",
    title="control: real items of the same budget, chosen anew in every round",
    citation="baseline; releases the budget again in every round",
    phases=(Phase("set", Distils(distils=False, restart="fresh"), TrainsOnUnion()),),
    defaults=DEFAULTS,
    presets=PRESETS,
    control=True,
    forgets=DROPS,
)
