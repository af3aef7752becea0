"""What a recipe is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Settings that differ for a data set or a budget.

    Args:
        values: settings of the eight parts that override the recipe's.
        datasets: data sets it is for; empty for all.
        ipc: budgets it is for; empty for all.
        source: where the values come from.
    """

    values: Mapping[str, Any]
    datasets: tuple[str, ...] = ()
    ipc: tuple[int, ...] = ()
    source: str = ""

    def fits(self, dataset: str, ipc: int) -> bool:
        return (not self.datasets or dataset in self.datasets) and (not self.ipc or ipc in self.ipc)

    @property
    def label(self) -> str:
        parts = ["+".join(self.datasets), f"ipc {'/'.join(map(str, self.ipc))}" if self.ipc else ""]
        return " ".join(part for part in parts if part) or "all"


@dataclass(frozen=True)
class Published:
    """A figure from the literature, in percent."""

    dataset: str
    ipc: int
    accuracy: float
    spread: float | None
    protocol: str
    source: str


@dataclass(frozen=True)
class Recipe:
    """A method as a choice of the eight parts.

    Args:
        name: the paper's short name in lower case.
        family: moments, gradients, trajectory, ..., selection.
        title: what it optimises, in one line.
        citation: authors, title, venue.
        defaults: settings of the parts (`ddfed.settings.PartSettings`), the paper's.
        presets: differences for data sets and budgets, the later ones on top.
        published: figures to hold against.
        departures: where this recipe departs from the paper, each with its reason.
    """

    name: str
    family: str
    title: str
    citation: str
    defaults: Mapping[str, Any]
    presets: tuple[Preset, ...] = ()
    published: tuple[Published, ...] = ()
    departures: tuple[str, ...] = field(default=())
