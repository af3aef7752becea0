"""What the graph domain offers. Light on purpose: imports neither torch nor numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddfed.hookspecs import hookimpl
from ddfed_graph.catalog import DATASETS
from ddfed_graph.federated import FEDERATED
from ddfed_graph.recipes import RECIPES
from ddfed_graph.set_catalog import SETS

if TYPE_CHECKING:
    from ddfed.registry import Registry

_NEEDED = ("torch_geometric", "sklearn")


@hookimpl
def ddfed_register(registry: Registry) -> None:
    registry.add(
        "domain",
        "graph",
        "ddfed_graph.domain:GraphDomain",
        summary="Graphs: nodes with features, seen in the graph they belong to.",
        extra="graph",
        modules=_NEEDED,
        federated=FEDERATED,
    )
    for name, facts in DATASETS.items():
        registry.add("dataset", f"graph/{name}", "ddfed_graph.datasets:load", extra="graph", **facts)
    for name, facts in SETS.items():
        registry.add("dataset", f"graph/{name}", "ddfed_graph.sets:load", extra="graph", **facts)
    _add_set_parts(registry)
    for target, recipe in RECIPES.items():
        registry.add(
            "recipe",
            recipe.name,
            f"ddfed_graph.recipes:{target}",
            summary=recipe.title,
            extra="graph",
            modules=_NEEDED,
            family=recipe.family,
            citation=recipe.citation,
            requires=recipe.needs,
            domains=recipe.domains,
            cost=recipe.expense,
        )
    for name, target, summary in (
        ("induced", "stores:Induced", "nodes with the edges among them, as they are"),
        ("eigenbasis", "eigenbasis:Eigenbasis", "learned eigenvectors with the real eigenvalues (GDEM)"),
        ("self-expressive", "expressive:SelfExpressive", "an adjacency in closed form of the features (GCSR)"),
        ("pge", "stores:PairwiseMLP", "an adjacency that an MLP makes of pairs of nodes (GCond)"),
        ("graphon", "stores:Graphon", "an adjacency of pairs of features and of points of a graphon (SGDD)"),
        ("free-adjacency", "stores:FreeAdjacency", "an adjacency with a free weight for each pair"),
        ("low-rank-adjacency", "stores:LowRank", "an adjacency of short vectors for each node"),
    ):
        registry.add("decoder", name, f"ddfed_graph.{target}", summary=summary)
    for name, target, summary in (
        ("mean-a2x", "MEAN", "mean of the propagated features of a class"),
        ("kmeans-a2x", "KMEANS", "k-means centres of the propagated features of a class"),
        ("random-a2x", "RANDOM", "propagated features of random nodes"),
        ("herding-a2x", "HERDING", "propagated features of nodes that follow the class mean"),
        ("kcenter-a2x", "KCENTER", "propagated features of nodes that cover the class"),
    ):
        registry.add("selector", name, f"ddfed_graph.selectors:{target}", summary=summary)
    for name, target, summary in (
        ("eigenbasis", "eigenbasis:EIGENBASIS", "random nodes, eigenvectors of a random graph, the real eigenvalues"),
        ("self-expressive", "expressive:EXPRESSIVE", "propagated random nodes, and how often their classes are linked"),
        ("cgc", "calibrated:CGC", "linked means of calibrated clusters of a class"),
        ("coarsening", "coarsening:COARSENING", "super-nodes of the contracted graph, with the links among them"),
        ("cgc-x", "calibrated:CGC_X", "means of calibrated clusters of a class"),
    ):
        registry.add("selector", name, f"ddfed_graph.{target}", summary=summary)
    for name, target, summary in (
        ("spectrum", "spectrum:SpectrumMatching", "features along eigenvectors (GDEM)"),
        ("laplacian-energy", "energy:LaplacianEnergy", "where on the spectrum features lie; a term of others (SGDD)"),
    ):
        registry.add("objective", name, f"ddfed_graph.{target}", summary=summary)
    for name, target, summary in (
        ("louvain", "louvain", "communities of a graph, packed into clients of about equal size"),
        ("dirichlet-nodes", "dirichlet_nodes", "every class of a graph's nodes cut by Dirichlet proportions"),
    ):
        registry.add(
            "partitioner",
            name,
            f"ddfed_graph.shares:{target}",
            summary=summary,
            extra="graph",
            modules=("networkx", "scipy"),
            sees="task",
        )
    registry.add("kernel", "sntk", "ddfed_graph.kernel:sntk", summary="structure-based neural tangent kernel (GC-SNTK)")
    registry.add("kernel", "ntk-hops", "ddfed_graph.kernel:ntk_hops", summary="tangent kernel of propagated features")
    for name, target, summary in (
        ("E-gcn", "E_GCN", "600 full-batch epochs of Adam, the best on validation nodes"),
        ("E-gcn-large", "E_GCN_LARGE", "the same without weight decay"),
        ("E-sntk", "E_SNTK", "regression in the kernel of GC-SNTK"),
    ):
        registry.add("protocol", name, f"ddfed_graph.protocols:{target}", summary=summary)


def _add_set_parts(registry: Registry) -> None:
    """What sets of graphs have of their own."""
    for name, target, summary in (
        ("graphs", "GraphItems", "features of nodes and a logit for each link (sets of graphs)"),
        ("sampled-graphs", "SampledGraphs", "the same with links drawn anew at every step (DosCond)"),
    ):
        registry.add("decoder", name, f"ddfed_graph.set_stores:{target}", summary=summary)
    summary = "keeps condensed graphs as sparse as real ones"
    registry.add("objective", "graph-density", "ddfed_graph.set_density:Density", summary=summary)
    summary = "500 epochs of Adam, the best on validation graphs (sets of graphs)"
    registry.add("protocol", "E-graphs", "ddfed_graph.set_protocols:E_GRAPHS", summary=summary)
