"""Training one network on decoded rows, and measuring it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.data import RealData
from ddfed.domain import Augmentation, Network
from ddfed.errors import ArtifactError, ConfigError, DataError, DivergedError
from ddfed.evaluate.protocols import Protocol
from ddfed.kernels import ridge_weights
from ddfed.mixing import beta, cutmix
from ddfed.seeds import Streams
from ddfed.stages import Stages
from ddfed.store import Replay

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
    replay: Replay | None = None,
    redrawn: Callable[[torch.Generator], Rows] | None = None,
    coupled: bool = False,
    judge: Callable[[Network], float] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Network:
    """Train ``net`` in place as the protocol says.

    Args:
        net: fresh network, on its device.
        rows: index (k,) -> (inputs (k, *item), targets) on the network's device.
        count: number of rows.
        loss: per-row loss of the label store.
        protocol: see `Protocol`.
        augmentation: of the protocol, or of ``replay`` when that is given; None for none.
        streams: order, draws and mixing hang below these.
        cell_axes: axes along which CutMix cuts its box.
        on_epoch: called after each epoch with its 1-based number.
        redrawn: gives the rows of an epoch, for sets whose rows are drawn; ``rows`` is not asked then.
        replay: stored batches, draws, mixing and targets that take the place of drawn ones; nothing else is mixed.
        coupled: a network must see the rows together and in their order, in one batch.
        judge: how good the network is on validation rows; with it the weights of the best of every
            ``protocol.choose`` epochs are kept, the first of equals. None for the last epoch.
        stop: looked at after every step; True ends the training there.

    Raises:
        ArtifactError: the stored draws are not of this augmentation.
        ConfigError: the protocol augments or mixes rows that are coupled.
        DataError: there are no rows.
        DivergedError: the loss stopped being finite.
    """
    if not count:
        raise DataError("there is nothing to train on: the set has no rows")
    if coupled and (augmentation is not None or protocol.cutmix or protocol.mixup):
        raise ConfigError(
            f"{protocol.name} changes or mixes rows one by one, and those of this set must be seen together as they "
            f"are. Use a protocol for graphs, such as E-gcn."
        )
    best = _Best(judge if protocol.choose else None)
    rebuilt = protocol.drop_epochs() if protocol.rebuilt and protocol.schedule == "drops" else {}
    optimizer = _optimizer(net, protocol)
    net.train().requires_grad_(True)
    for epoch in range(protocol.epochs):
        lr = protocol.lr_at(epoch)
        if epoch in rebuilt:
            optimizer = _optimizer(net, protocol)
        generator = streams.torch("epoch", epoch)
        if redrawn is not None:
            rows = redrawn(streams.torch("rows", epoch))
        last = 0.0
        if replay is None:
            batches, mixing = _drawn(rows, count, protocol, augmentation, generator, coupled), protocol
        else:
            batches, mixing = _replayed(replay, rows, count, augmentation, epoch, cell_axes), protocol.without_mixing()
        sizes = protocol.lrs[epoch * protocol.blocks :] or repeat(lr)
        for size, (x, y) in zip(sizes, batches):
            for group in optimizer.param_groups:
                group["lr"] = size
            optimizer.zero_grad()
            value = _loss(net, x, y, loss, mixing, cell_axes, generator)
            value.backward()
            optimizer.step()
            last = float(value.detach())
            if stop is not None and stop():
                best.restore(net)
                return net
        if not math.isfinite(last):
            raise DivergedError(f"training loss is {last} in epoch {epoch + 1} of {protocol.name} at lr {lr}")
        if protocol.choose and (epoch + 1) % protocol.choose == 0:
            best.look(net)
        if on_epoch:
            on_epoch(epoch + 1)
    best.restore(net)
    return net


class _Best:
    """The best weights seen, by a judge.

    Args:
        judge: network -> a number, the higher the better; None keeps nothing.
    """

    def __init__(self, judge: Callable[[Network], float] | None) -> None:
        self.judge, self.score = judge, -math.inf
        self.weights: dict[str, Tensor] = {}

    def look(self, net: Network) -> None:
        if self.judge is None:
            return
        score = self.judge(net)
        net.train()
        if score > self.score:
            self.score, self.weights = score, {k: v.detach().clone() for k, v in net.state_dict().items()}

    def restore(self, net: Network) -> None:
        if self.weights:
            net.load_state_dict(self.weights)


def train_in_stages(
    net: Network,
    rows: Rows,
    stages: Stages,
    loss: RowLoss,
    protocol: Protocol,
    augmentation: Augmentation | None,
    streams: Streams,
    *,
    until: int | None = None,
    cell_axes: tuple[int, ...] = (),
    on_epoch: Callable[[int], None] | None = None,
) -> Network:
    """Train ``net`` in place on the rows of one stage after another, each as the protocol says for it.

    Source: Du et al., SeqMatch, NeurIPS 2023, section 3: what is learned in stages must be trained on in them; a
    shuffled union loses the gain.

    Args:
        net, rows, loss, protocol, augmentation, streams, cell_axes: as for `train`.
        stages: of the rows.
        until: the first stage that is left out; None for all stages.
        on_epoch: called after each epoch with its 1-based number over all stages.

    Raises:
        DataError, DivergedError: as `train`.
    """
    passed = 0
    for stage in range(stages.count if until is None else until):
        part, seen = protocol.of_stage(stage), torch.nonzero(stages.seen_in(stage)).flatten()
        train(
            net,
            _among(rows, seen),
            len(seen),
            loss,
            part,
            augmentation,
            streams.child("stage", stage),
            cell_axes=cell_axes,
            on_epoch=_after(on_epoch, passed),
        )
        passed += part.epochs
    return net


def _among(rows: Rows, some: Tensor) -> Rows:
    return lambda index: rows(some[index])


def _after(on_epoch: Callable[[int], None] | None, passed: int) -> Callable[[int], None] | None:
    return None if on_epoch is None else lambda epoch: on_epoch(passed + epoch)


def _drawn(
    rows: Rows,
    count: int,
    protocol: Protocol,
    augmentation: Augmentation | None,
    generator: torch.Generator,
    coupled: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of an epoch: every row once, in a random order or block by block, each with a draw of its own."""
    if coupled or not protocol.batch:
        order = [torch.arange(count)]
    elif protocol.blocks:
        order = [torch.arange(block, count, protocol.blocks) for block in range(protocol.blocks)]
    else:
        order = list(torch.randperm(count, generator=generator).split(protocol.batch))
    for index in order:
        x, y = rows(index)
        if augmentation is not None:
            x = augmentation(x, augmentation.draw(len(x), generator, one_op=True), torch.arange(len(x)))
        yield x, y


def _replayed(
    replay: Replay,
    rows: Rows,
    count: int,
    augmentation: Augmentation | None,
    epoch: int,
    cell_axes: tuple[int, ...],
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of an epoch from the stored blocks in turn, as many as it takes to show ``count`` rows."""
    batch = replay.rows.shape[1]
    if augmentation is not None:
        width = augmentation.draw(1, torch.Generator().manual_seed(0)).u.shape[1]
        if replay.draws[0].u.shape[1] != width:
            raise ArtifactError(
                f"the stored draws have {replay.draws[0].u.shape[1]} numbers for each row, augmentation "
                f"{replay.augment!r} takes {width}: they were made by another version or data set"
            )
    per_epoch = -(-count // batch)
    for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
        block = step % len(replay)
        x, y = rows(replay.rows[block])
        if augmentation is not None:
            x = augmentation(x, replay.draws[block], torch.arange(batch))
        if replay.mixes:
            x, _ = replay.mixes[block](x, cell_axes)
        yield x, replay.targets[block].to(y.device)


def _optimizer(net: Network, protocol: Protocol) -> torch.optim.Optimizer:
    weights, decay = list(net.parameters()), protocol.weight_decay
    if protocol.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=protocol.lr, momentum=protocol.momentum, weight_decay=decay)
    kind = torch.optim.Adam if protocol.optimizer == "adam" else torch.optim.AdamW
    return kind(weights, lr=protocol.lr, weight_decay=decay)


def _loss(
    net: Network,
    x: Tensor,
    y: Tensor,
    loss: RowLoss,
    protocol: Protocol,
    cell_axes: tuple[int, ...],
    generator: torch.Generator,
) -> Tensor:
    if protocol.mixup:
        kept = beta(protocol.mixup, generator)
        order = torch.randperm(len(x), generator=generator).to(x.device)
        mixed = kept * x + (1 - kept) * x[order]
    elif protocol.cutmix and cell_axes and float(torch.rand((), generator=generator)) < protocol.cutmix:
        order = torch.randperm(len(x), generator=generator).to(x.device)
        mixed, kept = cutmix(x, order, cell_axes, generator)
    else:
        return loss(net(x), y).mean()
    logits = net(mixed)
    return kept * loss(logits, y).mean() + (1 - kept) * loss(logits, y[order]).mean()


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
        for part in data.passes(torch.arange(len(data)), chunk):
            batch = data.batch(part)
            right += int((net(batch.inputs.to(device)).argmax(1).cpu() == batch.classes).sum())
    return right / len(data)


@dataclass(frozen=True)
class Quality:
    """How good a classifier is on the test split.

    Args:
        accuracy: share of rows classified right, in [0, 1].
        ece: expected calibration error, in [0, 1]; None where there are no probabilities.
        nll: mean negative log-likelihood of the right class in nats; None likewise.
    """

    accuracy: float
    ece: float | None = None
    nll: float | None = None


def quality(net: Network, data: RealData, chunk: int = 500) -> Quality:
    """Accuracy and calibration of the network's softmax, in evaluation mode.

    Raises:
        DataError: no rows.
    """
    if not len(data):
        raise DataError("the quality of a network on no rows is undefined: the test split is empty")
    net.eval()
    device = next(net.parameters()).device
    with torch.no_grad():
        parts = data.passes(torch.arange(len(data)), chunk)
        logits = torch.cat([net(data.batch(part).inputs.to(device)).float().cpu() for part in parts])
    right = (logits.argmax(1) == data.labels).double().mean()
    return Quality(
        float(right), calibration_error(logits.softmax(1), data.labels), float(F.cross_entropy(logits, data.labels))
    )


def probed(net: Network, train: RealData, test: RealData, ridge: float, chunk: int = 500) -> Quality:
    """Accuracy of a linear map from the network's features to classes, fitted to real rows; the network stays.

    Features are divided by their mean length and have a 1 beside them; the map is the ridge regression of e_c - 1/C, in
    float64. Scores of a regression are no probabilities, so there is no calibration.

    Args:
        net: in evaluation mode while it is asked.
        train: rows that the map is fitted to.
        test: rows that it is judged on.
        ridge: of the mean of the diagonal of the features' Gram matrix.

    Raises:
        DataError: either has no rows.
    """
    if not len(train) or not len(test):
        raise DataError("a network's features are probed on training and test rows, and there are none")
    net.eval()
    found, judged = (_features(net, data, chunk) for data in (train, test))
    scale = float(found.norm(dim=1).mean()) or 1.0
    found, judged = (torch.cat([f / scale, f.new_ones(len(f), 1)], 1) for f in (found, judged))
    wanted = F.one_hot(train.labels, train.info.num_classes).double() - 1 / train.info.num_classes
    gram = found.T @ found
    weights = ridge_weights(gram, found.T @ wanted, ridge * float(gram.diagonal().mean()))
    return Quality(float(((judged @ weights).argmax(1) == test.labels).double().mean()))


def _features(net: Network, data: RealData, chunk: int) -> Tensor:
    """What enters the network's last layer, (rows, width) float64."""
    device = next(net.parameters()).device
    with torch.no_grad():
        parts = data.passes(torch.arange(len(data)), chunk)
        return torch.cat([net.embed(data.batch(part).inputs.to(device)).double().cpu() for part in parts])


def calibration_error(probabilities: Tensor, classes: Tensor, bins: int = 15) -> float:
    """Expected calibration error: sum over bins of (rows in bin / rows) |accuracy - mean confidence|.

    Bins are equally wide in the probability of the predicted class, open below and closed above.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3, with its 15 bins.

    Args:
        probabilities: (rows, classes).
        classes: the right ones, (rows,).
        bins: how many.
    """
    confidence, predicted = probabilities.double().max(1)
    right = (predicted == classes).double()
    place = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, right - confidence)
    return float(gap.abs().sum() / len(classes))
