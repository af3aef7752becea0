"""One outer step of DC and of DSA against the naive reference: ten classes, 64 or 256 real and 10 synthetic rows each.

As in `test_steps`: CIFAR shapes, ConvNet-3-128, every class holds exactly the rows that are drawn, repetitions
alternate. The network is a fresh one at every step and is not trained between them, which both would do alike.

Tolerances: `LOSS` and `GRADIENT` below, relative; the gradient in the Euclidean norm.
"""

from __future__ import annotations

import pytest
import reference
import torch
from test_steps import CLASSES, INFO, IPC, STREAMS, against, data

from ddfed.devices import keep_memory
from ddfed.distill import outer_step
from ddfed.gate import PlainGate
from ddfed.kit import assemble
from ddfed.seeds import isolated
from ddfed.settings import PartSettings
from ddfed_image.domain import ImageDomain

#: Largest relative difference from the reference, for float32 and for a real side in bfloat16.
LOSS = {False: 1e-4, True: 2e-2}
GRADIENT = {False: 5e-3, True: 0.15}

VARIANTS = {
    "eager float32": {},
    "eager bf16": {"bf16": True},
    "compiled float32": {"compile": True},
    "compiled bf16": {"compile": True, "bf16": True},
}


class Ours:
    """Outer steps of ddfed, as `ddfed.distill` makes them."""

    def __init__(self, rows: int, augment: str, variant: str) -> None:
        self.parts = PartSettings(
            ipc=IPC, network="convnet", objective="gradient", objective_options={"rows": rows}, pool="RS",
            pool_options={"length": 1}, augment=augment, lr=0.1, **VARIANTS[variant],
        )  # fmt: skip
        self.data = data(rows)
        self.gate = PlainGate(self.data, chunk=self.parts.chunk)
        self.kit = assemble(self.gate, ImageDomain(), self.parts, STREAMS)
        self.steps = 0

    @property
    def pixels(self) -> torch.Tensor:
        return self.kit.store.params["x"]

    def __call__(self) -> float:
        self.steps += 1
        return outer_step(self.kit, self.parts, self.gate, STREAMS, self.steps - 1, "benchmark")


class Naive:
    """Outer steps of the reference with the same random numbers."""

    def __init__(self, ours: Ours, augment: str) -> None:
        self.steps = 0
        self.pixels = ours.pixels.detach().clone().requires_grad_()
        self.optimizer = torch.optim.SGD([self.pixels], lr=0.1, momentum=0.5)
        self.real = [ours.data.batch(members).inputs for members in ours.data.class_index]
        self.dsa = ImageDomain().augmentation(augment, INFO)

    def __call__(self) -> float:
        step, self.steps = self.steps, self.steps + 1
        with isolated(STREAMS.seed("network", step)):
            net = reference.ReferenceNet()
        if self.dsa is None:
            return reference.gradient_step(net, self.real, self.pixels, self.optimizer)
        draw = self.dsa.draw(CLASSES, STREAMS.torch("siamese", step))
        ops, numbers = [self.dsa.ops[i] for i in draw.op.tolist()], draw.u.tolist()

        def siamese(images: torch.Tensor, c: int) -> torch.Tensor:
            return reference.dsa(images, ops[c], numbers[c])

        return reference.gradient_step(net, self.real, self.pixels, self.optimizer, siamese=siamese)


def assert_equal(ours: Ours, naive: Naive, bf16: bool) -> None:
    """The first step of both: the loss, and the gradient with respect to the pixels."""
    mine, theirs = ours(), naive()
    assert mine == pytest.approx(theirs, rel=LOSS[bf16])
    gradient, wanted = ours.pixels.grad, naive.pixels.grad
    assert gradient is not None and wanted is not None
    assert float((gradient - wanted).norm() / wanted.norm()) < GRADIENT[bf16]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rows", [64, 256])
@pytest.mark.parametrize("method", ["DC", "DSA"])
def test_step(benchmark, table: list, method: str, rows: int, variant: str) -> None:
    keep_memory()
    augment = {"DC": "none", "DSA": "dsa"}[method]
    ours = Ours(rows, augment, variant)
    naive = Naive(ours, augment)
    assert_equal(ours, naive, "bf16" in variant)
    against(benchmark, table, f"{method} {rows}, {variant}", ours, naive)
