"""A domain without a modality: Gaussian blobs in a few channels, and networks of two layers.

Small enough for tests that train, and shaped like an image (channels, 4, 4) so that every store applies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddfed.artifact import SyntheticSet
from ddfed.data import RealData, Task, TaskInfo
from ddfed.domain import Augmentation, Domain, Draw, Network
from ddfed.seeds import Streams
from ddfed.space import Space


class TwinNet(Network):
    """Flatten, linear, ReLU, linear."""

    def __init__(self, info: TaskInfo, width: int) -> None:
        super().__init__()
        size = int(torch.tensor(info.shape).prod())
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.ReLU())
        self.head = nn.Linear(width, info.num_classes)

    def embed(self, x: Tensor) -> Tensor:
        return self.body(x)

    def stages(self, x: Tensor) -> list[Tensor]:
        hidden = self.body(x)
        return [hidden, hidden]


class TwinMapNet(Network):
    """Two convolutions along the positions, ReLU after each, and a linear map: a network with maps inside."""

    def __init__(self, info: TaskInfo) -> None:
        super().__init__()
        channels, positions = info.shape[0], int(torch.tensor(info.shape[1:]).prod())
        self.first, self.second = nn.Conv1d(channels, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * positions, info.num_classes)

    def embed(self, x: Tensor) -> Tensor:
        return self.stages(x)[-1]

    def stages(self, x: Tensor) -> list[Tensor]:
        one = torch.relu(self.first(x.flatten(2)))
        two = torch.relu(self.second(one))
        return [one, two, two.flatten(1)]


class TwinNormNet(Network):
    """As `TwinMapNet` with a batch norm before each ReLU: a network that remembers statistics."""

    mixes_rows = True

    def __init__(self, info: TaskInfo) -> None:
        super().__init__()
        channels, positions = info.shape[0], int(torch.tensor(info.shape[1:]).prod())
        self.first, self.second = nn.Conv1d(channels, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.head = nn.Linear(4 * positions, info.num_classes)

    def embed(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm1(self.first(x.flatten(2))))
        return torch.relu(self.norm2(self.second(hidden))).flatten(1)


class TwinShift(Augmentation):
    """Adds one drawn number to, or multiplies one drawn number with, all values of a row."""

    name = "shift"

    def draw(self, groups: int, generator: torch.Generator, one_op: bool = False) -> Draw:
        op = torch.randint(2, (1 if one_op else groups,), generator=generator).expand(groups)
        return Draw(op, torch.rand(groups, 1, generator=generator))

    def __call__(self, x: Tensor, draw: Draw, groups: Tensor) -> Tensor:
        u = draw.u[groups].view(-1, *[1] * (x.ndim - 1)).to(x)
        added = (draw.op[groups] == 0).view_as(u)
        return torch.where(added, x + 0.2 * (u - 0.5), x * (0.8 + 0.4 * u))


class TwinDomain(Domain):
    """See the module."""

    name = "twin"
    models = ("small", "wide", "maps", "norms")
    augmentations = ("none", "shift")
    export_formats = ("json",)

    def load(self, dataset: str, root: Path | None, options: Mapping[str, Any]) -> Task:
        self.check_name("data set", dataset, ("blobs",))
        self.check_options(options, ("classes", "per_class", "noise"))
        return twin_task(**options)

    def network(self, name: str, info: TaskInfo) -> Network:
        self.check_name("network", name, self.models)
        if name in ("maps", "norms"):
            return TwinMapNet(info) if name == "maps" else TwinNormNet(info)
        return TwinNet(info, {"small": 16, "wide": 64}[name])

    def augmentation(self, name: str, info: TaskInfo) -> Augmentation | None:
        return TwinShift() if self.check_name("augmentation", name, self.augmentations) == "shift" else None

    def render(self, syn: SyntheticSet, path: Path, per_class: int = 10) -> Path:
        x, y = syn.natural()
        path.write_text("\n".join(f"{syn.info.classes[int(c)]}: {float(v.mean()):.3f}" for v, c in zip(x, y)))
        return path

    def export(self, syn: SyntheticSet, folder: Path, fmt: str) -> list[Path]:
        self.check_name("export format", fmt, self.export_formats)
        x, y = syn.natural()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "set.json").write_text(json.dumps({"x": x.tolist(), "y": y.tolist()}))
        return [folder / "set.json"]


def twin_task(classes: int = 3, per_class: int = 40, noise: float = 0.25, seed: int = 0) -> Task:
    """Blobs around fixed centres in [0, 1]^(2, 4, 4): ``per_class`` training and as many test rows a class."""
    generator = Streams(seed).torch("twin")
    info = TaskInfo(
        domain="twin",
        dataset="blobs",
        shape=(2, 4, 4),
        classes=tuple(f"blob {c}" for c in range(classes)),
        space=Space(mean=(0.5, 0.5), std=(0.25, 0.25)),
        cell_axes=(-2, -1),
        mirror_axis=-1,
        licence="made by this program",
        source="Gaussian blobs",
    )
    centres = torch.rand(classes, *info.shape, generator=generator)
    # Symmetric about the mirror axis, so that a mirror image keeps its class.
    centres = (centres + centres.flip(-1)) / 2

    def split() -> RealData:
        labels = torch.arange(classes).repeat_interleave(per_class)
        rows = centres[labels] + noise * torch.randn(len(labels), *info.shape, generator=generator)
        return RealData((rows.clamp(0, 1) * 255).to(torch.uint8), labels, info, scale=1 / 255)

    return Task(info, split(), split())
