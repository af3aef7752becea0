"""Items as functions of the position: one small sine network for each.

Shin et al., Distilling Dataset into Neural Field (DDiF), ICLR 2025; Sitzmann et al., Implicit Neural
Representations with Periodic Activation Functions (SIREN), NeurIPS 2020.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from ddfed.seeds import Streams
from ddfed.store.base import UNSEEDED, Store
from ddfed.store.cells import Grid


class Fields(Store):
    """Each item is the weights of a network from a position in [-1, 1]^axes to the values there.

    ``layers`` sine layers, ``sin(omega * (W h + b))``, and a linear one. All items pass together, as a batched
    matrix product. `fill` starts the weights as SIREN does and fits each network to its row.

    Args:
        width: of the sine layers.
        layers: how many sine layers.
        omega_first: frequency of the first sine layer; about the highest angular frequency that a position in
            [-1, 1] can have.
        omega: frequency of the further ones.
        fit_steps: Adam steps of the fit.
        fit_lr: their step size, falling to zero along a cosine.

    Raises:
        ConfigError: the task's items have no cell axes, or an option is out of range.
    """

    name = "field"
    defaults = {"width": 6, "layers": 2, "omega_first": 30.0, "omega": 10.0, "fit_steps": 500, "fit_lr": 0.01}

    @cached_property
    def _grid(self) -> Grid:
        return Grid(self.info, self.name)

    @property
    def _widths(self) -> list[int]:
        sines = [self.whole("width", 1)] * self.whole("layers", 1)
        return [len(self._grid.lengths), *sines, self._grid.channels]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        self.whole("fit_steps", 0)
        for option in ("omega_first", "omega", "fit_lr"):
            self.number(option, positive=True)
        found: dict[str, tuple[int, ...]] = {}
        for i, (before, after) in enumerate(zip(self._widths, self._widths[1:])):
            found[f"weight{i}"] = (self.items, before, after)
            found[f"bias{i}"] = (self.items, 1, after)
        return found

    def decode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        values = self._positions.expand(len(items), -1, -1)  # (k, positions, axes)
        for i in range(len(self._widths) - 1):
            values = torch.baddbmm(self.params[f"bias{i}"][items], values, self.params[f"weight{i}"][items])
            if i < self.options["layers"]:
                values = torch.sin((self.options["omega"] if i else self.options["omega_first"]) * values)
        return self._grid.join(values.mT), torch.arange(len(items))

    def fill(self, rows: Tensor, streams: Streams = UNSEEDED) -> None:
        self._start(streams)
        items = torch.arange(self.items)
        optimizer = torch.optim.Adam(self.params.values(), self.options["fit_lr"])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, self.options["fit_steps"]))
        for _ in range(self.options["fit_steps"]):
            optimizer.zero_grad()
            # Summed over items: each is fitted as if it were alone.
            (self.decode(items)[0] - rows[:, 0]).square().flatten(1).mean(1).sum().backward()
            optimizer.step()
            schedule.step()
        optimizer.zero_grad()

    def constrain(self) -> None:
        """Nothing: weights have no range."""

    def _start(self, streams: Streams) -> None:
        with torch.no_grad():
            for name, tensor in self.params.items():
                before = self.params[name.replace("bias", "weight")].shape[1]
                if name == "weight0":
                    bound = 1 / before
                elif name.startswith("weight"):
                    bound = math.sqrt(6 / before) / self.options["omega"]
                else:
                    bound = 1 / math.sqrt(before)
                draw = torch.rand(tensor.shape, generator=streams.torch("field", name))
                tensor.copy_(bound * (2 * draw - 1))

    @cached_property
    def _positions(self) -> Tensor:
        """(positions, axes), in [-1, 1] along each axis."""
        along_axes = [torch.linspace(-1, 1, length) for length in self._grid.lengths]
        return torch.cartesian_prod(*along_axes).view(self._grid.positions, len(along_axes))
