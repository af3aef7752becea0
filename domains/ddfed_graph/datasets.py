"""Loaders of graphs from files that people already have. Nothing is downloaded, and nothing is written beside them.

Files are checked before use: arrays, columns, lines; an error names the file. The one exception to "no pickle is
read" is stated in `planetoid`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ddfed.errors import ConfigError, MissingDependencyError, UnknownNameError, one_of, suggest
from ddfed_graph.catalog import DATASETS
from ddfed_graph.large import load_arxiv, load_flickr, load_reddit
from ddfed_graph.npz import load_npz
from ddfed_graph.own import load_file
from ddfed_graph.planetoid import load_planetoid
from ddfed_graph.raw import Options, RawGraph, assembled, balanced_split, check_options, whole

__all__ = ["OPTIONS", "RawGraph", "load"]

#: Every option of `load`; each set takes those of its entry in `catalog.DATASETS`.
OPTIONS = ("neighbours", "per_class", "validation", "split_seed", "features", "trust_pickle")


def load(name: str, root: Path | None, options: Options) -> RawGraph:
    """Load a data set by name.

    Args:
        name: one of `catalog.DATASETS`.
        root: the folder that holds the files; None for ``digits``.
        options: None stands for not given; keys beside `OPTIONS` are not looked at.
            neighbours: links of each node of ``digits`` (5).
            per_class: training nodes a class where there is no official split (20).
            validation: validation nodes a class where there is no official split (30).
            split_seed: of that split; constant by default, whatever the seed of the run.
            features: ``row``, ``standard`` or ``raw``, see `raw.scaled`.
            trust_pickle: the raw files of Planetoid may be opened though they are pickles.

    Raises:
        UnknownNameError: no such data set.
        ConfigError: an option is out of range or of no use here.
        MissingDependencyError: a package is not installed; with the pip line.
        MissingDataError: a file is absent; says which is expected where.
        DataError: a file is damaged, or would have to be trusted.
    """
    if name not in DATASETS:
        raise UnknownNameError(
            f"unknown data set 'graph/{name}'.{suggest(name, DATASETS)} Possible: {one_of(DATASETS)}"
        )
    check_options(name, options)
    absent = [module for module in DATASETS[name]["modules"] if importlib.util.find_spec(module) is None]
    if absent:
        raise MissingDependencyError(
            f"data set 'graph/{name}' needs {', '.join(absent)}, which is not installed: pip install \"ddfed[graph]\""
        )
    return LOADERS[name](Path(root) if root is not None else None, options)


def load_digits(root: Path | None, options: Options) -> RawGraph:
    """A graph over scikit-learn's 1,797 digits: each is linked to those nearest to it; no files.

    Features are the 64 pixels divided by 16. Links go to the ``neighbours`` nearest digits by Euclidean distance of
    the pixels, ties to the lower number, and hold in both directions. Each class gives 100 test nodes, 50 validation
    nodes and ``per_class`` training nodes, drawn once; the test nodes do not depend on the others.
    """
    from sklearn.datasets import load_digits as embedded

    if root is not None:
        raise ConfigError(
            f"data set 'graph/digits' is embedded and reads no folder, got {root}. For a graph of your own give "
            f"--dataset file, for another known set its name; `ddfed datasets list` shows them."
        )
    neighbours = whole(options, "neighbours", 5)
    found = embedded()
    pixels, labels = torch.from_numpy(found.data), torch.from_numpy(found.target).long()
    if neighbours >= len(labels):
        raise ConfigError(f"option 'neighbours' must be below the {len(labels)} digits, got {neighbours}")
    classes = tuple(str(digit) for digit in range(10))
    return assembled(
        "digits",
        options,
        pixels / 16,
        nearest(pixels, neighbours),
        labels,
        balanced_split(labels, whole(options, "per_class", 20), 50, 100, classes),
        "UCI optical recognition of handwritten digits (test part, 1,797 images) as embedded in scikit-learn, "
        f"linked to the {neighbours} nearest by Euclidean distance of the pixels",
        scaling="raw",
        classes=classes,
    )


def nearest(points: Tensor, k: int) -> Tensor:
    """From every point to its ``k`` nearest others by Euclidean distance, (2, n k) int64; ties to the lower number.

    Args:
        points: (n, d) float64; of whole numbers, so that the distances are exact and ties are ties.
    """
    square = points.square().sum(1)
    distances = square[:, None] + square - 2 * points @ points.T
    order = distances.fill_diagonal_(torch.inf).argsort(dim=1, stable=True)[:, :k]
    return torch.stack([torch.arange(len(points)).repeat_interleave(k), order.flatten()])


_NPZ = ("cora-full", "cora-ml", "citeseer-full", "dblp", "pubmed-full", "amazon-computers", "amazon-photo")

LOADERS: dict[str, Callable[[Path | None, Options], RawGraph]] = {
    "digits": load_digits,
    **{name: partial(load_planetoid, name) for name in ("cora", "citeseer", "pubmed")},
    **{name: partial(load_npz, name) for name in _NPZ},
    "flickr": load_flickr,
    "reddit": load_reddit,
    "ogbn-arxiv": load_arxiv,
    "file": load_file,
}
