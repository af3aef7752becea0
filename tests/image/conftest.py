"""A cache of each test's own, the real data, and synthetic sets made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ddfed.artifact import SyntheticSet
from ddfed.data import TaskInfo
from ddfed.space import Space
from ddfed.store import HardLabels, Pixels
from ddfed_image.domain import ImageDomain


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> Path:
    """Each test has a cache of its own, and the user's is left alone."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DDFED_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def domain() -> ImageDomain:
    return ImageDomain()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real image sets beside the checkout."""
    folder = Path(__file__).parents[3] / "shared" / "data" / "image"
    if not folder.is_dir():
        pytest.skip(f"needs the real data sets in {folder}")
    return folder


@pytest.fixture
def task_info() -> Callable[..., TaskInfo]:
    def make(shape=(3, 32, 32), classes=10, mirror_axis=-1, **more) -> TaskInfo:
        names = tuple(f"class {i}" for i in range(classes))
        return TaskInfo("image", "made", shape, names, more.pop("space", Space()), (-2, -1), mirror_axis, **more)

    return make


@pytest.fixture
def synthetic(task_info) -> Callable[..., SyntheticSet]:
    """A set of ``per_class`` random images for each of three oddly named classes."""

    def make(shape=(3, 8, 8), per_class=2) -> SyntheticSet:
        info = task_info(shape, 3, space=Space((0.5,) * shape[0], (0.25,) * shape[0]))
        info = TaskInfo(**{**info.__dict__, "classes": ("ankle boot", "../up", "Größe/λ")})
        store = Pixels(info, torch.arange(3).repeat_interleave(per_class))
        pixels = torch.rand(3 * per_class, *shape, generator=torch.Generator().manual_seed(0))
        store.fill(info.space.encode(pixels)[:, None])
        return SyntheticSet(info, store, HardLabels(torch.arange(3).repeat_interleave(per_class), 3), "none")

    return make
