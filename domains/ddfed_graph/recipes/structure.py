"""Methods that make the structure of the condensed graph from that of the real one: clusters, contraction, spectra."""

from __future__ import annotations

from typing import Any

from ddfed.recipes.base import Preset, laptop
from ddfed_graph.recipes.base import BY_VALIDATION, CHOSEN, GCOND_PAPER, QUOTED, RERUN, figures, graph_recipe

_CGC = (
    "Gao et al., Rethinking and Accelerating Graph Condensation: A Training-Free Approach with Class Partition, "
    "WWW 2025"
)

# --- clusters ----------------------------------------------------------------------------------------------------

_CGC_IDEA = (
    "Matching features of classes is, without a network, assigning nodes to condensed ones: a partition. The nodes of "
    "a class, as two rounds of message passing make them, are clustered; of a cluster the mean is kept, in which nodes "
    "that a linear classifier is sure of weigh more. Classes that it confuses get more rows to cluster, from one round "
    "of message passing. "
)
_CGC_COST = "Two products with a sparse matrix, a k-means a class and two dense solves: a second on citation networks."
_CGC_DEPARTURES = (
    "k-means in place of spectral clustering",
    "F1 and confidence are of leave-one-out answers: a fit with more features than labelled nodes is right about all",
    "the evaluation is ours (dropout .5); the paper tunes it by data set (.8 on Cora)",
)
CGC = graph_recipe(
    "cgc",
    "selection",
    "means of calibrated clusters of each class, linked where they are alike",
    _CGC,
    {"steps": 0, "init": "cgc", "store": "induced"},
    idea=_CGC_IDEA
    + "Means that are alike are linked, and features are solved for that give the means back once propagated.",
    equation=(
        r"$A'_{ij} = 1[\cos(h'_i, h'_j) > T]$, "
        r"$\min_{X'} \alpha \lVert \hat A'^2 X' - H' \rVert^2 + \mathrm{tr}(X'^T (I - \hat A') X')$"
    ),
    cost=_CGC_COST,
    fails=(
        "Where propagated features of different classes are alike a threshold links them: raise init_options.threshold."
    ),
    needs=("raw records",),
    departures=(
        *_CGC_DEPARTURES,
        "the normal equations of the paper's objective are solved once; its code solves others twice",
    ),
)
CGC_X = graph_recipe(
    "cgc-x",
    "selection",
    "means of calibrated clusters of each class, without edges",
    _CGC,
    {"steps": 0, "init": "cgc-x"},
    idea=_CGC_IDEA + "Means are kept as they are, without edges.",
    equation=r"$h'_j = \sum_{i \in C_j} w_i h_i$, $w = \mathrm{softmax}(\mathrm{confidence} / \tau)$, $A' = I$",
    cost=_CGC_COST,
    fails=(
        "It tells nothing of a node before its neighbours have been mixed in: networks that read raw features do worse."
    ),
    needs=("raw records",),
    departures=_CGC_DEPARTURES,
)
