"""The data sets of the graph domain. Light on purpose: imports neither torch nor numpy."""

from __future__ import annotations

from typing import Any

_PITFALLS = ("per_class", "validation", "split_seed", "features")


def _planetoid(name: str, summary: str, classes: int) -> dict[str, Any]:
    """Eight raw files, all but one of them pickles; 20 training nodes a class, 500 validation, 1,000 test nodes."""
    stems = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
    return {
        "summary": f"{summary}; public split, Planetoid raw files",
        "modules": ("torch_geometric", "scipy"),
        "files": tuple(f"ind.{name}.{stem}" for stem in stems),
        "classes": classes,
        "train": 20 * classes,
        "test": 1000,
        "licence": "not stated for the data (MIT on the repository kimiyoung/planetoid)",
        "options": ("features", "trust_pickle"),
    }


def _npz(file: str, summary: str, nodes: int, classes: int | None, repository: str) -> dict[str, Any]:
    """One npz file without an official split: 20 training and 30 validation nodes a class, the rest for testing."""
    return {
        "summary": f"{summary}; fixed split made here, npz file",
        "modules": (),
        "files": (file,),
        "classes": classes,
        "train": 20 * classes if classes else None,
        "test": nodes - 50 * classes if classes else None,
        "licence": f"not stated for the data (MIT on the repository {repository})",
        "options": _PITFALLS,
    }


_GAUSS, _SHCHUR = "abojchevski/graph2gauss", "shchur/gnn-benchmark"
_SAINT = ("adj_full.npz", "feats.npy", "class_map.json", "role.json")

#: name -> what `registry.add` says about it. ``options`` are those of `datasets.load` that the set takes.
DATASETS: dict[str, dict[str, Any]] = {
    "digits": {
        "summary": "nearest-neighbour graph of 1,797 grey 8x8 digits, embedded in scikit-learn",
        "modules": ("sklearn",),
        "files": (),
        "classes": 10,
        "train": 200,
        "test": 1000,
        "licence": "CC BY 4.0 (UCI)",
        "options": ("neighbours", "per_class", "features"),
    },
    "cora": _planetoid("cora", "citations among 2,708 papers on machine learning", 7),
    "citeseer": _planetoid("citeseer", "citations among 3,327 papers on computer science", 6),
    "pubmed": _planetoid("pubmed", "citations among 19,717 papers on diabetes", 3),
    # Three or so of its 70 classes are too small for a split and are left out, see `npz.SMALLEST`.
    "cora-full": _npz("cora.npz", "citations among 19,793 papers, all classes of Cora", 19_793, None, _GAUSS),
    "cora-ml": _npz("cora_ml.npz", "citations among 2,995 papers on machine learning", 2995, 7, _GAUSS),
    "citeseer-full": _npz("citeseer.npz", "citations among 4,230 papers on computer science", 4230, 6, _GAUSS),
    "dblp": _npz("dblp.npz", "citations among 17,716 papers of DBLP", 17_716, 4, _GAUSS),
    "pubmed-full": _npz("pubmed.npz", "citations among 19,717 papers on diabetes", 19_717, 3, _GAUSS),
    "amazon-computers": _npz(
        "amazon_electronics_computers.npz", "13,752 computer goods often bought together", 13_752, 10, _SHCHUR
    ),
    "amazon-photo": _npz("amazon_electronics_photo.npz", "7,650 photo goods often bought together", 7650, 8, _SHCHUR),
    "flickr": {
        "summary": "89,250 pictures with shared properties, inductive; raw files of GraphSAINT",
        "modules": (),
        "files": _SAINT,
        "classes": 7,
        "train": 44_625,
        "test": 22_313,
        "licence": "not stated",
        "options": ("features",),
    },
    "reddit": {
        "summary": "232,965 posts with shared commenters, inductive; raw files of GraphSAINT or DGL",
        "modules": (),
        "files": (", ".join(_SAINT) + " (GraphSAINT)", "reddit_data.npz, reddit_graph.npz (DGL)"),
        "classes": 41,
        "train": 153_932,
        "test": 55_334,
        "licence": "not stated",
        "options": ("features",),
    },
    "ogbn-arxiv": {
        "summary": "citations among 169,343 arXiv papers on computer science, split by year; files of OGB",
        "modules": (),
        "files": (
            "raw/edge.csv.gz, raw/node-feat.csv.gz, raw/node-label.csv.gz",
            "split/time/train.csv.gz, split/time/valid.csv.gz, split/time/test.csv.gz",
        ),
        "classes": 40,
        "train": 90_941,
        "test": 48_603,
        "licence": "ODC-BY (OGB)",
        "options": ("features",),
    },
    "file": {
        "summary": "your own graph: nodes.csv and edges.csv, an npz or safetensors file, or a saved PyG Data",
        "modules": (),
        "files": ("nodes.csv and edges.csv", "one NAME.npz, NAME.safetensors or NAME.pt"),
        "classes": None,
        "train": None,
        "test": None,
        "licence": "not stated",
        "options": _PITFALLS,
    },
}
