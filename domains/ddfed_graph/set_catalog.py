"""The sets of graphs of the graph domain. Light on purpose: imports neither torch nor numpy."""

from __future__ import annotations

from typing import Any

_SPLIT = ("max_nodes", "split_seed")


def _tu(prefix: str, summary: str, graphs: int, features: str, classes: int = 2) -> dict[str, Any]:
    """Text files of the TU collection; split 80/10/10 here, less the graphs that are too large."""
    stems = ("A", "graph_indicator", "graph_labels", *(("node_labels",) if features == "labels" else ()))
    return {
        "summary": f"{graphs:,} {summary}; text files of the TU collection, fixed split made here",
        "modules": (),
        "files": tuple(f"{prefix}_{stem}.txt" for stem in stems),
        "classes": classes,
        # Before large graphs are left out, which depends on max_nodes.
        "train": None,
        "test": None,
        "licence": "not stated for the data (TUDataset, Morris et al. 2020)",
        "options": (*_SPLIT, "node_features"),
        "level": "graph",
        "node_features": features,
    }


#: name -> what `registry.add` says about it. ``level``: what has a class; nodes where it is not said.
SETS: dict[str, dict[str, Any]] = {
    "digit-graphs": {
        "summary": "1,797 digits as graphs of their inked pixels, embedded in scikit-learn; fixed split made here",
        "modules": ("sklearn",),
        "files": (),
        "classes": 10,
        "train": 1437,
        "test": 180,
        "licence": "CC BY 4.0 (UCI)",
        "options": (*_SPLIT, "ink"),
        "level": "graph",
    },
    "mutag": _tu("MUTAG", "molecules, mutagenic or not", 188, "labels"),
    "nci1": _tu("NCI1", "molecules, active against lung cancer cells or not", 4110, "labels"),
    "proteins": _tu("PROTEINS", "proteins, enzymes or not", 1113, "labels"),
    "dd": _tu("DD", "proteins of amino acids, enzymes or not", 1178, "labels"),
    "imdb-b": _tu("IMDB-BINARY", "circles of actors, of action or romance", 1000, "degrees"),
}
OPTIONS = (*_SPLIT, "node_features", "ink")
