"""What forgetting did: the trained model, the one that forgot, and the control that never saw the data.

Each is asked the same: how many of the forgotten rows it classifies (F-set), how many of the test rows of what stays
(R-set), and whether the loss of a record tells that it was trained on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddfed.data import RealData, Task
from ddfed.domain import Network
from ddfed.evaluate import accuracy
from ddfed.report.pages import percent
from ddfed.store import HardLabels
from ddfed_federated.methods import ServerState
from ddfed_federated.partition import Partition
from ddfed_federated.rounds import RoundRow, Rounds
from ddfed_federated.targets import Targets

#: The models that are compared, and what they are.
TITLES = {
    "trained": "before anything was forgotten",
    "forgot": "",
    "retrained": "a run of the same method from the beginning, without what was forgotten",
}


@dataclass(frozen=True)
class Probe:
    """The rows by which forgetting is judged.

    Args:
        forgotten: F-set of each target: the training rows of a client, the test rows of a class.
        rest: R-set: test rows of the classes that stay.
        members: training rows that were forgotten, row sets as clients held them.
        unseen: test rows of the same classes.
    """

    forgotten: Mapping[str, RealData]
    rest: RealData
    members: tuple[RealData, ...]
    unseen: RealData

    @classmethod
    def of(cls, task: Task, partition: Partition, targets: Targets) -> Probe:
        """Rows of forgotten classes are those of the class alone, also where their client is forgotten too."""
        held = {client: task.train.within(partition.shares[client]) for client in targets.clients}
        mine = {client: _of(data, targets.classes, inside=False) for client, data in held.items()}
        members = [*mine.values(), _of(task.train, targets.classes)] if targets.classes else [*mine.values()]
        members = [data for data in members if len(data)]
        seen = sorted({int(c) for data in members for c in data.labels.unique()})
        return cls(
            forgotten={
                **{f"client={k}": data for k, data in mine.items()},
                **{f"class={c}": _of(task.test, (c,)) for c in targets.classes},
            },
            rest=_of(task.test, targets.classes, inside=False),
            members=tuple(members),
            unseen=_of(task.test, seen),
        )

    def __call__(self, net: Network) -> dict[str, Any]:
        """What a model makes of the rows."""
        inside = torch.cat([losses(net, data) for data in self.members]) if self.members else torch.zeros(0)
        labels = (
            torch.cat([data.labels for data in self.members]) if self.members else torch.zeros(0, dtype=torch.int64)
        )
        outside = losses(net, self.unseen)
        return {
            "forgotten": {k: accuracy(net, data) if len(data) else None for k, data in self.forgotten.items()},
            "rest": accuracy(net, self.rest),
            "attack": threshold_attack(inside, outside, alike(labels, self.unseen.labels)),
        }


def _of(data: RealData, classes: Sequence[int], inside: bool = True) -> RealData:
    return data.subset((torch.isin(data.labels, torch.tensor(classes)) == inside).nonzero().flatten())


def losses(net: Network, data: RealData, chunk: int = 500) -> Tensor:
    """Cross-entropy of each row in evaluation mode, (rows,) float64."""
    net.eval()
    device = next(net.parameters()).device
    found = []
    with torch.no_grad():
        for part in data.passes(torch.arange(len(data)), chunk) if len(data) else ():
            batch = data.batch(part)
            logits = net(batch.inputs.to(device)).double().cpu()
            found.append(HardLabels.loss(logits, batch.classes))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)


def alike(members: Tensor, unseen: Tensor) -> Tensor:
    """Weights of unseen rows under which their classes are as frequent as those of the members, (unseen rows,)."""
    count = int(torch.cat([members, unseen]).max()) + 1 if len(members) + len(unseen) else 1
    wanted, there = (torch.bincount(labels, minlength=count).double() for labels in (members, unseen))
    return (wanted / there.clamp(min=1))[unseen]


def threshold_attack(members: Tensor, unseen: Tensor, weights: Tensor) -> dict[str, float | None]:
    """Guess from the loss alone whether a record was trained on: below a threshold it was.

    Source: Yeom, Giacomelli, Fredrikson and Jha, Privacy Risk in Machine Learning, CSF 2018 (loss threshold); all
    thresholds are tried here, so the advantage is the best that any of them has on these very rows, and above 0 by
    chance alone. Unseen rows are weighted (`alike`), so that hard classes do not look like membership.

    Args:
        members: losses of records that were trained on, or were meant to be forgotten.
        unseen: losses of records that never were.
        weights: of the unseen.

    Returns:
        ``auc``: the chance that a member has the lower loss of two, ties half; 0.5 tells nothing. ``advantage``: the
        largest difference of true and false positive rate. None where a side is empty.
    """
    if not len(members) or not float(weights.sum()) > 0:
        return {"auc": None, "advantage": None}
    losses, place = torch.cat([members, unseen]).unique(return_inverse=True)
    empty = torch.zeros(len(losses) + 1, dtype=torch.float64)
    inside = empty.index_add(0, place[: len(members)] + 1, torch.ones(len(members)).double()).cumsum(0) / len(members)
    outside = empty.index_add(0, place[len(members) :] + 1, weights.double()).cumsum(0) / weights.double().sum()
    return {"auc": float(torch.trapezoid(inside, outside)), "advantage": float((inside - outside).max())}


def forget(
    rounds: Rounds,
    state: ServerState,
    rows: Sequence[RoundRow],
    control: Rounds,
    probe: Probe,
    targets: Targets,
) -> dict[str, Any]:
    """Let a trained federation forget, and hold the result against a run without the data.

    Args:
        rounds: of the finished run.
        state: the server's after its last round.
        rows: of its rounds.
        control: of the same method without the data.
        probe: what the models are asked.
        targets: what is forgotten.

    Returns:
        targets, method, title of the way, and for each of `TITLES` what the probe says, rounds, bytes and seconds.
    """
    how = rounds.method.forgets
    assert how is not None
    models = {"trained": _told(probe, rounds, state, rows, sum(row.seconds for row in rows))}
    begun = time.perf_counter()
    forgot, taken = rounds.forget(state, targets)
    models["forgot"] = _told(probe, rounds, forgot, taken, time.perf_counter() - begun)
    control.clear()
    begun = time.perf_counter()
    fresh, held = control.whole()
    models["retrained"] = _told(probe, control, fresh, held, time.perf_counter() - begun)
    return {"targets": [str(t) for t in targets.targets], "method": rounds.method.name, "title": how.title} | {
        "models": models
    }


def _told(probe: Probe, rounds: Rounds, state: ServerState, rows: Sequence[RoundRow], seconds: float) -> dict[str, Any]:
    return {
        **probe(rounds.context.network(state.weights)),
        "rounds": sum(bool(row.round) for row in rows),
        "bytes": sum(row.up + row.down for row in rows),
        "seconds": round(seconds, 2),
        "notes": [f"round {row.round}: {row.note}" for row in rows if row.note],
    }


# --- for people --------------------------------------------------------------------------------------------------


def forgetting_columns(found: Mapping[str, Any]) -> tuple[str, ...]:
    sets = tuple(f"F-set {target} %" for target in found["models"]["trained"]["forgotten"])
    return ("model", *sets, "R-set %", "attack AUC", "attack advantage", "rounds", "MB", "seconds")


def forgetting_rows(found: Mapping[str, Any]) -> list[list[Any]]:
    """One line per model."""
    return [
        [
            name,
            *("-" if share is None else percent(share) for share in model["forgotten"].values()),
            percent(model["rest"]),
            *("-" if value is None else f"{value:.3f}" for value in model["attack"].values()),
            model["rounds"],
            round(model["bytes"] / 1e6, 3),
            model["seconds"],
        ]
        for name, model in found["models"].items()
    ]


def forgetting_text(found: Mapping[str, Any]) -> list[str]:
    """What the table says, in words."""
    said = {**TITLES, "forgot": found["title"]}
    notes = [f"{name}, {note}" for name, model in found["models"].items() for note in model["notes"]]
    return [
        f"{found['method']} forgot {', '.join(found['targets'])}. "
        + "; ".join(f"{name}: {said[name]}" for name in found["models"])
        + ".",
        "The F-set of a client is its training rows, that of a class its test rows; the R-set is the test rows of the "
        "classes that stay. Good forgetting looks like retrained in every column: an F-set far below retrained tells "
        "what was removed as well as one above it. The attack guesses from the loss whether a forgotten record was "
        "trained on, against test rows of the same classes: AUC 0.5 tells nothing. It is a simple attack, so it can "
        "show a trace and cannot prove that there is none.",
        *notes,
    ]
