"""Evaluation recipes of the field, as data.

E-dc: Zhao, Mopuri and Bilen, ICLR 2021. E-dsa: Zhao and Bilen, ICML 2021. E-idc: Kim et al., ICML 2022.
A number only compares under one recipe: on CIFAR-10 the same random images give 26 % under E-dc and 31 % under
E-dsa.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Protocol:
    """How a fresh network is trained on a set. SGD throughout; the last epoch's accuracy is reported.

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

    def for_dataset(self, dataset: str) -> Protocol:
        """The recipe as it is used for this data set."""
        if dataset not in self.augment_for:
            return self
        augment, epochs = self.augment_for[dataset]
        return replace(self, augment=augment, epochs=epochs)

    def with_epochs(self, epochs: int | None) -> Protocol:
        """The same with other epochs, and a name that says so."""
        if epochs is None or epochs == self.epochs:
            return self
        return replace(self, epochs=epochs, name=f"{self.name} ({epochs} epochs)")

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
