"""Larger sets: Flickr and Reddit, which are inductive, and ogbn-arxiv. Arrays, JSON and text only."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddfed.errors import DataError, MissingDataError
from ddfed.sources import data_folder, first_line
from ddfed_graph.catalog import DATASETS
from ddfed_graph.npz import entries, read_npy, read_npz
from ddfed_graph.raw import Options, RawGraph, Split, assembled, located

_DGL = ("reddit_data.npz", "reddit_graph.npz")


def load_flickr(root: Path | None, options: Options) -> RawGraph:
    """Flickr from the raw files of GraphSAINT (Zeng et al. 2020), standard scores over the training nodes."""
    return _from_saint("flickr", located("flickr", root, DATASETS["flickr"]["files"]), options)


def load_reddit(root: Path | None, options: Options) -> RawGraph:
    """Reddit, standard scores over the training nodes.

    From the files of GraphSAINT (11.6 million links, what the condensation papers use; PyTorch Geometric's Reddit2)
    or of DGL (57.3 million links, Hamilton et al. 2017; PyTorch Geometric's Reddit). The source says which.
    """
    try:
        return _from_saint("reddit", located("reddit", root, DATASETS["flickr"]["files"], ("reddit2",)), options)
    except MissingDataError as lacking:
        try:
            return _from_dgl(located("reddit", root, _DGL), options)
        except MissingDataError:
            other = f" Or, as DGL has them: {', '.join(_DGL)}."
            raise MissingDataError(f"{lacking}.{other}") from None


def _from_saint(name: str, folder: Path, options: Options) -> RawGraph:
    features = read_npy(folder / "feats.npy")
    n = len(features)
    matrix = folder / "adj_full.npz"
    edges, _ = entries(read_npz(matrix, ["data", "indices", "indptr", "shape"]), "", matrix)
    roles = _read_json(folder / "role.json")
    try:
        split = Split.of(torch.tensor(roles[key], dtype=torch.int64) for key in ("tr", "va", "te"))
        given = {int(node): int(label) for node, label in _read_json(folder / "class_map.json").items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{folder}: role.json must hold lists of nodes 'tr', 'va' and 'te', class_map.json a class for every "
            f"node: {first_line(error)}"
        ) from None
    odd = [node for node in given if not 0 <= node < n]
    if odd:
        raise DataError(f"{folder / 'class_map.json'} names node {odd[0]}, and feats.npy has {n} nodes")
    labels = torch.full((n,), -1)
    labels[torch.tensor(list(given), dtype=torch.int64)] = torch.tensor(list(given.values()))
    return _inductive(name, options, features, edges, labels, split, "raw files of GraphSAINT")


def _from_dgl(folder: Path, options: Options) -> RawGraph:
    found = read_npz(folder / _DGL[0], ["feature", "label", "node_types"])
    matrix = read_npz(folder / _DGL[1], [])
    path = folder / _DGL[1]
    if not (
        {"data", "shape"} <= set(matrix) and ({"row", "col"} <= set(matrix) or {"indices", "indptr"} <= set(matrix))
    ):
        raise DataError(f"{path} is no sparse matrix as SciPy saves it; it holds {', '.join(matrix)}")
    roles = torch.from_numpy(found["node_types"])
    split = Split.of((roles == role).nonzero().flatten() for role in (1, 2, 3))
    features, labels = (torch.from_numpy(found[key]) for key in ("feature", "label"))
    return _inductive("reddit", options, features, entries(matrix, "", path)[0], labels, split, "raw files of DGL")


def _inductive(
    name: str, options: Options, features: Tensor, edges: Tensor, labels: Tensor, split: Split, form: str
) -> RawGraph:
    # Each pair once, before both directions are made: of Reddit's hundred million entries that halves the memory.
    n = len(features)
    pairs = torch.unique(edges.min(0).values * n + edges.max(0).values)
    if len(pairs) and int(edges.max()) >= n:
        raise DataError(f"{name}: an edge names node {int(edges.max())}, and there are {n} nodes")
    return assembled(
        name,
        options,
        features,
        torch.stack([pairs // n, pairs % n]),
        labels,
        split,
        f"{name}, {form}, {n} nodes",
        scaling="standard",
        inductive=True,
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is truncated or no JSON: {first_line(error)}. Fetch it again.") from None


def load_arxiv(root: Path | None, options: Options) -> RawGraph:
    """ogbn-arxiv (Hu et al. 2020) from the text files of OGB, standard scores over the training nodes.

    The package ``ogb`` is not used: it opens pickles of its own making and asks before downloads. Citations are
    directed in the files and become undirected.
    """
    expected = DATASETS["ogbn-arxiv"]["files"]
    files = [file for line in expected for file in line.split(", ")]
    root = data_folder(root, "graph/ogbn-arxiv", expected)
    folder = located("ogbn-arxiv", root, files, ("ogbn_arxiv", "arxiv"))
    labels = _read_table(folder / "raw/node-label.csv.gz", np.int64).flatten()
    parts = [folder / f"split/time/{part}.csv.gz" for part in ("train", "valid", "test")]
    split = Split.of((_read_table(path, np.int64).flatten() for path in parts), "official split by year")
    return assembled(
        "ogbn-arxiv",
        options,
        _read_table(folder / "raw/node-feat.csv.gz", np.float32),
        _read_table(folder / "raw/edge.csv.gz", np.int64).T,
        labels,
        split,
        f"ogbn-arxiv, text files of OGB, {len(labels)} nodes",
        scaling="standard",
    )


def _read_table(path: Path, kind: type) -> Tensor:
    """Numbers of a gzipped CSV file without a header, (rows, columns)."""
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            return torch.from_numpy(np.loadtxt(file, dtype=kind, delimiter=",", ndmin=2))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} is truncated or no gzipped table of numbers: {first_line(error)}") from None
