"""What is told about a central method, from its recipe alone: in the terminal and on its page. Imports no torch."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ddfed.recipes import Preset, Published, Recipe

#: The eight parts: name -> settings (`ddfed.settings.PartSettings`); the first is always told, the others where the
#: recipe sets them.
PARTS: Mapping[str, tuple[str, ...]] = {
    "store": ("store", "store_options", "init", "init_options", "top_up", "min_count"),
    "labels": ("labels", "labels_options", "label_lr", "label_momentum", "teacher"),
    "augmentation": ("augment",),
    "objective": ("objective", "objective_options", "terms"),
    "networks": ("pool", "pool_options", "network"),
    "real rows": ("sampler", "sampler_options"),
    "outer step": (
        "optimizer", "lr", "momentum", "betas", "schedule", "lr_floor", "clip", "steps", "stages", "scope", "clamp",
        "ema", "keep",
    ),
    "evaluation": ("protocol",),
}  # fmt: skip
#: Parts that a recipe without outer steps never uses.
UNUSED_WITHOUT_STEPS = ("augmentation", "objective", "networks", "real rows", "outer step")
UNUSED = "none: the initial items are the result"
#: Settings that are no property of a method: the budget, and how it is computed.
ELSEWHERE = ("ipc", "chunk", "bf16", "compile")
#: What every recipe of the house must say.
MUST_SAY = ("title", "citation", "idea", "equation", "cost", "fails")

MADE = "Made from the recipe itself by `python -m ddfed.cli.reference docs/reference`; a test holds it up to date."


def unsaid(recipe: Recipe) -> list[str]:
    """The fields of `MUST_SAY` that a recipe leaves empty."""
    return [name for name in MUST_SAY if not str(getattr(recipe, name)).strip()]


def parts_of(recipe: Recipe) -> list[tuple[str, str]]:
    """The eight parts with the recipe's settings, as text."""
    from ddfed.settings import PartSettings

    usual = PartSettings().model_dump()
    found = []
    for part, (main, *others) in PARTS.items():
        if not recipe.defaults.get("steps", usual["steps"]) and part in UNUSED_WITHOUT_STEPS:
            found.append((part, UNUSED))
            continue
        told = {name: recipe.defaults[name] for name in others if name in recipe.defaults}
        main_value = recipe.defaults.get(main, usual[main])
        found.append((part, "; ".join([_value(main_value), *(_setting(k, v) for k, v in told.items())])))
    return found


def described(recipe: Recipe) -> dict[str, Any]:
    """Everything the recipe says, as JSON."""
    return {**asdict(recipe), "parts": dict(parts_of(recipe))}


def _setting(name: str, value: Any) -> str:
    return f"{name}: {_pairs(value)}" if isinstance(value, Mapping) else f"{name} = {_value(value)}"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} = {_value(v)}" for k, v in values.items()) or "none"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{_pairs(value)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


def _preset(preset: Preset) -> str:
    return "; ".join(_setting(k, v) for k, v in preset.values.items())


def _accuracy(figure: Published) -> str:
    return f"{figure.accuracy}" + ("" if figure.spread is None else f" ± {figure.spread}")


# --- the terminal -------------------------------------------------------------------------------------------


def told(recipe: Recipe, width: int = 100, absent: str = "") -> str:
    """The recipe for a terminal, in lines no longer than ``width`` but for words that are.

    Args:
        absent: packages it needs and that are not installed, with what installs them.
    """
    lines = [*textwrap.wrap(f"{recipe.name}: {recipe.title}", width), ""]
    if absent:
        lines += _wrapped("not installed", absent, width)
    lines += _wrapped("family", recipe.family, width)
    if recipe.domains:
        lines += _wrapped("domains", ", ".join(recipe.domains), width)
    lines += _wrapped("needs", ", ".join(recipe.needs) or "nothing special", width)
    for name in ("idea", "equation"):
        lines += _wrapped(name, getattr(recipe, name), width)
    lines += _wrapped("cost", f"{recipe.expense}. {recipe.cost}", width)
    lines += _wrapped("fails", recipe.fails, width)
    lines += _wrapped("departs", "; ".join(recipe.departures) or "in nothing that we know of", width)
    lines += ["", "parts"]
    for part, text in parts_of(recipe):
        lines += _wrapped(part, text, width)
    if recipe.presets:
        lines += ["", "presets"]
        for preset in recipe.presets:
            lines += _wrapped(preset.label, f"{_preset(preset)} ({preset.source or 'no source'})", width)
    if recipe.published:
        lines += ["", "published, in percent"]
        for p in recipe.published:
            lines += _wrapped(f"{p.dataset} ipc {p.ipc}", f"{_accuracy(p)} under {p.protocol}: {p.source}", width)
    return "\n".join([*lines, "", *_wrapped("cite", recipe.citation, width)])


def _wrapped(name: str, text: str, width: int) -> list[str]:
    label = f"  {name:<14} "
    return textwrap.wrap(
        text or "-",
        width,
        initial_indent=label,
        subsequent_indent=" " * min(len(label), 17),
        break_long_words=False,
        break_on_hyphens=False,
    )


# --- the pages ----------------------------------------------------------------------------------------------


def page(recipe: Recipe, scenarios: Sequence[str] = ()) -> str:
    """The page of one method, in Markdown.

    Args:
        recipe: what it is made from.
        scenarios: names of those that run it.
    """
    sections = [
        f"# {recipe.name}: {recipe.title}",
        f"Family: {recipe.family}. {MADE}",
        recipe.idea,
        f"## What is minimised\n\n{recipe.equation}",
        "## Parts\n\n" + _table(("part", "settings"), [(part, _code(text)) for part, text in parts_of(recipe)]),
        _presets(recipe),
        "## What differs from the paper\n\n" + _bullets(recipe.departures, "Nothing that we know of."),
        f"## Cost\n\n{recipe.expense.capitalize()}. {_sentence(recipe.cost)}",
        f"Needs: {', '.join(recipe.needs) or 'nothing special'}."
        + (f" For domain {', '.join(recipe.domains)}." if recipe.domains else ""),
        f"## When it fails\n\n{recipe.fails}",
        _figures(recipe),
        _run(recipe, scenarios),
        f"## Cite\n\n{recipe.citation}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def index(recipes: Iterable[Recipe]) -> str:
    """The table of all methods by family, in Markdown."""
    parts = [f"# Methods\n\n{MADE} `ddfed methods list` shows those of your installation.\n"]
    families: dict[str, list[Recipe]] = {}
    for recipe in recipes:
        families.setdefault(recipe.family, []).append(recipe)
    for family, members in families.items():
        rows = [
            (f"[{r.name}]({r.name}.md)", r.title, ", ".join(r.needs) or "-", r.expense, r.citation) for r in members
        ]
        parts.append(f"## {family.capitalize()}\n\n{_table(('method', 'what', 'needs', 'cost', 'citation'), rows)}\n")
    return "\n".join(parts)


def of_the_house() -> Iterator[Recipe]:
    """The recipes of every plugin that this distribution brings, whether what they need is installed or not."""
    from importlib.metadata import entry_points

    from ddfed.registry import registry

    ours = {point.name for point in entry_points(group="ddfed") if point.dist and point.dist.name == "ddfed"}
    # In the order they were offered in, which goes by families; the core's first.
    found = [c for c in registry() if c.kind == "recipe" and c.plugin in ours]
    for component in sorted(found, key=lambda c: c.plugin != "core"):
        yield component.read()


def method_pages() -> dict[str, str]:
    """File name -> text, of every recipe of the house and their index."""
    recipes = list(of_the_house())
    runs = _scenarios()
    return {"index.md": index(recipes), **{f"{r.name}.md": page(r, runs.get(r.name, ())) for r in recipes}}


def _scenarios() -> dict[str, list[str]]:
    """Method -> scenarios that run it."""
    from ddfed.reproduce import load_scenario, scenario_names

    found: dict[str, list[str]] = {}
    for name in scenario_names():
        found.setdefault(load_scenario(name).method, []).append(name)
    return found


def _presets(recipe: Recipe) -> str:
    if not recipe.presets:
        return ""
    rows = [(preset.label, _code(_preset(preset)), preset.source or "-") for preset in recipe.presets]
    return "### Presets\n\nSettings that differ for a data set or budget; later rows lie on top.\n\n" + _table(
        ("for", "settings", "source"), rows
    )


def _figures(recipe: Recipe) -> str:
    if not recipe.published:
        return "## Published figures\n\nNone that could be confirmed."
    rows = [(p.dataset, p.ipc, _accuracy(p), p.protocol, p.source) for p in recipe.published]
    head = ("data set", "items per class", "accuracy %", "evaluation", "source")
    return f"## Published figures\n\n{_table(head, rows)}"


def _run(recipe: Recipe, scenarios: Sequence[str]) -> str:
    domain = f" --domain {recipe.domains[0]}" if recipe.domains else ""
    lines = [
        f"ddfed distill --method {recipe.name}{domain} --ipc 10",
        *(f"ddfed reproduce {name}" for name in scenarios),
    ]
    return "## Run it\n\n```sh\n" + "\n".join(lines) + "\n```"


def _bullets(items: Sequence[str], none: str) -> str:
    return "\n".join(f"- {_sentence(item)}" for item in items) or none


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    head = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in cells)])


def _code(text: str) -> str:
    return text if text == UNUSED else "; ".join(f"`{part}`" for part in text.split("; "))
