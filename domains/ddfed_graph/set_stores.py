"""Parametrisations of a set of condensed graphs: features of the nodes, and a logit for each possible link.

Source: Jin et al., Condensing Graphs via One-Step Gradient Matching (DosCond), KDD 2022, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddfed.data import TaskInfo
from ddfed.seeds import Streams
from ddfed.store import Pixels, Store
from ddfed.store.base import UNSEEDED
from ddfed_graph.sets import pack, unpack, width


class GraphItems(Store):
    """Features X (items, m, d) and logits Omega (items, m, m), of which the upper triangle counts.

    A link is sigmoid(Omega / t) while graphs are learned, and is there in what is released if that is at least .5. A
    graph keeps the nodes of the real one that it starts from; only these have features and links.

    Options:
        temperature: t.
        sure: Omega of a link that is there at first; one that is not has its negative.
        structure_lr: step size of Omega; None for that of the run.
    """

    name = "graphs"
    defaults: ClassVar[Mapping[str, Any]] = {"temperature": 1.0, "sure": 5.0, "structure_lr": None}

    def __init__(self, info: TaskInfo, classes: Tensor, **options: Any) -> None:
        self._width = width(info)
        super().__init__(info, classes, **options)
        self.number("temperature", positive=True)
        self.number("sure")
        if self.options["structure_lr"] is not None:
            self.number("structure_lr", positive=True)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        m = self.info.shape[0]
        return {"x": (self.items, m, self._width), "omega": (self.items, m, m)}

    def buffer_shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"present": ((self.items, self.info.shape[0]), torch.float32)}

    def decode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        return self._rows(items, self.params["omega"][items] / self.number("temperature"))

    def _rows(self, items: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        links = torch.sigmoid(logits).triu(1)
        present = self.buffers["present"][items]
        both = present[:, :, None] * present[:, None, :]
        rows = pack(present, self.params["x"][items] * present[..., None], (links + links.mT) * both)
        return rows, torch.arange(len(items))

    def fill(self, rows: Tensor, streams: Streams = UNSEEDED) -> None:
        """From graphs (items, 1, m, 1 + d + m); nodes that are there by half and more stay."""
        graphs = unpack(rows[:, 0])
        self.buffers["present"].copy_((graphs.present >= 0.5).float())
        with torch.no_grad():
            self.params["x"].copy_(graphs.x)
            self.params["omega"].copy_(self.number("sure") * (2 * (graphs.adjacency >= 0.5).float() - 1))

    def constrain(self) -> None:
        """Features in their natural range; logits have none."""
        with torch.no_grad():
            self.params["x"].copy_(self.info.space.clamp(self.params["x"]))

    def rates(self) -> Mapping[str, float]:
        lr = self.options["structure_lr"]
        return {} if lr is None else {"omega": float(lr)}

    def released(self) -> Store:
        """The graphs themselves, with links that are there or not."""
        kept = Pixels(self.info, self.classes)
        with torch.no_grad():
            omega = self.params["omega"]
            rows, _ = self._rows(torch.arange(self.items), torch.where(omega >= 0, torch.inf, -torch.inf))
        kept.load({"x": rows})
        return kept


class SampledGraphs(GraphItems):
    """As ``graphs``, with links drawn anew at every step: sigmoid((log u - log(1 - u) + Omega) / t), u uniform.

    This is the binary concrete distribution; what is released is its mode. The temperature is constant: a store is
    not told which step it is.
    """

    name = "sampled-graphs"
    drawn = True

    def redrawn(self, items: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        m = self.info.shape[0]
        noise = torch.logit(torch.rand(len(items), m, m, generator=generator), eps=1e-6)
        return self._rows(items, (self.params["omega"][items] + noise) / self.number("temperature"))
