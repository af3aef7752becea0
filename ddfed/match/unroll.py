"""Meta-learning: how well a network does on real data after it was trained on the synthetic set.

DD, SLDD, RaT-BPTT and addressable memories are choices of this one engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.data import Batch
from ddfed.domain import Augmentation, Network
from ddfed.errors import ConfigError, one_of, suggest
from ddfed.gate import Query
from ddfed.match.adjoint import SGD, Adam, Rule, State, Student, Unrolled, check_repeatable
from ddfed.match.base import Cotangent, Judgement, Objective, Precision
from ddfed.match.lessons import Lessons, balanced, blocks, shuffled

ORDERS = ("all", "shuffled", "balanced", "blocks")
PLACES = ("random", "end")
WEIGHTINGS = ("none", "hard")


class Unrolling(Objective):
    """Real loss at the end of a training on the synthetic set, differentiated through that training.

    The network of the pool is trained ``steps`` steps on the rows. What its weights should be to do better on real
    rows is asked of the gate as one gradient; the adjoint (`ddfed.match.adjoint`) carries it back to rows, targets and
    step sizes. Real data therefore leaves the gate as a sum of per-row gradients, once a step.

    With ``window`` only that many steps are differentiated, and the training stops after the window, which is placed
    anew every ``redraw`` outer steps: truncated backpropagation at a random time (RaT-BPTT).

    Source: Wang et al., Dataset Distillation, 2018, algorithm 1; Feng et al., Embarrassingly Simple Dataset
    Distillation, ICLR 2024, algorithm 1.

    Options:
        steps: steps of training.
        window: steps that are differentiated; None for all.
        place: ``random``: the window begins after 0 to steps - window steps; ``end``: it is the last.
        redraw: outer steps that share a place of the window.
        inner: ``sgd`` or ``adam``; ``momentum`` is of SGD.
        lr: step size of training.
        learn_lrs: learn a step size for every step, kept above zero by a softplus; Adam with ``lr_lr``.
        order: the batch of a step: ``all`` rows; ``shuffled``, ``batch`` of a new order when one is used up;
            ``balanced``, ``batch`` of each class; ``blocks``, which take turns: as many, up to ``blocks``, as share the
            rows of a class evenly, and row i belongs to block i mod their number.
        rows: real rows, over all judged classes.
        augment: rows are augmented, real and synthetic, each by a draw of its own.
        weighting: of real rows at the end: ``none``, or ``hard``: the sigmoid of a row's loss under the network as it
            was before the training, so that rows it knows count half and rows it does not count in full (FedMK).
        mask: of order ``blocks``: share of the blocks, rounded, whose rows are noise in an outer step and do not move
            in it, so that no block relies on all the others (DOSFL).
    """

    name = "unroll"
    second_order = True
    whole_set = True
    takes_coupled = True
    defaults = {
        "steps": 30, "window": None, "place": "random", "redraw": 1, "inner": "sgd", "momentum": 0.0, "lr": 0.02,
        "learn_lrs": False, "lr_lr": 0.01, "order": "all", "batch": 10, "blocks": 10, "rows": 1024, "augment": True,
        "weighting": "none", "mask": 0.0,
    }  # fmt: skip

    def __init__(self, precision: Precision | None = None, **options: Any) -> None:
        super().__init__(precision, **options)
        named = (("order", ORDERS), ("place", PLACES), ("inner", ("sgd", "adam")), ("weighting", WEIGHTINGS))
        for key, known in named:
            given = self.options[key]
            if given not in known:
                raise ConfigError(
                    f"objective 'unroll' has no {key} {given!r}.{suggest(str(given), known)} Possible: {one_of(known)}"
                )
        for key in ("steps", "redraw", "batch", "blocks", "rows"):
            if self.options[key] < 1:
                raise ConfigError(f"objective 'unroll': {key} must be at least 1, got {self.options[key]}")
        window = self.options["window"]
        if window is not None and not 1 <= window <= self.options["steps"]:
            raise ConfigError(
                f"objective 'unroll': window must lie between 1 and steps = {self.options['steps']}, got {window}"
            )
        mask = self.options["mask"]
        if not 0 <= mask < 1 or (mask and self.options["order"] != "blocks"):
            raise ConfigError(
                f"objective 'unroll': mask is a share of blocks, from 0 to below 1, and needs order = 'blocks'; got "
                f"{mask} with order {self.options['order']!r}"
            )
        if not self.options["lr"] > 0:
            raise ConfigError(f"objective 'unroll': lr must be above 0, got {self.options['lr']}")
        momentum = self.options["momentum"]
        self._rule: Rule = SGD(momentum) if self.options["inner"] == "sgd" else Adam()
        # Softplus of it is the step size: softplus(log(exp(lr) - 1)) = lr.
        self._raw = torch.full((self.options["steps"],), math.log(math.expm1(self.options["lr"]))).requires_grad_()
        self._blocks = 1
        self._optimizer = torch.optim.Adam([self._raw], self.options["lr_lr"], betas=(0.5, 0.999))

    def __call__(self, judgement: Judgement) -> Cotangent:
        j = judgement
        self.check(j.net)
        student = Student(j.net, j.label_loss, j.augmentation if self.options["augment"] else None)
        first, last = self._window(j)
        lrs = self._lrs()[:last].to(j.device)
        lessons = self._lessons(j, student.augmentation)
        x, kept = self._masked(j)
        run = Unrolled(student, self._rule, x, j.y, lrs, lessons, first)
        end = run.forward(student.weights)
        loss, cotangent = self._judged(j, student, end)
        pulled = run.backward(cotangent)
        self._learn(pulled.lrs.cpu())
        by_y = pulled.y * kept.view(-1, *[1] * (j.y.ndim - 1)) if pulled.y is not None and j.y.requires_grad else None
        return Cotangent(pulled.x * kept.view(-1, *[1] * (j.x.ndim - 1)), by_y, loss)

    def check(self, net: Network) -> None:
        check_repeatable(net)

    def training(self) -> dict[str, float | list[float]]:
        if not self.options["learn_lrs"]:
            return {}
        return {"lrs": self._lrs().tolist(), "blocks": self._blocks}

    def state(self) -> dict[str, Any]:
        return {"raw": self._raw.detach(), "optimizer": self._optimizer.state_dict(), "blocks": self._blocks}

    def load(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self._raw.copy_(state["raw"])
        self._optimizer.load_state_dict(dict(state["optimizer"]))
        self._blocks = int(state["blocks"])

    # --- the training ---

    def _window(self, j: Judgement) -> tuple[int, int]:
        """The first step that is differentiated, and the number of steps that are made."""
        steps = self.options["steps"]
        window = self.options["window"] or steps
        begin = steps - window
        if self.options["place"] == "random" and begin:
            stream = j.streams.torch("window", j.step // self.options["redraw"])
            begin = int(torch.randint(begin + 1, (), generator=stream))
        return begin, begin + window

    def _lrs(self) -> Tensor:
        """Step size of every step, (steps,)."""
        if not self.options["learn_lrs"]:
            return torch.full((self.options["steps"],), float(self.options["lr"]))
        return F.softplus(self._raw.detach())

    def _learn(self, gradient: Tensor) -> None:
        if not self.options["learn_lrs"]:
            return
        self._raw.grad = torch.zeros_like(self._raw)
        self._raw.grad[: len(gradient)] = gradient * torch.sigmoid(self._raw.detach())[: len(gradient)]
        self._optimizer.step()

    def _lessons(self, j: Judgement, augmentation: Augmentation | None) -> Lessons:
        order, batch, streams = self.options["order"], self.options["batch"], j.streams.child("inner", j.step)
        if j.coupled and order != "all":
            raise ConfigError(
                f"objective 'unroll': order = {order!r} takes rows apart that a network must see together; set order = "
                f"'all'"
            )
        if order == "blocks":
            fewest = min(int((j.row_class == c).sum()) for c in j.classes)
            self._blocks = max(n for n in range(1, self.options["blocks"] + 1) if fewest % n == 0)
            pick = blocks(len(j.x), self._blocks)
        elif order == "balanced":
            pick = balanced([torch.nonzero(j.row_class == c).flatten() for c in j.classes], batch, streams)
        else:
            pick = shuffled(len(j.x), len(j.x) if order == "all" else batch, streams)
        return Lessons(pick, augmentation, streams)

    def _masked(self, j: Judgement) -> tuple[Tensor, Tensor]:
        """The rows with noise in place of those of masked blocks, and which are as they are, (rows,), 1 or 0."""
        count = round(self.options["mask"] * self._blocks)
        kept = torch.ones(len(j.x), device=j.x.device)
        if not count:
            return j.x, kept
        stream = j.streams.torch("mask", j.step)
        masked = torch.randperm(self._blocks, generator=stream)[:count]
        kept[torch.isin(torch.arange(len(j.x)) % self._blocks, masked)] = 0
        noise = torch.randn(j.x.shape, generator=stream).to(j.x)
        return torch.where(kept.view(-1, *[1] * (j.x.ndim - 1)).bool(), j.x, noise), kept

    # --- what it was good for ---

    def _judged(self, j: Judgement, student: Student, end: State) -> tuple[float, list[Tensor]]:
        """Mean real loss of the last weights, and its derivative by the last state."""
        weights, total = end[0].detach().requires_grad_(), 0.0
        draws = j.streams.torch("real augment", j.step)
        judge = Student(j.net, _cross_entropy, student.augmentation)

        def loss(batch: Batch) -> Tensor:
            nonlocal total
            x, draw = batch.inputs.to(weights), None
            if judge.augmentation is not None:
                draw = judge.augmentation.draw(len(x), draws, one_op=True)
            losses = judge.losses(weights, x, batch.classes.to(j.device), draw)
            if self.options["weighting"] == "hard":
                with torch.no_grad():
                    before = judge.losses(student.weights, x, batch.classes.to(j.device), draw)
                losses = torch.sigmoid(before) * losses
            total += float(losses.detach().sum())
            return losses

        query = Query("meta gradient", j.classes, self.options["rows"], per_class=False)
        (gradient,), count = j.gate.gradient(query, [weights], loss, j.real_stream())
        rest = [torch.zeros_like(s) for s in end[1:]]
        return total / max(count, 1), [gradient / max(count, 1), *rest]


def _cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    return F.cross_entropy(logits, classes, reduction="none")
