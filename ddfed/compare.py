"""Several finished runs side by side."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddfed.report.figures import bars, curves

COLUMNS = ("run", "method", "accuracy %", "±", "seeds", "spread over", "items or MB")


@dataclass(frozen=True)
class Line:
    """A row of the comparison.

    Args:
        run: what the runs have in common.
        method: method or baseline.
        accuracies: one per seed (federated) or per trained network (central), in [0, 1].
        seeds: seeds of the runs.
        over: what the spread is over.
        cost: items stored, or megabytes both ways.
        curve: accuracy per round, mean over seeds; empty for central runs.
    """

    run: str
    method: str
    accuracies: tuple[float, ...]
    seeds: tuple[int, ...]
    over: str
    cost: str
    curve: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float | None:
        """Sample deviation; None for a single value, which has none."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """Rows, and how to show them."""

    lines: tuple[Line, ...]

    def cells(self) -> list[list[Any]]:
        return [
            [
                line.run,
                line.method,
                f"{100 * line.mean:.1f}",
                "-" if line.std is None else f"{100 * line.std:.1f}",
                ", ".join(map(str, line.seeds)),
                line.over,
                line.cost,
            ]
            for line in self.lines
        ]

    def figures(self) -> dict[str, str]:
        """Title -> SVG."""
        found = {
            "Accuracy": bars(
                {
                    f"{line.run}: {line.method}": (100 * line.mean, None if line.std is None else 100 * line.std)
                    for line in self.lines
                },
                "test accuracy (%), mean ± std",
            )
        }
        series = {
            f"{line.run}: {line.method}": (list(range(1, len(line.curve) + 1)), [100 * a for a in line.curve])
            for line in self.lines
            if line.curve
        }
        if series:
            found["Accuracy per round"] = curves(series, "round", "test accuracy (%), mean over seeds")
        return found

    def to_json(self) -> list[dict[str, Any]]:
        return [{**vars(line), "mean": line.mean, "std": line.std} for line in self.lines]


def compared(summaries: Sequence[Mapping[str, Any]]) -> Comparison:
    """Group runs that differ by seed alone, and line up their methods.

    Args:
        summaries: of finished runs (``summary.json``).
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for summary in summaries:
        groups.setdefault(_key(summary), []).append(summary)
    lines: list[Line] = []
    for group in groups.values():
        lines += _federated(group) if group[0]["kind"] == "federated" else _central(group)
    return Comparison(tuple(lines))


def _key(summary: Mapping[str, Any]) -> str:
    settings = json.loads(json.dumps(summary["settings"]))
    settings["run"] = {}
    return json.dumps([summary["kind"], settings], sort_keys=True)


def _federated(group: Sequence[Mapping[str, Any]]) -> list[Line]:
    first = group[0]
    federation = first["settings"]["federation"]
    options = ", ".join(
        f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in federation["partition_options"].items()
    )
    name = (
        f"{first['task']['dataset']}, {federation['clients']} clients, {federation['partition']}({options}), "
        f"ipc {first['settings']['distill']['ipc']}"
    )
    lines = []
    for method in first["methods"]:
        runs = [s["methods"][method] for s in group]
        rounds = list(zip(*[[r["accuracy"] for r in m["rows"]] for m in runs]))
        megabytes = statistics.fmean((m["bytes_up"] + m["bytes_down"]) / 1e6 for m in runs)
        lines.append(
            Line(
                name,
                method,
                tuple(m["accuracy"] for m in runs),
                tuple(s["seed"] for s in group),
                "seeds",
                f"{megabytes:.2f} MB",
                tuple(statistics.fmean(r) for r in rounds),
            )
        )
    return lines


def _central(group: Sequence[Mapping[str, Any]]) -> list[Line]:
    first = group[0]
    name = f"{first['task']['dataset']}, ipc {first['settings']['distill']['ipc']}"
    seeds = tuple(s["seed"] for s in group)
    several = len(group) > 1
    lines = []
    for position, row in enumerate(first["evaluation"]):
        rows = [s["evaluation"][position] for s in group]
        lines.append(
            Line(
                name,
                f"{row['subject']} · {row['network']} · {row['protocol']}",
                tuple(r["mean"] for r in rows) if several else tuple(row["accuracies"]),
                seeds,
                "seeds" if several else "networks",
                f"{row['items']} items",
            )
        )
    return lines
