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
        domains: modalities it is for; empty for all.
    """

    values: Mapping[str, Any]
    datasets: tuple[str, ...] = ()
    ipc: tuple[int, ...] = ()
    source: str = ""
    domains: tuple[str, ...] = ()

    def fits(self, dataset: str, ipc: int, domain: str = "") -> bool:
        wanted = ((self.datasets, dataset), (self.ipc, ipc), (self.domains, domain))
        return all(not possible or given in possible for possible, given in wanted)

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
        idea: two or three sentences for its page.
        equation: what is minimised, as text or TeX between dollar signs.
        cost: what a run costs, in words: passes, memory, what it needs beforehand.
        fails: when it does badly, and what to take instead.
        needs: what a domain or gate must offer, such as ``"second order"``, ``"cell axes"``, ``"single rows"``.
        expense: low, medium or high, for lists.
        presets: differences for data sets and budgets, the later ones on top.
        published: figures to hold against.
        domains: modalities it is for; empty for all.
        departures: where this recipe departs from the paper, each with its reason.
    """

    name: str
    family: str
    title: str
    citation: str
    defaults: Mapping[str, Any]
    idea: str = ""
    equation: str = ""
    cost: str = ""
    fails: str = ""
    needs: tuple[str, ...] = ()
    expense: str = "low"
    presets: tuple[Preset, ...] = ()
    published: tuple[Published, ...] = ()
    domains: tuple[str, ...] = ()
    departures: tuple[str, ...] = field(default=())


def laptop(**values: Any) -> Preset:
    """The preset for digits that runs in a minute or two on a laptop; ours, no paper has it."""
    return Preset(values, ("digits",), source="ours, for minutes on a laptop")
