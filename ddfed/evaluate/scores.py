"""Scores of DD-Ranking: how much of a result is the items', and how much the labels' and the augmentation's.

Source: Li et al., DD-Ranking: Rethinking the Evaluation of Dataset Distillation, 2025. Accuracies are fractions in
[0, 1]; the released script prints percentages beside formulas that need fractions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ddfed.data import Task
from ddfed.errors import ConfigError, DivergedError
from ddfed.evaluate.protocols import DD_RANKING, Protocol
from ddfed.evaluate.table import Bench, Measurement, Subject, _full, measure, synthetic_subject
from ddfed.store import HardLabels, TeacherLabels

#: Step sizes that every row's training may choose from, on held-out training rows.
STEP_SIZES = (0.001, 0.005, 0.01, 0.05, 0.1)


def hard_label_recovery(full_hard: float, set_hard: float) -> float:
    """HLR: what hard-label training on the set lacks to full data, in [-1, 1]; lower is better."""
    return _fraction(full_hard) - _fraction(set_hard)


def improvement_over_random(set_any: float, random_any: float) -> float:
    """IOR: gain over random items under the set's own labels and settings, in [-1, 1]."""
    return _fraction(set_any) - _fraction(random_any)


def label_robust_score(improvement: float, recovery: float, weight: float = 0.5) -> float:
    """LRS = (e^a - e^-1) / (e - e^-1) with a = weight IOR - (1 - weight) HLR; 0.27 where a is 0."""
    return _squash(_fraction(weight) * improvement - (1 - weight) * recovery)


def augmentation_robust_score(with_augmentation: float, without: float, weight: float = 0.5) -> float:
    """ARS, as LRS of the weighted gains over random items with and without augmentation.

    Args:
        with_augmentation: gain over random items when both are augmented, in [-1, 1].
        without: the same when neither is.
        weight: of the first.
    """
    return _squash(_fraction(weight) * with_augmentation + (1 - weight) * without)


def _squash(value: float) -> float:
    if not -1 <= value <= 1:
        raise ConfigError(f"scores are made of differences of fractions, which lie in [-1, 1]; got {value}")
    return (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))


def _fraction(value: float) -> float:
    if not 0 <= value <= 1:
        raise ConfigError(f"accuracies here are fractions in [0, 1], got {value}; divide percentages by 100")
    return value


@dataclass(frozen=True)
class Ranking:
    """The scores, what they were made from, and how that was measured."""

    rows: Mapping[str, Measurement]
    used: Mapping[str, Any]

    @property
    def scores(self) -> dict[str, float]:
        """HLR, IOR, LRS and ARS, of mean accuracies."""
        mean = {name: row.mean for name, row in self.rows.items()}
        recovery = hard_label_recovery(mean["full, hard"], mean["set, hard"])
        improvement = improvement_over_random(mean["set, own"], mean["random, own"])
        return {
            "HLR": recovery,
            "IOR": improvement,
            "LRS": label_robust_score(improvement, recovery),
            "ARS": augmentation_robust_score(
                improvement_over_random(mean["set, augmented"], mean["random, augmented"]),
                improvement_over_random(mean["set, plain"], mean["random, plain"]),
            ),
        }

    def to_json(self) -> dict[str, Any]:
        rows = {name: row.to_json() for name, row in self.rows.items()}
        return {"scores": self.scores, "used": dict(self.used), "rows": rows}


def ranking(
    bench: Bench,
    network: str,
    own: Protocol,
    epochs: int | None = None,
    step_sizes: Sequence[float] = STEP_SIZES,
    held_out: float = 0.1,
) -> Ranking:
    """Measure what the scores need.

    Departures from the released protocol: the step size of each row is the one whose last epoch is best on rows
    held out of the training data, where the release takes the best epoch on the test split; full data gets as many
    steps as the set; soft-label training is SGD as in the set's own recipe.

    Args:
        bench: the set, its task, and how many networks a row has.
        network: what is trained.
        own: the set's own recipe; with its own labels it is the "any" of the paper.
        epochs: overrides those of every recipe.
        step_sizes: to choose from.
        held_out: share of the training rows that choose.

    Raises:
        ConfigError: the domain has no augmentation, so there is no score of robustness to it.
    """
    choosing, judged = _split(bench, held_out)
    bench = replace(bench, task=judged)
    augment = _augment(bench, own)
    hard = replace(DD_RANKING, augment=augment).with_epochs(epochs)
    own = own.with_epochs(epochs)
    augmented = replace(own, augment=augment, name=f"{own.name}, {augment}")
    plain = replace(own, augment="none", cutmix=0.0, name=f"{own.name}, no augmentation")
    mine, random = bench.synthetic(), _random_alike(bench)
    hard_set = replace(bench.syn, labels=HardLabels(bench.syn.labels.classes, bench.syn.info.num_classes))
    full, full_recipe = _full(hard_set, judged, replace(hard, batch=256), bench.device)
    assert isinstance(full_recipe, Protocol)
    wanted: dict[str, tuple[Subject, Protocol]] = {
        "full, hard": (full, full_recipe),
        "set, hard": (synthetic_subject(hard_set, bench.name, bench.device), hard),
        "set, own": (mine, own),
        "random, own": (random, own),
        "set, augmented": (mine, augmented),
        "random, augmented": (random, augmented),
        "set, plain": (mine, plain),
        "random, plain": (random, plain),
    }
    done: dict[tuple[Subject, str], Measurement] = {}
    rows, chosen = {}, {}
    for name, (subject, recipe) in wanted.items():
        # The own recipe is often the augmented one as well.
        key = (subject, repr(replace(recipe, name="")))
        if key not in done:
            lr = _step_size(bench, choosing, subject, network, recipe, step_sizes)
            done[key] = bench.measure(subject, network, replace(recipe, lr=lr, name=f"{recipe.name} (lr {lr:g})"))
            chosen[name] = lr
        rows[name] = done[key]
    used = {
        "network": network,
        "networks per row": bench.repeats,
        "rows held out to choose step sizes": len(choosing.test),
        "step sizes": list(step_sizes),
        "chosen": chosen,
        "augmentation": augment,
        "test rows": len(judged.test),
        "counts": "the last epoch on the test split",
    }
    return Ranking(rows, used)


def _split(bench: Bench, share: float) -> tuple[Task, Task]:
    """The task that chooses (tested on held-out training rows), and the one that counts (the test split)."""
    if not 0 < share < 1:
        raise ConfigError(f"the share of training rows held out must lie in (0, 1), got {share}")
    train, held, kept = bench.task.train, [], []
    generator = bench.streams.torch("held out")
    for members in train.class_index:
        order = members[torch.randperm(len(members), generator=generator)]
        # At least one row of a class is kept to train on.
        count = min(math.ceil(share * len(order)), max(0, len(order) - 1))
        held.append(order[:count])
        kept.append(order[count:])
    rest, choosing = train.subset(torch.cat(kept).sort().values), train.subset(torch.cat(held).sort().values)
    return replace(bench.task, train=rest, test=choosing), replace(bench.task, train=rest)


def _augment(bench: Bench, own: Protocol) -> str:
    names = [name for name in bench.domain.augmentations if name != "none"]
    if not names:
        raise ConfigError(f"domain {bench.domain.name!r} has no augmentation, so ARS cannot be measured")
    return own.augment if own.augment != "none" else "dsa" if "dsa" in names else names[0]


def _random_alike(bench: Bench) -> Subject:
    """Random items with labels of the set's kind: hard, or a network's answers where the set's labels are soft."""
    labels = bench.syn.labels
    if isinstance(labels, HardLabels):
        return bench.random()
    if isinstance(labels, TeacherLabels):
        return bench.random_taught("random", type(labels), **labels.options)
    return bench.random_taught("random", TeacherLabels)


def _step_size(
    bench: Bench, choosing: Task, subject: Subject, network: str, recipe: Protocol, step_sizes: Sequence[float]
) -> float:
    """The step size whose network does best on the held-out rows; the first of equals."""

    def accuracy(lr: float) -> float:
        how = replace(recipe, lr=lr)
        try:
            return measure(
                subject, choosing, bench.domain, network, how, 1, bench.streams, bench.device, bench.report
            ).mean
        except DivergedError:
            return 0.0  # too large a step size is a bad one, not an error

    return max(step_sizes, key=accuracy)
