"""A graph of 100,000 nodes, made here, condensed to 100 by GCond-X: seconds, memory and accuracy.

A stochastic block model: ten classes, most edges within a class, features that are mostly noise, so that a node says
little of its class before its neighbours have been mixed in. The graph is written as an npz file and read as the data
set ``file``, as any graph of one's own would be.

    python examples/large_graph.py --threads 1
    python examples/large_graph.py --nodes 2000 --steps 40
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ddfed.central import run_distill
from ddfed.config import Layer, to_toml
from ddfed.runs import RunFolder
from ddfed.settings import resolve_distill

CLASSES = 10
#: Share of the edges that stay within a class, edges of a node at its own end, and length of a class's mean feature
#: against noise of length 1 in each feature.
WITHIN, DEGREE, SIGNAL = 0.4, 5, 1.5
#: Shares of training and validation nodes; the others test.
TRAIN, VALIDATION = 0.5, 0.1


def block_model(nodes: int, features: int, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of an npz file, as the data set ``file`` takes them."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, nodes)
    means = rng.standard_normal((CLASSES, features), np.float32)
    means *= SIGNAL / np.linalg.norm(means, axis=1, keepdims=True)
    x = means[y] + rng.standard_normal((nodes, features), np.float32)
    source = np.repeat(np.arange(nodes), DEGREE)
    # A node of the same class is drawn by its place among those of the class.
    order = np.argsort(y, kind="stable")
    counts = np.bincount(y, minlength=CLASSES)
    first = np.cumsum(counts) - counts
    place = (rng.random(len(source)) * counts[y[source]]).astype(np.int64)
    same = order[first[y[source]] + place]
    target = np.where(rng.random(len(source)) < WITHIN, same, rng.integers(0, nodes, len(source)))
    part = rng.random(nodes)
    return {
        "x": x,
        "y": y,
        "edge_index": np.stack([source, target]),
        "train_mask": part < TRAIN,
        "val_mask": (part >= TRAIN) & (part < TRAIN + VALIDATION),
        "test_mask": part >= TRAIN + VALIDATION,
    }


def condensed(path: Path, ipc: int, steps: int, epochs: int, threads: int) -> dict:
    """The summary of a run on a written graph."""
    values = {
        "method": "gcond-x",
        "data": {"domain": "graph", "dataset": "file", "root": str(path)},
        "distill": {"ipc": ipc, "steps": steps, "lr": 0.01, "keep": {"every": max(1, steps // 4)}},
        "evaluate": {"repeats": 1, "epochs": epochs, "baselines": ["random", "mean-a2x:1"]},
        "run": {"threads": threads},
    }
    settings = resolve_distill([Layer("large graph", values)]).settings
    with tempfile.TemporaryDirectory() as base, RunFolder.create(Path(base), "large", to_toml(settings)) as folder:
        return run_distill(settings, folder)


def peak_bytes() -> int:
    """The most memory this process has held (kB on Linux, bytes on macOS)."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Make, condense, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=100, help="of the trainings that judge")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as base:
        path = Path(base) / "blocks.npz"
        np.savez(path, **block_model(given.nodes, given.features))
        made = time.perf_counter() - begun
        summary = condensed(path, given.ipc, given.steps, given.epochs, given.threads)
    found = {
        "make_s": round(made, 1),
        "condense_s": summary["seconds"]["distil"],
        "evaluate_s": summary["seconds"]["evaluate"],
        "whole_s": round(time.perf_counter() - begun, 1),
        "peak_gb": round(peak_bytes() / 1e9, 2),
        **{f"{row['subject']} %": round(100 * row["mean"], 1) for row in summary["evaluation"]},
    }
    print(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    main()
