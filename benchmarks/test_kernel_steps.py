"""One outer step of kernel regression against a naive one: KIP's kernel, and features more and fewer than rows.

As in `test_steps`: CIFAR shapes, every class holds exactly the rows that are drawn, repetitions alternate. The naive
step is the formula as it stands: one graph over all real rows, K_TS (K_SS + lam I)^-1 y_S rows by rows whatever their
number, by LU, in float64, differentiated by autograd, which reaches the network's weights too as nobody froze them.

KIP's step gains nothing: both sides spend four fifths of it in the same two float64 products of real rows and items
(0.7 s each, one thread). Features gain twice and more, by a real side without a graph, and by solving width by width.

Tolerances: `LOSS` and `GRADIENT` below, relative; the gradient in the Euclidean norm. Networks run in float32.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_steps import CLASSES, INFO, STREAMS, against, data

from ddfed.devices import keep_memory
from ddfed.distill import outer_step
from ddfed.gate import PlainGate
from ddfed.kit import assemble
from ddfed.seeds import isolated
from ddfed.settings import PartSettings
from ddfed_image.domain import ImageDomain
from ddfed_image.models import build

LOSS, GRADIENT = 1e-4, 2e-2

#: what -> network, kernel, real rows of each class, items of each class, ridge.
CASES: dict[str, tuple[str, str, int, int, float]] = {
    "ntk-fc1, 5000 by 100": ("mlp", "ntk-fc1", 500, 10, 1e-6),
    "conv 1024 by 100": ("convnet-w16-x2-none", "features", 102, 10, 1e-3),
    "mlp 1024 by 1000": ("mlp", "features", 102, 100, 1e-3),
}


class Ours:
    """Outer steps of ddfed, as `ddfed.distill` makes them."""

    def __init__(self, network: str, kernel: str, rows: int, ipc: int, ridge: float) -> None:
        self.parts = PartSettings(
            ipc=ipc, network=network, objective="ridge", labels="vectors", optimizer="adam", lr=1e-3, label_lr=1e-3,
            objective_options={"kernel": kernel, "rows": rows, "balanced": True, "ridge": ridge}, chunk=500,
        )  # fmt: skip
        self.data = data(max(rows, ipc))
        self.gate = PlainGate(self.data, chunk=self.parts.chunk)
        self.kit = assemble(self.gate, ImageDomain(), self.parts, STREAMS)
        self.steps = 0

    @property
    def stored(self) -> list[torch.Tensor]:
        return [self.kit.store.params["x"], self.kit.labels.params["vectors"]]

    def __call__(self) -> float:
        self.steps += 1
        return outer_step(self.kit, self.parts, self.gate, STREAMS, self.steps - 1, "benchmark")


def naive_ntk(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of one hidden layer, as in the notebook of KIP's authors."""
    x, y = x.flatten(1), y.flatten(1)
    k = 2 * x @ y.T / x.shape[1] + 0.01
    q = torch.sqrt(torch.outer(2 * (x**2).mean(1) + 0.01, 2 * (y**2).mean(1) + 0.01))
    c = torch.clamp(k / q, -1 + 1e-15, 1 - 1e-15)
    t = torch.acos(c)
    return q * (torch.sin(t) + (math.pi - t) * c) / math.pi + 0.01 + k * (math.pi - t) / math.pi


class Naive:
    """Outer steps of the formula with the same random numbers."""

    def __init__(self, ours: Ours, kernel: str, network: str, ridge: float) -> None:
        self.kernel, self.network, self.ridge, self.steps = kernel, network, ridge, 0
        self.stored = [p.detach().clone().requires_grad_() for p in ours.stored]
        self.optimizer = torch.optim.Adam(self.stored, lr=1e-3)
        self.real = ours.data.all()

    def __call__(self) -> float:
        x, y = self.stored
        with isolated(STREAMS.seed("network", self.steps)):
            net: Any = build(self.network, INFO)
        self.steps += 1
        if self.kernel == "features":
            features, real = net.embed(x).double(), net.embed(self.real.inputs).double()
            k_ss, k_ts = features @ features.T, real @ features.T
        else:
            rows, real = x.double(), self.real.inputs.double()
            k_ss, k_ts = naive_ntk(rows, rows), naive_ntk(real, rows)
        lam = self.ridge * torch.trace(k_ss) / len(k_ss)
        predicted = k_ts @ torch.linalg.solve(k_ss + lam * torch.eye(len(k_ss), dtype=torch.float64), y.double())
        loss = 0.5 * ((predicted - F.one_hot(self.real.classes, CLASSES) + 1 / CLASSES) ** 2).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


@pytest.mark.parametrize("case", CASES)
def test_step(benchmark, table: list, case: str) -> None:
    keep_memory()
    torch.set_num_threads(1)  # put back by the fixture that every benchmark has
    network, kernel, rows, ipc, ridge = CASES[case]
    ours = Ours(network, kernel, rows, ipc, ridge)
    naive = Naive(ours, kernel, network, ridge)
    assert ours() == pytest.approx(naive(), rel=LOSS)
    for mine, theirs in zip(ours.stored, naive.stored):
        assert mine.grad is not None and theirs.grad is not None
        assert float((mine.grad - theirs.grad).norm() / theirs.grad.norm()) < GRADIENT
    against(benchmark, table, case, ours, naive)
