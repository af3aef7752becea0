"""Terms that need sums over real rows alone, so that any gate answers them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.errors import ConfigError
from ddfed.gate import Answer
from ddfed.match.base import Judgement
from ddfed.match.terms.base import Real, Scene, SumTerm, Term, View, maps, mean_distance


class Mean(SumTerm):
    """mean: class means of the features (DM).

    Options:
        of: ``features``, ``logits``, or both side by side (FedDM).
        network: ``drawn`` or ``expert``.
        normalise: features of a row are divided by their length first (GCDM); logits are not.
    """

    name = "mean"
    defaults = {"of": ["features"], "network": "drawn", "normalise": False}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sees = tuple(self.options["of"])
        if not self.sees or set(self.sees) - {"features", "logits"}:
            raise ConfigError(f"term {self.name!r}: of must name 'features', 'logits' or both, got {self.sees!r}")

    def statistic(self, view: View) -> Tensor:
        found = {"features": lambda: self._features(view), "logits": lambda: _logits(view)}
        return torch.cat([found[what]() for what in self.sees], 1)

    def _features(self, view: View) -> Tensor:
        return F.normalize(view.features, dim=1) if self.options["normalise"] else view.features


class Logits(Mean):
    """logits: class means of the logits (DataDAM's last term)."""

    name = "logits"
    defaults = {**Mean.defaults, "of": ["logits"]}


class Layers(Term):
    """layers: class means of every stage of the network (CAFE, equation 2).

    Options:
        weights: one for each stage, the features last; the first holds for all stages before as well.
    """

    name = "layers"
    defaults = {"weights": [0.1, 1.0, 1.0], "network": "drawn"}
    sees = ("stages",)

    def contribution(self, real: View) -> Tensor:
        return torch.cat([stage.flatten(1) for stage in [*maps(real, self), real.features]], 1)

    def loss(self, syn: View, real: Real | None) -> Tensor:
        assert isinstance(real, Answer)
        stages = [stage.flatten(1) for stage in [*maps(syn, self), syn.features]]
        wanted = real.means.split([stage.shape[1] for stage in stages], 1)
        losses = [mean_distance(theirs, syn.means(mine)) for theirs, mine in zip(wanted, stages)]
        return torch.stack([weight * loss for weight, loss in zip(self._weights(len(stages)), losses)]).sum()

    def _weights(self, stages: int) -> list[float]:
        given: Sequence[float] = self.options["weights"]
        if not 0 < len(given) <= stages:
            raise ConfigError(f"term 'layers' got {len(given)} weights, and the network has {stages} stages")
        return [given[0]] * (stages - len(given)) + [*given]


class Discrimination(Term):
    """discrimination: cross-entropy of real rows classified by the synthetic class means (CAFE, equation 4).

    L = sum_i CE(C f_i, y_i) with C (classes, width) the synthetic class means: a sum over rows, not a mean. It ties
    classes together, but only through C, and dL/dC = sum_i (p_i - e_i) f_i^T is a sum over real rows. So real data
    is asked for that sum, and the synthetic rows receive it through <dL/dC, C>, class by class.
    """

    name = "discrimination"
    defaults = {"network": "drawn"}

    def factor(self, judgement: Judgement) -> float:
        # Where there is one class in all, nothing is to be told apart and the loss is zero.
        return 0.0 if len(judgement.classes) == len(judgement.gate.held()) == 1 else 1.0

    def prepare(self, scene: Scene) -> None:
        if len(scene.judgement.classes) < 2:
            raise ConfigError(
                "term 'discrimination' tells classes apart and was given one of several. Set distill.scope = 'joint'."
            )
        parts = list(scene.synthetic(self))
        self._classes = tuple(c for view in parts for c in view.classes)
        self._centres = torch.cat([view.means(view.features) for view in parts])

    def contribution(self, real: View) -> Tensor:
        place = torch.tensor([self._classes.index(c) for c in real.classes], device=real.groups.device)[real.groups]
        scores = real.features @ self._centres.T
        gap = scores.softmax(1) - F.one_hot(place, len(self._classes))
        slope = gap.unsqueeze(2) * real.features.unsqueeze(1)
        return torch.cat([F.cross_entropy(scores, place, reduction="none").unsqueeze(1), slope.flatten(1)], 1)

    def receive(self, real: Real) -> None:
        assert isinstance(real, Answer)
        total = real.sums.sum(0).to(self._centres)
        self._value, self._slope = total[0], total[1:].view_as(self._centres)

    def loss(self, syn: View, real: Real | None) -> Tensor:
        slope = self._slope[[self._classes.index(c) for c in syn.classes]]
        felt = (slope * syn.means(syn.features)).sum()
        # For people each class is given an equal share of the value; the gradient is exact.
        return felt - felt.detach() + self._value * len(syn.classes) / len(self._classes)


class Attention(SumTerm):
    """attention: class means of normalised attention maps (DataDAM, equations 2 and 3).

    a(x) = sum over channels of |F(x)|^power, flattened over positions and of length 1 for each row and stage.

    Options:
        power: 4 in the paper, 1 in the released code.
        last: take the last activation as well; the paper does not.
    """

    name = "attention"
    defaults = {"power": 4.0, "last": False, "network": "drawn"}
    sees = ("stages",)

    def statistic(self, view: View) -> Tensor:
        found = maps(view, self)
        found = found if self.options["last"] else found[:-1]
        if not found or any(stage.ndim < 3 for stage in found):
            raise ConfigError(
                "term 'attention' needs activations with positions, from two nonlinearities or more (the last is left "
                "out unless last = true). Take a deeper network (of domain 'image': 'convnet'), or the term 'layers'."
            )
        power = self.options["power"]
        return torch.cat([F.normalize(stage.abs().pow(power).sum(1).flatten(1), dim=1) for stage in found], 1)


class LocalCovariance(SumTerm):
    """local covariance: |C_real - C_syn|_F^2 of the channels of the last map, position by position (IID, eq. 9).

    C = mean over rows of (X - M)(X - M)^T with X (channels, positions) and M the mean of X over rows. It follows
    from two sums over rows, of X X^T and of X.

    X is the features folded to as many channels as the last activation has, which is the map after its pooling.
    """

    name = "local covariance"
    defaults = {"network": "drawn"}
    sees = ("stages",)

    def statistic(self, view: View) -> Tensor:
        x = self._folded(view)
        return torch.cat([(x @ x.transpose(1, 2)).flatten(1), x.flatten(1)], 1)

    def loss(self, syn: View, real: Real | None) -> Tensor:
        assert isinstance(real, Answer)
        channels = self._folded(syn).shape[1]
        rows = torch.bincount(syn.groups, minlength=len(syn.classes))
        if int(rows.min()) < 2:
            raise ConfigError(
                f"term 'local covariance' needs 2 synthetic rows or more of a class, and class "
                f"{syn.classes[int(rows.argmin())]} has 1, whose covariance is zero whatever it is. Take a larger "
                f"distill.ipc, or a store that gives several rows an item ('multi-formation')."
            )
        return mean_distance(_covariances(real.means, channels), _covariances(syn.means(self.statistic(syn)), channels))

    def _folded(self, view: View) -> Tensor:
        channels = maps(view, self)[-1].shape[1]
        if view.features.shape[1] % channels or view.features.shape[1] == channels:
            raise ConfigError(
                f"term 'local covariance' folds the features to the channels of the last activation; {channels} "
                f"channels do not fit a width of {view.features.shape[1]}. Take a network whose features are its last "
                f"map (of domain 'image': 'convnet'), or the term 'covariance'."
            )
        return view.features.unflatten(1, (channels, -1))


def _covariances(means: Tensor, channels: int) -> Tensor:
    """(classes, channels^2) from the class means of X X^T and X side by side."""
    second, first = means[:, : channels**2], means[:, channels**2 :].unflatten(1, (channels, -1))
    return second - (first @ first.transpose(1, 2)).flatten(1)


class Centralisation(Term):
    """centralisation: sum over rows of |g(s) - class mean of g|^2 under a trained network (IID, equation 6).

    The plain form without exponential and threshold, which the authors report to be as good. At one row a class it
    is zero.
    """

    name = "centralisation"
    defaults = {"network": "expert"}
    asks = ""

    def loss(self, syn: View, real: Real | None) -> Tensor:
        return (syn.features - syn.means(syn.features)[syn.groups]).square().sum()


class ClassTerm(Term):
    """class: the label store's loss of the synthetic rows under a network, mean of a class, summed over classes.

    Options:
        network: ``drawn`` (IDM) or ``expert`` (DANCE).
        skilled: times the drawn network's running training accuracy in percent, 0 for an untrained one (IDM).
        hard: cross-entropy to the class an item was made for, whatever its label holds (WMDD).
    """

    name = "class"
    defaults = {"network": "drawn", "skilled": False, "hard": False}
    asks = ""
    sees = ("logits",)

    def factor(self, judgement: Judgement) -> float:
        return judgement.skill if self.options["skilled"] else 1.0

    def prepare(self, scene: Scene) -> None:
        self._label_loss = scene.judgement.label_loss

    def loss(self, syn: View, real: Real | None) -> Tensor:
        assert syn.y is not None
        if self.options["hard"]:
            own = torch.tensor(syn.classes, device=syn.groups.device)[syn.groups]
            per_row = F.cross_entropy(_logits(syn), own, reduction="none")
        else:
            per_row = self._label_loss(_logits(syn), syn.y)
        return syn.means(per_row.unsqueeze(1)).sum()


def _logits(view: View) -> Tensor:
    assert view.logits is not None
    return view.logits
