"""Stores on real digits, against random items of the nominal budget and of the bytes really stored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest

from ddfed.central import check_distill, run_distill
from ddfed.config import Layer, to_toml
from ddfed.distill import distill
from ddfed.errors import ConfigError
from ddfed.evaluate import evaluate
from ddfed.gate import PlainGate
from ddfed.recipes.parametrisation import FYI
from ddfed.runs import RunFolder
from ddfed.seeds import Streams
from ddfed.settings import PartSettings, resolve_distill
from ddfed.testing import TwinDomain, twin_task


@dataclass(frozen=True)
class Found:
    """Accuracies in percent, and the random items that have the bytes of the set."""

    method: float
    random: float
    random_items: int
    plain_items_per_class: float


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    @cache
    def run(method: str, ipc: int) -> Found:
        values = {
            "method": method,
            "distill": {"ipc": ipc, "steps": 60},
            "evaluate": {"epochs": 100, "repeats": 2, "baselines": ["random"]},
            "run": {"threads": 1},
        }
        settings = resolve_distill([Layer("test", values)]).settings
        with RunFolder.create(tmp_path_factory.mktemp("stores"), "run", to_toml(settings)) as folder:
            summary = run_distill(settings, folder)
        mine, random = summary["evaluation"]
        return Found(100 * mine["mean"], 100 * random["mean"], random["items"], summary["stored_bytes"] / (10 * 64 * 4))

    return run


@pytest.mark.parametrize(("method", "margin"), [("haba", 5), ("fred", 8), ("nsd", 8), ("ddif", 5), ("auto-palette", 8)])
def test_stores_beat_random_items_with_one_item_per_class(found, accuracy, method: str, margin: int):
    mine = found(method, 1)
    assert mine.plain_items_per_class <= 1 and mine.random_items == 10
    assert mine.method > mine.random + margin
    assert mine.method > accuracy("random", 1) + margin


@pytest.mark.parametrize(
    ("method", "margin"),
    # Fields are as large as digits: ten items per class hold twelve of them, and nothing is gained.
    [("haba", 2), ("fred", 0), ("nsd", 2), ("ddif", -3), ("auto-palette", 4)],
)
def test_stores_with_ten_items_per_class(found, accuracy, method: str, margin: int):
    mine = found(method, 10)
    assert 8 < mine.plain_items_per_class <= 10 and mine.random_items <= 100
    assert mine.method > mine.random + margin
    assert mine.method > accuracy("random", 10) + margin


def test_flips_are_refused_for_digits_and_the_message_says_what_to_take():
    settings = resolve_distill([Layer("test", {"method": "fyi"})]).settings
    with pytest.raises(ConfigError, match="'digits' has none. Use 'pixels' or 'multi-formation'"):
        check_distill(settings)


@pytest.mark.parametrize(("ipc", "margin"), [(1, 8), (10, 3)])
def test_flips_beat_random_items_where_a_mirror_image_keeps_its_class(ipc: int, margin: int):
    task, domain = twin_task(classes=6, per_class=100, noise=0.7), TwinDomain()
    parts = PartSettings(
        **{**FYI.defaults, "ipc": ipc, "steps": 60, "augment": "shift", "network": "wide", "protocol": "E-dc"}
    )
    syn = distill(PlainGate(task.train), domain, parts, Streams(0))
    rows = evaluate(syn, task, domain, networks=["wide"], epochs=60, repeats=3, baselines=["random"])
    mine, random = (100 * row.mean for row in rows)
    assert syn.store.rows_per_item == 2 and syn.store.plain_items_per_class == ipc
    assert mine > random + margin


@pytest.mark.shared
@pytest.mark.parametrize(
    ("method", "margin", "steps", "epochs"),
    # Twenty rows a pass need more passes than 160 to be learned at all.
    [("fyi", 2, 60, 200), ("nsd", 5, 20, 40)],
)
def test_stores_beat_random_photographs_at_a_reduced_setting(
    shared_data, tmp_path, method: str, margin: int, steps: int, epochs: int
):
    values = {
        "method": method,
        "data": {
            "dataset": "cifar10",
            "root": str(shared_data / "image/cifar10"),
            "train_limit": 2000,
            "test_limit": 1000,
        },
        "distill": {"ipc": 1, "steps": steps, "network": "convnet-d3-w32", "objective_options": {"rows": 32}},
        "evaluate": {"epochs": epochs, "repeats": 2, "networks": ["convnet-d3-w32"], "baselines": ["random"]},
        "run": {"threads": 1},
    }
    settings = resolve_distill([Layer("test", values)]).settings
    with RunFolder.create(tmp_path, "run", to_toml(settings)) as folder:
        mine, random = (100 * row["mean"] for row in run_distill(settings, folder)["evaluation"])
    assert mine > random + margin
