"""Whole runs on the embedded digits, small enough to stand in every test run."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from ddfed.central import run_distill
from ddfed.config import Layer, to_toml
from ddfed.runs import RunFolder
from ddfed.settings import resolve_distill

Accuracy = Callable[..., float]


@pytest.fixture(scope="session")
def accuracy(tmp_path_factory) -> Accuracy:
    """``accuracy(method, ipc, **parts)``: test accuracy in percent of two networks trained 100 epochs on the set.

    Networks start from the same weights whatever the method, so ``accuracy("random", ipc)``, which is made
    once, is a fair control. ``protocol`` names another evaluation recipe.
    """

    @cache
    def measured(method: str, ipc: int, text: str) -> float:
        parts = json.loads(text)
        protocol = parts.pop("protocol", "")
        values = {
            "method": method,
            "distill": {"ipc": ipc, **parts},
            "evaluate": {"epochs": 100, "repeats": 2, "baselines": [], "protocol": protocol},
            "run": {"threads": 1},
        }
        settings = resolve_distill([Layer("test", values)]).settings
        base: Path = tmp_path_factory.mktemp("digits")
        with RunFolder.create(base, "run", to_toml(settings)) as folder:
            return 100 * run_distill(settings, folder)["evaluation"][0]["mean"]

    return lambda method, ipc, **parts: measured(method, ipc, json.dumps(parts, sort_keys=True))
