"""Methods whose items are whole graphs."""

from __future__ import annotations

from ddfed.recipes.base import Preset, Recipe
from ddfed_graph.recipes.base import graph_recipe

_DOSCOND = "Jin et al., Condensing Graphs via One-Step Gradient Matching, KDD 2022"


def _links(lr: float, *datasets: str) -> Preset:
    return Preset({"store_options": {"structure_lr": lr}}, datasets, source="authors' settings", domains=("graph",))


DOSCOND_GRAPHS: Recipe = graph_recipe(
    "doscond-graphs",
    "gradients",
    "match the gradients of each class at random weights by a few graphs, their links included",
    _DOSCOND,
    {
        "network": "gcn",
        "store": "graphs",
        "store_options": {"structure_lr": 0.1},
        "objective": "gradient",
        "objective_options": {"distance": "mse", "layers": "all", "rows": 128},
        "terms": [{"objective": "graph-density", "weight": 0.1}],
        "pool": "R",
        "lr": 0.01,
        "steps": 1000,
        "protocol": "E-graphs",
        "ipc": 1,
    },
    idea=(
        "Gradients at freshly drawn weights alone are enough to match: no network is trained in between. What is "
        "learned of a graph are the features of its nodes and a logit for each pair, the sigmoid of which is the "
        "weight of the link; links that are likelier than not are released."
    ),
    equation=(
        r"$\min_{X, \Omega} E_\theta \sum_c \lVert \nabla_\theta \ell_c(\mathcal{G}) - "
        r"\nabla_\theta \ell_c(\sigma(\Omega / t), X) \rVert^2 + \beta \max(0, \overline{\sigma(\Omega / t)} - \rho)$"
        r" with $\rho$ the density of the real graphs"
    ),
    cost=(
        "A step is a forward and backward pass of 128 real graphs of each class, and of the set twice. Rows are "
        "dense, so it grows with the square of the largest graph that is kept (data.options.max_nodes)."
    ),
    fails=(
        "Large graphs: those above max_nodes are left out. With tens of graphs a class random ones do nearly as well."
    ),
    needs=("second order",),
    expense="medium",
    presets=(
        _links(2.0, "dd"),
        _links(1.0, "nci1"),
        _links(0.1, "mutag"),
        Preset(
            {"steps": 200, "objective_options": {"distance": "mse", "layers": "all", "rows": 32}},
            ("digit-graphs",),
            source="ours, for minutes on a laptop",
            domains=("graph",),
        ),
    ),
    departures=(
        "links are the sigmoid of their logits at every step; store 'sampled-graphs' draws them as the paper does, "
        "at a constant temperature, as a store is not told which step it is (the paper's falls to .01 in 200 steps)",
        "step sizes stay as they are, the paper's fall to a tenth at step 400",
        "the density counts pairs of nodes that are there",
        "real graphs are dense rows, and those above max_nodes are left out and counted",
        "a graph has as many nodes as the real one it starts from",
    ),
)
