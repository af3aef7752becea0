"""The report of a federated run: one file that opens offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from ddfed.artifact import SyntheticSet
from ddfed.domain import Domain
from ddfed.progress import human_bytes
from ddfed.report.figures import curves, label_histogram
from ddfed.report.html import Page, facts
from ddfed.report.pages import flatten, percent, picture
from ddfed_federated.efficiency import DOWN_RATE, OF_BEST, UP_RATE
from ddfed_federated.forgetting import forgetting_columns, forgetting_rows, forgetting_text
from ddfed_federated.measures import kept_ties

METHOD_COLUMNS = (
    "method",
    "accuracy %",
    "best round %",
    "MB up",
    "MB down",
    "real records handed out",
    "clients lost",
    "seconds",
)
LEDGER_COLUMNS = (
    "round",
    "asked",
    "valid",
    "weights up",
    "items up",
    "labels up",
    "tables up",
    "control up",
    "down",
    "real records so far",
    "note",
)


CLIENT_COLUMNS = ("method", "mean %", "by rows %", "sd %", "min %", "p10 %", "p50 %", "p90 %", "worst tenth %")
TARGET_COLUMNS = ("accuracy %", "method", "rounds", "MB", "seconds", "seconds on links")

MEASURES = {
    "label_l1": "distance of a client's label shares from all, L1, 0 to 2",
    "label_js": "Jensen-Shannon divergence of label shares, nats",
    "effective_classes": "effective number of classes a client holds",
    "classes_held": "classes with at least 10 rows, mean over clients",
    "size_cv": "coefficient of variation of client sizes",
    "size_gini": "Gini coefficient of client sizes",
    "size_min": "rows of the smallest client",
    "size_max": "rows of the largest client",
    "empty_clients": "clients without rows",
    "feature_class_gap": "squared distance of two clients' mean features of a class, over the variance within classes",
    "feature_mmd": "linear MMD^2 of two clients' features, over their variance",
    "feature_frechet": "Frechet distance of a client's features from everybody's, over their variance",
    "gradient_dissimilarity": "gradient dissimilarity B^2 at the initial weights, 1 for equal clients",
}


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in options.items() if v is not None)


def total_bytes(row: Mapping[str, Any]) -> int:
    """Bytes of a round in both directions."""
    return sum(row["bytes_up"].values()) + sum(row["bytes_down"].values())


def method_rows(summary: Mapping[str, Any]) -> list[list[Any]]:
    """One line per method: the last round's accuracy, never the best, is the result; then the references."""
    references = summary.get("references", {}).items()
    return [
        [
            name,
            percent(m["accuracy"]),
            percent(max(r["accuracy"] for r in m["rows"])),
            round(m["bytes_up"] / 1e6, 3),
            round(m["bytes_down"] / 1e6, 3),
            m["real_seeds"],
            sum(len(r["lost"]) for r in m["rows"]),
            m["seconds"],
        ]
        for name, m in summary["methods"].items()
    ] + [[name, percent(r["accuracy"]), "-", "-", "-", "-", "-", r["seconds"]] for name, r in references]


def client_rows(summary: Mapping[str, Any]) -> list[list[Any]]:
    """One line per method: how the last global model serves the clients."""
    names = ("mean", "weighted", "sd", "min", "p10", "p50", "p90", "worst_tenth")
    return [[name, *(percent(m["clients"][key]) for key in names)] for name, m in _global_models(summary)]


def _global_models(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Methods whose clients share one model; of the others each client has its own."""
    return [(name, m) for name, m in summary["methods"].items() if m["clients"]]


def client_line(summary: Mapping[str, Any]) -> str:
    """The same in a line, for a terminal; empty where no method has a global model."""
    worst = [f"{name} {percent(m['clients']['worst_tenth'])} %" for name, m in _global_models(summary)]
    return f"Worst tenth of the clients: {', '.join(worst)}" if worst else ""


def target_rows(summary: Mapping[str, Any]) -> list[list[Any]]:
    """One line per target and method: what it took."""
    return [
        [percent(target["accuracy"]), name, *_spent(spent)]
        for target in summary["targets"]
        for name, spent in target["methods"].items()
    ]


def _spent(spent: Mapping[str, float] | None) -> list[Any]:
    if spent is None:
        return ["not reached", "-", "-", "-"]
    return [int(spent["rounds"]), round(spent["bytes"] / 1e6, 3), spent["seconds"], spent["link_seconds"]]


def measure_rows(summary: Mapping[str, Any]) -> list[list[Any]]:
    """One line per measure of the split: of the clients' rows, and of their sets where they sent some."""
    real, sets = summary["partition"]["measures"], summary["partition"]["sets"]
    return [[MEASURES.get(k, k), _rounded(v), *([_rounded(sets.get(k))] if sets else [])] for k, v in real.items()]


def _rounded(value: float | None) -> float | str:
    return "-" if value is None else round(value, 3)


def told_lines(summary: Mapping[str, Any]) -> list[str]:
    """What else the last round of each method says: accuracies of models beside the global one."""
    return [
        f"{name}, round {m['rows'][-1]['round']}: {told} {percent(value)} %"
        for name, m in summary["methods"].items()
        for told, value in m["rows"][-1].get("told", {}).items()
    ]


def accuracy_curves(summary: Mapping[str, Any]) -> tuple[str, str]:
    """Accuracy per round, and per megabyte both ways."""
    methods = summary["methods"]
    per_round = {
        n: ([r["round"] for r in m["rows"]], [100 * r["accuracy"] for r in m["rows"]]) for n, m in methods.items()
    }
    per_byte = {
        n: (
            [b / 1e6 for b in accumulate(total_bytes(r) for r in m["rows"])],
            [100 * r["accuracy"] for r in m["rows"]],
        )
        for n, m in methods.items()
    }
    return (
        curves(per_round, "round", "test accuracy (%)"),
        curves(per_byte, "megabytes sent and received, all clients", "test accuracy (%)"),
    )


def at_equal_bytes(summary: Mapping[str, Any]) -> list[list[Any]]:
    """Accuracy of each method in the last round that the main method's total bytes would have paid for."""
    methods = summary["methods"]
    # One percent of tolerance: the settings text in each message differs by a few bytes between methods.
    budget = 1.01 * sum(total_bytes(r) for r in next(iter(methods.values()))["rows"])
    found = []
    for name, m in methods.items():
        paid = [
            (r, b) for r, b in zip(m["rows"], accumulate(total_bytes(r) for r in m["rows"]), strict=True) if b <= budget
        ]
        row, spent = paid[-1] if paid else (None, 0)
        found.append(
            [name, percent(row["accuracy"]) if row else "-", row["round"] if row else 0, round(spent / 1e6, 3)]
        )
    return found


def federated_page(summary: Mapping[str, Any], domain: Domain, syn: SyntheticSet | None) -> Page:
    """The report."""
    task, settings = summary["task"], summary["settings"]
    federation, main = settings["federation"], next(iter(summary["methods"]))
    page = Page(
        f"{main} on {task['domain']}/{task['dataset']}, {federation['clients']} clients",
        f"{federation['partition']}({_options(summary['partition']['options'])}) · {federation['rounds']} rounds · "
        f"seed {summary['seed']}",
    )
    page.section("Result")
    page.text(
        f"After {federation['rounds']} rounds the global model of {main} classifies "
        f"{percent(summary['methods'][main]['accuracy'])} % of {task['test']} test rows. One seed; the last round's "
        f"accuracy counts. random-once is the control: real items of the same budget, chosen once per client. "
        f"random-fresh chooses anew in every round and so hands out the budget again each time; the column of real "
        f"records shows it."
    )
    page.table(METHOD_COLUMNS, method_rows(summary), "At equal rounds", highlight=[0])
    if told_lines(summary):
        page.text("Accuracy of models beside the global one. " + "; ".join(told_lines(summary)) + ".")
    if summary.get("references"):
        page.text(
            "References train on real rows as the clients of averaging methods do, for as many epochs as in all rounds "
            "together: " + "; ".join(f"{name}: {r['title']}" for name, r in summary["references"].items()) + "."
        )
    page.table(
        ("method", "accuracy %", "rounds paid for", "MB spent"),
        at_equal_bytes(summary),
        f"At the bytes that {main} used",
    )
    page.table(
        TARGET_COLUMNS,
        target_rows(summary),
        f"To reach an accuracy (the lowest is {OF_BEST:.0%} of the best last round, unless others were asked for)",
    )
    page.text(
        f"Seconds are those of this machine. On links: the slowest client's time, and a client's bytes at "
        f"{UP_RATE / 1e6:g} MB/s up and {DOWN_RATE / 1e6:g} MB/s down; clients work side by side, and the "
        f"server's time is left out."
    )
    served = _global_models(summary)
    if served:
        page.table(CLIENT_COLUMNS, client_rows(summary), "For each client: the last global model")
        page.text(f"Accuracy for a client is on {served[0][1]['clients']['basis']}. sd is over clients.")
    by_round, by_byte = accuracy_curves(summary)
    page.svg(by_round, "Accuracy per round", alt="accuracy of each method per round")
    page.svg(by_byte, "Accuracy per megabyte", alt="accuracy of each method per megabyte")
    if summary.get("forgetting"):
        page.section("Forgetting")
        page.text(*forgetting_text(summary["forgetting"]))
        page.table(forgetting_columns(summary["forgetting"]), forgetting_rows(summary["forgetting"]), "Forgetting")
    page.section("Who holds what")
    page.svg(
        label_histogram(summary["partition"]["counts"], task["classes"]),
        "Training rows per client and class",
        alt="label histogram",
    )
    if summary["partition"].get("ties"):
        page.text(f"{kept_ties(summary['partition']['ties'])}. The others lie between clients and nobody sees them.")
    if summary["partition"]["skew"]:
        skew = summary["partition"]["skew"]
        page.text(f"Feature skew: {skew['name']}({_options(skew['options'])}), on top of the split.")
    sets = ["their sets"] if summary["partition"]["sets"] else []
    page.table(("how unequal clients are", "their rows", *sets), measure_rows(summary))
    page.text(
        "Features are those of one untrained network that all runs share, of some rows of each client. Of sets a class "
        "counts as held from one item on."
    )
    if syn is not None:
        page.section("The distilled set")
        picture(
            domain,
            syn,
            page,
            f"Union of the last round: {len(syn)} items from {federation['clients']} clients (some per class shown)",
        )
    page.section("Byte ledger")
    for name, m in summary["methods"].items():
        page.table(LEDGER_COLUMNS, [_ledger_row(r) for r in m["rows"]], f"{name}: serialised bytes, all clients")
    lost = [
        f"{n}, round {r['round']}, {why}" for n, m in summary["methods"].items() for r in m["rows"] for why in r["lost"]
    ]
    if lost:
        page.section("Clients lost")
        page.text(*lost[:100])
    page.section("Privacy")
    page.text(summary["privacy"]["statement"])
    page.section("Settings")
    page.details("all settings", facts(flatten(settings)))
    page.facts(
        {
            **summary["versions"],
            "partition SHA-256": summary["partition"]["hash"],
            "artifact SHA-256": summary["artifact"],
        }
    )
    return page


def _in_short(told: Sequence[str], most: int = 5) -> str:
    """The first of many remarks, and how many there are."""
    return ", ".join(told[:most]) + (f", ... ({len(told)} in all)" if len(told) > most else "")


def _ledger_row(row: Mapping[str, Any]) -> list[Any]:
    up = row["bytes_up"]
    missing = (
        f"classes nobody released: {', '.join(map(str, row['missing_classes']))}" if row["missing_classes"] else ""
    )
    rehearsed = f"rehearsed: {_in_short(row['rehearsed'])}" if row["rehearsed"] else ""
    old = f"old sets stood in (client: age): {_in_short(row['stood_in'])}" if row["stood_in"] else ""
    return [
        row["round"],
        row["asked"],
        row["releases"],
        *(human_bytes(up[k]) if up[k] else "-" for k in ("weights", "items", "labels", "statistics", "control")),
        human_bytes(sum(row["bytes_down"].values())),
        row["real_seeds"],
        "; ".join(filter(None, [row["note"], missing, rehearsed, old])),
    ]
