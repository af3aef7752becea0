"""Choices among the rows of a class. Each is a pure function: evidence, how many, a generator.

Source: Welling 2009 (herding), Sener and Savarese 2018 (k-center), DC-BENCH (k-means), DQ (bins).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ddfed.errors import ConfigError


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


def choose_kcenter(
    features: Tensor, k: int, generator: torch.Generator, *, first: Literal["middle", "random"] = "middle"
) -> Tensor:
    """Start at the item nearest the mean, or at a random one; repeatedly add the one farthest from all chosen."""
    if first == "middle":
        chosen = [int((features - features.mean(0)).norm(dim=1).argmin())]
    else:
        chosen = [int(torch.randint(len(features), (1,), generator=generator))]
    distance = (features - features[chosen[0]]).norm(dim=1)
    while len(chosen) < k:
        distance[chosen] = -1.0  # equal items must not be chosen twice
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (features - features[chosen[-1]]).norm(dim=1))
    return torch.tensor(chosen)


def choose_kmeans(
    features: Tensor, k: int, generator: torch.Generator, *, iterations: Annotated[int, Field(ge=0)] = 50
) -> Tensor:
    """The item nearest each k-means centre (k-means++ start), each item once."""
    return nearest_centres(features, _plus_plus(features, k, generator), iterations)


def nearest_centres(features: Tensor, centres: Tensor, iterations: int = 50) -> Tensor:
    """The item nearest each k-means centre, each item once; Lloyd's iterations start from ``centres``.

    Args:
        features: (n, width).
        centres: (k, width), k <= n.
        iterations: at most; fewer when nothing moves any more.
    """
    k = len(centres)
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


def choose_by_difficulty(
    scores: Tensor,
    k: int,
    generator: torch.Generator,
    *,
    direction: Literal["hard", "easy", "window"] = "hard",
    skip: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> Tensor:
    """The highest scores, the lowest, or those that follow when the ``skip`` share of highest is passed over.

    A window that would leave the class ends with its easiest row. Equal scores come in random order.

    Args:
        scores: (n, 1); higher is harder, infinite allowed.
        k: how many.
        generator: orders equal scores.
        direction: which side.
        skip: share of the class, of a window only.

    Raises:
        ConfigError: a share to pass over without a window.
    """
    if skip and direction != "window":
        raise ConfigError(f"skip = {skip} belongs to direction 'window'; got direction {direction!r}")
    shuffled = torch.randperm(len(scores), generator=generator)
    order = torch.argsort(scores[shuffled, 0], stable=True, descending=direction != "easy")
    begin = min(int(skip * len(scores)), len(scores) - k)
    return shuffled[order[begin : begin + k]]


def choose_lowest(scores: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """The lowest scores (n, 1), equal ones in random order."""
    return choose_by_difficulty(scores, k, generator, direction="easy")


def choose_from_bins(
    features: Tensor, k: int, generator: torch.Generator, *, bins: Annotated[int, Field(ge=1)] = 10
) -> Tensor:
    """One random row of each bin in turn, until there are ``k``.

    So every bin gives its share, and of fewer items than bins the first, most representative bins give one each.
    Source: Zhou et al., Dataset Quantization, ICCV 2023, section 3.3; `graph_cut_bins` makes the bins.
    """
    piles = graph_cut_bins(features, bins, at_most=k)
    dealt = [pile[torch.randperm(len(pile), generator=generator)] for pile in piles]
    rounds = [pile[turn] for turn in range(max(map(len, dealt))) for pile in dealt if turn < len(pile)]
    return torch.stack(rounds[:k])


def graph_cut_bins(features: Tensor, bins: int, at_most: int | None = None) -> list[Tensor]:
    """Cut the rows in bins of equal size, one after the other, each by greedy graph cut.

    Of the rows still free, the next of a bin is the one with the greatest
    sum of |f - f_p|^2 over the bin so far, less the sum of |f - f_p|^2 over the free rows: far from what the bin
    has, near to what is left. The two sums need only the sum of the f_p and of their squares, so a step costs
    n * width and memory is that of the features. In float64, because the terms cancel.

    Source: Zhou et al., Dataset Quantization, ICCV 2023, equation 5.

    Args:
        features: (n, width).
        bins: number of bins; as many as there are rows where there are fewer. The first ones are larger by one
            where ``n`` does not divide.
        at_most: make only this many, the first ones.

    Returns:
        Positions of each bin in the order of choice.
    """
    f = features.double()
    square = f.square().sum(1)
    free = torch.ones(len(f), dtype=torch.bool)
    piles = []
    for size in [len(part) for part in torch.arange(len(f)).tensor_split(min(bins, len(f)))][:at_most]:
        pile: list[int] = []
        # sum over P of |f - p|^2 = |P| |f|^2 - 2 f . sum(p) + sum(|p|^2); the last term is the same for every f.
        count, pull = -int(free.sum()), -f[free].sum(0)
        for _ in range(size):
            gain = count * square - 2 * f @ pull
            best = int(gain.masked_fill(~free, -torch.inf).argmax())
            pile.append(best)
            free[best] = False
            # The row leaves the one sum with a minus and enters the other with a plus.
            count, pull = count + 2, pull + 2 * f[best]
        piles.append(torch.tensor(pile))
    return piles
