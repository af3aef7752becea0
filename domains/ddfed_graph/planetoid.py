"""Cora, Citeseer and Pubmed with the public split. Their raw files are pickles, and opened on trust only."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfed.errors import DataError
from ddfed.sources import first_line
from ddfed_graph.catalog import DATASETS
from ddfed_graph.raw import Options, RawGraph, Split, assembled, located

CLASSES = {
    # Ordered as in the files: the sizes of the classes tell which number is which name of McCallum et al. and LINQS.
    "cora": (
        "Theory",
        "Reinforcement_Learning",
        "Genetic_Algorithms",
        "Neural_Networks",
        "Probabilistic_Methods",
        "Case_Based",
        "Rule_Learning",
    ),
    "citeseer": ("AI", "ML", "IR", "DB", "Agents", "HCI"),
    "pubmed": ("Diabetes Mellitus, Experimental", "Diabetes Mellitus Type 1", "Diabetes Mellitus Type 2"),
}

#: SHA-256 of the public files, https://github.com/kimiyoung/planetoid, folder data. Inspected: they refer to numpy,
#: scipy.sparse and collections only. Those of Citeseer and Pubmed are not known here.
SHA256 = {
    "ind.cora.x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
    "ind.cora.tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
    "ind.cora.allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
    "ind.cora.y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
    "ind.cora.ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
    "ind.cora.ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
    "ind.cora.graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
    "ind.cora.test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
}


def load_planetoid(name: str, root: Path | None, options: Options) -> RawGraph:
    """A Planetoid set (Yang et al. 2016) as PyTorch Geometric reads it, rows of features scaled to sum 1.

    Nothing is written beside the files. Nodes without a label in the files (15 of Citeseer, which its test index
    leaves out) are unlabelled; PyTorch Geometric calls them class 0.

    Raises:
        DataError: a file is not the known public one and ``trust_pickle`` was not said, or the files are damaged.
    """
    files = DATASETS[name]["files"]
    folder = located(name, root, files)
    # What was checked must be what is opened, so both happen on a copy.
    with tempfile.TemporaryDirectory() as copy:
        for file in files:
            shutil.copyfile(folder / file, Path(copy) / file)
        if not options.get("trust_pickle"):
            _check_known(Path(copy), folder, files)
        data = _opened(Path(copy), name, folder)
    parts = [data[f"{part}_mask"].nonzero().flatten() for part in ("train", "val", "test")]
    labels, lost = _labelled(data.y, parts[2])
    return assembled(
        name,
        options,
        data.x,
        data.edge_index,
        labels,
        Split.of(parts, "public split"),
        f"{name}, Planetoid raw files, {len(labels)} nodes",
        scaling="row",
        classes=CLASSES[name],
        notes={"unlabelled": f"{lost} nodes that the test index leaves out"} if lost else {},
    )


def _check_known(copy: Path, folder: Path, files: tuple[str, ...]) -> None:
    for file in files:
        found, known = hashlib.sha256((copy / file).read_bytes()).hexdigest(), SHA256.get(file)
        if found != known:
            why = f"the public file has {known}" if known else "that of the public file is not known here"
            raise DataError(
                f"{folder / file} comes with Python pickles, and opening one can run any code. Files are opened "
                f"unasked only if their SHA-256 are those of the public ones: this one has {found}, {why}. If you "
                f"trust where the files come from, say so with the option trust_pickle = true; else fetch them "
                f"again from https://github.com/kimiyoung/planetoid."
            )


def _opened(copy: Path, name: str, folder: Path) -> Any:
    from torch_geometric.io import read_planetoid_data

    try:
        with warnings.catch_warnings():  # SciPy and numpy moved the classes that the files name
            warnings.simplefilter("ignore")
            return read_planetoid_data(str(copy), name)
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(
            f"the raw files of {name} in {folder} are truncated or damaged: {first_line(error)}. Fetch them again."
        ) from None


def _labelled(labels: Tensor, test: Tensor) -> tuple[Tensor, int]:
    """Labels with -1 for nodes of the test block that no file labels, and how many they are."""
    lost = torch.arange(len(labels)) >= test.min()
    lost[test] = False
    return torch.where(lost, -1, labels), int(lost.sum())
