"""The evaluation table: the set, random items of the same budget, and full data, under one recipe."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ddfed.artifact import SyntheticSet
from ddfed.data import RealData, Task
from ddfed.domain import Domain
from ddfed.errors import ArtifactError, DataError
from ddfed.evaluate.protocols import Protocol
from ddfed.evaluate.training import RowLoss, accuracy, train
from ddfed.registry import registry
from ddfed.seeds import Streams, isolated
from ddfed.store import HardLabels

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Measurement:
    """One row of the table.

    Args:
        subject: ``"dm"``, ``"random"``, ``"full data"``.
        network: what was trained.
        protocol: how, with any departure in its name.
        accuracies: test accuracy of each fresh network, in [0, 1], last epoch.
        items: stored items trained on.
        seconds: wall time of the row.
        note: what a reader must know to compare.
    """

    subject: str
    network: str
    protocol: str
    accuracies: tuple[float, ...]
    items: int
    seconds: float
    note: str = ""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float:
        """Population deviation over networks, the convention of the field."""
        return statistics.pstdev(self.accuracies)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "mean": self.mean, "std": self.std}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Measurement:
        fields: dict[str, Any] = {k: v for k, v in row.items() if k not in ("mean", "std")}
        return cls(**{**fields, "accuracies": tuple(fields["accuracies"])})


@dataclass(frozen=True, eq=False)
class Subject:
    """What is trained on: a function from row numbers to rows, one per repeat.

    Args:
        name: for the table.
        items: stored items.
        make: repeat -> (rows, count, loss).
        note: for the table.
    """

    name: str
    items: int
    make: Callable[[int], tuple[Callable[[Tensor], tuple[Tensor, Tensor]], int, RowLoss]]
    note: str = ""


def synthetic_subject(syn: SyntheticSet, name: str, device: torch.device) -> Subject:
    """The set itself; decoded once."""
    x, y = (t.to(device) for t in syn.decoded())
    return Subject(name, len(syn), lambda repeat: (lambda i: (x[i], y[i]), len(x), syn.labels.loss))


def random_subject(syn: SyntheticSet, real: RealData, streams: Streams, device: torch.device) -> Subject:
    """Real items of the same bytes per class, drawn anew for each repeat; hard labels."""
    budget = torch.minimum(syn.budget, real.class_counts).tolist()

    def make(repeat: int) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], int, RowLoss]:
        generator = streams.torch("random subset", repeat)
        picks = [m[torch.randperm(len(m), generator=generator)[:n]] for m, n in zip(real.class_index, budget)]
        batch = real.batch(torch.cat(picks))
        x, y = batch.inputs.to(device), batch.classes.to(device)
        return (lambda i: (x[i], y[i])), len(x), HardLabels.loss

    return Subject("random", sum(budget), make, "real items, same number per class, new ones for each network")


def full_subject(real: RealData, device: torch.device, note: str) -> Subject:
    """Every real row, made ready batch by batch."""

    def rows(index: Tensor) -> tuple[Tensor, Tensor]:
        batch = real.batch(index)
        return batch.inputs.to(device), batch.classes.to(device)

    return Subject("full data", len(real), lambda repeat: (rows, len(real), HardLabels.loss), note)


def measure(
    subject: Subject,
    task: Task,
    domain: Domain,
    network: str,
    protocol: Protocol,
    repeats: int,
    streams: Streams,
    device: torch.device,
    report: Report | None = None,
) -> Measurement:
    """Train ``repeats`` fresh networks on the subject and test them.

    Networks, order and augmentation hang on (network, repeat) alone, so that subjects are compared on the
    same initial weights.
    """
    augmentation = domain.augmentation(protocol.augment, task.info)
    begun, found = time.perf_counter(), []
    for repeat in range(repeats):
        rows, count, loss = subject.make(repeat)
        with isolated(streams.seed("evaluation network", network, repeat)):
            net = domain.network(network, task.info).to(device)
        train(
            net,
            rows,
            count,
            loss,
            protocol,
            augmentation,
            streams.child("evaluation", network, repeat),
            cell_axes=task.info.cell_axes,
            on_epoch=_reporter(report, f"{subject.name} {network} {repeat + 1}/{repeats}", protocol.epochs),
        )
        found.append(accuracy(net, task.test))
    return Measurement(
        subject.name,
        network,
        protocol.name,
        tuple(found),
        subject.items,
        round(time.perf_counter() - begun, 3),
        subject.note,
    )


def _reporter(report: Report | None, text: str, epochs: int) -> Callable[[int], None] | None:
    return None if report is None else lambda epoch: report(text, epoch, epochs)


def evaluate(
    syn: SyntheticSet,
    task: Task,
    domain: Domain,
    *,
    name: str = "distilled",
    networks: Iterable[str] = (),
    protocol: str = "",
    epochs: int | None = None,
    repeats: int = 3,
    baselines: Iterable[str] = ("random", "full"),
    streams: Streams | None = None,
    device: torch.device | None = None,
    report: Report | None = None,
) -> list[Measurement]:
    """The table of a set: itself, random items of its budget and full data, for each network.

    Args:
        syn: the set.
        task: the data it was made from; its space must agree with the set's.
        domain: modality adapter.
        name: what the table calls the set.
        networks: networks to train; the domain's default when empty (more make the cross-architecture table).
        protocol: evaluation recipe; the set's own when empty.
        epochs: overrides the recipe's, and is said in the protocol's name.
        repeats: fresh networks per row.
        baselines: ``"random"`` and ``"full"``, as wanted.
        streams: randomness; seed 0 by default.
        device: the CPU by default.
        report: called with (text, epoch, epochs) as training goes.

    Raises:
        ArtifactError: the set and the data disagree in shape, classes or space.
        UnknownNameError: no such protocol or network.
    """
    check_fits(syn, task)
    streams, device = streams or Streams(0), device or torch.device("cpu")
    recipe: Protocol = registry().load("protocol", protocol or syn.protocol, "the protocol")
    recipe = recipe.for_dataset(task.info.dataset).with_epochs(epochs)
    wanted, rows = set(baselines), []
    names = tuple(networks) or (domain.default_network(task.info),)
    for network in names:
        with isolated(0):
            domain.network(network, task.info)  # a wrong name or size is found before an hour is spent
    for network in names:
        subjects = [(synthetic_subject(syn, name, device), recipe)]
        if "random" in wanted:
            subjects.append((random_subject(syn, task.train, streams, device), recipe))
        if "full" in wanted:
            subjects.append(_full(syn, task, recipe, device))
        for subject, how in subjects:
            rows.append(measure(subject, task, domain, network, how, repeats, streams, device, report))
    return rows


def _full(syn: SyntheticSet, task: Task, recipe: Protocol, device: torch.device) -> tuple[Subject, Protocol]:
    """Full data at the number of gradient steps that the recipe spends on the set.

    The recipe's epochs over full data would be hundreds of times the work; equal steps are affordable and
    still an upper reference. The row says so.
    """
    rows = len(syn) * syn.store.rows_per_item
    steps = recipe.epochs * math.ceil(rows / recipe.batch)
    epochs = max(1, round(steps / math.ceil(len(task.train) / recipe.batch)))
    note = f"{epochs} epochs over all {len(task.train)} rows, about as many steps as on the set"
    return full_subject(task.train, device, note), Protocol(**{**vars(recipe), "epochs": epochs})


def check_fits(syn: SyntheticSet, task: Task) -> None:
    """Refuse a set made for other data or another space.

    Raises:
        ArtifactError: says what differs.
    """
    if not len(task.test):
        raise DataError(f"{task.info.dataset!r} has no test rows to evaluate on")
    for what, mine, theirs, fits in (
        ("shape", syn.info.shape, task.info.shape, syn.info.shape == task.info.shape),
        ("classes", syn.info.classes, task.info.classes, syn.info.classes == task.info.classes),
        ("space", syn.info.space, task.info.space, syn.info.space.agrees(task.info.space)),
    ):
        if not fits:
            raise ArtifactError(
                f"the set's {what} is {mine}, the data's is {theirs}; evaluate on the data set it was made from "
                f"({syn.info.domain}/{syn.info.dataset}) with the same options"
            )
