"""Matching trajectories: MTT, FTD, TESLA, DATM, ATT, PAD, SelMatch and MCT are choices of this one engine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddfed.domain import Network
from ddfed.errors import ConfigError, DivergedError, one_of, suggest
from ddfed.match.adjoint import SGD, RowLoss, Student, Unrolled, check_repeatable, flat_weights
from ddfed.match.base import Cotangent, Judgement, Objective, Precision
from ddfed.match.lessons import Lessons, shuffled

ADJOINTS = ("exact", "truncated")
MASKS = ("none", "depth", "largest")
LABELS = ("own", "expert")


class TrajectoryMatching(Objective):
    """Distance of a student, trained on the synthetic rows, from where an expert went on real data.

    L = |th_U - th*|^2 / |th_0 - th*|^2. The student starts at a snapshot th_0 of an expert, makes U steps of gradient
    descent with a learned step size, and should end at a later snapshot th*. The derivative is that of the unrolled
    graph, found backwards with the memory of one step (`ddfed.match.adjoint`).

    The step size and its momentum are learned here; the set carries the result (``training = {"lr": ...}``). Both
    ends come from the pool: the drawn network and its expert.

    Source: Cazenavette et al., Dataset Distillation by Matching Training Trajectories, CVPR 2022, equation 2.

    Options:
        steps: U, steps of the student.
        batch: rows of a step; None for all, which coupled rows always are.
        lr: first value of the student's step size.
        lr_lr, lr_momentum: of its SGD; ``lr_lr`` 0 keeps it.
        lr_floor: it never falls below.
        adjoint: ``exact``, or ``truncated``: leave out how a row moves later gradients (TESLA). As dear, and an
            approximation; for reproduction.
        best: judge the student after the step at which it is nearest to th* in the L1 distance, not after the last
            (ATT).
        threshold: make no step where the loss is above it (DATM); None for always.
        mask: which weights count: ``none`` leaves out none; ``depth``: not the first ``mask_share`` of the weights in
            the order of the network (PAD's paper); ``largest``: only the largest squared errors, without the
            ``mask_share`` of smallest (PAD's code). Of numerator and denominator alike.
        labels: ``own``, those of the label store, or ``expert``: the softmax of what the network with th* answers,
            made anew at every step and never stored (TESLA on ImageNet).

    Raises:
        ConfigError: an option that means nothing.
    """

    name = "trajectory"
    second_order = True
    whole_set = True
    takes_coupled = True
    defaults = {
        "steps": 30, "batch": None, "lr": 0.01, "lr_lr": 1e-5, "lr_momentum": 0.5, "lr_floor": 1e-6,
        "adjoint": "exact", "best": False, "threshold": None, "mask": "none", "mask_share": 0.0, "labels": "own",
    }  # fmt: skip

    def __init__(self, precision: Precision | None = None, **options: Any) -> None:
        super().__init__(precision, **options)
        for key, known in (("adjoint", ADJOINTS), ("mask", MASKS), ("labels", LABELS)):
            self._named(key, known)
        for key in ("steps", "batch"):
            given = self.options[key]
            if given is not None and given < 1 or (given is None and key == "steps"):
                raise ConfigError(f"objective 'trajectory': {key} must be at least 1, got {given}")
        for key in ("lr", "lr_floor"):
            if not self.options[key] > 0:
                raise ConfigError(f"objective 'trajectory': {key} must be above 0, got {self.options[key]}")
        share = self.options["mask_share"]
        if not 0 <= share < 1 or (share and self.options["mask"] == "none"):
            raise ConfigError(
                f"objective 'trajectory': mask_share is the share of weights that mask 'depth' or 'largest' leaves "
                f"out, from 0 to below 1; got {share} with mask {self.options['mask']!r}"
            )
        self.lr, self._velocity = float(self.options["lr"]), 0.0

    def check(self, net: Network) -> None:
        check_repeatable(net)

    def _named(self, key: str, known: tuple[str, ...]) -> None:
        given = self.options[key]
        if given not in known:
            raise ConfigError(
                f"objective 'trajectory' has no {key} {given!r}.{suggest(str(given), known)} Possible: {one_of(known)}"
            )

    def __call__(self, judgement: Judgement) -> Cotangent:
        j = judgement
        if j.expert is None:
            raise ConfigError(
                "objective 'trajectory' follows networks trained on real data, and this pool has none. Use pool 'X' "
                "(distill.pool = 'X'), whose buffers `ddfed experts make` makes."
            )
        self.check(j.net)
        target = flat_weights(j.expert)
        labels, row_loss = self._labels(j)
        student = Student(j.net, row_loss, j.augmentation)
        start = student.weights
        streams = j.streams.child("inner", j.step)
        batch = len(j.x) if j.coupled else self.options["batch"] or len(j.x)
        order = shuffled(len(j.x), batch, streams)
        lessons = Lessons(order, j.augmentation, streams)
        run = Unrolled(student, SGD(), j.x, labels, start.new_full((self.options["steps"],), self.lr), lessons)
        last, end = self._trained(run, start, target)
        kept = kept_weights(end - target, self.options["mask"], self.options["mask_share"])
        moved = (kept * (start - target)).square().sum()
        if not bool(moved > 0):
            raise ConfigError(
                "objective 'trajectory': the expert is where the student starts, so there is nothing to match. Make "
                "the span between start and target longer (distill.pool_options.span)."
            )
        gap = kept * (end - target)
        loss = float(gap.square().sum() / moved)
        if self.options["threshold"] is not None and loss > self.options["threshold"]:
            return Cotangent(torch.zeros_like(j.x), self._of_targets(j, None), loss, skip=True)
        pulled = run.backward((2 * gap / moved,), last, self.options["adjoint"] == "truncated")
        self._learn(float(pulled.lrs.sum()), loss, j.step)
        return Cotangent(pulled.x, self._of_targets(j, pulled.y), loss)

    def _labels(self, j: Judgement) -> tuple[Tensor, RowLoss]:
        """Targets of the inner training and the loss that takes them."""
        if self.options["labels"] == "own":
            return j.y, j.label_loss
        assert j.expert is not None
        with torch.no_grad():
            return j.expert(j.x).softmax(1), _soft_cross_entropy

    def _of_targets(self, j: Judgement, found: Tensor | None) -> Tensor | None:
        if not j.y.requires_grad:
            return None
        return torch.zeros_like(j.y) if found is None or self.options["labels"] != "own" else found

    def _trained(self, run: Unrolled, start: Tensor, target: Tensor) -> tuple[int, Tensor]:
        """Steps made and weights of the student that is judged."""
        if not self.options["best"]:
            return run.steps, run.forward(start)[0]
        nearest, found = math.inf, (run.steps, start)

        def look(made: int, weights: Tensor) -> None:
            nonlocal nearest, found
            distance = float((weights - target).abs().sum())
            if distance < nearest:
                nearest, found = distance, (made, weights)

        end = run.forward(start, look)[0]
        # Where no distance was a number the last step is judged, and the loop says so.
        return found if nearest < math.inf else (run.steps, end)

    def _learn(self, gradient: float, loss: float, step: int) -> None:
        """A step of SGD with momentum of the student's step size."""
        if not math.isfinite(gradient):
            raise DivergedError(
                f"outer step {step + 1}: the derivative by the student's step size is {gradient} at {self.lr:.4g} "
                f"(loss {loss:.4g}). Lower distill.lr or distill.objective_options.lr."
            )
        self._velocity = self.options["lr_momentum"] * self._velocity + gradient
        self.lr = max(self.lr - self.options["lr_lr"] * self._velocity, self.options["lr_floor"])

    def training(self) -> dict[str, float | list[float]]:
        return {"lr": self.lr}

    def state(self) -> dict[str, Any]:
        return {"lr": self.lr, "velocity": self._velocity}

    def load(self, state: Mapping[str, Any]) -> None:
        self.lr, self._velocity = float(state["lr"]), float(state["velocity"])


def kept_weights(error: Tensor, mask: str, share: float) -> Tensor:
    """Which weights count, (weights,), 1 or 0.

    Source: Li et al., Prioritize Alignment in Dataset Distillation, 2024, section 3.3 (``depth``) and its code
    (``largest``).

    Args:
        error: of the student, (weights,), in the order of the network.
        mask: one of `MASKS`.
        share: of the weights, left out.
    """
    kept, out = torch.ones_like(error), round(share * len(error))
    if mask == "depth":
        kept[:out] = 0
    if mask == "largest":
        kept[error.square().argsort(stable=True)[:out]] = 0
    return kept


def _soft_cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    return -(probabilities * logits.log_softmax(1)).sum(1)
