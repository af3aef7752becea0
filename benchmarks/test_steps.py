"""One outer step of FedDM (client side) and of DM, against the naive reference.

CIFAR shapes, ten classes, 64 real and 10 synthetic rows a class, ConvNet-3-128. Every class holds exactly the
64 rows that are drawn, so that both sides see the same rows. Repetitions of the two alternate, because a
machine's speed drifts; the ratio of the minima is the figure to trust on a busy machine. The reference
profits from `ddfed.devices.keep_memory` too, as both run in this process.

Tolerances: `LOSS` and `GRADIENT` below, relative; the gradient in the Euclidean norm.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import pytest
import reference
import torch

from ddfed.data import RealData, TaskInfo
from ddfed.devices import keep_memory
from ddfed.distill import outer_step
from ddfed.gate import PlainGate
from ddfed.kit import assemble
from ddfed.seeds import Streams, isolated
from ddfed.settings import PartSettings
from ddfed.space import Space
from ddfed_image.domain import ImageDomain
from ddfed_image.models import build

ROWS, IPC, CLASSES = 64, 10, 10
ROUNDS = 5
INFO = TaskInfo("image", "benchmark", (3, 32, 32), tuple("0123456789"), Space(), mirror_axis=-1)
STREAMS = Streams(0)

#: Largest relative difference from the reference, for float32 and for a real side in bfloat16.
LOSS = {False: 1e-4, True: 2e-2}
GRADIENT = {False: 5e-3, True: 5e-2}

VARIANTS = {
    "eager float32": {},
    "eager bf16": {"bf16": True},
    "compiled float32": {"compile": True},
    "compiled bf16": {"compile": True, "bf16": True},
}
METHODS = {
    "FedDM": {"pool": "ball", "objective_options": {"rows": ROWS, "logits": True}},
    "DM": {"pool": "R", "augment": "dsa", "objective_options": {"rows": ROWS}},
}


def data(rows: int = ROWS) -> RealData:
    """Blobs that differ by class: pixel noise alone would make all class means, and the loss, vanish."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat_interleave(rows)
    coarse = torch.rand(CLASSES, 3, 4, 4, generator=generator)
    shape = torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")[labels]
    noise = torch.rand(len(labels), 3, 32, 32, generator=generator)
    return RealData(((shape + noise) * 127).to(torch.uint8), labels, INFO, 1 / 255)


DATA = data()


class Ours:
    """Outer steps of ddfed, as `ddfed.distill` makes them."""

    def __init__(self, method: str, variant: str) -> None:
        self.parts = PartSettings(ipc=IPC, network="convnet", **METHODS[method], **VARIANTS[variant])
        self.gate = PlainGate(DATA, chunk=self.parts.chunk)
        center = center_net().state_dict()
        self.kit = assemble(self.gate, ImageDomain(), self.parts, STREAMS, center=center)
        self.steps = 0

    @property
    def pixels(self) -> torch.Tensor:
        return self.kit.store.params["x"]

    def __call__(self) -> float:
        self.steps += 1
        return outer_step(self.kit, self.parts, self.gate, STREAMS, self.steps - 1, "benchmark")


class Naive:
    """Outer steps of the reference with the same random numbers."""

    def __init__(self, method: str, pixels: torch.Tensor) -> None:
        self.method, self.steps = method, 0
        self.pixels = pixels.detach().clone().requires_grad_()
        self.optimizer = torch.optim.SGD([self.pixels], lr=1.0, momentum=0.5)
        self.real = [DATA.batch(members).inputs for members in DATA.class_index]
        self.center = reference.ReferenceNet()
        for mine, theirs in zip(self.center.parameters(), center_net().parameters()):
            mine.data.copy_(theirs)
        self.dsa = ImageDomain().augmentation("dsa", INFO)

    def __call__(self) -> float:
        step, self.steps = self.steps, self.steps + 1
        if self.method == "FedDM":
            net = reference.neighbour(self.center, 5.0, STREAMS.torch("ball", step))
            return reference.matching_step(net, self.real, self.pixels, self.optimizer, logits=True)
        with isolated(STREAMS.seed("network", step)):
            net = reference.fresh_network()
        draw = self.dsa.draw(CLASSES, STREAMS.torch("siamese", step))
        ops, numbers = [self.dsa.ops[i] for i in draw.op.tolist()], draw.u.tolist()

        def siamese(images: torch.Tensor, c: int) -> torch.Tensor:
            return reference.dsa(images, ops[c], numbers[c])

        return reference.matching_step(net, self.real, self.pixels, self.optimizer, logits=False, siamese=siamese)


def center_net() -> torch.nn.Module:
    with isolated(1):
        return build("convnet", INFO)


def assert_equal(ours: Ours, naive: Naive, bf16: bool) -> None:
    """The first step of both: the loss, and the gradient with respect to the pixels."""
    mine, theirs = ours(), naive()
    assert mine == pytest.approx(theirs, rel=LOSS[bf16])
    gradient, wanted = ours.pixels.grad, naive.pixels.grad
    assert gradient is not None and wanted is not None
    assert float((gradient - wanted).norm() / wanted.norm()) < GRADIENT[bf16]


def against(benchmark, table: list, name: str, ours: Callable[[], object], naive: Callable[[], object]) -> None:
    """Time both in turn; the reference runs where pytest-benchmark allows for a set-up."""
    seconds: list[float] = []

    def run_reference() -> None:
        begun = time.perf_counter()
        naive()
        seconds.append(time.perf_counter() - begun)

    benchmark.pedantic(ours, setup=run_reference, rounds=ROUNDS, warmup_rounds=1)
    theirs, mine = seconds[-ROUNDS:], benchmark.stats.stats.data
    minima = min(theirs) / min(mine)
    ratios = median(a / b for a, b in zip(theirs, mine))
    benchmark.extra_info |= {"ratio_of_minima": minima, "median_of_ratios": ratios, "reference_s": theirs}
    table.append((name, minima, ratios, 1e3 * min(theirs), 1e3 * min(mine)))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", METHODS)
def test_step(benchmark, table: list, method: str, variant: str) -> None:
    keep_memory()
    ours = Ours(method, variant)
    naive = Naive(method, ours.pixels)
    assert_equal(ours, naive, "bf16" in variant)
    against(benchmark, table, f"{method}, {variant}", ours, naive)
