"""Averaging baselines: clients train the global model on their rows, a Flower strategy merges the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ddfed_federated.methods.base import FederatedMethod, Phase
from ddfed_federated.methods.presets import DEFAULTS, PRESETS
from ddfed_federated.parts.averaging import Averages, fedadam, fedavg, fedavgm, fedprox
from ddfed_federated.parts.local import Correction, Proximal, Trains
from ddfed_federated.settings import LocalSettings


def averaging(
    name: str,
    title: str,
    citation: str,
    strategy: Callable[[LocalSettings], Any] = fedavg,
    correction: Correction | None = None,
) -> FederatedMethod:
    """A method that changes FedAvg on the server's side, the client's, or both."""
    phase = Phase("weights", Trains(correction or Correction()), Averages(strategy))
    return FederatedMethod(name, title, citation, (phase,), defaults=DEFAULTS, presets=PRESETS)


FEDAVG = averaging(
    "fedavg",
    "average of locally trained weights",
    "McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017",
)
FEDPROX = averaging(
    "fedprox",
    "FedAvg with a pull towards the global weights",
    "Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020",
    fedprox,
    Proximal(),
)
FEDAVGM = averaging(
    "fedavgm",
    "FedAvg with momentum at the server",
    "Hsu, Qi and Brown, Measuring the Effects of Non-Identical Data Distribution, 2019",
    fedavgm,
)
FEDADAM = averaging(
    "fedadam",
    "Adam at the server on the averaged update",
    "Reddi et al., Adaptive Federated Optimization, ICLR 2021",
    fedadam,
)
