"""The DC-BENCH matrix: networks by training augmentations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ddfed.errors import ConfigError, UnknownNameError
from ddfed.evaluate.protocols import dc_bench
from ddfed.evaluate.table import Bench, Measurement
from ddfed.seeds import isolated


@dataclass(frozen=True)
class Cell:
    """One network under one augmentation: the set and its baselines."""

    network: str
    augmentation: str
    rows: tuple[Measurement, ...]


@dataclass(frozen=True)
class Matrix:
    """The matrix.

    Args:
        cells: in the order of networks, then augmentations.
        left_out: names of the domain that cannot be used on this data, with the reason.
    """

    cells: tuple[Cell, ...]
    left_out: dict[str, str]

    @property
    def columns(self) -> list[str]:
        return ["trained on", "network", *dict.fromkeys(cell.augmentation for cell in self.cells)]

    def table(self) -> list[list[Any]]:
        """A line for each subject and network: accuracy in percent and its deviation under each augmentation."""
        lines: dict[tuple[str, str], list[Any]] = {}
        for cell in self.cells:
            for row in cell.rows:
                line = lines.setdefault((row.subject, row.network), [row.subject, row.network])
                line.append(f"{100 * row.mean:.1f} ± {100 * row.std:.1f}")
        return sorted(lines.values(), key=lambda line: [row.subject for row in self.cells[0].rows].index(line[0]))

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": [{**row.to_json(), "augmentation": cell.augmentation} for cell in self.cells for row in cell.rows],
            "left out": self.left_out,
        }


def matrix(
    bench: Bench, networks: Sequence[str] = (), augmentations: Sequence[str] = (), epochs: int | None = None
) -> Matrix:
    """The set and its baselines under every network and augmentation of the domain that can take the data.

    Source: Cui et al., DC-BENCH: Dataset Condensation Benchmark, NeurIPS 2022. SGD 0.01, batch 256, 300 epochs
    without augmentation and 1000 with. Departures: networks and augmentations are the domain's own; the
    architecture search correlation is not part of it.

    Args:
        bench: the set, its task and baselines.
        networks: to train; all of the domain when empty. One asked for by name must work.
        augmentations: likewise.
        epochs: overrides those of the recipe.

    Raises:
        ConfigError: a network or augmentation asked for cannot take the data, or none can.
    """
    domain, info = bench.domain, bench.task.info
    left_out: dict[str, str] = {}

    def able(kind: str, asked: Sequence[str], known: Sequence[str], build: Any) -> list[str]:
        found = []
        for name in asked or known:
            try:
                with isolated(0):
                    build(name, info)
            except ConfigError as error:
                if asked or isinstance(error, UnknownNameError):
                    raise
                left_out[f"{kind} {name}"] = str(error)
            else:
                found.append(name)
        return found

    usable = able("network", networks, domain.models, domain.network)
    drawn = able("augmentation", augmentations, domain.augmentations, domain.augmentation)
    if not usable:
        raise ConfigError(f"no network of domain {domain.name!r} can take items of shape {info.shape}: {left_out}")
    cells = [
        Cell(network, augment, tuple(bench.table(network, dc_bench(augment).with_epochs(epochs))))
        for network in usable
        for augment in drawn
    ]
    return Matrix(tuple(cells), left_out)
