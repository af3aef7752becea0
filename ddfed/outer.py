"""Part 7: the optimiser of stored values and labels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ddfed.match import Cotangent
from ddfed.settings import PartSettings
from ddfed.store import LabelStore, Store


class Outer:
    """The optimiser of the stored values and labels, with clamping, clipping and averaging.

    Args:
        store: stored values.
        labels: label store; its parameters, if any, are a group of their own.
        parts: step sizes and choices.
    """

    def __init__(self, store: Store, labels: LabelStore, parts: PartSettings) -> None:
        self.store, self.clamp, self.decay, self.parts = store, parts.clamp, parts.ema, parts
        rates = store.rates()
        usual = [p for name, p in store.params.items() if name not in rates]
        groups: list[dict[str, Any]] = [{"params": usual, "lr": parts.lr}] if usual else []
        groups += [{"params": [store.params[name]], "lr": rate} for name, rate in rates.items()]
        if labels.params:
            groups.append({"params": list(labels.params.values()), "lr": parts.label_lr})
            if parts.optimizer == "sgd" and parts.label_momentum is not None:
                groups[-1]["momentum"] = parts.label_momentum
        self.optimizer: torch.optim.Optimizer
        if parts.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(groups, lr=parts.lr, momentum=parts.momentum)
        else:
            self.optimizer = torch.optim.Adam(groups, lr=parts.lr, betas=parts.betas)
        for group in self.optimizer.param_groups:
            group["peak"] = group["lr"]
        self.usual_norm = 0.0
        self.average = {k: v.detach().clone() for k, v in store.params.items()} if self.decay else {}
        if self.clamp:
            store.constrain()

    def step(self, rows: Tensor, targets: Tensor, cotangent: Cotangent, number: int) -> None:
        """Push the cotangents through decoder and labels, and make outer step ``number`` (0-based)."""
        if self.parts.schedule == "cosine":
            low, passed = self.parts.lr_floor, number / self.parts.steps
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * passed)))
        self.optimizer.zero_grad()
        rows.backward(cotangent.x.to(rows))
        for name in set(self.store.params) - self.store.learns(number):
            self.store.params[name].grad = None  # the optimiser then leaves it, and its moments, as they are
        if cotangent.y is not None:
            targets.backward(cotangent.y.to(targets))
        if self.parts.clip:
            self._clip()
        self.optimizer.step()
        if self.clamp:
            self.store.constrain()
        for name, mean in self.average.items():
            mean.lerp_(self.store.params[name].detach(), 1 - self.decay)

    def _clip(self) -> None:
        """Shorten gradients that are longer than ``clip`` times the usual (RaT-BPTT, section 4: decay .9)."""
        stored = [p for group in self.optimizer.param_groups for p in group["params"]]
        most = self.parts.clip * self.usual_norm if self.usual_norm else math.inf
        norm = min(float(torch.nn.utils.clip_grad_norm_(stored, most)), most)
        self.usual_norm = 0.9 * self.usual_norm + 0.1 * norm if self.usual_norm else norm

    def release(self) -> None:
        """Put the averaged values, if any, in place of the last ones."""
        with torch.no_grad():
            for name, mean in self.average.items():
                self.store.params[name].copy_(mean)
