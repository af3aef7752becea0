"""Whole runs on real data that must beat their control by margins fixed beforehand."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddfed.central import load_task, run_distill
from ddfed.config import Layer, to_toml
from ddfed.runs import RunFolder
from ddfed.settings import resolve_distill
from ddfed_federated.settings import resolve_simulate
from ddfed_federated.simulate import simulate


def distilled(tmp_path: Path, **sections) -> dict[str, float]:
    settings = resolve_distill([Layer("test", sections)]).settings
    with RunFolder.create(tmp_path, "run", to_toml(settings)) as folder:
        summary = run_distill(settings, folder)
    return {row["subject"]: row["mean"] for row in summary["evaluation"]}


def test_dm_beats_random_by_fifteen_points_with_one_image_per_class(tmp_path):
    found = distilled(
        tmp_path,
        method="dm",
        distill={"ipc": 1, "steps": 100},
        evaluate={"epochs": 100, "repeats": 2, "baselines": ["random"]},
        run={"threads": 1},
    )
    assert found["dm"] > found["random"] + 0.15


def test_idm_beats_random_by_ten_points_with_one_image_per_class(tmp_path):
    found = distilled(
        tmp_path,
        method="idm",
        distill={"ipc": 1, "steps": 40, "pool_options": {"steps": 2}},
        evaluate={"epochs": 100, "repeats": 2, "baselines": ["random"]},
        run={"threads": 1},
    )
    assert found["idm"] > found["random"] + 0.10


@pytest.mark.slow
def test_feddm_beats_its_control_by_five_points_with_one_image_per_class(tmp_path):
    """The preset's claim is eight points over five seeds; one seed is held to five."""
    values = {
        "baselines": ["random-once"],
        "distill": {"ipc": 1, "steps": 60},
        "federation": {"rounds": 2, "partition_options": {"alpha": 0.1}},
    }
    settings = resolve_simulate([Layer("test", values)]).settings
    with RunFolder.create(tmp_path, "run", to_toml(settings)) as folder:
        methods = simulate(settings, folder)["methods"]
    assert methods["feddm"]["accuracy"] > methods["random-once"]["accuracy"] + 0.05


@pytest.mark.shared
def test_real_mnist_distils_from_its_files(tmp_path, shared_data):
    """A few steps on the real files: the published recipe moves off its start and stays finite."""
    settings = resolve_distill(
        [
            Layer(
                "test",
                {
                    "method": "dm",
                    "data": {
                        "dataset": "mnist",
                        "root": str(shared_data / "image/mnist"),
                        "train_limit": 2000,
                        "test_limit": 500,
                    },
                    "distill": {"ipc": 1, "steps": 3, "objective_options": {"rows": 16}, "network": "convnet-d3-w32"},
                    "evaluate": {"epochs": 20, "repeats": 1, "networks": ["convnet-d3-w32"], "baselines": ["random"]},
                },
            )
        ]
    ).settings
    _, task = load_task(settings.data)
    assert len(task.train) == 2000
    with RunFolder.create(tmp_path, "run", to_toml(settings)) as folder:
        summary = run_distill(settings, folder)
    assert summary["losses"][-1][1] < summary["losses"][0][1] * 2
    assert 0.1 < summary["evaluation"][0]["mean"] <= 1
