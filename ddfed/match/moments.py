"""Matching moments of features: DM, IDM and FedDM are choices of this one engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.data import Batch
from ddfed.domain import Draw, Network
from ddfed.errors import ConfigError
from ddfed.match.base import Cotangent, Judgement, Objective, real_side


def class_means(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Mean of the rows of each group.

    Args:
        values: (rows, width).
        groups: group of each row, (rows,), in ``range(count)``.
        count: number of groups; each must have at least one row.

    Returns:
        (count, width), differentiable in ``values``.
    """
    sums = values.new_zeros(count, values.shape[1]).index_add(0, groups, values)
    return sums / torch.bincount(groups, minlength=count).to(values).unsqueeze(1)


def mean_distance(real: Tensor, syn: Tensor) -> Tensor:
    """Squared distance of class means, summed over classes and dimensions.

    The sum, never the mean: the published pixel step size of 1 assumes it (Zhao and Bilen, Dataset
    Condensation with Distribution Matching, WACV 2023, equation 5 and its code).

    Args:
        real: (classes, width).
        syn: (classes, width), differentiable.

    Raises:
        ConfigError: the shapes differ.
    """
    if real.shape != syn.shape:
        raise ConfigError(
            f"real and synthetic means must agree in shape, got {tuple(real.shape)} and {tuple(syn.shape)}"
        )
    return (real - syn).square().sum()


#: Rows of a compiled pass; the last one is padded.
_COMPILED_ROWS = 16


def _tap(net: Network, x: Tensor, logits: bool) -> list[Tensor]:
    features = net.embed(x)
    return [features, net.head(features)] if logits else [features]


@cache
def _compiled_tap() -> Callable[[Network, Tensor, bool], list[Tensor]]:
    # Made on demand: importing the compiler takes a second. Networks of one structure share the code.
    return torch.compile(_tap, dynamic=False)


class MeanMatching(Objective):
    """Distance of class-mean features between real and synthetic rows under one network.

    All classes go through the network together. This is exact as long as rows do not influence each other,
    so networks that mix rows (BatchNorm) are refused. The published code runs the classes one by one.

    Options:
        rows: real rows per class and step.
        top_up: draw with replacement where a class has fewer.
        logits: match mean logits as well, with equal weight (FedDM).
        ce_weight: add cross-entropy of the synthetic rows under the network, times this, times the
            network's running training accuracy in percent (IDM).
        syn_chunk: synthetic rows per forward and backward pass. The loss is a sum over classes, so whole
            classes can pass one after the other; small chunks stay in the cache.
    """

    name = "mean"
    defaults = {"rows": 256, "top_up": False, "logits": False, "ce_weight": 0.0, "syn_chunk": 128}

    def __call__(self, judgement: Judgement) -> Cotangent:
        j = judgement
        if j.net.mixes_rows and len(j.classes) > 1:
            raise ConfigError(
                "this network has BatchNorm, which mixes rows: matching all classes in one forward would be "
                "another method. Use a network with instance norm ('convnet') or step class by class."
            )
        draw = j.draw_siamese()
        real = self._real_means(j, draw).to(j.device)
        grad, loss = torch.zeros_like(j.x), 0.0
        targets_grad = torch.zeros_like(j.y) if j.y.requires_grad else None
        for part in self._chunks(j):
            piece = self._judge(j, draw, part, real)
            grad += piece.x
            loss += piece.loss
            if targets_grad is not None and piece.y is not None:
                targets_grad += piece.y
        return Cotangent(grad, targets_grad, loss)

    def _real_means(self, j: Judgement, draw: Draw | None) -> Tensor:
        def contribution(batch: Batch) -> Tensor:
            x = batch.inputs.to(j.device)
            if draw is not None and j.augmentation is not None:
                x = j.augmentation(x, draw, batch.classes)
            with real_side(self.precision, j.device):
                tapped = self._tap(j.net, x, self.options["logits"])
            return torch.cat([t.to(torch.float32) for t in tapped], 1)

        query = j.ask("class-mean features", self.options["rows"], top_up=self.options["top_up"])
        return j.gate.sums(query, contribution, j.real_stream()).means

    def _tap(self, net: Network, x: Tensor, logits: bool) -> list[Tensor]:
        """Features of a network, and logits if wanted, from one pass."""
        if not self.precision.compiled or net.mixes_rows or not len(x):
            return _tap(net, x, logits)
        # Every compiled pass has the same number of rows. Code specialised by the history of a process would
        # make results depend on that history, and so would torch's limit on the number of specialisations.
        padded = F.pad(x, [0] * (2 * x.ndim - 1) + [-len(x) % _COMPILED_ROWS])
        tapped = zip(*(_compiled_tap()(net, part, logits) for part in padded.split(_COMPILED_ROWS)))
        return [torch.cat(parts)[: len(x)] for parts in tapped]

    def _chunks(self, j: Judgement) -> list[tuple[int, ...]]:
        """Classes in groups whose synthetic rows fit a chunk; the cross-entropy term splits by rows as well."""
        sizes = torch.bincount(j.row_class, minlength=j.gate.info.num_classes).tolist()
        parts: list[list[int]] = []
        filled = self.options["syn_chunk"]
        for c in j.classes:
            if filled + sizes[c] > self.options["syn_chunk"]:
                parts.append([])
                filled = 0
            parts[-1].append(c)
            filled += sizes[c]
        return [tuple(part) for part in parts]

    def _judge(self, j: Judgement, draw: Draw | None, part: tuple[int, ...], real: Tensor) -> Cotangent:
        position = torch.full((j.gate.info.num_classes,), -1)
        position[list(part)] = torch.arange(len(part))
        rows = torch.nonzero(position[j.row_class] >= 0).flatten()
        x = j.x[rows]
        if draw is not None and j.augmentation is not None:
            x = j.augmentation(x, draw, j.row_class[rows])
        need_logits = bool(self.options["logits"] or (self.options["ce_weight"] and j.skill))
        tapped = self._tap(j.net, x, need_logits)
        values = torch.cat(tapped, 1) if self.options["logits"] else tapped[0]
        groups = position[j.row_class[rows]].to(j.device)
        wanted = real[[j.classes.index(c) for c in part]]
        loss = mean_distance(wanted, class_means(values, groups, len(part)))
        learned = j.y if j.y.requires_grad else None
        if self.options["ce_weight"] and j.skill:
            # Mean over the rows of a class, summed over classes: the published code steps class by class.
            per_row = j.label_loss(tapped[1], j.y[rows]).unsqueeze(1)
            loss = loss + self.options["ce_weight"] * j.skill * class_means(per_row, groups, len(part)).sum()
        elif learned is not None:
            loss = loss + 0.0 * learned.sum()  # keeps autograd defined when no term looks at the labels
        return Cotangent.of(loss, j.x, learned)
