"""The pages: what a central run and a comparison look like. A federated run's page is the simulator's."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ddfed.artifact import SyntheticSet
from ddfed.domain import Domain
from ddfed.report.figures import bars, curves
from ddfed.report.html import Page, facts


def percent(mean: float, std: float | None = None) -> str:
    """``97.1`` or ``97.1 ± 0.2`` from fractions."""
    return f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if std is not None else "")


def _calibration(row: Mapping[str, Any]) -> list[str | None]:
    """Expected calibration error in percent and negative log-likelihood, or None where there are no probabilities."""
    ece, nll = row.get("ece"), row.get("nll")
    return [percent(fmean(ece)) if ece else None, f"{fmean(nll):.3f}" if nll else None]


def evaluation_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Cells of the evaluation table."""
    return [
        [
            r["subject"],
            r["network"],
            r["protocol"],
            r["items"],
            percent(r["mean"], r["std"]),
            *_calibration(r),
            len(r["accuracies"]),
            r["seconds"],
            r["note"],
        ]
        for r in rows
    ]


EVALUATION_COLUMNS = (
    "trained on", "network", "protocol", "items", "accuracy %", "ECE %", "NLL", "networks", "seconds", "note"
)  # fmt: skip


def picture(domain: Domain, syn: SyntheticSet, page: Page, caption: str) -> None:
    """The domain's rendering of the set, if it is an image."""
    with tempfile.TemporaryDirectory() as folder:
        path = domain.render(syn, Path(folder) / "distilled.png")
        if path.suffix == ".png":
            page.image(path.read_bytes(), alt=f"{len(syn)} synthetic items, one row per class", caption=caption)
        else:
            page.text(path.read_text(errors="replace")[:4000])


def central_page(summary: Mapping[str, Any], domain: Domain, syn: SyntheticSet) -> Page:
    """The report of a central run."""
    task, rows = summary["task"], summary["evaluation"]
    page = Page(
        f"{summary['method']} on {task['domain']}/{task['dataset']}",
        f"{summary['title']} · {summary['citation']}",
    )
    page.section("Result")
    main = rows[0]
    page.text(
        f"Trained on {main['items']} synthetic items, fresh {main['network']} networks reach "
        f"{percent(main['mean'], main['std'])} % on {task['test']} test rows ({main['protocol']}, "
        f"{len(main['accuracies'])} networks, epoch: {main.get('epoch', 'last')}, one distillation with seed "
        f"{summary['seed']}; "
        f"± is the population deviation over networks). ECE is the expected calibration error of the softmax in 15 "
        f"bins, NLL the negative log-likelihood in nats, both means over networks."
    )
    page.table(
        EVALUATION_COLUMNS,
        evaluation_rows(rows),
        "Under one recipe",
        highlight=[i for i, r in enumerate(rows) if r["subject"] == summary["method"]],
    )
    page.svg(
        bars(
            {f"{r['subject']} · {r['network']}": (100 * r["mean"], 100 * r["std"]) for r in rows},
            "test accuracy (%), mean ± std over networks",
            highlight=f"{main['subject']} · {main['network']}",
        ),
        "Accuracy",
        alt="bars of test accuracy",
    )
    if summary["published"]:
        page.table(
            ("data set", "ipc", "published %", "±", "protocol", "source"),
            [
                [p["dataset"], p["ipc"], p["accuracy"], p["spread"], p["protocol"], p["source"]]
                for p in summary["published"]
            ],
            "Published figures for this budget (full published setting)",
        )
    page.section("The distilled set")
    picture(domain, syn, page, f"{len(syn)} items, {summary['stored_bytes']} bytes stored")
    if summary.get("facts"):
        page.facts(told_facts(summary["facts"]))
    if summary["losses"]:
        steps, losses = zip(*summary["losses"], strict=True)
        page.section("Distillation")
        page.svg(curves({"loss": (steps, losses)}, "outer step", "matching loss"), "Matching loss", alt="loss curve")
    _closing(page, summary)
    return page


def told_facts(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a domain says of a set, for people: names without underscores, four digits."""
    return {
        name.replace("_", " "): f"{value:.4g}" if isinstance(value, float) else value for name, value in found.items()
    }


def compare_page(
    runs: Sequence[Mapping[str, Any]],
    table: Sequence[Sequence[Any]],
    columns: Sequence[str],
    figures: Mapping[str, str],
) -> Page:
    """Several runs side by side."""
    page = Page(f"{len(runs)} runs", "side by side; runs that differ by seed alone are one row")
    page.section("Table")
    page.table(columns, table)
    for title, svg in figures.items():
        page.section(title)
        page.svg(svg, title, alt=title)
    return page


def _closing(page: Page, summary: Mapping[str, Any]) -> None:
    page.section("Privacy")
    page.text(summary["privacy"].get("statement", "unknown"))
    page.section("Settings")
    page.details("all settings", facts(flatten(summary["settings"])))
    page.facts({**summary["versions"], **summary.get("machine", {}), "artifact SHA-256": summary["artifact"]})


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
