"""What the declarations of graph methods share.

Budgets are nodes of a class: ipc 5, 10 and 20 are the 35, 70 and 140 nodes of the papers on Cora, and 30, 60 and 120 on
CiteSeer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddfed.recipes.base import Published, Recipe

GCOND_PAPER = "Jin et al., Graph Condensation for Graph Neural Networks, ICLR 2022"
OURS = "Ours: the baseline without which a table of graph condensation says little"
RERUN = "table of the GC-SNTK paper, rerun there"
QUOTED = "rerun quoted by a later paper"

_BUDGETS = {"cora": (5, 10, 20), "citeseer": (5, 10, 20), "pubmed": (5, 10, 20)}


def figures(source: str, **given: tuple[float | None, ...]) -> tuple[Published, ...]:
    """Figures by data set at its three budgets."""
    return tuple(
        Published(dataset, ipc, accuracy, None, "GCN, best epoch by validation", source)
        for dataset, found in given.items()
        for ipc, accuracy in zip(_BUDGETS[dataset], found)
        if accuracy is not None
    )


def graph_recipe(name: str, family: str, title: str, citation: str, defaults: Mapping[str, Any], **page: Any) -> Recipe:
    """A recipe of this domain: ``defaults`` on top of `PARTS`."""
    return Recipe(name, family, title, citation, {**PARTS, **defaults}, domains=("graph",), **page)


#: What all of them share. SGC sees real nodes through features that were propagated once.
PARTS: dict[str, Any] = {
    "network": "sgc",
    "store": "pixels",
    "labels": "hard",
    "augment": "none",
    "init": "random",
    "scope": "joint",
    "optimizer": "adam",
    "protocol": "E-gcn",
    "ipc": 10,
}
CHOSEN = "ours, chosen on validation nodes"
BY_VALIDATION = "the iterate is chosen by validation nodes, as the papers do, but never by test nodes"
#: Of the pool whose networks are trained on the real graph, for two cores.
EXPERTS: dict[str, Any] = {
    "buffer": "",
    "experts": 5,
    "span": 4,
    "max_start": 4,
    "make": {"epochs": 40, "batch": 256, "lr": 0.4, "weight_decay": 5e-4, "passes": 10},
}
