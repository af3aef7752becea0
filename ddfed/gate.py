"""The one gate to real data.

Inside distillation, real data is reachable only as sums of per-example contributions asked of a gate.
Privacy clips and noises here, canaries are planted here, a federation sums here; everything downstream is
post-processing. `PlainGate` returns exact sums. A private gate answers the same questions under a mechanism
and refuses `raw`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ddfed.data import Batch, RealData, TaskInfo
from ddfed.errors import ConfigError, DataError, GateError
from ddfed.ledger import Ledger, PrivacyEvent

Contribution = Callable[[Batch], Tensor]
BatchLoss = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Query:
    """A question to the gate.

    Args:
        name: what is asked, for the ledger and for people.
        classes: the groups of the answer; only rows of these classes take part.
        rows: rows drawn per class (``per_class``) or over all classes together; None for every row.
        per_class: draw ``rows`` of every class instead of ``rows`` in all.
        top_up: draw with replacement where a class has fewer than ``rows`` (FedDM); else take all it has.
        among: draw among these rows only (row numbers that `Gate.each` gave, int64), or None for all.
    """

    name: str
    classes: tuple[int, ...]
    rows: int | None = None
    per_class: bool = True
    top_up: bool = False
    among: Tensor | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Answer:
    """Sums of contributions, and what to divide them by.

    Args:
        sums: (groups, width) float32, group g belongs to ``query.classes[g]``.
        counts: (groups,) float32: rows that took part. A private gate gives a public constant.
    """

    sums: Tensor
    counts: Tensor

    @property
    def means(self) -> Tensor:
        """(groups, width); zero where nothing took part."""
        return self.sums / self.counts.clamp(min=1).unsqueeze(1)


@dataclass(frozen=True)
class Rows:
    """Contributions of single rows, nothing summed.

    Args:
        values: (rows, width) float32.
        groups: row i belongs to ``query.classes[groups[i]]``, (rows,) int64; rows of a group stand together.
        rows: row numbers for `Query.among`, (rows,) int64.
    """

    values: Tensor
    groups: Tensor
    rows: Tensor

    def split(self, count: int) -> tuple[Tensor, ...]:
        """The values of each of the ``count`` groups, (rows of the group, width)."""
        return self.values.split(torch.bincount(self.groups, minlength=count).tolist())


class Gate(ABC):
    """What distillation may ask about real data."""

    info: TaskInfo
    ledger: Ledger

    @abstractmethod
    def sums(self, query: Query, contribution: Contribution, generator: torch.Generator) -> Answer:
        """Sum ``contribution(batch)``, shape (rows, width), over the rows of each class.

        A contribution must treat rows independently: row i of the result may depend on row i alone and on
        public values. It may be called several times with chunks of the drawn rows, and with no rows at all.

        Args:
            query: which rows, grouped how.
            contribution: per-example map; runs without gradient.
            generator: draws the rows.
        """

    @abstractmethod
    def gradient(
        self, query: Query, parameters: Sequence[Tensor], loss: BatchLoss, generator: torch.Generator
    ) -> tuple[list[Tensor], int]:
        """Sum over the drawn rows of the gradient of ``loss(batch)`` (rows,) with respect to ``parameters``.

        Returns:
            The summed gradients, and the number of rows to divide by.
        """

    def class_gradients(
        self, query: Query, parameters: Sequence[Tensor], loss: BatchLoss, generator: torch.Generator
    ) -> tuple[list[Tensor], Tensor]:
        """As `gradient`, for each class apart.

        Returns:
            For each parameter the summed gradients, (groups, *shape of the parameter), and the rows that took
            part in each group, (groups,) float32.
        """
        asked = [self.gradient(replace(query, classes=(c,)), parameters, loss, generator) for c in query.classes]
        stacked = [torch.stack(grads) for grads in zip(*(grads for grads, _ in asked))]
        return stacked, torch.tensor([float(count) for _, count in asked])

    def each(self, query: Query, contribution: Contribution, generator: torch.Generator) -> Rows:
        """The contributions of single rows, for statistics that are no sums (kernels, quantiles, distances).

        Args:
            query: which rows, grouped how.
            contribution: as in `sums`.
            generator: draws the rows.

        Raises:
            GateError: the gate answers sums only.
        """
        raise GateError(f"this gate answers sums only, not single rows ({query.name})")

    def counts(self) -> Tensor:
        """Rows of each class of the task, (classes,) int64. A private gate answers under its mechanism.

        Raises:
            GateError: the gate does not tell.
        """
        raise GateError("this gate does not tell how many rows a class has")

    def fingerprint(self) -> str:
        """A hash of the records, which shows whether something was made from them. A private gate refuses.

        Raises:
            GateError: the gate does not tell.
        """
        raise GateError("this gate gives no hash of its records, so nothing made beforehand can be held against them")

    @abstractmethod
    def held(self, minimum: int = 1) -> tuple[int, ...]:
        """Classes with at least ``minimum`` rows. The list is itself data; a private gate declares it public."""

    @abstractmethod
    def raw(self, purpose: str) -> RealData:
        """The records themselves, for parts that declare they need them (real initialisation, selection).

        Raises:
            GateError: the gate answers sums only.
        """


@dataclass
class PlainGate(Gate):
    """Exact sums over data in memory; no privacy.

    Args:
        data: the records.
        scope: whose records they are, for the ledger.
        chunk: most rows that pass through a network at once; bounds the memory of a step.
        ledger: where touches are recorded.
    """

    data: RealData
    scope: str = "dataset"
    chunk: int = 128
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        self.info = self.data.info
        if self.chunk < 1:
            raise ConfigError(f"chunk must be at least 1 row, got {self.chunk}")

    def held(self, minimum: int = 1) -> tuple[int, ...]:
        return tuple(torch.nonzero(self.data.class_counts >= max(minimum, 1)).flatten().tolist())

    def counts(self) -> Tensor:
        self.ledger.append(PrivacyEvent("none", "class counts", self.scope))
        return self.data.class_counts.clone()

    def fingerprint(self) -> str:
        self.ledger.append(PrivacyEvent("none", "hash of the records", self.scope))
        return self.data.content_hash

    def raw(self, purpose: str) -> RealData:
        self.ledger.append(PrivacyEvent("raw", purpose, self.scope))
        return self.data

    def sums(self, query: Query, contribution: Contribution, generator: torch.Generator) -> Answer:
        self.ledger.append(PrivacyEvent("none", query.name, self.scope))
        rows = self._draw(query, generator)
        groups = self._groups(query, rows)
        total: Tensor | None = None
        for part, values in self._contributions(query, contribution, rows):
            if total is None:
                total = values.new_zeros(len(query.classes), values.shape[1])
            total.index_add_(0, groups[part].to(values.device), values)
        assert total is not None
        return Answer(total, torch.bincount(groups, minlength=len(query.classes)).to(total))

    def each(self, query: Query, contribution: Contribution, generator: torch.Generator) -> Rows:
        self.ledger.append(PrivacyEvent("rows", query.name, self.scope))
        rows = self._draw(query, generator)
        rows = rows[torch.argsort(self._groups(query, rows), stable=True)]
        values = torch.cat([values for _, values in self._contributions(query, contribution, rows)])
        return Rows(values, self._groups(query, rows), rows)

    def _groups(self, query: Query, rows: Tensor) -> Tensor:
        group_of = torch.full((self.info.num_classes,), -1)
        group_of[list(query.classes)] = torch.arange(len(query.classes))
        return group_of[self.data.labels[rows]]

    def _contributions(self, query: Query, contribution: Contribution, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The contributions of ``rows``, pass by pass."""
        if not len(rows):
            raise DataError(f"query {query.name!r} found no rows of the classes {query.classes} in {self.scope!r}")
        begin = 0
        for part in self.data.passes(rows, self.chunk):
            with torch.no_grad():
                values = contribution(self.data.batch(part)).to(torch.float32)
            if values.ndim != 2 or len(values) != len(part):
                raise ConfigError(
                    f"query {query.name!r}: a contribution must have shape (rows, width) with {len(part)} rows, "
                    f"got {tuple(values.shape)}"
                )
            yield slice(begin, begin + len(part)), values
            begin += len(part)

    def gradient(
        self, query: Query, parameters: Sequence[Tensor], loss: BatchLoss, generator: torch.Generator
    ) -> tuple[list[Tensor], int]:
        self.ledger.append(PrivacyEvent("none", query.name, self.scope))
        rows = self._draw(query, generator)
        total = [torch.zeros_like(p) for p in parameters]
        for part in self.data.passes(rows, self.chunk):
            # Summing before differentiating equals summing per-example gradients, at the cost of one backward.
            for held, grad in zip(total, torch.autograd.grad(loss(self.data.batch(part)).sum(), parameters)):
                held += grad
        return total, len(rows)

    def _draw(self, query: Query, generator: torch.Generator) -> Tensor:
        index = [self.data.class_index[c] for c in query.classes]
        if query.among is not None:
            index = [members[torch.isin(members, query.among)] for members in index]
        if not query.per_class:
            index = [torch.cat(index).sort().values]
        return torch.cat([_pick(members, query.rows, query.top_up, generator) for members in index])


@dataclass
class EmptyGate(Gate):
    """No records behind it: every question is refused, for engines that learn from public knowledge alone.

    What classes the task has is public, so all of them count as held.

    Args:
        info: the task.
        ledger: stays empty.
    """

    info: TaskInfo
    ledger: Ledger = field(default_factory=Ledger)

    def held(self, minimum: int = 1) -> tuple[int, ...]:
        return tuple(range(self.info.num_classes))

    def raw(self, purpose: str) -> RealData:
        raise self._refusal(purpose)

    def sums(self, query: Query, contribution: Contribution, generator: torch.Generator) -> Answer:
        raise self._refusal(query.name)

    def gradient(
        self, query: Query, parameters: Sequence[Tensor], loss: BatchLoss, generator: torch.Generator
    ) -> tuple[list[Tensor], int]:
        raise self._refusal(query.name)

    def _refusal(self, asked: str) -> GateError:
        return GateError(
            f"there are no records here, and {asked!r} asks for some. Without records take an engine that follows "
            f"given weights (objective 'trajectory' with pool 'path'), init = 'noise' and labels 'hard' or 'logits'."
        )


@dataclass
class GivenGradient(EmptyGate):
    """No records, but the gradient that they gave to the weights, known from elsewhere (FedLGD's server).

    Every question for gradients is answered by it, whatever the rows asked for; what is matched must be the gradient of
    all classes together (objective 'gradient' with ``joint``).

    Args:
        given: of each weight that is matched, in the order of the network's parameters.
    """

    given: Sequence[Tensor] = ()

    def gradient(
        self, query: Query, parameters: Sequence[Tensor], loss: BatchLoss, generator: torch.Generator
    ) -> tuple[list[Tensor], int]:
        shapes, asked = ([tuple(t.shape) for t in tensors] for tensors in (self.given, parameters))
        if shapes != asked:
            raise GateError(f"the given gradient has the shapes {shapes}, and {query.name!r} asks for {asked}")
        return [one.to(parameter) for one, parameter in zip(self.given, parameters)], 1


def _pick(members: Tensor, rows: int | None, top_up: bool, generator: torch.Generator) -> Tensor:
    """``rows`` of ``members`` without replacement; all of them, topped up or not, when there are fewer."""
    if rows is None or not len(members):
        return members
    if rows <= len(members):
        return members[torch.randperm(len(members), generator=generator)[:rows]]
    if not top_up:
        return members
    extra = torch.randint(len(members), (rows - len(members),), generator=generator)
    return torch.cat([members, members[extra]])
