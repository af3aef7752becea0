"""Measures of a split that need a network: what a summary says of how unequal the clients are.

A few rows of each client suffice, and the same number for all, so that the cost does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.data import RealData
from ddfed.domain import Network
from ddfed.seeds import Streams, isolated
from ddfed_federated.dissimilarity import gradient_dissimilarity
from ddfed_federated.features import feature_heterogeneity
from ddfed_federated.measures import heterogeneity
from ddfed_federated.methods import ServerContext
from ddfed_federated.partition import Partition
from ddfed_federated.skew import seen_by

#: Rows looked at: of one client at most, and of all together about.
ROWS_OF_CLIENT, ROWS_OF_ALL = 256, 2560
#: Rows that a network sees at once: activations of a wide one take more memory than the data.
_CHUNK = 100

#: Seed of the network that features are taken from. Constant, so that splits of different runs compare.
REFERENCE_SEED = 20_260_101


def measured(context: ServerContext, partition: Partition) -> dict[str, float | None]:
    """All measures of a split.

    Args:
        context: the server's; its initial network is where gradients are taken.
        partition: who holds which rows.

    Returns:
        Those of `heterogeneity` and `feature_heterogeneity`, and ``gradient_dissimilarity`` at the initial weights.
    """
    shares = list(_shares(context, partition))
    net = _reference(context)
    features = [_features(net, data) for data in shares if len(data)]
    owners = torch.cat([torch.full((len(data),), k) for k, data in enumerate(shares)])
    labels = torch.cat([data.labels for data in shares])
    sizes = partition.counts.sum(axis=1).tolist()
    initial = context.network()
    return {
        **heterogeneity(partition.counts),
        **feature_heterogeneity(torch.cat(features), labels, owners, partition.clients),
        "gradient_dissimilarity": gradient_dissimilarity(
            (_gradient(initial, data) for data in shares if len(data)), [size for size in sizes if size]
        ),
    }


def measured_sets(context: ServerContext, union: Mapping[str, Any], clients: int) -> dict[str, float | None]:
    """The same of the clients' synthetic sets, but for gradients: distilling may draw clients apart (FedLGD).

    A class counts as held from one item on.

    Args:
        context: the server's.
        union: of the last round: ``x`` (items, *item) in model space, ``y`` and ``clients`` of each item.
        clients: their number.

    Returns:
        Nothing where items are of no client (-1): a set that the server made.
    """
    owners = torch.as_tensor(union["clients"])
    if bool((owners < 0).any()):
        return {}
    counts = torch.zeros(clients, context.task.info.num_classes, dtype=torch.int64)
    counts.index_put_((owners, union["y"]), torch.ones(len(owners), dtype=torch.int64), accumulate=True)
    with torch.no_grad():
        net = _reference(context)
        features = torch.cat([net.embed(part.to(context.device)).cpu() for part in union["x"].split(_CHUNK)])
    return {**heterogeneity(counts.numpy(), enough=1), **feature_heterogeneity(features, union["y"], owners, clients)}


def _shares(context: ServerContext, partition: Partition) -> Iterator[RealData]:
    """Some rows of each client, as it sees them."""
    most = min(ROWS_OF_CLIENT, max(16, ROWS_OF_ALL // partition.clients))
    for client, share in enumerate(partition.shares):
        held = context.task.train.within(share)
        chosen = torch.randperm(len(held), generator=context.streams.torch("probe", client))[:most]
        yield seen_by(client, held.subset(chosen.sort().values), context.settings)


def _reference(context: ServerContext) -> Network:
    info = context.task.info
    with isolated(Streams(REFERENCE_SEED).seed("reference network")):
        return context.domain.network(context.domain.default_network(info), info).to(context.device).eval()


def _features(net: Network, data: RealData) -> Tensor:
    with torch.no_grad():
        parts = data.passes(torch.arange(len(data)), _CHUNK)
        return torch.cat([net.embed(data.batch(part).inputs.to(_device(net))).cpu() for part in parts])


def _gradient(net: Network, data: RealData) -> Tensor:
    """Of the mean cross-entropy of the rows, at the network's weights, flat."""
    net.eval().zero_grad()
    for part in data.passes(torch.arange(len(data)), _CHUNK):
        batch = data.batch(part)
        logits = net(batch.inputs.to(_device(net)))
        (F.cross_entropy(logits, batch.classes.to(logits.device), reduction="sum") / len(data)).backward()
    # Branches that a network keeps for training alone have no gradient.
    return torch.cat(
        [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten().cpu() for p in net.parameters()]
    )


def _device(net: Network) -> torch.device:
    return next(net.parameters()).device
