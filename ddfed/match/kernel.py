"""Matching by regression: ridge regression fitted on the synthetic rows is judged on real ones.

KIP, FRePo and RFAD are choices of `RidgeMatching`, which differ in the kernel. `ClosedRidge` needs no descent: for a
linear model the best set is known.

What real rows see of the synthetic set is small and fixed within a step: a *solution*. Real rows give their gradient
with respect to it through the gate, chunk by chunk; the rest, from the solution back to rows and targets, needs no real
row. The derivative is that of the whole expression, exactly.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.data import Batch
from ddfed.domain import Network, reset
from ddfed.errors import ConfigError, DataError, DivergedError, one_of, suggest
from ddfed.gate import Query
from ddfed.kernels import Kernel, kernel_named, ridge_factor
from ddfed.match.base import Cotangent, Judgement, Objective, Precision, real_side
from ddfed.seeds import isolated

#: Rows -> features, (rows, width) float64.
FeatureMap = Callable[[Tensor], Tensor]

LOSSES = ("mse", "platt")


# --- what stands for the set at the gate -------------------------------------------------------------------------


class Solution(ABC):
    """A ridge regression of ``y`` on ``x``, solved in float64, and the way back to both.

    The fitted coefficients c solve A(x) c = b(x, y). The derivative of a number by c is pulled back without
    differentiating the factorisation: with v = A^-1 dL/dc, dL/d(x, y) = d/d(x, y) <v, b - A c> at constant v and c.

    Attributes:
        leaves: float64 tensors that predictions are differentiated by.
    """

    leaves: list[Tensor]

    @abstractmethod
    def predict(self, inputs: Tensor) -> Tensor:
        """Scores of the classes of some rows, (rows, classes) float64, differentiable in `leaves` alone."""

    @abstractmethod
    def pulled(self, gradients: Sequence[Tensor]) -> Tensor:
        """A number whose gradient by x and y is what ``gradients`` by the leaves amount to."""


class KernelSolution(Solution):
    """In the kernel of rows: leaves are the rows themselves and the coefficients (K_SS + lam I)^-1 y.

    Args:
        kernel: of two sets of rows.
        x: (m, *item), float64 with a graph.
        y: (m, classes), likewise.
        ridge: lam over the mean of the diagonal of K_SS.
    """

    def __init__(self, kernel: Kernel, x: Tensor, y: Tensor, ridge: float) -> None:
        self.kernel, self.x, self.y, self.ridge = kernel, x, y, ridge
        with torch.no_grad():
            gram = kernel(x, x)
            self._factor = ridge_factor(gram, ridge * float(gram.diagonal().mean()))
            weights = torch.cholesky_solve(y, self._factor)
        self.leaves = [x.detach().clone().requires_grad_(), weights.requires_grad_()]

    def predict(self, inputs: Tensor) -> Tensor:
        return self.kernel(inputs.to(self.x), self.leaves[0]) @ self.leaves[1]

    def pulled(self, gradients: Sequence[Tensor]) -> Tensor:
        by_x, by_weights = gradients
        weights, v = self.leaves[1].detach(), torch.cholesky_solve(by_weights, self._factor)
        gram = self.kernel(self.x, self.x)
        fitted = gram @ weights + self.ridge * gram.diagonal().mean() * weights
        return (by_x * self.x).sum() + (v * (self.y - fitted)).sum()


class FeatureSolution(Solution):
    """In finite features: the one leaf is the linear map (width, classes) that the fit amounts to.

    Solved in the smaller of the two forms: rows by rows, or width by width when features are fewer than rows.

    Args:
        embed: features of real rows, run without gradient.
        features: of the synthetic rows, (m, width) float64 with a graph.
        y: (m, classes), likewise.
        ridge: lam over the mean squared length of the features.
        primal: solve width by width; None for whichever is smaller.
    """

    def __init__(
        self, embed: FeatureMap, features: Tensor, y: Tensor, ridge: float, primal: bool | None = None
    ) -> None:
        self.embed, self.features, self.y, self.ridge = embed, features, y, ridge
        rows, width = features.shape
        self.primal = width < rows if primal is None else primal
        with torch.no_grad():
            lam = ridge * float(features.square().sum() / rows)
            if self.primal:
                self._factor = ridge_factor(features.T @ features, lam)
                weights = torch.cholesky_solve(features.T @ y, self._factor)
            else:
                self._factor = ridge_factor(features @ features.T, lam)
                self._coefficients = torch.cholesky_solve(y, self._factor)
                weights = features.T @ self._coefficients
        self.leaves = [weights.requires_grad_()]

    def predict(self, inputs: Tensor) -> Tensor:
        return self.embed(inputs) @ self.leaves[0]

    def pulled(self, gradients: Sequence[Tensor]) -> Tensor:
        (by_weights,) = gradients
        phi, lam = self.features, self.ridge * self.features.square().sum() / len(self.features)
        weights = self.leaves[0].detach()
        if self.primal:
            v = torch.cholesky_solve(by_weights, self._factor)
            return (v * (phi.T @ (self.y - phi @ weights) - lam * weights)).sum()
        v = torch.cholesky_solve(phi.detach() @ by_weights, self._factor)
        mapped = phi.T @ self._coefficients
        fitted = phi @ mapped + lam * self._coefficients
        return (by_weights * mapped).sum() + (v * (self.y - fitted)).sum()


# --- the engine --------------------------------------------------------------------------------------------------


class RidgeMatching(Objective):
    """The error on real rows of the ridge regression that is fitted on the synthetic ones.

    With K the kernel, lam = ridge tr(K_SS) / M and pred = K_TS (K_SS + lam I)^-1 y_S, real rows have targets e_c - 1/C,
    or where labels are representations what the teachers make of the row (KRR-ST):

        mse:    mean over real rows and values of a target of (pred - target)^2 / 2
        platt:  mean over real rows of CE(exp(k) pred, class), k learned

    Source: Nguyen et al., KIP, ICLR 2021, equation 7 (kernel ``ntk-fc1``); Zhou et al., FRePo, NeurIPS 2022, equation 4
    (``features`` of one network); Loo et al., RFAD, NeurIPS 2022, section 3 (``features`` of eight); Lee et al.,
    KRR-ST, ICLR 2024 (representations as targets).

    The network is run in evaluation mode and is not changed. Memory is one chunk of real rows and the graph of the
    synthetic ones.

    Options:
        kernel: ``features``, or an infinitely wide network, ``ntk-fc1`` (see `ddfed.kernels.kernel_named`).
        nets: networks whose features stand side by side: the drawn one and fresh ones of its kind.
        bias: with width D, K = 2 F F^T / D + bias; for features alone.
        ridge: of the mean of the diagonal of K_SS, above 0.
        rows: real rows, of each class or in all.
        balanced: ``rows`` counts for each class (KIP).
        loss: ``mse`` or ``platt``.
        platt_lr: step size of k, by Adam; k starts at 0.
        mirror: fit on the rows and their mirror images, where the task has a mirror axis.
        margin: weight of the label term -mean min(first - second largest of y_S, 1/C) (FRePo).
    """

    name = "ridge"
    represents = True
    takes_coupled = True
    defaults = {
        "kernel": "features",
        "nets": 1,
        "bias": 0.0,
        "ridge": 1e-6,
        "rows": 1024,
        "balanced": False,
        "loss": "mse",
        "platt_lr": 0.01,
        "mirror": False,
        "margin": 0.0,
    }

    def __init__(self, precision: Precision | None = None, **options: Any) -> None:
        super().__init__(precision, **options)
        found = self.options
        if found["kernel"] != "features":
            kernel_named(found["kernel"])
        if found["loss"] not in LOSSES:
            raise ConfigError(
                f"objective 'ridge' has no loss {found['loss']!r}.{suggest(str(found['loss']), LOSSES)} "
                f"Possible: {one_of(LOSSES)}"
            )
        for key in ("nets", "rows"):
            if found[key] < 1:
                raise ConfigError(f"objective 'ridge': {key} must be at least 1, got {found[key]}")
        if not found["ridge"] > 0:
            raise ConfigError(
                f"objective 'ridge': ridge must be above 0, got {found['ridge']}: without it equal rows cannot be "
                f"told apart and the kernel is singular"
            )
        for key in ("bias", "platt_lr", "margin"):
            if found[key] < 0:
                raise ConfigError(f"objective 'ridge': {key} must not be negative, got {found[key]}")
        self._temperature = Temperature(found["platt_lr"])

    def __call__(self, judgement: Judgement) -> Cotangent:
        j = judgement
        if self.precision.compiled:
            raise ConfigError("objective 'ridge' runs eager code only; set distill.compile = false")
        if j.represent is not None and (self.options["loss"] == "platt" or self.options["margin"]):
            raise ConfigError(
                "objective 'ridge': loss = 'platt' and margin are about classes, and the labels are representations; "
                "set loss = 'mse' and margin = 0"
            )
        with _evaluated(self._networks(j)) as nets:
            x, y, row_class = self._synthetic(j)
            draw = j.draw_siamese()
            if draw is not None and j.augmentation is not None:
                x = j.augmentation(x, draw, row_class)
            with _naming_ridge(self.options["ridge"]):
                solution = self._solved(nets, j.device, x, y)
            unit = torch.ones((), dtype=torch.float64, device=y.device, requires_grad=True)
            scale = self._temperature.leaf(y.device)

            def loss(batch: Batch) -> Tensor:
                inputs = batch.inputs.to(j.device)
                if draw is not None and j.augmentation is not None:
                    inputs = j.augmentation(inputs, draw, batch.classes)
                # The derivative by a factor of one is the loss itself: its value leaves by the gate like the rest.
                predicted, classes = solution.predict(inputs), batch.classes.to(y.device)
                wanted = _centred(classes, predicted.shape[1]) if j.represent is None else j.represent(inputs)
                return unit * self._row_loss(predicted, wanted.to(predicted), classes, scale)

            platt = [scale] if self.options["loss"] == "platt" else []
            leaves = [*solution.leaves, unit, *platt]
            found, count = j.gate.gradient(self._query(j), leaves, loss, j.real_stream())
            if not count:
                raise DataError(f"objective 'ridge' found no real rows of the classes {j.classes} to be judged on")
            *grads, value = (g / count for g in found[: len(solution.leaves) + 1])
            total = solution.pulled(grads)
        if platt:
            self._temperature.step(found[-1] / count)
        if self.options["margin"]:
            total = total - self.options["margin"] * label_margin(j.vectors(j.y)).to(total.device)
        return Cotangent.of(total, j.x, j.y if j.y.requires_grad else None, float(value))

    def state(self) -> dict[str, Any]:
        if self.options["loss"] != "platt":
            return {}
        return self._temperature.state()

    def load(self, state: Mapping[str, Any]) -> None:
        if state:
            self._temperature.load(state)

    def _query(self, j: Judgement) -> Query:
        asked = j.ask("regression loss gradient", self.options["rows"])
        return asked if self.options["balanced"] else replace(asked, per_class=False)

    def _networks(self, j: Judgement) -> list[Network]:
        """The drawn network, and fresh ones of its kind."""
        nets = [j.net] if self.options["kernel"] == "features" else []
        for number in range(1, self.options["nets"] if nets else 0):
            nets.append(copy.deepcopy(j.net))
            with isolated(j.streams.seed("kernel network", j.step, number)):
                reset(nets[-1])
        return nets

    def _synthetic(self, j: Judgement) -> tuple[Tensor, Tensor, Tensor]:
        """What is fitted: rows, float64 targets, and the class of each row."""
        if self.options["mirror"] and j.coupled:
            raise ConfigError("objective 'ridge': coupled rows have no mirror images; set mirror = false")
        x, y, axis = j.x, j.vectors(j.y).to(_solver(j.device), torch.float64), j.gate.info.mirror_axis
        if not self.options["mirror"] or axis is None:
            return x, y, j.row_class
        return torch.cat([x, x.flip(axis)]), torch.cat([y, y]), torch.cat([j.row_class, j.row_class])

    def _solved(self, nets: Sequence[Network], device: torch.device, x: Tensor, y: Tensor) -> Solution:
        if not nets:
            return KernelSolution(kernel_named(self.options["kernel"]), x.to(y), y, self.options["ridge"])

        def embed(inputs: Tensor) -> Tensor:
            with real_side(self.precision, device):
                return self._features(nets, inputs)

        return FeatureSolution(embed, self._features(nets, x), y, self.options["ridge"])

    def _features(self, nets: Sequence[Network], x: Tensor) -> Tensor:
        """sqrt(2 / D) F, and a constant sqrt(bias) where there is one; their inner products are the kernel."""
        joined = torch.cat([net.embed(x) for net in nets], 1).to(_solver(x.device), torch.float64)
        joined = joined * math.sqrt(2 / joined.shape[1])
        bias = self.options["bias"]
        return torch.cat([joined, joined.new_full((len(joined), 1), math.sqrt(bias))], 1) if bias else joined

    def _row_loss(self, predicted: Tensor, wanted: Tensor, classes: Tensor, scale: Tensor) -> Tensor:
        if self.options["loss"] == "platt":
            return F.cross_entropy(scale.exp() * predicted, classes, reduction="none")
        return 0.5 * (predicted - wanted).square().mean(1)


class Temperature:
    """k of CE(exp(k) scores, class), learned by Adam from 0: a regression's scores as probabilities (RFAD, Platt).

    Args:
        lr: step size.
    """

    def __init__(self, lr: float) -> None:
        self._value = torch.zeros((), dtype=torch.float64, requires_grad=True)
        self._optimizer = torch.optim.Adam([self._value], lr=lr)

    def leaf(self, device: torch.device) -> Tensor:
        """k as it is, to differentiate by, () float64."""
        return self._value.detach().to(device).requires_grad_()

    def step(self, gradient: Tensor) -> None:
        self._value.grad = gradient.to(self._value)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        return {"scale": self._value.detach().clone(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self._value.copy_(state["scale"])
        self._optimizer.load_state_dict(dict(state["optimizer"]))


def _centred(classes: Tensor, count: int) -> Tensor:
    return F.one_hot(classes, count) - 1 / count


def label_margin(y: Tensor, part: float = 1.0) -> Tensor:
    """mean min(first - second largest value, part / classes) of the rows of ``y`` (FRePo's code)."""
    top = y.topk(min(2, y.shape[1]), 1).values
    return (top[:, 0] - top[:, -1]).clamp(max=part / y.shape[1]).mean()


def _solver(device: torch.device) -> torch.device:
    """Where float64 exists."""
    return torch.device("cpu") if device.type == "mps" else device


@contextmanager
def _evaluated(nets: list[Network]) -> Iterator[list[Network]]:
    """The networks in evaluation mode, put back as they were."""
    modes = [net.training for net in nets]
    try:
        yield [net.eval() for net in nets]
    finally:
        for net, mode in zip(nets, modes):
            net.train(mode)


@contextmanager
def _naming_ridge(ridge: float) -> Iterator[None]:
    try:
        yield
    except DivergedError as error:
        raise DivergedError(f"{error} (distill.objective_options.ridge, now {ridge:g}), or lower distill.lr") from error


# --- the closed form ---------------------------------------------------------------------------------------------

#: float64 values of one square matrix: half a gigabyte. Several are held at once.
_MOST_WIDTH = 8192


class ClosedRidge(Objective):
    """The set on which linear ridge regression finds exactly what it finds on all real rows.

    The solution W (d, C) is made from two sums over real rows, phi phi^T and phi y^T, with phi a row's values. The
    set comes from W; see `points_for`. The cotangents are the distances to it, so that one step of SGD with step
    size 1 for rows and labels, without momentum, lands on it.

    Source: Chen et al., Provable and Efficient Dataset Distillation for Kernel Ridge Regression, NeurIPS 2024.

    Options:
        rows: real rows over all classes; None for all.
        ridge: of the mean squared length of the real rows; what W is found with.
        set_ridge: the same of the set; what whoever fits on it must use (``E-linear`` uses 1e-6).
    """

    name = "closed-ridge"
    defaults = {"rows": None, "ridge": 1e-3, "set_ridge": 1e-6}

    def __init__(self, precision: Precision | None = None, **options: Any) -> None:
        super().__init__(precision, **options)
        for key in ("ridge", "set_ridge"):
            if not self.options[key] > 0:
                raise ConfigError(f"objective 'closed-ridge': {key} must be above 0, got {self.options[key]}")

    def __call__(self, judgement: Judgement) -> Cotangent:
        j = judgement
        classes, width = j.gate.info.num_classes, math.prod(j.gate.info.shape)
        free = j.y.requires_grad and j.y.shape == (len(j.x), classes)
        # What a regression is fitted to must be what is stored, or the solution would be read as something else.
        if not (free and torch.equal(j.vectors(j.y), j.y)):
            raise ConfigError("objective 'closed-ridge' sets real-valued labels; use distill.labels = 'vectors'")
        if width > _MOST_WIDTH:
            raise ConfigError(
                f"objective 'closed-ridge' holds matrices of {width} x {width} values ({width**2 * 8 / 2**30:.1f} GB "
                f"each) for items of shape {j.gate.info.shape}; it takes items of at most {_MOST_WIDTH} values. "
                f"Use method 'kip', which holds none."
            )
        weights, length = self._solution(j, width, classes)
        x, y = points_for(weights, math.sqrt(length), self.options["set_ridge"], j.classes)
        # An item of a class is that class's point; several share it evenly, which leaves the fit as it is.
        point = torch.tensor([j.classes.index(c) for c in j.row_class.tolist()])
        share = torch.bincount(point).to(x)[point].rsqrt()[:, None]
        x, y = x[point] * share, y[point] * share
        to_x, to_y = j.x.detach().cpu() - x.float().view(j.x.shape), j.y.detach().cpu() - y.float()
        return Cotangent(to_x.to(j.x), to_y.to(j.y), float(to_x.square().mean()))

    def _solution(self, j: Judgement, width: int, classes: int) -> tuple[Tensor, float]:
        """W from sums over real rows, and the mean squared length of a row."""
        # Derivatives of row losses that are linear in the leaves: sums of outer products that never hold one per row.
        second = torch.zeros(width, width, dtype=torch.float64, requires_grad=True)
        cross = torch.zeros(width, classes, dtype=torch.float64, requires_grad=True)

        def loss(batch: Batch) -> Tensor:
            phi = batch.inputs.flatten(1).double().cpu()
            target = F.one_hot(batch.classes.cpu(), classes) - 1 / classes
            return ((phi @ second) * phi).sum(1) + ((phi @ cross) * target).sum(1)

        query = replace(j.ask("second moments", self.options["rows"]), per_class=False)
        (outer, products), count = j.gate.gradient(query, [second, cross], loss, j.real_stream())
        length = float(outer.trace()) / max(count, 1)
        if not length > 0:
            raise DataError(f"objective 'closed-ridge' found no real rows of the classes {j.classes}, or only zeros")
        outer = (outer + outer.T) / 2
        with _naming_ridge(self.options["ridge"]):
            return torch.cholesky_solve(products, ridge_factor(outer, self.options["ridge"] * length)), length


def points_for(
    weights: Tensor, length: float, ridge: float, classes: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """A row and a target for each class whose ridge regression has exactly these weights.

    With the thin SVD W = U diag(s) V^T, lam = ridge a^2 and any rotation R: X = a R U^T and
    Y = R diag(s (a^2 + lam) / a) V^T. R is the rotation nearest to the rows of V that belong to the classes, which
    for all classes is V itself: the row of a class is then the one nearest to its weights. Rows are orthogonal and of
    length a.

    Source: Chen et al., NeurIPS 2024, with all a_k equal, which leaves R free.

    Args:
        weights: (width, classes), width >= classes.
        length: a, of each row.
        ridge: of the mean squared length of the rows, as in `ddfed.kernels`.
        classes: those that get a point, as many as the rank of ``weights`` or more; None for all.

    Returns:
        (points, width) and (points, all classes).

    Raises:
        ConfigError: rows have fewer values than there are points.
    """
    of = list(range(weights.shape[1]) if classes is None else classes)
    if len(weights) < len(of):
        raise ConfigError(f"one point per class needs items of at least {len(of)} values, these have {len(weights)}")
    u, s, vh = torch.linalg.svd(weights, full_matrices=False)
    u, s, vh = u[:, : len(of)], s[: len(of)], vh[: len(of)]
    left, _, right = torch.linalg.svd(vh.T[of])
    rotation = left @ right
    return length * rotation @ u.T, (rotation * (s * length * (1 + ridge))) @ vh
