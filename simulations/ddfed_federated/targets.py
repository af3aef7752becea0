"""What is to be forgotten, or left out from the beginning: a client or a class. Light: torch only where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddfed.errors import ConfigError, one_of

if TYPE_CHECKING:
    from torch import Tensor

    from ddfed.data import RealData

KINDS = ("client", "class")


@dataclass(frozen=True, order=True)
class Target:
    """A client's records, or the records of a class at every client.

    Args:
        kind: one of `KINDS`.
        number: partition id or label, 0-based.

    Example:
        >>> str(Target.parse("class=7"))
        'class=7'
    """

    kind: str
    number: int

    @classmethod
    def parse(cls, text: str) -> Target:
        """From ``client=3`` or ``class=7``.

        Raises:
            ValueError: it is neither.
        """
        kind, _, number = text.partition("=")
        if kind.strip() not in KINDS or not number.strip().isdigit():
            raise ValueError(f"{text!r} is not client=NUMBER or class=NUMBER, such as client=3")
        return cls(kind.strip(), int(number))

    def __str__(self) -> str:
        return f"{self.kind}={self.number}"


@dataclass(frozen=True)
class Targets:
    """All that is meant together."""

    targets: tuple[Target, ...] = ()

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Targets:
        return cls(tuple(dict.fromkeys(map(Target.parse, texts))))

    @classmethod
    def unpack(cls, table: Tensor) -> Targets:
        """Inverse of `pack`."""
        return cls(tuple(Target(KINDS[kind], number) for kind, number in table.tolist()))

    def pack(self) -> Tensor:
        """As it is sent to clients: (targets, 2) int64, the kind's place in `KINDS` and the number."""
        import torch

        return torch.tensor([[KINDS.index(t.kind), t.number] for t in self.targets], dtype=torch.int64).view(-1, 2)

    @property
    def clients(self) -> tuple[int, ...]:
        return tuple(t.number for t in self.targets if t.kind == "client")

    @property
    def classes(self) -> tuple[int, ...]:
        return tuple(t.number for t in self.targets if t.kind == "class")

    def __str__(self) -> str:
        return ", ".join(map(str, self.targets))

    def meant(self, client: int, labels: Tensor) -> Tensor:
        """Which of a client's rows or items are meant, (rows,) bool."""
        import torch

        if client in self.clients:
            return torch.ones(len(labels), dtype=torch.bool)
        return torch.isin(labels, torch.tensor(self.classes, dtype=labels.dtype))

    def without(self, data: RealData, client: int) -> RealData:
        """What a client's data are without those that are meant."""
        return data.subset((~self.meant(client, data.labels)).nonzero().flatten()) if self.targets else data

    def check(self, clients: int, classes: int, where: str) -> None:
        """Refuse numbers that do not exist, and a task of which nothing is left.

        Raises:
            ConfigError: says which there are.
        """
        for kind, numbers, count in (("client", self.clients, clients), ("class", self.classes, classes)):
            wrong = [n for n in numbers if n >= count]
            if wrong:
                raise ConfigError(f"{where}: there is no {kind} {one_of(wrong)}; they are numbered 0 to {count - 1}")
            if len(numbers) >= count:
                raise ConfigError(f"{where} names every {kind}, so nothing would be left to learn from")
