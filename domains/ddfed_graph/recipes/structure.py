"""Methods that make the structure of the condensed graph from that of the real one: clusters, contraction, spectra."""

from __future__ import annotations

from ddfed.recipes.base import Preset, laptop
from ddfed_graph.recipes.base import BY_VALIDATION, CHOSEN, EXPERTS, GCOND_PAPER, graph_recipe

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
    presets=(laptop("graph", init_options={"threshold": 0.99}),),
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

# --- contraction -------------------------------------------------------------------------------------------------

COARSENING = graph_recipe(
    "coarsening",
    "selection",
    "contract edges until few super-nodes are left",
    "Huang et al., Scaling Up Graph Neural Networks Via Graph Coarsening, KDD 2021",
    {"steps": 0, "init": "coarsening", "store": "induced", "store_options": {"threshold": 0.0}},
    idea=(
        "Linked nodes that are alike are merged, those first that change the means of the propagated features least, "
        "for as long as every class has the super-nodes that the budget asks for. A super-node has the mean of its "
        "nodes' features, the sum of their links, and the class of most of its training nodes."
    ),
    equation=r"$X' = \bar P X$, $A' = P A P^T$, $P P^T = I$",
    cost="Ward's criterion along the edges of the whole graph: seconds on the citation networks.",
    fails=(
        "It knows labels of training nodes alone, so most of the graph ends in super-nodes without a class, which are "
        "dropped: what the condensed nodes stand for depends on where the labels are."
    ),
    needs=("raw records",),
    departures=(
        "nodes are merged by Ward's criterion on propagated features (scikit-learn) in place of Loukas' variation "
        "neighbourhoods, whose libraries no longer run",
        "as many super-nodes of each class as the budget says, the largest; the papers fix the number of all",
    ),
)
AVERAGING = graph_recipe(
    "averaging",
    "selection",
    "the mean of the raw features of each class",
    GCOND_PAPER + " (baseline of later tables)",
    {"steps": 0, "init": "mean-a2x", "init_options": {"hops": 0}, "ipc": 1},
    idea="A class is stored as the mean of what its labelled nodes are by themselves: what structure adds is missing.",
    equation=r"$x'_c = \mathrm{mean}_{i \in c} x_i$, $A' = I$",
    cost="None.",
    fails="More than one node a class repeats it. The mean of propagated features (mean-a2x) costs as little.",
    needs=("raw records",),
)

# --- spectra -----------------------------------------------------------------------------------------------------

GDEM = graph_recipe(
    "gdem",
    "moments",
    "match features along the eigenvectors of the graph, with its eigenvalues as they are",
    "Liu, Bo and Shi, Graph Distillation with Eigenbasis Matching, ICML 2024",
    {
        "objective": "spectrum",
        "store": "eigenbasis",
        "store_options": {"turns": [10, 15], "structure_lr": 5e-4},
        "init": "eigenbasis",
        "pool": "R",
        "lr": 1e-3,
        "steps": 300,
        "keep": {"every": 25, "epochs": 200},
    },
    idea=(
        "Which network judges a condensed graph decides which spectrum it gets. GDEM asks none: the eigenvalues of the "
        "real graph are kept, and eigenvectors and features are learned so that features along each eigenvector span "
        "what the real ones do, smoothed class means agree, and the eigenvectors stay a basis."
    ),
    equation=(
        r"$\alpha \, \mathrm{mean}_k \lVert z_k z_k^T - z'_k z'^T_k \rVert^2 + \beta \, \mathrm{mean} (\bar H "
        r"\bar H'^T - I)^2 + \gamma \, \mathrm{mean} (U'^T U' - I)^2$, $z_k = u_k^T X / \lVert u_k^T X \rVert$, "
        r"$A' = I - U' \Lambda U'^T$"
    ),
    cost=(
        "Some eigenpairs of the graph once (a second on Cora); a step then is a few small products, no network and no "
        "d x d matrix."
    ),
    fails=(
        "A' is dense and signed, and networks that normalise by sums of absolute weights see a much weaker graph. The "
        "high end of the spectrum hurts them: on Cora 70 % of validation nodes with a fifth of the eigenpairs from "
        "there, 77 with none, when A' is nearly empty. Attention sees positive edges alone. Look at mean-a2x first."
    ),
    needs=("raw records",),
    presets=(
        Preset(
            {
                "lr": 1e-4,
                "steps": 200,
                "objective_options": {"low": 1.0},
                "init_options": {"low": 1.0},
            },
            ("cora",),
            source=CHOSEN,
        ),
        laptop("graph", steps=200, keep={"every": 50}),
    ),
    departures=(
        BY_VALIDATION,
        "features start as those of random nodes, not as rows distilled for an MLP",
        "the released A' is divided by the roots of its diagonal and normalised by every network; the paper's networks "
        "take I - U' L U'^T itself as propagation",
        "outer products are summed over features, not averaged, hence other weights of the terms",
        "class means of training nodes in all components, smoothed by A^ itself; the paper's code fills up from nodes "
        "whose labels are not for training",
    ),
)

# --- self-expression ---------------------------------------------------------------------------------------------

GCSR = graph_recipe(
    "gcsr",
    "trajectory",
    "follow networks that were trained on the graph, with an adjacency in closed form of the condensed features",
    "Liu et al., Graph Data Condensation via Self-expressive Graph Structure Reconstruction, KDD 2024",
    {
        "objective": "trajectory",
        "objective_options": {"steps": 5, "lr": 0.5, "lr_lr": 1e-6, "lr_momentum": 0.5},
        "store": "self-expressive",
        "store_options": {"alpha": 0.1},
        "pool": "X",
        "pool_options": EXPERTS,
        "init": "self-expressive",
        "lr": 1e-4,
        "steps": 60,
        "keep": {"every": 20, "epochs": 200},
    },
    idea=(
        "Nodes are linked as far as they express each other's features, and as often as their classes are linked in "
        "the real graph. That is a ridge regression with one solution, so the adjacency needs no parameters: features "
        "are learned through it, by following networks that were trained on the real graph."
    ),
    equation=(
        r"$A' = \mathrm{sym} \lvert (X' X'^T + \alpha I)^{-1} (X' X'^T + \alpha P) \rvert$, "
        r"$\min_{X'} \lVert \hat\theta_{t+N} - \theta^*_{t+M} \rVert^2 / "
        r"\lVert \theta^*_t - \theta^*_{t+M} \rVert^2$"
    ),
    cost="Experts come first, as for sfgc; a step is N steps of training on the condensed graph and the same back.",
    fails=(
        "P is counted on edges between training nodes, of which there may be none: set init_options.prior = 'cosine', "
        "or take another method. The step size decides, as for all methods that move row-normalised features."
    ),
    needs=("second order", "raw records"),
    expense="high",
    presets=(laptop("graph", steps=60, lr=1e-3),),
    departures=(
        BY_VALIDATION,
        "P is fixed and scaled to a largest entry of 1; the paper moves P and a second prior by moving averages of "
        "past adjacencies",
        "the weight of P is in units of the features' squared length",
        "five experts of 40 passes of ten epochs; few steps, with a larger step size of the features than the paper's",
    ),
)
