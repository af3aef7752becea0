"""Which real items of a class are kept, or start the synthetic ones.

A `Selector` is evidence about each row (none, features, scores) and a choice among the rows of a class by it. A
`Composer` makes inputs of rows instead: crops, mosaics.
"""

from ddfed.select.base import (
    Choose,
    Compose,
    Composer,
    Evidence,
    Gather,
    Selector,
    check_budget,
    initial_inputs,
    select_rows,
)
from ddfed.select.crops import compose_crops
from ddfed.select.evidence import (
    el2n_scores,
    forgetting_scores,
    grand_scores,
    head_gradient_norm,
    prediction_error,
    right_ranks,
    row_numbers,
    times_forgotten,
    trained_features,
)
from ddfed.select.rules import (
    choose_by_difficulty,
    choose_from_bins,
    choose_herding,
    choose_kcenter,
    choose_kmeans,
    choose_lowest,
    choose_random,
    graph_cut_bins,
    nearest_centres,
)

RANDOM = Selector("random", choose_random, row_numbers)
HERDING = Selector("herding", choose_herding, trained_features)
KCENTER = Selector("kcenter", choose_kcenter, trained_features)
KMEANS = Selector("kmeans", choose_kmeans, trained_features)
DQ = Selector("dq", choose_from_bins, trained_features)
FORGETTING = Selector("forgetting", choose_by_difficulty, forgetting_scores)
EL2N = Selector("el2n", choose_by_difficulty, el2n_scores)
GRAND = Selector("grand", choose_by_difficulty, grand_scores)
CORRECT = Selector("correct", choose_lowest, right_ranks)
CROPS = Composer("crops", compose_crops)

__all__ = [
    "CORRECT",
    "CROPS",
    "DQ",
    "EL2N",
    "FORGETTING",
    "GRAND",
    "HERDING",
    "KCENTER",
    "KMEANS",
    "RANDOM",
    "Choose",
    "Compose",
    "Composer",
    "Evidence",
    "Gather",
    "Selector",
    "check_budget",
    "choose_by_difficulty",
    "choose_from_bins",
    "choose_herding",
    "choose_kcenter",
    "choose_kmeans",
    "choose_lowest",
    "choose_random",
    "compose_crops",
    "el2n_scores",
    "forgetting_scores",
    "grand_scores",
    "graph_cut_bins",
    "head_gradient_norm",
    "initial_inputs",
    "nearest_centres",
    "prediction_error",
    "right_ranks",
    "row_numbers",
    "select_rows",
    "times_forgotten",
    "trained_features",
]
