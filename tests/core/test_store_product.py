"""Every store with every engine and every label store, by the names that are registered."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from ddfed.artifact import SyntheticSet
from ddfed.distill import distill
from ddfed.errors import ConfigError
from ddfed.gate import PlainGate
from ddfed.registry import registry
from ddfed.seeds import Streams
from ddfed.settings import PartSettings
from ddfed.testing import TwinDomain, twin_task

TASK, IPC = twin_task(), 2

#: Options where the defaults are for items larger than the twin's 32 values.
STORES = {
    "hallucinator": {"hallucinators": 2, "channels": 2, "kernel": 1, "share": 0.5},
    "basis": {"rank": 4, "share": 0.5},
    "field": {"width": 2, "layers": 1, "fit_steps": 5},
    "palette": {"colours": 4},
    "offsets": {"offsets": 2},
    "sampler": {"count": "bytes", "settings": {"latent": 2, "width": 2, "depth": 1}},
}
#: Settings that an engine cannot do without, beyond fewer rows.
ENGINES: dict[str, dict] = {
    "statistics": {"network": "norms"},
    "trajectory": {"pool": "X", "pool_options": {"experts": 1, "span": 1, "max_start": 1,
                                                 "make": {"epochs": 1, "batch": 64}}},
    "multisize": {"objective": "mean", "terms": [{"objective": "multisize", "options": {"rows": 8}}]},
}  # fmt: skip
#: Engines that set labels of one kind, and refuse others.
LABELS = {"closed-ridge": ("vectors",)}
#: Engines that labels without classes are for; others refuse them.
CLASSLESS = {"representations": ("ridge",)}


def made(store: str, engine: str, labels: str, steps: int) -> SyntheticSet:
    defaults = registry().load("objective", engine).defaults
    parts = {
        "ipc": IPC,
        "steps": steps,
        "store": store,
        "store_options": STORES.get(store, {}),
        "labels": labels,
        "teacher": {"steps": 3, "batch": 16},
        "objective": engine,
        "objective_options": {"rows": 8} if "rows" in defaults else {},
        "network": "maps",
        "augment": "shift",
        "lr": 0.05,
        "label_lr": 0.05,
        **ENGINES.get(engine, {}),
    }
    return distill(PlainGate(TASK.train), TwinDomain(), PartSettings(**parts), Streams(0))


@cache
def started(store: str) -> dict[str, torch.Tensor]:
    return made(store, "mean", "hard", 0).store.tensors()


def pairs() -> list[tuple[str, str, str]]:
    """Every store with every engine, and every label store with every one of both: all pairs, not all triples."""
    # Those of the core: a modality's own are for its own data, and are tested with it.
    stores, engines, labels = (
        [c.name for c in registry().of_kind(kind) if c.plugin == "core"] for kind in ("decoder", "objective", "labels")
    )
    found = [(store, engine, "hard") for store in stores for engine in engines]
    found += [("pixels", engine, kind) for engine in engines for kind in labels]
    found += [(store, "mean", kind) for store in stores for kind in labels]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize(("store", "engine", "labels"), pairs())
def test_every_store_learns_under_every_engine_and_every_label_store_with_both(
    store: str, engine: str, labels: str, tmp_path: Path
):
    if engine not in CLASSLESS.get(labels, (engine,)):
        with pytest.raises(ConfigError, match=f"Use distill.objective = '{CLASSLESS[labels][0]}'"):
            made(store, engine, labels, 1)
        return
    if labels not in LABELS.get(engine, (labels,)):
        with pytest.raises(ConfigError, match=f"use distill.labels = '{LABELS[engine][0]}'"):
            made(store, engine, labels, 1)
        return
    syn = made(store, engine, labels, 2)
    for name, tensor in syn.store.params.items():
        assert bool(torch.isfinite(tensor).all()) and not torch.equal(tensor, started(store)[name]), name
    for name, tensor in syn.store.buffers.items():
        assert torch.equal(tensor, started(store)[name]), name
    assert syn.store.plain_items_per_class <= IPC
    again = SyntheticSet.load(syn.save(tmp_path))
    for mine, theirs in zip(syn.decoded(), again.decoded()):
        assert torch.equal(mine, theirs)
