"""Evaluation recipes of the field, as data.

E-dc: Zhao, Mopuri and Bilen, ICLR 2021. E-dsa: Zhao and Bilen, ICML 2021. E-idc: Kim et al., ICML 2022. E-mtt:
Cazenavette et al., CVPR 2022, which reports the best over its evaluations; here the last epoch counts, as everywhere.
E-krr: Nguyen et al., KIP, ICLR 2021.
A number only compares under one recipe: on CIFAR-10 the same random images give 26 % under E-dc and 31 % under
E-dsa.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ddfed.errors import ConfigError


@dataclass(frozen=True)
class Protocol:
    """How a fresh network is trained on a set; the last epoch's accuracy is reported.

    Args:
        name: what tables say.
        epochs: passes over the set.
        lr: initial step size.
        momentum: of SGD.
        weight_decay: of SGD, on all parameters.
        batch: rows per step.
        augment: name of the domain's augmentation for training, one draw per row.
        augment_for: other augmentations for some data sets, with the epochs that go with them.
        drops: (fraction of the epochs, factor) of each fall of the step size.
        rebuilt: the optimiser is rebuilt at a fall, so momentum is lost (the DC line).
        cutmix: probability of CutMix for a batch, mixing parameter from Beta(1, 1).
        lr_of_set: the step size is the one that the set asks for, learned with it.
        optimizer: ``sgd``, ``adam`` or ``adamw``; ``momentum`` is for SGD alone.
        schedule: ``drops``, or a fall by the cosine to zero (``cosine``) or half of the way (``half-cosine``).
        lrs_of_set: the set learned a step size for every step, and which of its rows the step is made on. Epochs are
            then passes over those blocks.
        blocks: number of blocks, row i belongs to block i mod blocks; 0 for random batches.
        lrs: step size of each step, one after another; empty for ``lr``.
    """

    name: str
    epochs: int
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 256
    augment: str = "none"
    augment_for: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    drops: tuple[tuple[float, float], ...] = ((0.5, 0.1),)
    rebuilt: bool = True
    cutmix: float = 0.0
    lr_of_set: bool = False
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    schedule: Literal["drops", "cosine", "half-cosine"] = "drops"
    lrs_of_set: bool = False
    blocks: int = 0
    lrs: tuple[float, ...] = ()

    def for_set(self, training: Mapping[str, Any]) -> Protocol:
        """The recipe with what a set asks of its training.

        Raises:
            ConfigError: the recipe needs the set's own step sizes and it carries none.
        """
        if self.lrs_of_set:
            return self._for_steps(training)
        if not self.lr_of_set:
            return self
        if "lr" not in training:
            raise ConfigError(
                f"{self.name} trains with the step size that the set learned, and this set carries none (its card has "
                f"no 'training'). Use E-dsa, or a method that learns its step size."
            )
        return replace(self, lr=training["lr"], name=f"{self.name} (lr {training['lr']:.4g})")

    def _for_steps(self, training: Mapping[str, Any]) -> Protocol:
        lrs, blocks = training.get("lrs", ()), int(training.get("blocks", 0))
        if not lrs or blocks < 1:
            raise ConfigError(
                f"{self.name} makes the very steps that the set learned, and this set carries none (its card has no "
                f"'training' with 'lrs' and 'blocks'). Use E-dsa, or a method that learns its steps, such as dd."
            )
        return replace(
            self, lrs=tuple(lrs), blocks=blocks, epochs=-(-len(lrs) // blocks), name=f"{self.name} ({len(lrs)} steps)"
        )

    def on_full_data(self, rows: int, size: int) -> Protocol:
        """About as many steps on ``size`` rows in random batches as this recipe makes on a set of ``rows``."""
        steps = len(self.lrs) or self.epochs * math.ceil(rows / self.batch)
        epochs = max(1, round(steps / math.ceil(size / self.batch)))
        mean = sum(self.lrs) / len(self.lrs) if self.lrs else self.lr
        return replace(self, epochs=epochs, lr=mean, lrs=(), blocks=0)

    def for_dataset(self, dataset: str) -> Protocol:
        """The recipe as it is used for this data set."""
        if dataset not in self.augment_for:
            return self
        augment, epochs = self.augment_for[dataset]
        return replace(self, augment=augment, epochs=epochs)

    def with_epochs(self, epochs: int | None) -> Protocol:
        """The same with other epochs, and a name that says so."""
        # Learned steps are as many as they are.
        if epochs is None or epochs == self.epochs or self.lrs:
            return self
        return replace(self, epochs=epochs, name=f"{self.name} ({epochs} epochs)")

    def lr_at(self, epoch: int) -> float:
        """Step size of a 0-based epoch."""
        if self.schedule != "drops":
            part = epoch / self.epochs * (0.5 if self.schedule == "half-cosine" else 1.0)
            return self.lr * 0.5 * (1 + math.cos(math.pi * part))
        lr = self.lr
        for drop, factor in sorted(self.drop_epochs().items()):
            lr *= factor if epoch >= drop else 1.0
        return lr

    def drop_epochs(self) -> dict[int, float]:
        """0-based epoch -> factor: the DC line falls one epoch later than the fraction says (E/2 + 1), IDC does not."""
        return {int(self.epochs * fraction) + self.rebuilt: factor for fraction, factor in self.drops}


E_DC = Protocol(name="E-dc", epochs=300, augment_for={"mnist": ("dc-eval", 1000)})
E_DSA = Protocol(name="E-dsa", epochs=1000, augment="dsa")
E_IDC = Protocol(
    name="E-idc",
    epochs=1000,
    batch=64,
    augment="idc-train",
    drops=((2 / 3, 0.2), (5 / 6, 0.2)),
    rebuilt=False,
    cutmix=0.5,
)
E_MTT = replace(E_DSA, name="E-mtt", lr_of_set=True)
#: Wang et al., Dataset Distillation, 2018: the learned steps, in their order, without augmentation.
E_DD = Protocol(name="E-dd", epochs=1, momentum=0.0, weight_decay=0.0, drops=(), lrs_of_set=True)
#: Feng et al., RaT-BPTT, ICLR 2024: the optimiser of its inner training.
E_RAT = Protocol(
    name="E-rat", epochs=1000, lr=1e-3, weight_decay=0.0, augment="flip-rotate", drops=(), optimizer="adam"
)


@dataclass(frozen=True)
class RidgeProtocol:
    """No network is trained: ridge regression in a kernel, solved in float64.

    Args:
        name: what tables say.
        kernel: what tables say in place of a network.
        depth: hidden layers of the infinitely wide network.
        ridge: of the mean of the kernel's diagonal.
        most: rows that a solution takes at most; full data is cut to as many, class by class.
    """

    name: str
    kernel: str = "ntk-fc1"
    depth: int = 1
    ridge: float = 1e-6
    most: int = 4000

    def for_dataset(self, dataset: str) -> RidgeProtocol:
        """As for a `Protocol`; nothing differs between data sets."""
        return self

    def for_set(self, training: Mapping[str, Any]) -> RidgeProtocol:
        """As for a `Protocol`; nothing is asked of the set."""
        return self

    def with_epochs(self, epochs: int | None) -> RidgeProtocol:
        """As for a `Protocol`. Raises `ConfigError`: a regression has no epochs."""
        if epochs is not None:
            raise ConfigError(f"{self.name} solves a regression and has no epochs, got epochs = {epochs}")
        return self


E_KRR = RidgeProtocol("E-krr")


def dc_bench(augment: str) -> Protocol:
    """DC-BENCH (Cui et al., NeurIPS 2022): 300 epochs without augmentation, 1000 with; else as E-dc."""
    return replace(E_DC, name=f"dc-bench {augment}", augment=augment, epochs=300 if augment == "none" else 1000,
                   augment_for={})  # fmt: skip


#: Hard-label training of DD-Ranking (Li et al., 2025) but for its choice of the best epoch on the test split.
DD_RANKING = Protocol(name="dd-ranking", epochs=1000, batch=128, augment="dsa", rebuilt=False)
