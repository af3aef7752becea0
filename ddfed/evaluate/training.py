"""Training one network on decoded rows, and measuring it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ddfed.data import RealData
from ddfed.domain import Augmentation, Network
from ddfed.errors import DataError, DivergedError
from ddfed.evaluate.protocols import Protocol
from ddfed.seeds import Streams

RowLoss = Callable[[Tensor, Tensor], Tensor]
Rows = Callable[[Tensor], tuple[Tensor, Tensor]]


def train(
    net: Network,
    rows: Rows,
    count: int,
    loss: RowLoss,
    protocol: Protocol,
    augmentation: Augmentation | None,
    streams: Streams,
    *,
    cell_axes: tuple[int, ...] = (),
    on_epoch: Callable[[int], None] | None = None,
) -> Network:
    """Train ``net`` in place as the protocol says.

    Args:
        net: fresh network, on its device.
        rows: index (k,) -> (inputs (k, *item), targets) on the network's device.
        count: number of rows.
        loss: per-row loss of the label store.
        protocol: see `Protocol`.
        augmentation: of the protocol, or None.
        streams: order, draws and mixing hang below these.
        cell_axes: axes along which CutMix cuts its box.
        on_epoch: called after each epoch with its 1-based number.

    Raises:
        DataError: there are no rows.
        DivergedError: the loss stopped being finite.
    """
    if not count:
        raise DataError("there is nothing to train on: the set has no rows")
    drops, lr = protocol.drop_epochs(), protocol.lr
    optimizer = _sgd(net, protocol, lr)
    net.train().requires_grad_(True)
    for epoch in range(protocol.epochs):
        if epoch in drops:
            lr *= drops[epoch]
            if protocol.rebuilt:
                optimizer = _sgd(net, protocol, lr)
            else:
                for group in optimizer.param_groups:
                    group["lr"] = lr
        generator = streams.torch("epoch", epoch)
        last = 0.0
        for index in torch.randperm(count, generator=generator).split(protocol.batch):
            x, y = rows(index)
            if augmentation is not None:
                draw = augmentation.draw(len(x), generator, one_op=True)
                x = augmentation(x, draw, torch.arange(len(x)))
            optimizer.zero_grad()
            value = _loss(net, x, y, loss, protocol, cell_axes, generator)
            value.backward()
            optimizer.step()
            last = float(value.detach())
        if not math.isfinite(last):
            raise DivergedError(f"training loss is {last} in epoch {epoch + 1} of {protocol.name} at lr {lr}")
        if on_epoch:
            on_epoch(epoch + 1)
    return net


def _sgd(net: Network, protocol: Protocol, lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay)


def _loss(
    net: Network,
    x: Tensor,
    y: Tensor,
    loss: RowLoss,
    protocol: Protocol,
    cell_axes: tuple[int, ...],
    generator: torch.Generator,
) -> Tensor:
    if not (protocol.cutmix and cell_axes and float(torch.rand((), generator=generator)) < protocol.cutmix):
        return loss(net(x), y).mean()
    order = torch.randperm(len(x), generator=generator).to(x.device)
    mixed, kept = cutmix(x, order, cell_axes, generator)
    logits = net(mixed)
    return kept * loss(logits, y).mean() + (1 - kept) * loss(logits, y[order]).mean()


def cutmix(x: Tensor, order: Tensor, axes: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, float]:
    """Put a box of the rows ``x[order]`` into ``x``.

    The kept share is drawn from Beta(1, 1) and then set to what the box, clipped at the borders, really
    leaves (Yun et al., CutMix, ICCV 2019).

    Args:
        x: (rows, *item).
        order: partner of each row.
        axes: negative item axes of the box.
        generator: CPU generator.

    Returns:
        The mixed rows, and the share of each item that is its own.
    """
    edge = (1 - float(torch.rand((), generator=generator))) ** (1 / len(axes))
    mask = x.new_ones(x.shape[1:], dtype=torch.bool)
    inside = 1.0
    for axis in axes:
        length = x.shape[axis]
        centre = int(torch.randint(length, (), generator=generator))
        half = int(length * edge) // 2
        low, high = max(centre - half, 0), min(centre + half, length)
        along = torch.zeros(length, dtype=torch.bool, device=x.device)
        along[low:high] = True
        mask &= along.view(-1, *[1] * (-axis - 1))
        inside *= (high - low) / length
    return torch.where(mask, x[order], x), 1 - inside


def accuracy(net: Network, data: RealData, chunk: int = 500) -> float:
    """Share of rows classified right, in [0, 1], in evaluation mode.

    Raises:
        DataError: no rows.
    """
    if not len(data):
        raise DataError("accuracy of no rows is undefined: the test split is empty")
    net.eval()
    device = next(net.parameters()).device
    right = 0
    with torch.no_grad():
        for part in torch.arange(len(data)).split(chunk):
            batch = data.batch(part)
            right += int((net(batch.inputs.to(device)).argmax(1).cpu() == batch.classes).sum())
    return right / len(data)
