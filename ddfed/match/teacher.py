"""Recovery from a teacher: rows that it classifies right and whose statistics are those of the data it was trained on.

No real row is looked at: a batch norm remembers the mean and the variance of what it was shown in training, and rows
are asked to have the same. Everything but the statistics of single classes is post-processing of the teacher.

Sources: Yin, Xing and Shen, SRe2L, NeurIPS 2023 (equations 5 to 8); Yin et al., DeepInversion, CVPR 2020, for the
statistics and image priors; Xiao and He (LPLD), NeurIPS 2024, for statistics of single classes; Du et al. (DWA),
NeurIPS 2024, for perturbed teachers; Shen et al. (DELT), CVPR 2025, for staggered lengths; Zhang et al. (INFER), ICLR
2025, for a teacher of its own for each row of an item.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ddfed.data import Batch
from ddfed.domain import Network
from ddfed.errors import ConfigError
from ddfed.gate import Query
from ddfed.match.base import Cotangent, Judgement, Objective, Precision
from ddfed.store.base import view_of

#: Mean and variance of each channel, (channels,) both.
Moments = tuple[Tensor, Tensor]
GROUPS = ("view", "class", "all")


class TeacherStatistics(Objective):
    """Cross-entropy of a teacher and distance to the statistics that it remembers.

    For each group of rows, after one draw of the augmentation for the group,

        L = CE + weight * sum_l w_l (|mean_l - mean*_l|_2 + variance * |var_l - var*_l|_2) + tv * TV + l2 * |x|_2

    with mean_l and var_l (biased) over the rows and positions of the group of what enters layer l, the norms not
    squared, w_l = ``first`` for the first layer and 1 for others, and starred what the teacher remembers. Groups are
    passed one after another, in the memory of one; their rows have separate derivatives, so that one outer step of Adam
    for all is one step for each, as if each group had been made in a run of its own.

    Options:
        weight: of the distance to the statistics.
        first: weight of the first layer in it.
        variance: weight of the variances in it.
        groups: which rows are passed together: ``view``, one item of each class; ``class``, those of a class; ``all``.
        batch: most rows of a group; larger ones are cut.
        classwise: from 0 to 1, how much of the distance is to the statistics of the rows' own class, in place of those
            of all data; they are asked of the gate once for each teacher, as sums over all rows of a class.
        convolutions: match what enters convolutions too; its statistics are asked of the gate likewise.
        drop: probability that a layer is left out of a step (G-VBSM).
        tv, l2: weights of total variation along the cell axes, and of the length of the rows.
        voters: weights of the drawn teacher and of the pool's expert, both asked to agree, or none for the first alone.
        ascent: steps in which each group's own copy of the teacher climbs the cross-entropy of the first rows, before
            the first step; 0 for the teacher as it is.
        ascent_size: length of such a step.
        divided: row v of an item is judged by teacher v mod N of the run's N (``distill.teacher``) alone, whatever
            network the pool draws; groups are cut where teachers differ (INFER).
        rounds: views start in so many rounds, the first at once; needs groups ``view``.
        delay: outer steps between the starts of rounds.

    Raises:
        ConfigError: an option that means nothing, or a network without batch norms.
    """

    name = "statistics"
    #: groups say which rows meet; a step after each class would move the others by Adam's momentum
    whole_set = True
    defaults = {
        "weight": 0.01,
        "first": 10.0,
        "variance": 1.0,
        "groups": "view",
        "batch": 100,
        "classwise": 0.0,
        "convolutions": False,
        "drop": 0.0,
        "tv": 0.0,
        "l2": 0.0,
        "voters": [],
        "ascent": 0,
        "ascent_size": 0.015,
        "divided": False,
        "rounds": 1,
        "delay": 0,
    }

    def __init__(self, precision: Precision | None = None, **options: Any) -> None:
        super().__init__(precision, **options)
        self._check_options()
        self._known: dict[int, list[ClassSums]] = {}
        self._initial: Tensor | None = None
        self._perturbed: dict[tuple[int, int], dict[str, Tensor]] = {}

    def _check_options(self) -> None:
        given = self.options
        if given["groups"] not in GROUPS:
            raise ConfigError(f"objective 'statistics': groups must be one of {GROUPS}, got {given['groups']!r}")
        for name, low, high in (
            ("weight", 0, math.inf), ("first", 0, math.inf), ("variance", 0, math.inf), ("batch", 1, math.inf),
            ("classwise", 0, 1), ("drop", 0, 0.99), ("tv", 0, math.inf), ("l2", 0, math.inf), ("ascent", 0, math.inf),
            ("ascent_size", 0, math.inf), ("rounds", 1, math.inf), ("delay", 0, math.inf),
        ):  # fmt: skip
            if not low <= given[name] <= high:
                raise ConfigError(f"objective 'statistics': {name} must lie from {low} to {high}, got {given[name]!r}")
        if given["rounds"] > 1 and given["groups"] != "view":
            raise ConfigError(f"objective 'statistics': rounds are of views, and groups is {given['groups']!r}")
        if len(given["voters"]) not in (0, 2):
            raise ConfigError(f"objective 'statistics': voters are two weights or none, got {given['voters']!r}")
        if given["voters"] and given["divided"]:
            raise ConfigError("objective 'statistics': divided rows have one teacher each, so voters must be none")

    def check(self, net: Network) -> None:
        if not batch_norms(net):
            raise ConfigError(
                f"objective 'statistics' matches what batch norms remember, and network {type(net).__name__} has none. "
                f"Choose one with batch norms by distill.network or distill.teacher.networks."
            )

    def __call__(self, judgement: Judgement) -> Cotangent:
        if self.options["ascent"] and self._initial is None:
            self._initial = judgement.x.detach().clone()
        gradient, total = torch.zeros_like(judgement.x), 0.0
        for number, rows in enumerate(self._groups(judgement)):
            x = judgement.x.detach()[rows].requires_grad_()
            seen = self._augmented(x, judgement, number)
            group = _Group(number, rows, judgement.row_class[rows].to(x.device))
            losses = [v.weight * self._loss(v, group, seen, judgement) for v in self._voters(judgement, rows)]
            loss = torch.stack(losses).sum() + self._priors(x, judgement)
            gradient[rows] = torch.autograd.grad(loss, x)[0]
            total += float(loss.detach())
        return Cotangent(gradient, torch.zeros_like(judgement.y) if judgement.y.requires_grad else None, total)

    # --- who looks at which rows ---------------------------------------------------------------------------------

    def _voters(self, judgement: Judgement, rows: Tensor) -> list[_Voter]:
        """Who judges these rows."""
        if self.options["divided"]:
            number = int(self._owner(judgement)[rows[0]])
            net = judgement.teachers()[number]
            self.check(net)
            return [_Voter(number, net, 1.0)]
        self.check(judgement.net)
        number = judgement.place[0]
        if not self.options["voters"]:
            return [_Voter(number, judgement.net, 1.0)]
        if judgement.expert is None:
            raise ConfigError("objective 'statistics': two voters need a pool with an expert, such as 'teachers'")
        self.check(judgement.expert)
        one, two = self.options["voters"]
        # Numbers only tell apart what is remembered of networks; that of an expert is not known, but follows the other.
        return [_Voter(number, judgement.net, one), _Voter(-1 - number, judgement.expert, two)]

    def _groups(self, judgement: Judgement) -> Iterator[Tensor]:
        """Row numbers of each group that is being made at this step."""
        view = view_of(judgement.row_class)
        kind = self.options["groups"]
        key = {"view": view, "class": judgement.row_class, "all": torch.zeros_like(view)}[kind]
        views = int(view.max()) + 1
        for value in key.unique().tolist():
            if kind == "view" and judgement.step < self._start(value, views):
                continue
            rows = torch.nonzero(key == value).flatten()
            owner = self._owner(judgement)[rows]
            for number in owner.unique().tolist():
                yield from rows[owner == number].split(int(self.options["batch"]))

    def _owner(self, judgement: Judgement) -> Tensor:
        """Number of the teacher that judges each row alone; 0 for all where rows are not divided."""
        if not self.options["divided"] or judgement.items is None:
            return torch.zeros_like(judgement.row_class)
        return view_of(judgement.items) % len(judgement.teachers())

    def _start(self, view: int, views: int) -> int:
        """Outer step at which a view begins."""
        return (view * self.options["rounds"] // views) * self.options["delay"]

    def _augmented(self, x: Tensor, judgement: Judgement, number: int) -> Tensor:
        if judgement.augmentation is None:
            return x
        augmentation = judgement.augmentation.at(judgement.progress)
        scope = judgement.classes if len(judgement.classes) == 1 else ()
        draw = augmentation.draw(1, judgement.streams.torch("view", judgement.step, number, *scope))
        return augmentation(x, draw, torch.zeros(len(x), dtype=torch.int64))

    def _weights(self, voter: _Voter, group: _Group) -> dict[str, Tensor] | None:
        """The group's own copy of the teacher, or None for the teacher."""
        if not self.options["ascent"]:
            return None
        key = (voter.number, group.number)
        if key not in self._perturbed:
            assert self._initial is not None
            steps, size = int(self.options["ascent"]), float(self.options["ascent_size"])
            self._perturbed[key] = climbed(voter.net, self._initial[group.rows], group.classes, steps, size)
        return self._perturbed[key]

    # --- what they say -------------------------------------------------------------------------------------------

    def _loss(self, voter: _Voter, group: _Group, x: Tensor, judgement: Judgement) -> Tensor:
        layers, weights = self._layers(voter.net), self._weights(voter, group)
        with evaluating(voter.net), inputs_of([layer.module for layer in layers]) as entered:
            logits = voter.net(x) if weights is None else functional_call(voter.net, weights, (x,))
        loss = F.cross_entropy(logits, group.classes)
        if not self.options["weight"]:
            return loss
        kept = self._kept(len(layers), judgement, group.number)
        distance = torch.zeros((), device=x.device)
        for share, mine, wanted in self._compared(voter, layers, group.classes, judgement):
            for layer, values, moments in zip(layers, entered, wanted):
                if kept[layer.number]:
                    apart = self._distance(moments_of(values[mine]), moments)
                    distance = distance + share * layer.weight * apart
        return loss + self.options["weight"] * distance

    def _layers(self, net: Network) -> list[_Layer]:
        found: list[nn.Module] = [*batch_norms(net)]
        if self.options["convolutions"]:
            found += [m for m in net.modules() if isinstance(m, _ConvNd)]
        first = float(self.options["first"])
        return [_Layer(number, module, first if number == 0 else 1.0) for number, module in enumerate(found)]

    def _kept(self, count: int, judgement: Judgement, number: int) -> list[bool]:
        if not self.options["drop"]:
            return [True] * count
        drawn = torch.rand(count, generator=judgement.streams.torch("layers", judgement.step, number))
        return (drawn >= self.options["drop"]).tolist()

    def _compared(
        self, voter: _Voter, layers: list[_Layer], classes: Tensor, judgement: Judgement
    ) -> Iterator[tuple[float, Tensor, list[Moments]]]:
        """(share, which rows, what their moments should be in each layer) of every comparison."""
        share = float(self.options["classwise"])
        asked = self._statistics(voter, judgement) if share or self.options["convolutions"] else []
        if share < 1:
            everything = torch.ones(len(classes), dtype=torch.bool, device=classes.device)
            yield 1 - share, everything, [_remembered(layer, asked) for layer in layers]
        for c in classes.unique().tolist() if share else ():
            mine = classes == c
            yield share * float(mine.float().mean()), mine, [sums.of(c) for sums in asked]

    def _distance(self, found: Moments, wanted: Moments) -> Tensor:
        mean, variance = (torch.linalg.vector_norm(a - b) for a, b in zip(found, wanted))
        return mean + self.options["variance"] * variance

    def _statistics(self, voter: _Voter, judgement: Judgement) -> list[ClassSums]:
        """Of each layer, asked of the gate once for each teacher."""
        net = voter.net
        if voter.number not in self._known:
            modules = [layer.module for layer in self._layers(net)]
            held = judgement.gate.held()
            widths: list[int] = []

            def contribution(batch: Batch) -> Tensor:
                with evaluating(net), inputs_of(modules) as entered:
                    net(batch.inputs.to(judgement.device))
                parts = [torch.cat([_over_positions(v), _over_positions(v.square())], 1) for v in entered]
                widths[:] = [part.shape[1] for part in parts]
                return torch.cat(parts, 1)

            query = Query("class statistics", held, None)
            answer = judgement.gate.sums(query, contribution, judgement.real_stream())
            halves = [part.chunk(2, 1) for part in answer.means.split(widths, 1)]
            classes = torch.tensor(held)
            self._known[voter.number] = [ClassSums(mean, square, answer.counts, classes) for mean, square in halves]
        return self._known[voter.number]

    def _priors(self, x: Tensor, judgement: Judgement) -> Tensor:
        value = torch.zeros((), device=x.device)
        if self.options["tv"]:
            steps = [torch.linalg.vector_norm(x.diff(dim=axis)) for axis in judgement.gate.info.cell_axes]
            value = value + self.options["tv"] * torch.stack(steps).sum()
        if self.options["l2"]:
            value = value + self.options["l2"] * torch.linalg.vector_norm(x)
        return value

    # --- memory --------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        # Copies of the teacher are many and large; they are climbed again from the first rows.
        known = {str(k): {str(i): vars(one) for i, one in enumerate(layers)} for k, layers in self._known.items()}
        return {"known": known, **({} if self._initial is None else {"initial": self._initial})}

    def load(self, state: Mapping[str, Any]) -> None:
        self._known = {
            int(k): [ClassSums(**layers[str(i)]) for i in range(len(layers))] for k, layers in state["known"].items()
        }
        self._initial, self._perturbed = state.get("initial"), {}


@dataclass(frozen=True)
class _Voter:
    """A teacher, what its voice weighs, and the number under which things are remembered of it."""

    number: int
    net: Network
    weight: float


@dataclass(frozen=True)
class _Group:
    """Rows that are passed together, and their classes."""

    number: int
    rows: Tensor
    classes: Tensor


@dataclass(frozen=True)
class _Layer:
    """A layer whose inputs are compared, and the weight of it."""

    number: int
    module: nn.Module
    weight: float


@dataclass(frozen=True)
class ClassSums:
    """What enters a layer, by class.

    Args:
        mean: (classes held, channels).
        square: mean of the square, (classes held, channels).
        counts: rows of each class.
        classes: which they are.
    """

    mean: Tensor
    square: Tensor
    counts: Tensor
    classes: Tensor

    def of(self, c: int) -> Moments:
        """Mean and variance in class ``c``."""
        at = int(torch.nonzero(self.classes == c).flatten()[0])
        return self.mean[at], (self.square[at] - self.mean[at].square()).clamp(min=0)

    @property
    def together(self) -> Moments:
        """Mean and variance over all classes."""
        share = (self.counts / self.counts.sum())[:, None]
        mean, square = (share * self.mean).sum(0), (share * self.square).sum(0)
        return mean, (square - mean.square()).clamp(min=0)


def moments_of(values: Tensor) -> Moments:
    """Mean and biased variance of each channel, over rows and positions.

    Args:
        values: (rows, channels, *positions).
    """
    axes = [0, *range(2, values.ndim)]
    mean = values.mean(axes)
    return mean, values.var(axes, unbiased=False)


def climbed(net: Network, x: Tensor, classes: Tensor, steps: int, size: float) -> dict[str, Tensor]:
    """Weights of a network after steps of length ``size`` up the cross-entropy of ``x`` (DWA); the network stays.

    Source: Du et al., Diversity-Driven Synthesis: Enhancing Dataset Distillation through Directed Weight Adjustment,
    NeurIPS 2024, equation 9.

    Args:
        net: in place, in evaluation mode while it is asked.
        x: (rows, *item).
        classes: (rows,).
        steps: how many.
        size: Euclidean length of each, over all weights.
    """
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    for _ in range(steps):
        leaves = {name: w.requires_grad_() for name, w in weights.items()}
        with evaluating(net):
            loss = F.cross_entropy(functional_call(net, leaves, (x,)), classes)
        grads = torch.autograd.grad(loss, list(leaves.values()))
        length = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads])).clamp(min=1e-12)
        weights = {name: (w + size / length * g).detach() for (name, w), g in zip(leaves.items(), grads)}
    return weights


@contextmanager
def evaluating(net: Network) -> Iterator[None]:
    """The network in evaluation mode, and afterwards as it was."""
    before = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(before)


@contextmanager
def inputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What enters each of the modules in the passes made inside, in their order in ``modules``."""
    entered: list[Tensor] = [torch.empty(0)] * len(modules)

    def listening(position: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            entered[position] = given[0]

        return hook

    handles = [module.register_forward_pre_hook(listening(i)) for i, module in enumerate(modules)]
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()


def batch_norms(net: nn.Module) -> list[_BatchNorm]:
    """Batch norms that remember the mean and the variance of what entered them, in their order."""
    return [m for m in net.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def _remembered(layer: _Layer, asked: list[ClassSums]) -> Moments:
    """What a batch norm remembers; of another layer what the gate said."""
    if isinstance(layer.module, _BatchNorm):
        assert layer.module.running_mean is not None and layer.module.running_var is not None
        return layer.module.running_mean, layer.module.running_var
    return asked[layer.number].together


def _over_positions(values: Tensor) -> Tensor:
    return values.flatten(2).mean(2) if values.ndim > 2 else values
