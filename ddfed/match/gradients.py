"""Matching gradients: DC, DSA, DCC, IDC, DREAM, Acc-DD and LCMat are choices of this one engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vjp, vmap

from ddfed.data import Batch
from ddfed.domain import Draw, Network
from ddfed.errors import ConfigError, DataError, one_of, suggest
from ddfed.gate import Query
from ddfed.match.base import Cotangent, FeaturesAndLogits, Judgement, Objective, Precision

RowLoss = Callable[[Tensor, Tensor], Tensor]
Distance = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


# --- distances of two lists of gradients, one tensor for each matched weight -------------------------------------


def row_cosines(real: Sequence[Tensor], syn: Sequence[Tensor]) -> Tensor:
    """Sum over output rows of one minus the cosine of the two rows.

    A row is what leads to one output unit: a tensor is read as (outputs, everything else).

    Source: Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021, equation 9, with the
    1e-6 of its code.
    """
    total = torch.zeros((), device=syn[0].device)
    for g, h in zip((t.flatten(1) for t in real), (t.flatten(1) for t in syn)):
        norms = torch.linalg.vector_norm(g, dim=1) * torch.linalg.vector_norm(h, dim=1)
        total = total + (1 - (g * h).sum(1) / (norms + 1e-6)).sum()
    return total


def rows_and_size(real: Sequence[Tensor], syn: Sequence[Tensor], size: float) -> Tensor:
    """(1 - size) of `row_cosines` and ``size`` of the sum of the lengths of the rows' differences.

    Source: Zhang et al., Two Trades is not Baffled (CTRL), 2024, equation 6; size .9 on Cora.
    """
    lengths = [torch.linalg.vector_norm((g - h).flatten(1) + 1e-12, dim=1).sum() for g, h in zip(real, syn)]
    return (1 - size) * row_cosines(real, syn) + size * torch.stack(lengths).sum()


def squared(real: Sequence[Tensor], syn: Sequence[Tensor]) -> Tensor:
    """Sum of squared differences (IDC on colour images; the ``mse`` of DC, which is a sum as well)."""
    return torch.stack([(g - h).square().sum() for g, h in zip(real, syn)]).sum()


def absolute(real: Sequence[Tensor], syn: Sequence[Tensor]) -> Tensor:
    """Sum of absolute differences (IDC on grey images)."""
    return torch.stack([(g - h).abs().sum() for g, h in zip(real, syn)]).sum()


def whole_cosine(real: Sequence[Tensor], syn: Sequence[Tensor]) -> Tensor:
    """One minus the cosine of all gradients as one vector (the ``cos`` of DC)."""
    g, h = (torch.cat([t.flatten() for t in side]) for side in (real, syn))
    return 1 - (g * h).sum() / (torch.linalg.vector_norm(g) * torch.linalg.vector_norm(h) + 1e-6)


DISTANCES: dict[str, Distance] = {
    "rows": row_cosines,
    "rows+size": partial(rows_and_size, size=0.9),
    "mse": squared,
    "l1": absolute,
    "cosine": whole_cosine,
}
LAYERS = ("weights", "hidden", "all")


# --- what is matched ---------------------------------------------------------------------------------------------


class Statistics(NamedTuple):
    """Weighted sums over rows; whatever is matched is a function of them.

    Args:
        gradients: of the loss, one for each matched weight.
        moments: first and second moments, element by element, of the last layer's gradients of single rows, each
            (classes, features + 1); empty when the curvature is not matched.
    """

    gradients: tuple[Tensor, ...]
    moments: tuple[Tensor, ...]


@dataclass(frozen=True)
class Gap:
    """How far apart two sides are.

    Args:
        distance: of the gradients.
        curvature: radius rho of LCMat's term; 0 for none.
    """

    distance: Distance
    curvature: float = 0.0

    def __call__(self, real: Statistics, syn: Statistics) -> Tensor:
        value = self.distance(real.gradients, syn.gradients)
        if not self.curvature:
            return value
        # Shin et al., LCMat, AISTATS 2023: the variance of the gradients of single rows stands in for the Hessian.
        variances = [second - first.square() for first, second in (real.moments, syn.moments)]
        return value + 0.5 * self.curvature * (variances[0] - variances[1]).abs().sum()


def last_layer(features: Tensor, logits: Tensor, y: Tensor, row_loss: RowLoss) -> tuple[Tensor, Tensor]:
    """Factors of the last layer's gradient of each row: it is the outer product of the two.

    With cross-entropy the first is softmax(logits) - y: no gradient of a single row has to be taken.

    Returns:
        The derivative by the logits, (rows, classes), and the features with a 1 for the bias, (rows, features + 1).
    """
    residual = grad(lambda z: row_loss(z, y).sum())(logits)
    return residual, torch.cat([features, features.new_ones(len(features), 1)], 1)


def statistics(
    tap: nn.Module, weights: Mapping[str, Tensor], x: Tensor, y: Tensor, share: Tensor, row_loss: RowLoss, gap: Gap
) -> Statistics:
    """Statistics of some rows, differentiable in rows and targets.

    Args:
        tap: gives features and logits.
        weights: those whose gradients are matched, by name in ``tap``.
        x: (rows, *item).
        y: targets of ``row_loss``.
        share: weight of each row, (rows,).
        row_loss: (logits, targets) -> (rows,).
        gap: says whether moments are wanted.
    """

    def loss(values: Mapping[str, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        features, logits = functional_call(tap, dict(values), (x,))
        return (share * row_loss(logits, y)).sum(), (features, logits)

    gradients, (features, logits) = grad(loss, has_aux=True)(dict(weights))
    moments: tuple[Tensor, ...] = ()
    if gap.curvature:
        residual, inputs = last_layer(features, logits, y, row_loss)
        weighted = residual * share.unsqueeze(1)
        moments = weighted.T @ inputs, (weighted * residual).T @ inputs.square()
    return Statistics(tuple(gradients.values()), moments)


def judge(
    tap: nn.Module,
    weights: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    share: Tensor,
    real: Statistics,
    row_loss: RowLoss,
    gap: Gap,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Gaps of several groups of rows, each to its real side, and their derivatives by rows and learned targets.

    All groups pass together: the group axis is folded into the rows wherever weights are shared.

    Args:
        tap, weights, row_loss, gap: see `statistics`.
        x: (groups, rows, *item).
        y: (groups, rows, ...); differentiated if floating.
        share: (groups, rows), zero for rows that only fill up.
        real: with a leading axis of groups.
    """

    def value(x: Tensor, y: Tensor, share: Tensor, real: Statistics) -> Tensor:
        return gap(real, statistics(tap, weights, x, y, share, row_loss, gap))

    return vmap(grad_and_value(value, argnums=_leaves(y)))(x, y, share, real)


def judge_together(
    tap: nn.Module,
    weights: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    shares: Tensor,
    real: Statistics,
    row_loss: RowLoss,
    gap: Gap,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """As `judge`, for groups of rows that a network must see together: one forward pass, and a backward for each group.

    Args:
        x, y: all rows.
        shares: of each row in each group, (groups, rows).
    """

    def value(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        def losses(values: Mapping[str, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            features, logits = functional_call(tap, dict(values), (x,))
            return row_loss(logits, y), (features, logits)

        found: Any = vjp(losses, dict(weights), has_aux=True)
        _, backward, seen = found
        features, logits = seen
        gradients = tuple(vmap(lambda share: backward(share)[0])(shares).values())
        moments: tuple[Tensor, ...] = ()
        if gap.curvature:
            residual, inputs = last_layer(features, logits, y, row_loss)
            weighted = shares.unsqueeze(2) * residual
            moments = weighted.mT @ inputs, (weighted * residual).mT @ inputs.square()
        gaps = vmap(gap)(real, Statistics(gradients, moments))
        return gaps.sum(), gaps

    return grad(value, argnums=_leaves(y), has_aux=True)(x, y)


def pull(
    tap: nn.Module,
    weights: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    share: Tensor,
    cotangent: Statistics,
    row_loss: RowLoss,
    gap: Gap,
) -> tuple[Tensor, ...]:
    """Derivatives by rows and learned targets of the statistics' inner product with ``cotangent``."""

    def product(x: Tensor, y: Tensor) -> Tensor:
        found = statistics(tap, weights, x, y, share, row_loss, gap)
        pairs = zip((*found.gradients, *found.moments), (*cotangent.gradients, *cotangent.moments))
        return torch.stack([(a * b).sum() for a, b in pairs]).sum()

    return grad(product, argnums=_leaves(y))(x, y)


def _leaves(y: Tensor) -> tuple[int, ...]:
    return (0, 1) if y.is_floating_point() else (0,)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Made on demand: importing the compiler takes a second. Networks of one structure share the code.
    return torch.compile(function, dynamic=False)


# --- the engine --------------------------------------------------------------------------------------------------


class GradientMatching(Objective):
    """Distance between the gradients that real and synthetic rows of a class give to the network's weights.

    Both sides are means over rows. The real side is a constant. The synthetic side is differentiated twice, with
    `torch.func`, several classes at once as long as they fit in a chunk; a class that does not is taken in parts:
    first its gradient, then the pull-back of the distance's cotangent part by part, which is the same derivative at
    the cost of one more first-order pass. Measured on two cores, classes one by one and together took the same time
    for ConvNet-3-128 on 3x32x32 (0.76 s for ten classes of ten); for small networks on small rows together is two
    to four times faster.

    ``torch.compile`` takes the synthetic side alone, class by class: measured there, 0.6 times the time of eager code,
    while the real side (one first-order pass, bound by its convolutions) gained nothing. Its code is made anew for each
    number of rows of a class.

    Source: Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021, equation 9.

    Options:
        distance: ``rows`` (cosines of output rows, DC), ``mse`` and ``l1`` (sums, IDC), ``cosine`` (one vector),
            ``rows+size`` (cosines and lengths, CTRL), whose weight of lengths is ``size``.
        layers: ``weights``: every tensor with two axes or more (DC); ``hidden``: the same without the head (IDC);
            ``all``: biases and norms as well.
        rows: real rows per class and step.
        top_up: draw with replacement where a class has fewer.
        syn_rows: most decoded rows of a class that are judged in a step, drawn at random; None for all.
        joint: one gradient over all judged classes instead of one for each (DCC).
        warm_up: [outer, inner]: class by class for all that while fewer networks than ``outer`` were begun and the
            network has seen fewer than ``inner`` steps; None for joint from the start.
        curvature: weight rho of the difference of variances of the last layer's gradients (LCMat); 0 for none.
        syn_chunk: synthetic rows that are differentiated twice at once; bounds the memory, changes nothing else.
        reuse: outer steps made against the same real gradients, under the same augmentation (FedLAP's boosting); what
            a network was asked is forgotten when another is begun. Behind a private gate they cost one answer.
    """

    name = "gradient"
    second_order = True
    takes_coupled = True
    defaults = {
        "distance": "rows",
        "size": 0.9,
        "layers": "weights",
        "rows": 256,
        "top_up": False,
        "syn_rows": None,
        "joint": False,
        "warm_up": None,
        "curvature": 0.0,
        "syn_chunk": 32,
        "reuse": 1,
    }

    #: options that a subclass does not leave open
    fixed: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, precision: Precision | None = None, **options: Any) -> None:
        super().__init__(precision, **options)
        self.options = {**GradientMatching.defaults, **self.options, **self.fixed}
        for key, known in (("distance", tuple(DISTANCES)), ("layers", LAYERS)):
            given = self.options[key]
            if given not in known:
                raise ConfigError(
                    f"objective {self.name!r} has no {key} {given!r}.{suggest(str(given), known)} "
                    f"Possible: {one_of(known)}"
                )
        for key in ("rows", "syn_rows", "syn_chunk", "reuse"):
            given = self.options[key]
            if (given is None and key in ("syn_chunk", "reuse")) or (given is not None and given < 1):
                raise ConfigError(f"objective {self.name!r}: {key} must be at least 1, got {given}")
        if self.options["curvature"] < 0:
            raise ConfigError(f"objective 'gradient': curvature must not be negative, got {self.options['curvature']}")
        if self.options["warm_up"] is not None and len(self.options["warm_up"]) != 2:
            raise ConfigError(
                f"objective 'gradient': warm_up is [outer, inner], such as [250, 10]; got {self.options['warm_up']}"
            )
        if not 0 <= self.options["size"] <= 1:
            raise ConfigError(f"objective 'gradient': size must be from 0 to 1, got {self.options['size']}")
        distance = DISTANCES[self.options["distance"]]
        if self.options["distance"] == "rows+size":
            distance = partial(rows_and_size, size=float(self.options["size"]))
        self._gap = Gap(distance, float(self.options["curvature"]))
        self._answered: dict[tuple[int, ...], Statistics] = {}
        self._asked_at = -1

    def __call__(self, judgement: Judgement) -> Cotangent:
        j = self._as_asked(judgement)
        tap = FeaturesAndLogits(j.net)
        weights = self._matched(tap, j.net)
        draw = j.draw_siamese()
        members = self._members(j)
        chosen = torch.cat(members)
        if j.coupled:
            self._check_together(j, chosen)
        rows = j.x[chosen]
        if draw is not None and j.augmentation is not None:
            rows = j.augmentation(rows, draw, j.row_class[chosen])
        syn = _Syn(rows.detach(), j.y.detach()[chosen], [len(m) for m in members])
        query = j.ask("class gradients", self.options["rows"], top_up=self.options["top_up"])
        stream = j.real_stream()
        loss = 0.0
        with _explained(self.options["syn_chunk"]):
            if j.coupled:
                loss += self._judge_coupled(tap, weights, j, syn, query, stream)
            elif self._joint(j):
                parts = [self._answer(j, tap, weights, draw, replace(query, classes=(c,)), stream) for c in j.classes]
                real = _map(lambda *of: torch.cat(of).mean(0, keepdim=True), *parts)
                loss += self._judge(tap, weights, j, syn, [range(len(j.classes))], real)
            else:
                # Compiled code runs class by class: together it took more than twice as long on a CPU.
                for part in syn.passes(1 if self.precision.compiled else self.options["syn_chunk"]):
                    classes = tuple(j.classes[i] for i in part)
                    real = self._answer(j, tap, weights, draw, replace(query, classes=classes), stream)
                    loss += self._judge(tap, weights, j, syn, [range(i, i + 1) for i in part], real)
        x = torch.autograd.grad(rows, j.x, syn.grad_x)[0]
        y = torch.zeros_like(j.y).index_add_(0, chosen.to(j.y.device), syn.grad_y) if j.y.requires_grad else None
        return Cotangent(x, y, loss)

    def _as_asked(self, judgement: Judgement) -> Judgement:
        """The judgement of the step whose real gradients still hold: same rows, same augmentation."""
        step = judgement.step - judgement.place[1] % self.options["reuse"]
        if step != self._asked_at or self.options["reuse"] == 1:
            self._answered, self._asked_at = {}, step
        return judgement if step == judgement.step else replace(judgement, step=step)

    def _answer(
        self,
        j: Judgement,
        tap: FeaturesAndLogits,
        weights: Mapping[str, Tensor],
        draw: Draw | None,
        query: Query,
        stream: torch.Generator,
    ) -> Statistics:
        """`_real`, asked anew where nothing is to be used again."""
        if self.options["reuse"] == 1:
            return self._real(j, tap, weights, draw, query, stream)
        if query.classes not in self._answered:
            self._answered[query.classes] = self._real(j, tap, weights, draw, query, stream)
        return self._answered[query.classes]

    def _check_together(self, j: Judgement, chosen: Tensor) -> None:
        """Refuse to take coupled rows apart."""
        if self.options["syn_rows"] is not None:
            raise ConfigError("objective 'gradient': syn_rows draws rows that must stay together; set syn_rows = null")
        if not torch.equal(chosen, torch.arange(len(j.x))):
            raise ConfigError(
                "objective 'gradient' takes coupled rows class after class, and these are in no such order"
            )

    def _judge_coupled(
        self,
        tap: FeaturesAndLogits,
        weights: Mapping[str, Tensor],
        j: Judgement,
        syn: _Syn,
        query: Query,
        stream: torch.Generator,
    ) -> float:
        """All classes of coupled rows at once; notes the derivatives in ``syn``, returns the sum."""
        real = self._answer(j, tap, weights, None, query, stream)
        groups = [range(i, i + 1) for i in range(len(j.classes))]
        if self._joint(j):
            real, groups = _map(lambda of: of.mean(0, keepdim=True), real), [range(len(j.classes))]
        # Engines number rows class after class, which is the order a coupled store keeps them in.
        index, share = syn.stacked(groups)
        shares = torch.zeros(len(groups), len(syn.x)).scatter_add_(1, index, share).to(j.device)
        grads, values = self._run(judge_together)(tap, weights, syn.x, syn.y, shares, real, j.label_loss, self._gap)
        syn.note(torch.arange(len(syn.x), device=j.device), grads)
        return float(values.sum())

    def _matched(self, tap: FeaturesAndLogits, net: Network) -> dict[str, Tensor]:
        """The weights that take part, by their names in ``tap``; refuses what the method cannot be held to."""
        if net.mixes_rows:
            raise ConfigError(
                "this network has BatchNorm, which mixes rows: the gradient of a class would depend on what else is "
                "in the batch, and two sides of unlike size could not agree. Use a network with instance norm "
                "('convnet') or without a norm."
            )
        if self._gap.curvature and not isinstance(net.head, nn.Linear):
            raise ConfigError(
                f"the curvature term needs a linear head, and this network's is {type(net.head).__name__}; "
                "set distill.objective_options.curvature = 0 or take another network"
            )
        layers = self.options["layers"]
        head = {id(p) for p in net.head.parameters()} if layers == "hidden" else set()
        axes = 0 if layers == "all" else 2
        found = {n: p.detach() for n, p in tap.named_parameters() if p.ndim >= axes and id(p) not in head}
        if not found:
            raise ConfigError(
                f"this network has no tensor with two axes or more to match with layers = {self.options['layers']!r}; "
                "layers = 'weights' takes the head as well"
            )
        return found

    def _members(self, j: Judgement) -> list[Tensor]:
        """The rows of each judged class that take part in this step."""
        most, found = self.options["syn_rows"], []
        for c in j.classes:
            members = torch.nonzero(j.row_class == c).flatten()
            if most is not None and len(members) > most:
                generator = j.streams.torch("syn rows", j.step, c)
                members = members[torch.randperm(len(members), generator=generator)[:most].sort().values]
            found.append(members)
        return found

    def _joint(self, j: Judgement) -> bool:
        if not self.options["joint"]:
            return False
        outer, inner = self.options["warm_up"] or (0, 0)
        return not (j.place[0] < outer and j.place[1] < inner)

    def _real(
        self,
        j: Judgement,
        tap: FeaturesAndLogits,
        weights: Mapping[str, Tensor],
        draw: Draw | None,
        query: Query,
        stream: torch.Generator,
    ) -> Statistics:
        """Means over the real rows of each class of the query, with a leading axis of classes."""
        leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
        head = j.net.head
        forms: list[Tensor] = []
        if self._gap.curvature:
            assert isinstance(head, nn.Linear)
            # Bilinear forms at zero: their gradients are the sums that the moments are, so one query gives all.
            zeros = torch.zeros(head.out_features, head.in_features + 1, device=j.device)
            forms = [zeros.clone().requires_grad_() for _ in range(2)]

        def loss(batch: Batch) -> Tensor:
            x = batch.inputs.to(j.device)
            if draw is not None and j.augmentation is not None:
                x = j.augmentation(x, draw, batch.classes)
            with torch.autocast(j.device.type, torch.bfloat16, enabled=self.precision.bf16):
                features, logits = functional_call(tap, leaves, (x,))
            classes, logits = batch.classes.to(j.device), logits.to(torch.float32)
            each = F.cross_entropy(logits, classes, reduction="none")
            if forms:
                features = features.detach().to(torch.float32)
                residual, inputs = last_layer(features, logits.detach(), classes, _cross_entropy)
                for power, form in enumerate(forms, 1):
                    each = each + ((residual**power @ form) * inputs**power).sum(1)
            return each

        sums, counts = j.gate.class_gradients(query, [*leaves.values(), *forms], loss, stream)
        empty = [c for c, count in zip(query.classes, counts.tolist()) if not count]
        if empty:
            raise DataError(
                f"there is no real row of class {j.gate.info.classes[empty[0]]!r} to take a gradient of; "
                "distil classes that are held, or raise distill.min_count"
            )
        means = [s / counts.to(s).view(-1, *[1] * (s.ndim - 1)) for s in sums]
        return Statistics(tuple(means[: len(leaves)]), tuple(means[len(leaves) :]))

    def _run(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return _compiled(function) if self.precision.compiled else function

    def _judge(
        self,
        tap: FeaturesAndLogits,
        weights: Mapping[str, Tensor],
        j: Judgement,
        syn: _Syn,
        groups: Sequence[range],
        real: Statistics,
    ) -> float:
        """Judge groups of classes, each by the mean of its rows; notes the derivatives in ``syn``, returns the sum."""
        index, share = syn.stacked(groups)
        index, share = index.to(j.device), share.to(j.device)
        if index.numel() <= self.options["syn_chunk"] or len(groups) > 1:
            grads, values = self._run(judge)(
                tap, weights, syn.x[index], syn.y[index], share, real, j.label_loss, self._gap
            )
            syn.note(index.flatten(), [g.flatten(0, 1) for g in grads])
            return float(values.sum())
        # Too many rows to differentiate twice at once: the statistics first, then the pull-back, part by part.
        parts = list(zip(index[0].split(self.options["syn_chunk"]), share[0].split(self.options["syn_chunk"])))
        total: Statistics | None = None
        for rows, weight in parts:
            found = self._run(statistics)(tap, weights, syn.x[rows], syn.y[rows], weight, j.label_loss, self._gap)
            total = found if total is None else _map(torch.add, total, found)
        cotangent, value = grad_and_value(lambda found: self._gap(_map(lambda t: t[0], real), found))(total)
        for rows, weight in parts:
            grads = self._run(pull)(tap, weights, syn.x[rows], syn.y[rows], weight, cotangent, j.label_loss, self._gap)
            syn.note(rows, grads)
        return float(value)


class _Syn:
    """The synthetic rows that take part, class after class, and their derivatives as far as they are known.

    Args:
        x: (rows, *item), augmented.
        y: their targets.
        sizes: rows of each judged class.
    """

    def __init__(self, x: Tensor, y: Tensor, sizes: list[int]) -> None:
        self.x, self.y, self.sizes = x, y, sizes
        self.grad_x, self.grad_y = torch.zeros_like(x), torch.zeros_like(y)
        self._at = torch.arange(len(x)).split(sizes)

    def passes(self, chunk: int) -> Iterator[list[int]]:
        """Positions of judged classes that go together: as many as fit in ``chunk`` rows, and about evenly."""
        together = max(1, chunk // max(self.sizes))
        passes = -(-len(self.sizes) // together)
        for part in torch.arange(len(self.sizes)).chunk(passes):
            yield part.tolist()

    def stacked(self, groups: Sequence[range]) -> tuple[Tensor, Tensor]:
        """Row numbers of the groups of classes, (groups, rows), and the share of each in its group's mean.

        Groups with fewer rows are filled up with their first, which then has a share of its own and shares of 0.
        """
        members = [torch.cat([self._at[i] for i in group]) for group in groups]
        longest = max(map(len, members))
        index = torch.stack([torch.cat([m, m[:1].expand(longest - len(m))]) for m in members])
        share = torch.stack([(torch.arange(longest) < len(m)) / len(m) for m in members])
        return index, share

    def note(self, rows: Tensor, grads: Sequence[Tensor]) -> None:
        """Add derivatives of ``rows``: by the rows, and by their targets if these are learned."""
        self.grad_x.index_add_(0, rows, grads[0])
        if len(grads) > 1:
            self.grad_y.index_add_(0, rows, grads[1])


def _map(function: Callable[..., Tensor], *of: Statistics) -> Statistics:
    return Statistics(*(tuple(function(*tensors) for tensors in zip(*parts)) for parts in zip(*of)))


def _cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    return F.cross_entropy(logits, classes, reduction="none")


#: What torch says when an operation cannot be differentiated twice, or not by `torch.func`.
_NO_SECOND_ORDER = ("derivative for", "once_differentiable", "setup_context", "double backward")


@contextmanager
def _explained(chunk: int) -> Iterator[None]:
    """Say what can be done about errors that come from deep within."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"no memory for a step of gradient matching with syn_chunk = {chunk}. Set a smaller "
            f"distill.objective_options.syn_chunk (down to 1), or a smaller distill.chunk for the real side. ({error})"
        ) from error
    except RuntimeError as error:
        if "allocate memory" in str(error):
            raise ConfigError(
                f"no memory for a step of gradient matching with syn_chunk = {chunk}. Set a smaller "
                f"distill.objective_options.syn_chunk (down to 1), or a smaller distill.chunk for the real side."
            ) from error
        if any(words in str(error) for words in _NO_SECOND_ORDER):
            raise ConfigError(
                "gradient matching differentiates the network twice, and an operation of this one does not allow it: "
                f"{error} Take another network, or match features instead (method 'dm')."
            ) from error
        raise
