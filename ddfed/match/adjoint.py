"""Differentiating through the training of a network, with the memory of one step of it.

A *student* is a network whose weights are one flat vector. Its training is a recursion of states, each the weights
and what the optimiser remembers. The derivative of a number of the last state by rows, targets and step sizes is
found backwards, step after step: each step is rebuilt from its state, pulled back, and forgotten. No graph is longer
than one step, and the result equals that of the unrolled graph to rounding.

Trajectory matching and meta-learning are two numbers of the last state; both are judged here.

Source: the adjoint method, as in Maclaurin, Duvenaud and Adams, Gradient-based Hyperparameter Optimization through
Reversible Learning, ICML 2015, with states stored instead of reversed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ddfed.domain import Augmentation, Draw, Network
from ddfed.errors import ConfigError

#: Weights first, then what the optimiser remembers; each (weights,).
State = tuple[Tensor, ...]
RowLoss = Callable[[Tensor, Tensor], Tensor]

#: States are all kept up to this; beyond, only every so many, and what lies between is made again.
KEEP_BYTES = 64 * 2**20


# --- who is trained ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Minibatch:
    """What a step of training sees.

    Args:
        rows: positions in the synthetic rows, (k,) int64.
        draw: augmentation of each, or None.
    """

    rows: Tensor
    draw: Draw | None = None


class Student:
    """A network as a function of one flat vector of weights.

    Args:
        net: gives the structure and, by `weights`, a start.
        row_loss: (logits, targets) -> (rows,); its mean over a batch is what training lowers.
        augmentation: of the rows of a batch, or None.
    """

    def __init__(self, net: Network, row_loss: RowLoss, augmentation: Augmentation | None = None) -> None:
        self.net, self.row_loss, self.augmentation = net, row_loss, augmentation
        self._shapes = {name: p.shape for name, p in net.named_parameters()}
        self._sizes = [shape.numel() for shape in self._shapes.values()]

    @property
    def weights(self) -> Tensor:
        """The network's weights as they are, (weights,), a copy."""
        return flat_weights(self.net)

    def named(self, weights: Tensor) -> dict[str, Tensor]:
        """Views of a flat vector by the names of the network's parameters."""
        parts = weights.split(self._sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts)}

    def put(self, weights: Tensor) -> None:
        """Give the network these weights, in place."""
        with torch.no_grad():
            for parameter, value in zip(self.net.parameters(), self.named(weights).values()):
                parameter.copy_(value)

    def losses(self, weights: Tensor, x: Tensor, y: Tensor, draw: Draw | None = None) -> Tensor:
        """Loss of each row, (rows,), differentiable in all that is given."""
        if draw is not None and self.augmentation is not None:
            x = self.augmentation(x, draw, torch.arange(len(x)))
        # Copies, so that batch norms of a student leave those of the network alone.
        buffers = {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        return self.row_loss(functional_call(self.net, {**self.named(weights), **buffers}, (x,)), y)

    def loss(self, weights: Tensor, x: Tensor, y: Tensor, draw: Draw | None = None) -> Tensor:
        """The mean of `losses`: what training lowers."""
        return self.losses(weights, x, y, draw).mean()

    def gradient(self, weights: Tensor, x: Tensor, y: Tensor, draw: Draw | None = None) -> Tensor:
        """Of the loss by the weights, (weights,), without a graph."""
        leaf = weights.detach().requires_grad_()
        return torch.autograd.grad(self.loss(leaf, x, y, draw), leaf)[0]


def check_repeatable(net: Network) -> None:
    """Refuse a network whose forward pass draws random numbers: its training cannot be gone through again.

    Raises:
        ConfigError: it drops units.
    """
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            raise ConfigError(
                f"this network drops units at random ({name}), so its training cannot be gone through again "
                f"backwards. Use a network without dropout, such as the domain's default."
            )


def flat_weights(net: Network) -> Tensor:
    """The parameters of a network one after another, (weights,), a copy."""
    return torch.cat([p.detach().flatten() for p in net.parameters()])


# --- how it is trained -------------------------------------------------------------------------------------------


class Rule(ABC):
    """A step of an optimiser as a differentiable function of flat vectors."""

    @abstractmethod
    def begin(self, weights: Tensor) -> State:
        """The first state."""

    @abstractmethod
    def step(self, state: Sequence[Tensor], gradient: Tensor, lr: Tensor, t: int) -> State:
        """The state after step ``t`` (0-based)."""


@dataclass(frozen=True)
class SGD(Rule):
    """Gradient descent, with heavy-ball momentum where it is not 0 (as `torch.optim.SGD`)."""

    momentum: float = 0.0

    def begin(self, weights: Tensor) -> State:
        return (weights, torch.zeros_like(weights)) if self.momentum else (weights,)

    def step(self, state: Sequence[Tensor], gradient: Tensor, lr: Tensor, t: int) -> State:
        if not self.momentum:
            return (state[0] - lr * gradient,)
        velocity = self.momentum * state[1] + gradient
        return state[0] - lr * velocity, velocity


@dataclass(frozen=True)
class Adam(Rule):
    """Adam, differentiable everywhere.

    Departs from `torch.optim.Adam` by ``tiny`` below the root: weights that have never had a gradient (dead units)
    give 0 / 0 otherwise.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    tiny: float = 1e-16

    def begin(self, weights: Tensor) -> State:
        return weights, torch.zeros_like(weights), torch.zeros_like(weights)

    def step(self, state: Sequence[Tensor], gradient: Tensor, lr: Tensor, t: int) -> State:
        first = self.betas[0] * state[1] + (1 - self.betas[0]) * gradient
        second = self.betas[1] * state[2] + (1 - self.betas[1]) * gradient.square()
        unbiased = first / (1 - self.betas[0] ** (t + 1))
        root = (second / (1 - self.betas[1] ** (t + 1)) + self.tiny).sqrt()
        return state[0] - lr * unbiased / (root + self.eps), first, second


# --- through its training and back -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pulled:
    """Derivatives of a number of a later state.

    Args:
        x: by the rows, of their shape.
        y: by the targets, or None where they are hard.
        lrs: by the step sizes, (steps,).
        state: by the state from which differentiation began.
    """

    x: Tensor
    y: Tensor | None
    lrs: Tensor
    state: State


class Unrolled:
    """Training of a student on given rows, forwards and back.

    Args:
        student: who learns.
        rule: its optimiser.
        x: rows, (rows, *item).
        y: targets; differentiated where they are floating.
        lrs: step size of each step, (steps,).
        lesson: the batch of a step; called again on the way back, so it must answer the same.
        first: steps before this one are not differentiated (truncated backpropagation).
    """

    def __init__(
        self,
        student: Student,
        rule: Rule,
        x: Tensor,
        y: Tensor,
        lrs: Tensor,
        lesson: Callable[[int], Minibatch],
        first: int = 0,
    ) -> None:
        self.student, self.rule, self.lesson, self.first = student, rule, lesson, first
        self.x, self.y, self.lrs = x.detach(), y.detach(), lrs.detach()
        self._kept: dict[int, State] = {}
        self._stride = 1

    @property
    def steps(self) -> int:
        return len(self.lrs)

    def forward(self, weights: Tensor, on_step: Callable[[int, Tensor], None] | None = None) -> State:
        """Train from these weights; returns the last state.

        Args:
            weights: (weights,).
            on_step: called with (steps made, weights) after each step.
        """
        state = self.rule.begin(weights.detach())
        size = sum(s.numel() * s.element_size() for s in state)
        length = max(1, self.steps - self.first)
        self._stride = 1 if length * size <= KEEP_BYTES else math.isqrt(length - 1) + 1
        self._kept = {}
        for t in range(self.steps):
            if t >= self.first and (t - self.first) % self._stride == 0:
                self._kept[t] = state
            state = self._after(t, state)
            if on_step:
                on_step(t + 1, state[0])
        return state

    def backward(self, cotangent: Sequence[Tensor], last: int | None = None, truncated: bool = False) -> Pulled:
        """Pull the derivative by a state back to everything before it.

        Args:
            cotangent: derivative by the state after ``last`` steps.
            last: the state it belongs to; by default the last one.
            truncated: leave out how rows of a step move the gradients of later steps (TESLA). An approximation:
                equal for one step only.
        """
        x_bar = torch.zeros_like(self.x)
        y_bar = torch.zeros_like(self.y) if self.y.is_floating_point() else None
        lr_bar = torch.zeros_like(self.lrs)
        bars = tuple(cotangent)
        for t, state in self._backwards(self.steps if last is None else last):
            batch = self.lesson(t)
            bars, x_part, y_part, lr_bar[t] = self._pull(t, state, batch, bars, truncated)
            x_bar.index_add_(0, batch.rows.to(x_bar.device), x_part)
            if y_bar is not None and y_part is not None:
                y_bar.index_add_(0, batch.rows.to(y_bar.device), y_part)
        return Pulled(x_bar, y_bar, lr_bar, bars)

    def _after(self, t: int, state: State) -> State:
        batch = self.lesson(t)
        gradient = self.student.gradient(state[0], self.x[batch.rows], self.y[batch.rows], batch.draw)
        return self.rule.step(state, gradient, self.lrs[t], t)

    def _backwards(self, last: int) -> Iterator[tuple[int, State]]:
        """(step, the state before it), the latest first; states that were not kept are made again."""
        for begin in sorted((t for t in self._kept if t < last), reverse=True):
            states = [self._kept[begin]]
            for t in range(begin, min(begin + self._stride, last) - 1):
                states.append(self._after(t, states[-1]))
            for offset in reversed(range(len(states))):
                yield begin + offset, states.pop()

    def _pull(
        self, t: int, state: State, batch: Minibatch, bars: State, truncated: bool
    ) -> tuple[State, Tensor, Tensor | None, Tensor]:
        """One step back: derivatives by the state before it, by the batch's rows and targets, and by its step size."""
        weights = state[0].detach().requires_grad_()
        x = self.x[batch.rows].requires_grad_()
        y = self.y[batch.rows]
        learned = [y.requires_grad_()] if y.is_floating_point() else []
        loss = self.student.loss(weights, x, y, batch.draw)
        gradient = torch.autograd.grad(loss, weights, create_graph=True)[0]
        # The rule is a few elementwise lines, differentiated apart from the network.
        before = [s.detach().requires_grad_() for s in state]
        moved, lr = gradient.detach().requires_grad_(), self.lrs[t].clone().requires_grad_()
        after = self.rule.step(before, moved, lr, t)
        *back, gradient_bar, lr_bar = torch.autograd.grad(after, [*before, moved, lr], bars, materialize_grads=True)
        by = torch.autograd.grad(gradient, [weights, x, *learned], gradient_bar, materialize_grads=True)
        if not truncated:
            back[0] = back[0] + by[0]
        return tuple(back), by[1], by[2] if learned else None, lr_bar
