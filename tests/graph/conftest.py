"""A graph made by hand, and the real ones beside the checkout."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ddfed_graph.graph import Graph


@pytest.fixture(scope="session")
def shared_graphs() -> Path:
    """The folder of real graphs beside the checkout."""
    folder = Path(__file__).parents[3] / "shared" / "data" / "graph"
    if not folder.is_dir():
        pytest.skip(f"needs the real data sets in {folder}")
    return folder


@pytest.fixture
def cora_copy(shared_graphs, tmp_path) -> Path:
    """A folder of one's own with Cora's raw files, which may be written to and broken."""
    shutil.copytree(shared_graphs / "Cora" / "raw", tmp_path / "Cora" / "raw")
    for path in (tmp_path / "Cora").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return tmp_path


@pytest.fixture
def tiny() -> Graph:
    """Six nodes: a triangle 0-1-2, an edge 2-3, an edge 3-4, and node 5 alone."""
    features = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    return Graph.of(features, torch.tensor([[0, 1, 2, 2, 3], [1, 2, 0, 3, 4]]))
