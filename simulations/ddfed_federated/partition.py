"""Splits of labelled rows among clients: every row exactly once.

Each scheme is a function ``(labels, clients, rng, *, options) -> list of index arrays``. `split` calls one by
name (or any callable of that form, which is how a plugin's partitioner comes in), checks what it returns and
gives a `Partition` that can be saved and reused. `divide` also takes schemes of a domain that see the whole task,
and gives units to the clients where there is more to divide than rows: the nodes of a graph. "Dirichlet(0.5)" alone
does not define a split: the number of clients, the cap and the smallest size do, so all of them are recorded.
The schemes themselves, with their sources, are in `ddfed_federated.splits`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddfed.data import Task
from ddfed.errors import ConfigError, DataError, UnknownNameError, one_of, suggest
from ddfed_federated.splits import SCHEMES, Scheme
from ddfed_federated.splits.common import check_clients

#: Number in the saved file; raised whenever its meaning changes. Files of 1 have no ``units``.
SCHEMA = 2


@dataclass(frozen=True, eq=False)
class Partition:
    """Who holds which rows.

    Args:
        parts: row numbers of each client, sorted int64 arrays; together every row exactly once.
        counts: rows per (client, class), shape (clients, classes), int64.
        scheme: name of what made it.
        options: the scheme's options as given and defaulted, JSON values only.
        units: what each client holds where rows are not all there is to hold (`ddfed.data.RealData.units`), sorted
            int64 arrays; None where the rows are.
    """

    parts: list[np.ndarray]
    counts: np.ndarray
    scheme: str
    options: Mapping[str, Any] = field(default_factory=dict)
    units: list[np.ndarray] | None = None

    @property
    def shares(self) -> list[Tensor]:
        """What each client holds, as `RealData.within` takes it."""
        return [self.share(client) for client in range(self.clients)]

    def share(self, client: int) -> Tensor:
        """What one client holds, as `RealData.within` takes it."""
        return torch.from_numpy((self.parts if self.units is None else self.units)[client])

    @property
    def clients(self) -> int:
        return len(self.parts)

    @property
    def rows(self) -> int:
        return sum(len(part) for part in self.parts)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of who holds which rows and of which class; the scheme's name does not enter."""
        digest = hashlib.sha256(str(self.counts.shape).encode())
        digest.update(np.ascontiguousarray(self.counts, dtype="<i8").tobytes())
        for part in [*self.parts, *(self.units or [])]:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
        return digest.hexdigest()

    def check(self, labels: np.ndarray) -> None:
        """Refuse to be used on other data than it was made for.

        Args:
            labels: class of each row, shape (n,).

        Raises:
            DataError: the number of rows or a client's class counts differ.
        """
        if len(labels) != self.rows:
            raise DataError(
                f"the split is for {self.rows} rows, the data hold {len(labels)}; use the same data and limits"
            )
        try:
            counts = _count(self.parts, labels, self.counts.shape[1])
        except ConfigError as error:
            raise DataError(f"the split does not fit the data: {error}") from error
        for client in np.flatnonzero((counts != self.counts).any(axis=1))[:1]:
            raise DataError(
                f"the split was made for other data: client {client} should hold {self.counts[client].tolist()} "
                f"rows per class but would hold {counts[client].tolist()}"
            )

    def to_json(self) -> str:
        """Text of a split file; `from_json` reads it back."""
        record = {
            "schema": SCHEMA,
            "scheme": self.scheme,
            "options": dict(self.options),
            "counts": self.counts.tolist(),
            "parts": [part.tolist() for part in self.parts],
            **({} if self.units is None else {"units": [part.tolist() for part in self.units]}),
            "hash": self.hash,
        }
        return json.dumps(record, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Partition:
        """Read a split file; call `check` with the labels before using it.

        Raises:
            DataError: not a split file, of an unknown schema, a row twice, or changed since it was written.
        """
        try:
            record = json.loads(text)
            schema = record["schema"]
            parts = _arrays(record["parts"])
            units = _arrays(record["units"]) if "units" in record else None
            counts = np.array(record["counts"], dtype=np.int64)
            made = cls(parts, counts, str(record["scheme"]), dict(record["options"]), units)
            stated = record["hash"]
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise DataError(f"not a split file: {type(error).__name__}: {error}") from error
        if schema not in (1, SCHEMA):
            raise DataError(f"split file of schema {schema!r}; this version reads 1 and {SCHEMA}")
        if counts.ndim != 2 or len(counts) != len(parts):
            raise DataError(f"split file: {len(parts)} clients but counts of shape {counts.shape}")
        _check_cover(parts, made.rows, "split file", DataError)
        if units is not None:
            _check_cover(units, sum(map(len, units)), "split file, units", DataError)
        if made.hash != stated:
            raise DataError("split file: its hash does not match, it was changed after it was written; make it anew")
        return made


def _arrays(parts: list[list[int]]) -> list[np.ndarray]:
    return [np.array(part, dtype=np.int64).reshape(-1) for part in parts]


def _check_cover(
    parts: list[np.ndarray], rows: int, who: str, error: type[ConfigError] | type[DataError] = ConfigError
) -> None:
    """Raise ``error`` unless the parts hold 0 .. rows-1, each exactly once."""
    every = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    if len(every) and (every.min() < 0 or every.max() >= rows):
        raise error(f"{who}: row numbers run from {every.min()} to {every.max()}, rows from 0 to {rows - 1}")
    times = np.bincount(every, minlength=rows)
    wrong = np.flatnonzero(times != 1)
    if len(wrong):
        raise error(f"{who}: row {wrong[0]} is held {times[wrong[0]]} times ({len(wrong)} such rows); must be once")


def _count(parts: list[np.ndarray], labels: np.ndarray, num_classes: int) -> np.ndarray:
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ConfigError(f"labels run from {labels.min()} to {labels.max()}, classes from 0 to {num_classes - 1}")
    return np.stack([np.bincount(labels[part], minlength=num_classes) for part in parts]).astype(np.int64)


def _known_options(scheme: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(scheme).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def options_of(
    function: Callable[..., Any],
    name: str,
    given: Mapping[str, Any],
    kind: str = "partition",
    others: Mapping[str, Callable[..., Any]] = SCHEMES,
) -> dict[str, Any]:
    """A function's keyword options, defaults filled in.

    Args:
        function: a scheme, or another component with keyword options.
        name: its name.
        given: options as people set them.
        kind: what it is, for messages.
        others: functions of the kind by name, some of which may have the option.

    Raises:
        ConfigError: an option the function does not have; the near name is in the message.
    """
    parameters = inspect.signature(function).parameters.values()
    known = _known_options(function)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return {**known, **given}
    for option in given:
        if option not in known:
            possible = f"It takes {one_of(known)}." if known else "It takes no options."
            takers = [other for other, its in others.items() if option in _known_options(its)]
            if takers:
                possible += f" {option!r} belongs to {one_of(takers)}: choose that {kind}, or leave it out."
            raise ConfigError(f"{kind} {name!r} has no option {option!r}.{suggest(option, known)} {possible}")
    missing = [o for o, default in known.items() if default is inspect.Parameter.empty and o not in given]
    if missing:
        raise ConfigError(f"{kind} {name!r} needs {one_of(missing)}")
    return {**known, **given}


def split(
    scheme: str | Scheme,
    labels: np.ndarray,
    clients: int,
    num_classes: int,
    rng: np.random.Generator,
    **options: Any,
) -> Partition:
    """Split by a scheme's name or by any callable of the same form.

    Args:
        scheme: one of `SCHEMES`, or ``(labels, clients, rng, *, options) -> list of index arrays``.
        labels: class of each row, shape (n,), integers in ``range(num_classes)``.
        clients: number of parts, 1 to n.
        num_classes: classes of the task, also those that do not occur.
        rng: source of all randomness.
        options: the scheme's keyword options.

    Returns:
        A checked partition: every row exactly once.

    Raises:
        UnknownNameError: no scheme of this name; the near name is in the message.
        ConfigError: a wrong option or value, or a callable that loses or repeats rows.
    """
    labels = np.asarray(labels)
    if callable(scheme):
        function, name = scheme, getattr(scheme, "__name__", type(scheme).__name__)
    elif scheme in SCHEMES:
        function, name = SCHEMES[scheme], scheme
    else:
        raise UnknownNameError(f"unknown partition {scheme!r}.{suggest(scheme, SCHEMES)} Possible: {one_of(SCHEMES)}")
    check_clients(labels, clients)
    full = options_of(function, name, options)
    parts = [np.asarray(part, dtype=np.int64) for part in function(labels, clients, rng, **full)]
    if len(parts) != clients:
        raise ConfigError(f"partition {name!r} made {len(parts)} parts for {clients} clients")
    _check_cover(parts, len(labels), f"partition {name!r}")
    return Partition(parts, _count(parts, labels, num_classes), name, full)


def divide(
    name: str,
    scheme: Scheme,
    task: Task,
    clients: int,
    rng: np.random.Generator,
    sees: str = "labels",
    **options: Any,
) -> Partition:
    """Split a task's training data, with all that its rows are tied to.

    Args:
        name: of the scheme.
        scheme: as for `split`; or, when it sees the task, ``(task, clients, rng, *, options) -> list of unit arrays``.
        task: the data.
        clients: number of parts.
        rng: source of all randomness.
        sees: ``"labels"`` of the training rows, or the ``"task"``.
        options: the scheme's keyword options.

    Returns:
        A checked partition: every row and every unit exactly once. A client may be without rows.

    Raises:
        ConfigError: as `split`.
    """
    data, labels = task.train, task.train.labels.numpy()
    if sees == "labels":
        made = split(scheme, labels, clients, task.info.num_classes, rng, **options)
        parts, full = made.parts, dict(made.options)
        units = [part.numpy() for part in data.units_of([torch.from_numpy(part) for part in parts])]
    else:
        full = options_of(scheme, name, options)
        units = [np.asarray(part, dtype=np.int64) for part in scheme(task, clients, rng, **full)]
        parts = [data.rows_of(torch.from_numpy(part)).numpy() for part in units]
    if len(units) != clients:
        raise ConfigError(f"partition {name!r} made {len(units)} parts for {clients} clients")
    _check_cover(units, data.units, f"partition {name!r}")
    same = all(map(np.array_equal, parts, units))
    return Partition(parts, _count(parts, labels, task.info.num_classes), name, full, None if same else units)
