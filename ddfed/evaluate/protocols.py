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
        batch: rows per step; 0 for all, in their order.
        augment: name of the domain's augmentation for training, one draw per row.
        augment_for: other augmentations for some data sets, with the epochs that go with them.
        drops: (fraction of the epochs, factor) of each fall of the step size.
        rebuilt: the optimiser is rebuilt at a fall, so momentum is lost (the DC line).
        cutmix: probability of CutMix for a batch, mixing parameter from Beta(1, 1).
        mixup: every batch is mixed up instead, the share from Beta(mixup, mixup); 0 for not.
        lr_of_set: the step size is the one that the set asks for, learned with it.
        optimizer: ``sgd``, ``adam`` or ``adamw``; ``momentum`` is for SGD alone.
        schedule: ``drops``, or a fall by the cosine to zero (``cosine``) or half of the way (``half-cosine``).
        lrs_of_set: the set learned a step size for every step, and which of its rows the step is made on. Epochs are
            then passes over those blocks.
        blocks: number of blocks, row i belongs to block i mod blocks; 0 for random batches.
        lrs: step size of each step, one after another; empty for ``lr``.
        stages: the set was made in so many stages, and is trained on in them, one after another, each for its part of
            the epochs with an optimiser of its own.
        stage_lrs: step size of each stage; empty for ``lr``.
        probe: above 0, the network is trained for its features: what counts is a linear map from them to classes that
            is fitted to real training rows, with this ridge; see `ddfed.evaluate.training.probed`.
        probe_rows: of each class that the map is fitted to, new ones for each network; 0 for all.
        choose: every so many epochs the network is tried on the data's validation rows, and the best is what counts; 0,
            and data without such rows, for the last epoch. Test rows choose nothing.
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
    mixup: float = 0.0
    lr_of_set: bool = False
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    schedule: Literal["drops", "cosine", "half-cosine"] = "drops"
    lrs_of_set: bool = False
    blocks: int = 0
    lrs: tuple[float, ...] = ()
    stages: int = 1
    stage_lrs: tuple[float, ...] = ()
    probe: float = 0.0
    probe_rows: int = 0
    choose: int = 0

    def for_set(self, training: Mapping[str, Any]) -> Protocol:
        """The recipe with what a set asks of its training.

        Raises:
            ConfigError: the recipe needs the set's own step sizes and it carries none.
        """
        stages = training.get("stages", 1)
        if stages == 1:
            return self._for_whole(training)
        # The step sizes of a set made in stages are lists of one for each; the rest is the same for all.
        firsts = {k: v[0] if isinstance(v, (list, tuple)) else v for k, v in training.items()}
        lrs = training.get("lr", ()) if self.lr_of_set else ()
        whole = self._for_whole(firsts)
        return replace(whole, stages=stages, stage_lrs=tuple(lrs), name=f"{whole.name} in {stages} stages")

    def of_stage(self, stage: int) -> Protocol:
        """What is done in a 0-based stage."""
        lr = self.stage_lrs[stage] if self.stage_lrs else self.lr
        return replace(self, epochs=max(1, self.epochs // self.stages), lr=lr, stages=1, stage_lrs=())

    def unstaged(self) -> Protocol:
        """The same for rows that were made all at once."""
        return replace(self, stages=1, stage_lrs=(), name=self.name.replace(f" in {self.stages} stages", ""))

    def _for_whole(self, training: Mapping[str, Any]) -> Protocol:
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
        if not self.batch:
            return self
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

    def without_mixing(self) -> Protocol:
        """The same for batches that are stored as they are to be shown."""
        return replace(self, cutmix=0.0, mixup=0.0)

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
#: Guo et al., DATM, ICLR 2024: smaller batches.
E_DATM = replace(E_MTT, name="E-datm", batch=128)
#: Wang et al., Dataset Distillation, 2018: the learned steps, in their order, without augmentation.
E_DD = Protocol(name="E-dd", epochs=1, momentum=0.0, weight_decay=0.0, drops=(), lrs_of_set=True)
#: Feng et al., RaT-BPTT, ICLR 2024: the optimiser of its inner training.
E_RAT = Protocol(
    name="E-rat", epochs=1000, lr=1e-3, weight_decay=0.0, augment="flip-rotate", drops=(), optimizer="adam"
)
#: Yin et al., SRe2L, NeurIPS 2023, CIFAR: for sets whose labels store the views; others are augmented and mixed alike.
#: The weight of a soft label's loss and its temperature belong to the label store (30, without the factor T^2).
E_KD = Protocol(
    name="E-kd",
    epochs=400,
    lr=1e-3,
    weight_decay=0.01,
    batch=128,
    augment="crop+flip",
    drops=(),
    mixup=0.8,
    optimizer="adamw",
    schedule="cosine",
)
#: Zhang et al., INFER, ICLR 2025: for labels that do not follow the view. Rows are mixed up as they are shown, labels
#: likewise. Departure: their softmax is mixed, not their logits; at temperature 30 that is nearly the same.
E_INFER = replace(E_KD, name="E-infer", batch=64)
#: Sun et al., RDED, CVPR 2024: half of a cosine. Departures: the last epoch counts, not the best of the last fifth; a
#: set without stored views is trained in batches of 50 whatever its size (the paper takes 10, 50 and 100 at 1, 10 and
#: 50 items of each class; stored views come in the batches they were made in).
E_RDED = replace(
    E_KD, name="E-rded", epochs=300, batch=50, augment="flip", mixup=0.0, cutmix=1.0, schedule="half-cosine"
)
#: Lee et al., KRR-ST, ICLR 2024: training on the set alone, then a linear map fitted to real rows. Departures: the map
#: is a ridge regression, solved, instead of 5,000 steps of SGD; it is fitted to ten rows of each class, as with all of
#: a small data set the features of any network will do; no real row is augmented.
E_SSL = Protocol(name="E-ssl", epochs=1000, lr=0.1, weight_decay=1e-3, drops=(), probe=1e-4, probe_rows=10)
#: The same with all real training rows, as in the paper.
E_SSL_ALL = replace(E_SSL, name="E-ssl-all", probe_rows=0)


@dataclass(frozen=True)
class RidgeProtocol:
    """No network is trained: ridge regression in a kernel, solved in float64.

    Args:
        name: what tables say.
        kernel: see `ddfed.kernels.kernel_named`; tables say it in place of a network.
        ridge: of the mean of the kernel's diagonal.
        most: rows that a solution takes at most; full data is cut to as many, class by class.
    """

    name: str
    kernel: str = "ntk-fc1"
    ridge: float = 1e-6
    most: int = 4000

    def for_dataset(self, dataset: str) -> RidgeProtocol:
        """As for a `Protocol`; nothing differs between data sets."""
        return self

    def for_set(self, training: Mapping[str, Any]) -> RidgeProtocol:
        """As for a `Protocol`; nothing is asked of the set."""
        return self

    def unstaged(self) -> RidgeProtocol:
        """As for a `Protocol`; a regression takes all rows at once."""
        return self

    def with_epochs(self, epochs: int | None) -> RidgeProtocol:
        """As for a `Protocol`. Raises `ConfigError`: a regression has no epochs."""
        if epochs is not None:
            raise ConfigError(f"{self.name} solves a regression and has no epochs, got epochs = {epochs}")
        return self


E_KRR = RidgeProtocol("E-krr")
#: Ridge regression on the values of the items themselves: what a closed form for a linear model is made for.
E_LINEAR = RidgeProtocol("E-linear", "linear")
#: Zhou et al., FRePo, NeurIPS 2022: Adam with a cosine, squared distance to learned labels (the label store's loss).
#: Departures: 2,000 passes whatever the size (the paper makes 1,000 to 40,000 steps as the set grows; up to 500 rows
#: a step is a pass), no warm-up of 500 steps, no average of the weights; a fall to 0 instead of 0.01.
E_FREPO = Protocol(
    name="E-frepo",
    epochs=2000,
    lr=3e-4,
    weight_decay=0.0,
    batch=500,
    augment="idc",
    drops=(),
    optimizer="adam",
    schedule="cosine",
)


def dc_bench(augment: str) -> Protocol:
    """DC-BENCH (Cui et al., NeurIPS 2022): 300 epochs without augmentation, 1000 with; else as E-dc."""
    return replace(E_DC, name=f"dc-bench {augment}", augment=augment, epochs=300 if augment == "none" else 1000,
                   augment_for={})  # fmt: skip


#: Hard-label training of DD-Ranking (Li et al., 2025) but for its choice of the best epoch on the test split.
DD_RANKING = Protocol(name="dd-ranking", epochs=1000, batch=128, augment="dsa", rebuilt=False)
