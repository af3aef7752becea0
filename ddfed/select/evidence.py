"""What selectors know about rows: nothing, features of a trained network, or scores of difficulty."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ddfed.data import Batch, RealData
from ddfed.domain import Network
from ddfed.errors import ConfigError, DivergedError
from ddfed.pool import PoolContext, Training, trained_network
from ddfed.select.base import Evidence

AtLeastOne = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
#: (network in evaluation mode, rows) -> a number for each row, (rows,).
Score = Callable[[Network, Batch], Tensor]

#: Rows of a pass. Full gradients take this many times the network's weights, so they go in smaller parts.
_PASS, _FULL_PASS = 256, 16


def row_numbers(data: RealData, ctx: PoolContext) -> Evidence:
    """Nothing but the row's number; trains nothing."""
    return lambda rows: rows[:, None]


def trained_features(data: RealData, ctx: PoolContext, *, train_steps: AtLeastOne = 300) -> Evidence:
    """Features of one network trained ``train_steps`` steps of batch 256."""
    net = trained_network(ctx, Training(train_steps), "selection")

    def features(rows: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat(
                [net.embed(data.batch(part).inputs.to(ctx.device)).cpu() for part in data.passes(rows, _PASS)]
            )

    return features


def right_ranks(data: RealData, ctx: PoolContext, *, networks: AtLeastOne = 3) -> Evidence:
    """Which of some networks trained on real data is the first to classify a row as its own; infinite where none does.

    They are the experts of the run's pool, or its teachers where the pool has none.

    Source: Guo et al., DATM, ICLR 2024, whose initial items are those that an expert classifies correctly.
    """
    rows = _rows(data, ctx)
    first = torch.full((len(rows),), math.inf)
    for number, net in enumerate(islice(ctx.experts(), networks)):
        first[_scored(net, data, rows, ctx, _is_right).bool() & first.isinf()] = number
    return _table(data, rows, first)


def forgetting_scores(data: RealData, ctx: PoolContext, *, epochs: AtLeastOne = 200) -> Evidence:
    """How often each row was forgotten while a network was trained ``epochs`` passes.

    Source: Toneva et al., An Empirical Study of Example Forgetting, ICLR 2019, algorithm 1. Departure: every
    row is looked at after each pass, not when a batch holds it; the gate draws batches and does not tell which.
    """
    rows = _rows(data, ctx)
    history: list[Tensor] = []
    per_epoch = _steps_per_epoch(len(rows))

    def watch(step: int, net: Network) -> None:
        if step and step % per_epoch == 0:
            history.append(_scored(net, data, rows, ctx, _is_right).bool())

    trained_network(ctx, Training(epochs * per_epoch), "selection", on_step=watch)
    return _table(data, rows, times_forgotten(torch.stack(history)))


def times_forgotten(right: Tensor) -> Tensor:
    """Transitions from right to wrong; infinite for a row that was never right.

    Args:
        right: (epochs, rows) bool.

    Returns:
        (rows,) float.
    """
    events = (right[:-1] & ~right[1:]).sum(0).float()
    return torch.where(right.any(0), events, math.inf)


def el2n_scores(data: RealData, ctx: PoolContext, *, networks: AtLeastOne = 10, epochs: NotNegative = 20) -> Evidence:
    """|softmax(z) - onehot| after ``epochs`` passes, mean over ``networks`` networks.

    Source: Paul, Ganguli and Dziugaite, Deep Learning on a Data Diet, NeurIPS 2021, definition 2.2.
    """

    def score(net: Network, batch: Batch) -> Tensor:
        return prediction_error(net(batch.inputs).softmax(1), batch.classes)

    return _early_scores(data, ctx, networks, epochs, score, _PASS)


def grand_scores(
    data: RealData,
    ctx: PoolContext,
    *,
    networks: AtLeastOne = 10,
    epochs: NotNegative = 20,
    gradient: Literal["head", "full"] = "head",
) -> Evidence:
    """Norm of the gradient of a row's cross-entropy after ``epochs`` passes, mean over ``networks`` networks.

    Source: Paul, Ganguli and Dziugaite, Deep Learning on a Data Diet, NeurIPS 2021, definition 2.1.

    Args:
        data: the records.
        ctx: networks, classes, streams.
        networks: networks the norm is averaged over.
        epochs: passes before it is taken; 0 for untrained networks.
        gradient: of the last linear map in closed form (the cost of a forward pass), or of all weights.
    """
    score = _head_gradient if gradient == "head" else _full_gradient
    return _early_scores(data, ctx, networks, epochs, score, _PASS if gradient == "head" else _FULL_PASS)


def prediction_error(values: Tensor, classes: Tensor) -> Tensor:
    """|v - onehot| of each row: EL2N of probabilities, LBPE (YOCO) of raw logits.

    Args:
        values: (rows, classes).
        classes: (rows,).

    Returns:
        (rows,).
    """
    return (values - F.one_hot(classes, values.shape[1])).norm(dim=1)


def head_gradient_norm(features: Tensor, logits: Tensor, classes: Tensor, bias: bool = True) -> Tensor:
    """Norm of the gradient of each row's cross-entropy in weights and bias of a last linear map, exact.

    The gradient is (p - onehot) times (f, 1), whose norm is the product of the norms.

    Args:
        features: what enters the linear map, (rows, width).
        logits: what leaves it, (rows, classes).
        classes: (rows,).
        bias: whether the map has one.

    Returns:
        (rows,).
    """
    return prediction_error(logits.softmax(1), classes) * (features.square().sum(1) + bias).sqrt()


def _head_gradient(net: Network, batch: Batch) -> Tensor:
    if not isinstance(net.head, nn.Linear):
        raise ConfigError(
            f"gradient 'head' needs a network whose head is one linear map, got {type(net.head).__name__}; "
            f"set the option gradient to 'full'"
        )
    features = net.embed(batch.inputs)
    return head_gradient_norm(features, net.head(features), batch.classes, net.head.bias is not None)


def _full_gradient(net: Network, batch: Batch) -> Tensor:
    weights: dict[str, Tensor] = dict(net.named_parameters())

    def loss(values: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, values, (row[None],)), label[None])

    grads = vmap(grad(loss), in_dims=(None, 0, 0))(weights, batch.inputs, batch.classes)
    return torch.stack([g.flatten(1).square().sum(1) for g in grads.values()]).sum(0).sqrt()


def _is_right(net: Network, batch: Batch) -> Tensor:
    return net(batch.inputs).argmax(1) == batch.classes


def _early_scores(
    data: RealData, ctx: PoolContext, networks: int, epochs: int, score: Score, rows_per_pass: int
) -> Evidence:
    """The mean of a score over networks trained independently for a few passes."""
    rows = _rows(data, ctx)
    training = Training(epochs * _steps_per_epoch(len(rows)))
    total = torch.zeros(len(rows))
    for number in range(networks):
        net = trained_network(ctx, training, "selection", number)
        total += _scored(net, data, rows, ctx, score, rows_per_pass)
    return _table(data, rows, total / networks)


def _scored(
    net: Network, data: RealData, rows: Tensor, ctx: PoolContext, score: Score, rows_per_pass: int = _PASS
) -> Tensor:
    net.eval()
    found = []
    with torch.no_grad():
        for part in rows.split(rows_per_pass):
            batch = data.batch(part)
            found.append(score(net, Batch(batch.inputs.to(ctx.device), batch.classes.to(ctx.device))).cpu().float())
    return torch.cat(found)


def _rows(data: RealData, ctx: PoolContext) -> Tensor:
    return torch.cat([data.class_index[c] for c in ctx.classes])


def _steps_per_epoch(rows: int) -> int:
    return math.ceil(rows / Training().batch)


def _table(data: RealData, rows: Tensor, scores: Tensor) -> Evidence:
    if bool(scores.isnan().any()):
        raise DivergedError("the networks that score the real rows diverged; their scores are not numbers")
    table = torch.full((len(data), 1), math.nan)
    table[rows, 0] = scores
    return lambda wanted: table[wanted]
