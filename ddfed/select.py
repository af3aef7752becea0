"""Selectors: which real items of a class are kept, or start the synthetic ones.

Each is a pure function of features. Source: Welling 2009 (herding), Sener and Savarese 2018 (k-center),
DC-BENCH (k-means).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddfed.data import RealData
from ddfed.domain import Network
from ddfed.errors import BudgetError
from ddfed.pool import PoolContext, Training, trained_network

Choose = Callable[[Tensor, int, torch.Generator], Tensor]


class Selector(NamedTuple):
    """A rule for choosing items.

    Args:
        choose: (features (n, width), k <= n, generator) -> k distinct positions, (k,).
        trained: whether the features come from a network trained on the real data; else none are needed.
    """

    choose: Choose
    trained: bool


def choose_random(features: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Without replacement."""
    return torch.randperm(len(features), generator=generator)[:k]


def choose_herding(features: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Greedily the item that brings the sum of the chosen nearest to (number chosen + 1) times the mean."""
    mean, total = features.mean(0), torch.zeros_like(features[0])
    free = torch.ones(len(features), dtype=torch.bool)
    chosen = []
    for step in range(k):
        gap = ((step + 1) * mean - total - features).norm(dim=1)
        best = int(gap.masked_fill(~free, float("inf")).argmin())
        chosen.append(best)
        free[best] = False
        total = total + features[best]
    return torch.tensor(chosen)


def choose_kcenter(features: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Start at the item nearest the mean; repeatedly add the one farthest from all chosen."""
    chosen = [int((features - features.mean(0)).norm(dim=1).argmin())]
    distance = (features - features[chosen[0]]).norm(dim=1)
    while len(chosen) < k:
        distance[chosen] = -1.0  # equal items must not be chosen twice
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (features - features[chosen[-1]]).norm(dim=1))
    return torch.tensor(chosen)


def choose_kmeans(features: Tensor, k: int, generator: torch.Generator, iterations: int = 50) -> Tensor:
    """The item nearest each k-means centre (k-means++ start), each item once."""
    centres = _plus_plus(features, k, generator)
    for _ in range(iterations):
        owner = torch.cdist(features, centres).argmin(1)
        counts = torch.bincount(owner, minlength=k)
        sums = torch.zeros_like(centres).index_add_(0, owner, features)
        moved = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    distance = torch.cdist(centres, features)
    chosen = []
    for centre in range(k):
        best = int(distance[centre].argmin())
        chosen.append(best)
        distance[:, best] = float("inf")
    return torch.tensor(chosen)


def _plus_plus(features: Tensor, k: int, generator: torch.Generator) -> Tensor:
    picks = [int(torch.randint(len(features), (1,), generator=generator))]
    distance = (features - features[picks[0]]).square().sum(1)
    while len(picks) < k:
        weights = distance if float(distance.sum()) > 0 else torch.ones_like(distance)
        picks.append(int(torch.multinomial(weights, 1, generator=generator)))
        distance = torch.minimum(distance, (features - features[picks[-1]]).square().sum(1))
    return features[picks].clone()


RANDOM = Selector(choose_random, trained=False)
HERDING = Selector(choose_herding, trained=True)
KCENTER = Selector(choose_kcenter, trained=True)
KMEANS = Selector(choose_kmeans, trained=True)


def check_budget(data: RealData, per_class: int, classes: Sequence[int]) -> None:
    """Refuse a budget that a class cannot give.

    Raises:
        BudgetError: names the smallest class and the ways out.
    """
    short = {c: len(data.class_index[c]) for c in classes if len(data.class_index[c]) < per_class}
    if short:
        c, held = min(short.items(), key=lambda entry: entry[1])
        raise BudgetError(
            f"{per_class} real items per class are needed, but class {data.info.classes[c]!r} has {held}. "
            f"Lower ipc to {held} or less, start from noise (--set distill.init=noise), or allow repeats "
            f"(--set distill.top_up=true)."
        )


def select_rows(
    data: RealData, selector: Selector, per_class: int, ctx: PoolContext, *, top_up: bool, train_steps: int = 300
) -> Tensor:
    """Rows of ``data`` chosen for each of ``ctx.classes``, class after class, (classes * per_class,).

    Args:
        data: the records.
        selector: the rule.
        per_class: rows per class.
        ctx: networks, classes and streams; a trained selector trains a fresh network through its gate.
        top_up: repeat rows (at random) where a class has fewer than ``per_class``.
        train_steps: steps of batch 256 for the feature network.

    Raises:
        BudgetError: a class has fewer rows than asked and ``top_up`` is off.
    """
    if not top_up:
        check_budget(data, per_class, ctx.classes)
    net = trained_network(ctx, Training(train_steps), "selection") if selector.trained else None
    chosen = []
    for c in ctx.classes:
        members = data.class_index[c]
        generator = ctx.streams.torch("select", c)
        features = _features(data, members, net) if net is not None else members[:, None]
        picks = members[selector.choose(features, min(per_class, len(members)), generator)]
        if len(picks) < per_class:
            extra = torch.randint(len(members), (per_class - len(picks),), generator=generator)
            picks = torch.cat([picks, members[extra]])
        chosen.append(picks)
    return torch.cat(chosen)


def _features(data: RealData, members: Tensor, net: Network) -> Tensor:
    with torch.no_grad():
        device = next(net.parameters()).device
        return torch.cat([net.embed(data.batch(part).inputs.to(device)).cpu() for part in members.split(256)])
