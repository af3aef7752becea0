"""The server's engine asks, clients answer beforehand.

Distribution matching asks real rows for class means of features alone, and networks drawn at random know nothing of
any data. So the questions of a whole distillation are known: a client answers them all at once, and the server's engine
runs later on the answers, pooled, as if it stood before everybody's rows.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddfed.data import Batch, RealData, TaskInfo
from ddfed.distill import distill
from ddfed.domain import Domain
from ddfed.errors import GateError
from ddfed.gate import Answer, BatchLoss, Contribution, Gate, Query
from ddfed.ledger import Ledger
from ddfed.pool import PoolContext
from ddfed.seeds import Streams
from ddfed.settings import PartSettings


class _SumsOnly(Gate):
    """A gate that answers sums and nothing else."""

    def gradient(
        self, query: Query, parameters: Sequence[Tensor], loss: BatchLoss, generator: torch.Generator
    ) -> tuple[list[Tensor], int]:
        raise self._refusal(query.name)

    def raw(self, purpose: str) -> RealData:
        raise self._refusal(purpose)

    def _refusal(self, what: str) -> GateError:
        return GateError(
            f"answers given beforehand are sums of contributions, and {what!r} asks for something else. Use an engine "
            f"of sums over networks drawn at random (objective 'mean' or 'moments', pool 'R', init 'noise')."
        )


@dataclass
class Recording(_SumsOnly):
    """Passes questions on to another gate and keeps the answers.

    Args:
        gate: the client's rows.
        classes: those that are answered for. The engine is told that all classes of the task are there, so that its
            draws do not depend on which ones a client holds; the others get sum and count 0.
        streams: of the client. Which rows are drawn is the client's own secret, unlike the networks.
    """

    gate: Gate
    classes: tuple[int, ...]
    streams: Streams
    answers: list[Answer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.info, self.ledger = self.gate.info, self.gate.ledger

    def held(self, minimum: int = 1) -> tuple[int, ...]:
        return tuple(range(self.info.num_classes))

    def sums(self, query: Query, contribution: Contribution, generator: torch.Generator) -> Answer:
        asked = Query(query.name, self.classes, query.rows, query.per_class, query.top_up)
        own = self.gate.sums(asked, contribution, self.streams.torch("answers", len(self.answers)))
        sums = own.sums.new_zeros(len(query.classes), own.sums.shape[1])
        counts = own.counts.new_zeros(len(query.classes))
        places = [query.classes.index(c) for c in self.classes]
        sums[places], counts[places] = own.sums, own.counts
        self.answers.append(Answer(sums, counts))
        return self.answers[-1]


@dataclass
class Replayed(_SumsOnly):
    """Gives answers that were made beforehand, in the order of the questions; it has no rows.

    Args:
        info: the task's public facts.
        tables: for each question (classes of the task, 1 + width): a count, and the mean (`parts.tables.pooled`).
    """

    info: TaskInfo
    tables: Tensor
    ledger: Ledger = field(default_factory=Ledger)
    asked: int = 0

    def held(self, minimum: int = 1) -> tuple[int, ...]:
        return tuple(torch.nonzero(self.tables[0, :, 0] >= max(minimum, 1)).flatten().tolist())

    def sums(self, query: Query, contribution: Contribution, generator: torch.Generator) -> Answer:
        if self.asked == len(self.tables):
            raise GateError(
                f"question {self.asked + 1} ({query.name!r}), and {self.asked} answers were given beforehand"
            )
        table = self.tables[self.asked][list(query.classes)]
        self.asked += 1
        # Engines learn the widths of their terms from a call, which a contribution must stand without any rows.
        with torch.no_grad():
            contribution(Batch(torch.zeros(0, *self.info.shape), torch.zeros(0, dtype=torch.int64)))
        return Answer(table[:, 1:] * table[:, :1], table[:, 0])


def answered(
    gate: Gate, domain: Domain, parts: PartSettings, shared: Streams, own: Streams, classes: tuple[int, ...],
    scope: str, device: torch.device,
) -> Tensor:  # fmt: skip
    """Class means of all questions that a distillation with ``parts`` below ``shared`` will ask.

    The engine itself asks them, with one item a class that is thrown away, so that both sides ask the same.

    Args:
        gate: to the rows.
        domain: modality adapter.
        parts: those of the later distillation.
        shared: its streams.
        own: of the client; they draw rows.
        classes: those that are answered for; zeros elsewhere.
        scope: for observers and messages.
        device: where networks live.

    Returns:
        (questions, classes, width).
    """
    recording = Recording(gate, classes, own)
    asking = parts.model_copy(update={"ipc": 1})
    distill(recording, domain, asking, shared, scope=scope, device=device)
    return torch.stack([answer.means.cpu() for answer in recording.answers])


def checksums(domain: Domain, info: TaskInfo, parts: PartSettings, shared: Streams) -> Tensor:
    """CRC-32 of the first tensor of each network that a distillation with pool R below ``shared`` draws, (steps,).

    Two sides whose libraries draw other numbers from a seed would match means of unrelated networks, and nothing else
    would tell.
    """
    network = parts.network or domain.default_network(info)
    # The gate is not asked anything: pool R draws networks from streams alone.
    context = PoolContext(lambda: domain.network(network, info), Replayed(info, torch.zeros(0)), shared, ())

    def first_tensors() -> Iterator[Tensor]:
        for step in range(parts.steps):
            yield next(context.fresh(step).parameters()).detach()

    return torch.tensor([zlib.crc32(tensor.contiguous().numpy().tobytes()) for tensor in first_tensors()])


__all__ = ["Recording", "Replayed", "answered", "checksums"]
