"""Averaging baselines: clients train the global model on their rows, a Flower strategy merges the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ddfed_federated.methods.base import Down, FederatedMethod, Phase, ServerPart, send_weights
from ddfed_federated.methods.presets import DEFAULTS, PRESETS
from ddfed_federated.parts.averaging import Averages, fedadam, fedavg, fedavgm, fedprox
from ddfed_federated.parts.contrast import Contrastive, MoonSettings
from ddfed_federated.parts.local import Correction, Proximal, Trains
from ddfed_federated.parts.steps import (
    Controlled,
    Controls,
    NormalisesSteps,
    ScaffoldSettings,
    begin_without_drift,
    send_control,
)
from ddfed_federated.settings import LocalSettings


def averaging(
    name: str,
    title: str,
    citation: str,
    strategy: Callable[[LocalSettings], Any] = fedavg,
    correction: Correction | None = None,
    server: ServerPart | None = None,
    down: Down = send_weights,
    **more: Any,
) -> FederatedMethod:
    """A method that changes FedAvg on the server's side, the client's, or both.

    Args:
        strategy: Flower's, which merges the weights.
        correction: what changes about local training.
        server: takes the place of a Flower strategy where none does what the method asks.
        down: what is sent to clients.
        more: of `FederatedMethod`.
    """
    phase = Phase("weights", Trains(correction or Correction()), server or Averages(strategy), down)
    return FederatedMethod(name, title, citation, (phase,), defaults=DEFAULTS, presets=PRESETS, **more)


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
FEDNOVA = averaging(
    "fednova",
    "clients' mean gradients are averaged, so that more local steps give no more say",
    "Wang, Liu, Liang, Joshi and Poor, Tackling the Objective Inconsistency Problem in Heterogeneous Federated "
    "Optimization, NeurIPS 2020",
    server=NormalisesSteps(),
    departures=("running statistics of batch norms are averaged by records: they are no sums of gradients",),
)
SCAFFOLD = averaging(
    "scaffold",
    "local steps are corrected by how a client's gradient differs from all",
    "Karimireddy, Kale, Mohri, Reddi, Stich and Suresh, SCAFFOLD: Stochastic Controlled Averaging for Federated "
    "Learning, ICML 2020",
    correction=Controlled(),
    server=Controls(),
    down=send_control,
    options=ScaffoldSettings,
    begin=begin_without_drift,
    departures=(
        "clients may use momentum (local.momentum, 0.9 as for the other baselines; the paper has none): control "
        "variates are then divided by the weight of all gradients in the way, not by the number of steps",
        "running statistics of batch norms have no control variate and are averaged by records",
    ),
)
MOON = averaging(
    "moon",
    "features stay near the global model's and leave the client's last ones",
    "Li, He and Song, Model-Contrastive Federated Learning, CVPR 2021",
    correction=Contrastive(),
    options=MoonSettings,
    departures=("features are what enters the last linear map; the paper adds a projection head of two layers",),
)
