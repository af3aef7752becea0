"""Small files in the forms that graph data sets have."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np


def csr(dense: np.ndarray, prefix: str) -> dict[str, np.ndarray]:
    """CSR parts of a dense matrix, by hand."""
    rows, columns = dense.nonzero()
    return {
        f"{prefix}data": dense[rows, columns].astype(np.float32),
        f"{prefix}indices": columns.astype(np.int32),
        f"{prefix}indptr": np.concatenate([[0], np.cumsum((dense != 0).sum(1))]).astype(np.int32),
        f"{prefix}shape": np.array(dense.shape),
    }


def drawn(per_class: int = 4, classes: int = 3, width: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts of words (n, width), a directed adjacency (n, n) with self-loops, and labels (n,)."""
    rng, n = np.random.default_rng(0), per_class * classes
    return rng.integers(0, 3, (n, width)), rng.random((n, n)) < 0.3, np.arange(n) % classes


def write_citation(path: Path, **changes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An npz file as of CitationFull and Amazon; a change of None leaves an array out."""
    x, adjacency, labels = drawn()
    arrays = {**csr(x, "attr_"), **csr(adjacency, "adj_"), "labels": labels, **changes}
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    return x, adjacency, labels


def write_saint(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Raw files of GraphSAINT; eight nodes are for training, two each for validation and testing."""
    x, adjacency, labels = drawn()
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "adj_full.npz", **csr(adjacency, ""))
    np.save(folder / "feats.npy", x.astype(np.float64))
    (folder / "class_map.json").write_text(json.dumps({str(i): int(label) for i, label in enumerate(labels)}))
    (folder / "role.json").write_text(json.dumps({"tr": list(range(8)), "va": [8, 9], "te": [11, 10]}))
    return x, adjacency, labels


def write_dgl(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reddit's raw files as DGL has them, with the same split."""
    import scipy.sparse

    x, adjacency, labels = drawn()
    roles = np.array([1] * 8 + [2] * 2 + [3] * 2)
    np.savez(folder / "reddit_data.npz", feature=x.astype(np.float64), label=labels, node_types=roles)
    scipy.sparse.save_npz(folder / "reddit_graph.npz", scipy.sparse.coo_matrix(adjacency.astype(np.float32)))
    return x, adjacency, labels


def write_ogb(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Text files of ogbn-arxiv, with the same split."""
    x, adjacency, labels = drawn()
    tables = {
        "raw/edge": np.argwhere(adjacency),
        "raw/node-feat": x - 0.5,
        "raw/node-label": labels[:, None],
        "split/time/train": np.arange(8)[:, None],
        "split/time/valid": np.array([[8], [9]]),
        "split/time/test": np.array([[10], [11]]),
    }
    for name, table in tables.items():
        path = folder / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress("".join(",".join(map(str, row)) + "\n" for row in table.tolist()).encode()))
    return x, adjacency, labels


def links(adjacency: np.ndarray) -> int:
    """Undirected edges of a directed adjacency, self-loops left out."""
    return int(np.triu(adjacency | adjacency.T, 1).sum())
