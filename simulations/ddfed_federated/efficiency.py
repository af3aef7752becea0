"""What a method takes to reach an accuracy: rounds, bytes, and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Link of a client in bytes per second, for seconds as they would be on real links; stated wherever they are shown.
UP_RATE, DOWN_RATE = 1e6, 5e6

#: Share of the best final accuracy of any method that is always a target.
OF_BEST = 0.9

#: What is counted, not measured.
COUNTS = ("rounds", "bytes")


def to_target(rows: Sequence[Mapping[str, Any]], accuracy: float) -> dict[str, float] | None:
    """What a method had spent when its global model first was as good as ``accuracy``.

    Args:
        rows: of its rounds, in order, as `RoundRow.to_json` gives them.
        accuracy: in [0, 1].

    Returns:
        ``rounds``; ``bytes`` of all clients in both directions; ``seconds`` as they were; ``link_seconds``: of each
        round the slowest client's time and its share of the bytes over `UP_RATE` and `DOWN_RATE`, as if the clients of
        a round worked side by side. None if no round reached it.
    """
    spent = dict.fromkeys(("rounds", "bytes", "seconds", "link_seconds"), 0.0)
    for row in rows:
        up, down = sum(row["bytes_up"].values()), sum(row["bytes_down"].values())
        asked = max(1, row["asked"])
        spent["rounds"] = row["round"]
        spent["bytes"] += up + down
        spent["seconds"] += row["seconds"]
        spent["link_seconds"] += row["client_seconds"][0] + up / asked / UP_RATE + down / asked / DOWN_RATE
        if row["accuracy"] >= accuracy:
            return {name: int(value) if name in COUNTS else round(value, 3) for name, value in spent.items()}
    return None


def to_targets(methods: Mapping[str, Sequence[Mapping[str, Any]]], given: Sequence[float]) -> list[dict[str, Any]]:
    """The same for all methods and targets.

    Args:
        methods: rows of each method, at least one row of one method.
        given: targets beside `OF_BEST` of the best accuracy that a method has in its last round.

    Returns:
        ``accuracy`` of each target, rising, and ``methods``: what `to_target` gives for each.
    """
    best = OF_BEST * max(rows[-1]["accuracy"] for rows in methods.values() if rows)
    return [
        {"accuracy": target, "methods": {name: to_target(rows, target) for name, rows in methods.items()}}
        for target in sorted({best, *given})
    ]
