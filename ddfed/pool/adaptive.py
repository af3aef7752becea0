"""RA: how long a network is kept, and how far it is trained on the set, is decided as it goes (CAFE)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ddfed.data import Batch
from ddfed.domain import Network
from ddfed.gate import Query
from ddfed.pool.base import PoolContext, frozen
from ddfed.pool.live import SynTrainedPool


class AdaptivePool(SynTrainedPool):
    """RA: a random network trained on the synthetic set until it moves, given up when it no longer does (CAFE).

    After every outer step its accuracy on some real rows is taken. When the last ``window`` of them span less than
    ``settled``, the set has nothing new for this network and a fresh one begins. Otherwise it is trained on the set,
    pass by pass, until its accuracies since then span more than ``moved``.

    Source: Wang et al., CAFE, CVPR 2022, section 3.4 (dynamic bi-level optimisation) and the authors' code. The two
    caps are ours: without them a run may take ten times longer than another.

    Options:
        rows: real rows per class for an accuracy.
        window: accuracies that are looked at.
        settled, moved: spans of accuracy, as fractions.
        length: most outer steps of a network.
        epochs: most passes over the set after a step.
        batch, lr, momentum, weight_decay: of these passes.
    """

    name = "RA"
    defaults = {
        **SynTrainedPool.defaults, "length": 50, "epochs": 50,
        "rows": 128, "window": 10, "settled": 0.04, "moved": 0.03,
    }  # fmt: skip

    def __init__(self, ctx: PoolContext, **options: Any) -> None:
        super().__init__(ctx, **options)
        self._begun, self._fresh = -1, True
        self._accuracies: list[float] = []

    def draw(self, step: int) -> Network:
        if self._fresh:
            self._begun, self._fresh, self._accuracies = self._begun + 1, False, []
            self.ctx.redraw(self._net, self._begun)
            self._optimizer = self._fresh_optimizer()
        return frozen(self._net)

    def place(self, step: int) -> tuple[int, int]:
        return max(self._begun, 0), len(self._accuracies)

    def advance(self, step: int, syn: Callable[[], tuple[Tensor, Tensor]], loss: Any) -> None:
        self._accuracies.append(self._accuracy(step, 0))
        latest = self._accuracies[-self.options["window"] :]
        settled = len(latest) == self.options["window"] and max(latest) - min(latest) < self.options["settled"]
        self._fresh = settled or len(self._accuracies) >= self.options["length"]
        if self._fresh:
            return
        x, y = syn()
        seen: list[float] = []
        for epoch in range(self.options["epochs"]):
            self._pass(x, y, loss, step, epoch)
            seen = [*seen, self._accuracy(step, epoch + 1)][-self.options["window"] :]
            if max(seen) - min(seen) > self.options["moved"]:
                return

    def _accuracy(self, step: int, epoch: int) -> float:
        def right(batch: Batch) -> Tensor:
            found = self._net(batch.inputs.to(self.ctx.device)).argmax(1).cpu() == batch.classes
            return found.unsqueeze(1).float()

        query = Query("accuracy", self.ctx.classes, self.options["rows"])
        answer = self.ctx.gate.sums(query, right, self.ctx.streams.torch("accuracy", step, epoch))
        return float(answer.sums.sum() / answer.counts.sum().clamp(min=1))

    def state(self) -> dict[str, Any]:
        return {**super().state(), "begun": self._begun, "accuracies": self._accuracies, "fresh": self._fresh}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self._begun, self._fresh = int(state["begun"]), bool(state["fresh"])
        self._accuracies = [float(value) for value in state["accuracies"]]
