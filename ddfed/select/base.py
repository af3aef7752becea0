"""What a selector is, and how it is used."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_type_hints

import torch
from pydantic import create_model
from torch import Tensor

from ddfed.config import Layer, resolve
from ddfed.data import RealData
from ddfed.errors import BudgetError, ConfigError, one_of, suggest
from ddfed.pool import PoolContext
from ddfed.settings import Settings

#: Row numbers of the data, (k,) -> what is known of each, (k, width).
Evidence = Callable[[Tensor], Tensor]
#: (data, context, *, options) -> evidence. Called once a run; here networks are trained, through the gate.
Gather = Callable[..., Evidence]
#: (evidence of the n rows of a class (n, width), k <= n, generator, *, options) -> k distinct positions, (k,).
Choose = Callable[..., Tensor]
#: (data, context, inputs per class, top_up, *, options) -> inputs in model space (classes * k, *item), class after
#: class in the order of ``context.classes``.
Compose = Callable[..., Tensor]


class _Optioned(ABC):
    """Options are the keyword-only parameters of `functions`; their annotations say what is possible."""

    name: str

    @property
    @abstractmethod
    def functions(self) -> tuple[Callable[..., Any], ...]:
        """Whose options they are."""

    @property
    def defaults(self) -> dict[str, Any]:
        """Options and their defaults."""
        return {name: field.default for name, field in self._model.model_fields.items()}

    @cached_property
    def _model(self) -> type[Settings]:
        fields: dict[str, Any] = {}
        for function in self.functions:
            hints = get_type_hints(function, include_extras=True)
            fields |= {name: (hints[name], default) for name, default in _options(function).items()}
        return create_model(self.name, __base__=Settings, **fields)

    def settle(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """Options of each of the functions, complete.

        Raises:
            ConfigError: an unknown option (names the known ones), a wrong value, or options that exclude each other.
        """
        for name in options:
            if name not in self.defaults:
                known = f"it knows {one_of(self.defaults)}" if self.defaults else "it takes none"
                hint = suggest(name, self.defaults)
                raise ConfigError(f"selector {self.name!r} has no option {name!r} (init_options); {known}.{hint}")
        settled = resolve(self._model, [Layer(f"options of selector {self.name!r}", options)]).settings
        return tuple({name: getattr(settled, name) for name in _options(f)} for f in self.functions)


@dataclass(frozen=True)
class Selector(_Optioned):
    """A rule for choosing items.

    Its options are the keyword-only parameters of the two functions; their annotations say what is possible.

    Args:
        name: what messages call it.
        choose: chooses among the rows of a class.
        gather: learns what `choose` must know.
    """

    name: str
    choose: Choose
    gather: Gather

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        return self.gather, self.choose

    def settle(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """Options for `gather` and for `choose`, complete. Raises `ConfigError` as every selector does."""
        gathering, choosing = super().settle(options)
        # A rehearsal on one row: what the choice refuses must not come up after networks have been trained.
        self.choose(torch.zeros(1, 1), 1, torch.Generator(), **choosing)
        return gathering, choosing


@dataclass(frozen=True)
class Composer(_Optioned):
    """A rule that makes inputs of real items instead of naming rows: crops of them, mosaics.

    Its options are the keyword-only parameters of the function.

    Args:
        name: what messages call it.
        compose: makes the inputs.
    """

    name: str
    compose: Compose

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        return (self.compose,)


def _options(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def check_budget(data: RealData, per_class: int, classes: Sequence[int], ipc: int | None = None) -> None:
    """Refuse a budget that a class cannot give.

    Args:
        data: the records.
        per_class: real items needed of each class.
        classes: classes that must give them.
        ipc: the budget they are for, where a parametrisation starts from more or fewer items than that.

    Raises:
        BudgetError: names the smallest class and the ways out.
    """
    short = {c: len(data.class_index[c]) for c in classes if len(data.class_index[c]) < per_class}
    if short:
        c, held = min(short.items(), key=lambda entry: entry[1])
        fits = held if ipc is None else ipc * held // per_class
        lower = f"Lower ipc to {fits} or less, start" if fits else f"Not even ipc 1 fits (ipc is {ipc}): start"
        raise BudgetError(
            f"{per_class} real items per class are needed, but class {data.info.classes[c]!r} has {held}. "
            f"{lower} from noise (--set distill.init=noise), or allow repeats "
            f"(--set distill.top_up=true)."
        )


def select_rows(
    data: RealData,
    selector: Selector,
    per_class: int,
    ctx: PoolContext,
    options: Mapping[str, Any] | None = None,
    *,
    top_up: bool,
    ipc: int | None = None,
) -> Tensor:
    """Rows of ``data`` chosen for each of ``ctx.classes``, class after class, (classes * per_class,).

    Args:
        data: the records.
        selector: the rule.
        per_class: rows per class.
        ctx: networks, classes and streams; evidence is gathered through its gate.
        options: of the selector.
        top_up: repeat rows (at random) where a class has fewer than ``per_class``.
        ipc: the budget, for the message when it cannot be had.

    Raises:
        BudgetError: a class has fewer rows than asked and ``top_up`` is off.
        ConfigError: an option is unknown or wrong.
        DivergedError: a network that gives evidence diverged.
    """
    gathering, choosing = selector.settle(options or {})
    if not top_up:
        check_budget(data, per_class, ctx.classes, ipc)
    evidence = selector.gather(data, ctx, **gathering)
    chosen = []
    for c in ctx.classes:
        members = data.class_index[c]
        generator = ctx.streams.torch("select", c)
        picks = members[selector.choose(evidence(members), min(per_class, len(members)), generator, **choosing)]
        if len(picks) < per_class:
            extra = torch.randint(len(members), (per_class - len(picks),), generator=generator)
            picks = torch.cat([picks, members[extra]])
        chosen.append(picks)
    return torch.cat(chosen)


def initial_inputs(
    data: RealData,
    rule: Selector | Composer,
    per_class: int,
    ctx: PoolContext,
    options: Mapping[str, Any] | None = None,
    *,
    top_up: bool,
    ipc: int | None = None,
    coupled: bool = False,
) -> Tensor:
    """What a rule gives for each of ``ctx.classes``, class after class, (classes * per_class, *item), model space.

    Arguments and errors are those of `select_rows`; ``coupled`` is that of `RealData.items`, for chosen rows.
    """
    if isinstance(rule, Selector):
        rows = select_rows(data, rule, per_class, ctx, options, top_up=top_up, ipc=ipc)
        return data.items(rows, coupled)
    (composing,) = rule.settle(options or {})
    if not top_up:
        check_budget(data, per_class, ctx.classes, ipc)
    return rule.compose(data, ctx, per_class, top_up, **composing)
