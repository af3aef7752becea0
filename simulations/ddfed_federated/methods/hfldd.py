"""HFLDD: clusters whose members are unlike, so that each cluster together looks like everybody.

Shi, Zhang, Wu, Liu, Wen, He, Shah and Ranjan, Dataset Distillation-based Hybrid Federated Learning on Non-IID Data,
2024 (arXiv 2409.17517).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from pydantic import Field
from torch import Tensor

from ddfed.errors import ConfigError
from ddfed.federation import Broadcast, Release
from ddfed.recipes import Preset
from ddfed.settings import Settings
from ddfed_federated.methods.base import (
    FederatedMethod,
    Phase,
    ServerContext,
    ServerPart,
    ServerState,
    send_nothing,
)
from ddfed_federated.methods.condensed import FEDD3
from ddfed_federated.methods.presets import digits
from ddfed_federated.parts.averaging import Averages, fedavg
from ddfed_federated.parts.distil import Distils
from ddfed_federated.parts.handed import KeepsSets, Nothing, TakesSets, TrainsForCluster
from ddfed_federated.parts.tables import TellsCounts


class HFLDDOptions(Settings):
    """HFLDD's own settings."""

    clusters: int = Field(2, ge=1, description="clusters, each with one head; fewer than clients")


# --- clusters -----------------------------------------------------------------------------------------------------


def imbalance(clusters: Sequence[Sequence[int]], counts: Tensor) -> float:
    """Sum over clusters of KL(mix of classes of the cluster || mix of all), in nats.

    Args:
        clusters: the clients of each.
        counts: rows of every client and class, (clients, classes).
    """
    everybody = counts.sum(0).double()
    everybody, total = everybody / everybody.sum(), 0.0
    for members in clusters:
        mix = counts[list(members)].sum(0).double()
        if bool(mix.sum() > 0):
            mix = mix / mix.sum()
            total += float(torch.special.xlogy(mix, mix).sum() - torch.special.xlogy(mix, everybody).sum())
    return total


def unlike(counts: Tensor, number: int) -> list[list[int]]:
    """Clusters of as equal a number of clients as can be, each with a mix of classes near everybody's.

    Clients are dealt in order of their most frequent class, so that alike ones come to different clusters; then pairs
    are exchanged for as long as that lowers `imbalance`. Nothing is drawn.

    Args:
        counts: (clients, classes); clients without rows are in no cluster.
        number: of clusters.

    Returns:
        The clients of each cluster, those with the most rows first; fewer clusters where there are fewer clients.
    """
    present = [k for k in range(len(counts)) if bool(counts[k].sum() > 0)]
    dealt = sorted(present, key=lambda k: (int(counts[k].argmax()), -int(counts[k].max()), k))
    clusters = [dealt[start::number] for start in range(min(number, len(dealt)))]
    best, better = imbalance(clusters, counts), True
    while better:
        better = False
        for one, two in combinations(range(len(clusters)), 2):
            for i in range(len(clusters[one])):
                for j in range(len(clusters[two])):
                    trial = [list(members) for members in clusters]
                    trial[one][i], trial[two][j] = clusters[two][j], clusters[one][i]
                    found = imbalance(trial, counts)
                    # A margin above rounding, so that it ends.
                    if found < best - 1e-9:
                        clusters, best, better = trial, found, True
    return [sorted(members, key=lambda k: (-int(counts[k].sum()), k)) for members in clusters]


# --- before the first round ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clusters(ServerPart):
    """Unlike clients come together; the one with the most rows is the head."""

    def check(self, context: ServerContext) -> None:
        clusters, clients = context.options.clusters, context.settings.federation.clients
        if clusters >= clients:
            raise ConfigError(
                f"method 'hfldd' has {clusters} clusters of {clients} clients, and a cluster needs a member beside its "
                f"head. Lower options.clusters; with one client each it would be FedAvg."
            )

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        counts = torch.zeros(context.settings.federation.clients, context.task.info.num_classes, dtype=torch.int64)
        for release in releases:
            counts[release.client] = release.statistics["counts"].to(torch.int64).clamp(min=0)
        clusters = unlike(counts, context.options.clusters)
        rows = [int(counts[members].sum()) for members in clusters]
        return state.having(clusters=clusters, rows=rows, imbalance=imbalance(clusters, counts))


def _to_members(client: int, broadcast: Broadcast, state: ServerState, context: ServerContext) -> Broadcast | None:
    return broadcast if any(client in members[1:] for members in state.memory["clusters"]) else None


def _to_heads(client: int, broadcast: Broadcast, state: ServerState, context: ServerContext) -> Broadcast | None:
    return broadcast if any(client == members[0] for members in state.memory["clusters"]) else None


def _own_sets(client: int, broadcast: Broadcast, state: ServerState, context: ServerContext) -> Broadcast | None:
    """A head is sent the sets of its cluster's members and of nobody else."""
    members = next((m for m in state.memory["clusters"] if m[0] == client), None)
    if members is None:
        return None
    sets = [s for s in state.memory["sets"][-1] if s["client"] in members]
    shape = context.task.info.shape
    return replace(
        broadcast,
        arrays={
            "x": torch.cat([torch.zeros(0, *shape), *(s["x"] for s in sets)]),
            "y": torch.cat([torch.zeros(0, dtype=torch.int64), *(s["y"] for s in sets)]),
        },
    )


# --- rounds among heads -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AveragesHeads(ServerPart):
    """FedAvg in which a head stands for its cluster's rows."""

    average: ServerPart = Averages(fedavg)

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        rows = {members[0]: n for members, n in zip(state.memory["clusters"], state.memory["rows"])}
        return self.average(state, [replace(r, examples=rows[r.client]) for r in releases], context)


HFLDD = FederatedMethod(
    name="hfldd",
    title="unlike clients in a cluster: members distil once for their head, heads average in rounds",
    citation="Shi, Zhang, Wu, Liu, Wen, He, Shah and Ranjan, Dataset Distillation-based Hybrid Federated Learning on "
    "Non-IID Data, 2024",
    setup=(
        Phase("classes", TellsCounts(), Clusters(), down=send_nothing),
        Phase("sets", Distils(), KeepsSets(), down=send_nothing, to=_to_members),
        Phase("heads", TakesSets(), Nothing(), down=send_nothing, to=_own_sets),
    ),
    phases=(Phase("training", TrainsForCluster(), AveragesHeads(), to=_to_heads),),
    options=HFLDDOptions,
    defaults={"distill": FEDD3.defaults["distill"], "federation": {"rounds": 20}},
    presets=(
        digits(),
        Preset({"local": {"epochs": 10}}, ("digits",), source="as FedAvg", domains=("image",)),
    ),
    departures=(
        "clusters are dealt by most frequent class and improved by exchanges that lower the sum of KL divergences from "
        "everybody's mix; the paper groups like clients by k-means and draws across the groups",
        "clients tell how many rows of each class they have; the paper's may tell predictions of a classifier instead",
        "the server relays the sets to the heads, so it sees them; a head weighs as many rows as its cluster has",
    ),
)

__all__ = ["HFLDD", "HFLDDOptions", "imbalance", "unlike"]
