"""A term that keeps condensed graphs as sparse as real ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ddfed.data import Batch
from ddfed.errors import ConfigError
from ddfed.match.base import Cotangent, Judgement, Objective
from ddfed_graph.sets import densities, is_set, unpack


class Density(Objective):
    """relu(mean density of the condensed graphs - that of the real ones).

    The density is the weight of the links in parts of the pairs of nodes. The real one is the mean over classes; it
    is asked for once, as a sum over all real graphs of the judged classes.

    Source: Jin et al., Condensing Graphs via One-Step Gradient Matching, KDD 2022, section 3.2, where it is added to
    the matching loss. Departure: pairs are those of nodes that are there, not of all places.
    """

    name = "graph-density"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._real: dict[int, float] = {}

    def __call__(self, judgement: Judgement) -> Cotangent:
        real = torch.tensor([self._of_class(judgement)[c] for c in judgement.classes]).mean()
        loss = torch.relu(densities(unpack(judgement.x)).mean() - float(real))
        learned = judgement.y if judgement.y.requires_grad else None
        return Cotangent(
            torch.autograd.grad(loss, judgement.x)[0],
            None if learned is None else torch.zeros_like(learned),
            float(loss.detach()),
        )

    def _of_class(self, j: Judgement) -> dict[int, float]:
        if not set(j.classes) <= set(self._real):
            if not is_set(j.gate.info):
                raise ConfigError(f"objective {self.name!r} is for sets of graphs; {j.gate.info.dataset!r} is none")
            means = j.gate.sums(j.ask("density of links", None), _contribution, j.real_stream()).means[:, 0]
            self._real |= dict(zip(j.classes, means.tolist()))
        return self._real

    def state(self) -> dict[str, Any]:
        return {"real": {str(c): value for c, value in self._real.items()}} if self._real else {}

    def load(self, state: Mapping[str, Any]) -> None:
        self._real = {int(c): float(value) for c, value in state.get("real", {}).items()}


def _contribution(batch: Batch) -> torch.Tensor:
    return densities(unpack(batch.inputs))[:, None]
