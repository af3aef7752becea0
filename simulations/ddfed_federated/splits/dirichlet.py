"""Splits by Dirichlet proportions: of a class among clients, of rows among clients, of classes within a client.

References:
    Hsu et al., Measuring the Effects of Non-Identical Data Distribution, 2019, and Li et al., Federated Learning on
    Non-IID Data Silos, ICDE 2022 (Dirichlet, capped Dirichlet, quantity). Pi et al., DYNAFED: Tackling Client Data
    Heterogeneity with Global Dynamics, CVPR 2023 (`doubly_dirichlet`). Holland et al., One-Shot Collaborative Data
    Distillation (CollabDM), ECAI 2024 (`dirichlet_minimum`). Acar et al., Federated Learning Based on Dynamic
    Regularization (FedDyn), ICLR 2021 (`inner_dirichlet`).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence

import numpy as np

from ddfed.errors import ConfigError
from ddfed_federated.splits.common import (
    check_alpha,
    check_clients,
    cut,
    in_order,
    repair,
    rows_by_class,
    smallest_of,
)

#: Draws before a Dirichlet split gives up on luck and repairs the smallest clients. At 100 clients and
#: alpha 0.05 luck practically never comes, so the number must be bounded.
MAX_DRAWS = 500


def dirichlet(
    labels: np.ndarray,
    clients: int,
    rng: np.random.Generator,
    *,
    alpha: float = 0.5,
    min_size: int | None = None,
    capped: bool = True,
) -> list[np.ndarray]:
    """Label skew: each class is cut among the clients by proportions drawn from Dir(alpha).

    All sizes are redrawn until every client holds ``min_size`` rows. After `MAX_DRAWS` draws the last one is
    taken and rows move from the largest to the smallest clients instead.

    Args:
        labels: class of each row, shape (n,), integers.
        clients: number of parts, 1 to n.
        rng: source of all randomness.
        alpha: concentration; small is skewed.
        min_size: fewest rows of a client; None means ``min(10, n // (2 * clients))``. With 0 a client may
            hold nothing.
        capped: before normalising, give no more of a class to clients that already hold n / clients rows, so
            that sizes stay within a factor of about two (NIID-Bench does this). False is the plain form.

    Returns:
        ``clients`` sorted int64 index arrays, each row in exactly one.

    Raises:
        ConfigError: no clients, more clients than rows, a bad alpha, or a ``min_size`` that cannot be had.
    """
    check_clients(labels, clients)
    check_alpha(alpha)
    smallest = smallest_of(min_size, len(labels), clients)
    classes = rows_by_class(labels)
    lengths = [len(rows) for rows in classes]
    sizes = _redrawn(lambda: _dirichlet_sizes(lengths, clients, rng, alpha, capped), smallest)
    pieces = [cut(rng.permutation(rows), row_sizes) for rows, row_sizes in zip(classes, sizes)]
    parts = [np.concatenate([piece[k] for piece in pieces]) for k in range(clients)]
    if min(len(part) for part in parts) < smallest:
        parts = repair(parts, smallest, rng)
    return in_order(parts)


def _redrawn(draw: Callable[[], np.ndarray], smallest: int) -> np.ndarray:
    """Rows per (class, client): the first draw in which every client holds enough, or the last of `MAX_DRAWS`."""
    for _ in range(MAX_DRAWS):
        sizes = draw()
        if sizes.sum(axis=0).min() >= smallest:
            break
    return sizes


def _dirichlet_sizes(
    lengths: list[int], clients: int, rng: np.random.Generator, alpha: float, capped: bool
) -> np.ndarray:
    """Rows per (class, client) of one draw, int64."""
    fair = sum(lengths) / clients
    held = np.zeros(clients, dtype=np.int64)
    sizes = np.zeros((len(lengths), clients), dtype=np.int64)
    for c, length in enumerate(lengths):
        share = rng.dirichlet(np.full(clients, alpha))
        if capped:
            share = np.where(held < fair, share, 0.0)
        total = share.sum()
        if not (math.isfinite(total) and total > 0):
            # At a tiny alpha the whole mass may sit on a client at its cap; the limit is one random other.
            open_to = np.flatnonzero(held < fair) if capped else np.arange(clients)
            share = np.zeros(clients)
            share[rng.choice(open_to)] = total = 1.0
        ends = (np.cumsum(share / total) * length).astype(np.int64)
        ends[-1] = length
        sizes[c] = np.diff(ends, prepend=0)
        held += sizes[c]
    return sizes


def dirichlet_minimum(
    labels: np.ndarray,
    clients: int,
    rng: np.random.Generator,
    *,
    alpha: float = 0.5,
    per_class: int = 10,
    capped: bool = True,
) -> list[np.ndarray]:
    """Every client first gets some rows of every class, the rest is cut as by `dirichlet` (CollabDM).

    The guarantee hides the missing classes that a Dirichlet split at the same alpha has; the two do not compare.

    Args:
        labels: class of each row, shape (n,), integers.
        clients: number of parts, 1 to n.
        rng: source of all randomness.
        alpha: concentration of the rest.
        per_class: rows of each class that every client gets first; the paper takes the items per class it distils.
        capped: as for `dirichlet`, for the rest.

    Returns:
        ``clients`` sorted int64 index arrays, each row in exactly one.

    Raises:
        ConfigError: as `dirichlet`, or a class has fewer than ``clients * per_class`` rows.
    """
    check_clients(labels, clients)
    check_alpha(alpha)
    classes = [rng.permutation(rows) for rows in rows_by_class(labels)]
    fewest = min(map(len, classes))
    if not 0 <= per_class <= fewest // clients:
        raise ConfigError(
            f"per_class = {per_class}: the rarest class has {fewest} rows, which allow {clients} clients 0 to "
            f"{fewest // clients} each; set federation.partition_options.per_class, or ask for fewer clients"
        )
    given = [np.split(rows[: clients * per_class], clients) for rows in classes]
    rest = [rows[clients * per_class :] for rows in classes]
    sizes = _dirichlet_sizes([len(rows) for rows in rest], clients, rng, alpha, capped)
    pieces = [cut(rows, row_sizes) for rows, row_sizes in zip(rest, sizes)]
    return in_order([np.concatenate([piece[k] for piece in [*given, *pieces]]) for k in range(clients)])


#: Alternations before the margins of `doubly_dirichlet` count as reached. At a small alpha the mass may be unable to
#: meet them, and the rounding, which meets them exactly, has the last word.
ALTERNATIONS = 1000


def doubly_dirichlet(
    labels: np.ndarray, clients: int, rng: np.random.Generator, *, alpha: float = 0.5
) -> list[np.ndarray]:
    """Label skew at equal sizes: Dirichlet proportions made doubly stochastic (DYNAFED).

    For each class proportions over the clients are drawn from Dir(alpha); then the matrix is scaled to the clients'
    (equal) sizes and the classes' lengths in turn, until both hold. Sizes differ by at most 1. Not comparable with
    `dirichlet` at the same alpha.

    Args:
        labels: class of each row, shape (n,), integers.
        clients: number of parts, 1 to n.
        rng: source of all randomness.
        alpha: concentration; small is skewed.

    Returns:
        ``clients`` sorted int64 index arrays, each row in exactly one.

    Raises:
        ConfigError: no clients, more clients than rows, or a bad alpha.
    """
    check_clients(labels, clients)
    check_alpha(alpha)
    classes = rows_by_class(labels)
    lengths = np.array([len(rows) for rows in classes])
    wanted = equal_sizes(len(labels), clients)
    # A share of exactly zero could never grow to what the margins ask.
    shares = np.maximum(rng.dirichlet(np.full(clients, alpha), len(classes)), 1e-12)
    table = _whole_table(_balanced(shares, lengths, wanted), lengths, wanted)
    pieces = [cut(rng.permutation(rows), row_sizes) for rows, row_sizes in zip(classes, table)]
    return in_order([np.concatenate([piece[k] for piece in pieces]) for k in range(clients)])


def _balanced(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """``table`` scaled in turn until its margins are ``rows`` and ``columns`` (Sinkhorn and Knopp)."""
    for _ in range(ALTERNATIONS):
        table = table * (columns / table.sum(0))
        gap = rows / table.sum(1)
        table = table * gap[:, None]
        if np.abs(gap - 1).max() < 1e-6:
            break
    return table


def _whole_table(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Whole numbers near ``table`` with exactly these margins, int64.

    Rounded down within the margins; what is missing goes, cell by cell in order of what was cut off, where both margins
    still have room, and where they have not, anywhere they have.
    """
    whole = np.floor(table).astype(np.int64)
    for axis, margin in ((1, rows), (0, columns)):
        over = np.maximum(whole.sum(axis) - margin, 0)
        for line in np.flatnonzero(over):
            view = whole[line] if axis == 1 else whole[:, line]
            for _ in range(int(over[line])):
                view[view.argmax()] -= 1
    left, room = rows - whole.sum(1), columns - whole.sum(0)
    for flat in np.argsort(whole - table, axis=None, kind="stable"):
        r, c = divmod(int(flat), table.shape[1])
        if left[r] and room[c]:
            whole[r, c] += 1
            left[r] -= 1
            room[c] -= 1
    for r in np.flatnonzero(left):
        while left[r]:
            c = int(room.argmax())
            step = min(left[r], room[c])
            whole[r, c] += step
            left[r] -= step
            room[c] -= step
    return whole


def equal_sizes(rows: int, clients: int) -> np.ndarray:
    """Sizes that differ by at most 1, (clients,) int64."""
    return np.array([len(part) for part in np.array_split(np.arange(rows), clients)], dtype=np.int64)


def inner_dirichlet(
    labels: np.ndarray,
    clients: int,
    rng: np.random.Generator,
    *,
    alpha: float = 0.5,
    sizes: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """Label skew at given sizes: each client draws its own mix of classes from Dir(alpha) (FedDyn).

    Rows are handed out one by one: a client in random order, a class from its mix, a random row of it. A class that is
    used up leaves all mixes; a client whose mix is used up takes from what is left, in proportion to it.

    Args:
        labels: class of each row, shape (n,), integers.
        clients: number of parts, 1 to n.
        rng: source of all randomness.
        alpha: concentration; small is skewed.
        sizes: rows of each client, together n; None for equal ones.

    Returns:
        ``clients`` sorted int64 index arrays, each row in exactly one.

    Raises:
        ConfigError: no clients, more clients than rows, a bad alpha, or sizes that do not add up.
    """
    check_clients(labels, clients)
    check_alpha(alpha)
    wanted = equal_sizes(len(labels), clients) if sizes is None else np.array(sizes)
    if wanted.shape != (clients,) or wanted.dtype.kind != "i" or wanted.min() < 0 or wanted.sum() != len(labels):
        raise ConfigError(
            f"sizes must be {clients} whole numbers, none below 0, that add up to {len(labels)} rows; got "
            f"{np.asarray(wanted).tolist()}"
        )
    return _dealt_by_mix(labels, wanted, alpha, rng)


def _dealt_by_mix(labels: np.ndarray, sizes: np.ndarray, alpha: float, rng: np.random.Generator) -> list[np.ndarray]:
    stock = [rng.permutation(rows).tolist() for rows in rows_by_class(labels)]
    mixes = rng.dirichlet(np.full(len(stock), alpha), len(sizes))
    turns = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)).tolist()
    chances = rng.random(len(labels)).tolist()
    parts: list[list[int]] = [[] for _ in sizes]
    ladders = _ladders(mixes, stock)
    for client, chance in zip(turns, chances):
        c = bisect.bisect_right(ladders[client], chance)
        parts[client].append(stock[c].pop())
        if not stock[c]:
            ladders = _ladders(mixes, stock)
    return in_order([np.array(part, dtype=np.int64) for part in parts])


def _ladders(mixes: np.ndarray, stock: Sequence[Sequence[int]]) -> list[list[float]]:
    """Upper ends of each client's classes in [0, 1]; a class without stock has no width."""
    left = np.array([len(rows) for rows in stock], dtype=np.float64)
    if not left.any():
        return []
    shares = np.where(left > 0, mixes, 0.0)
    spent = ~(shares.sum(1) > 0)
    shares[spent] = left
    ends = np.cumsum(shares, 1) / shares.sum(1, keepdims=True)
    ends[:, np.flatnonzero(left)[-1] :] = 1.0
    return ends.tolist()


def mixed(
    labels: np.ndarray,
    clients: int,
    rng: np.random.Generator,
    *,
    alpha: float = 0.5,
    size_alpha: float = 1.0,
    min_size: int | None = None,
) -> list[np.ndarray]:
    """Label and quantity skew: sizes from Dir(size_alpha) as by `quantity`, a mix each as by `inner_dirichlet`.

    Args:
        labels: class of each row, shape (n,), integers.
        clients: number of parts, 1 to n.
        rng: source of all randomness.
        alpha: concentration of the classes within a client.
        size_alpha: concentration of the sizes.
        min_size: fewest rows of a client; None means ``min(10, n // (2 * clients))``.

    Returns:
        ``clients`` sorted int64 index arrays, each row in exactly one.

    Raises:
        ConfigError: no clients, more clients than rows, a bad alpha, or a ``min_size`` that cannot be had.
    """
    check_clients(labels, clients)
    check_alpha(alpha)
    check_alpha(size_alpha, "size_alpha")
    sizes = np.array([len(part) for part in quantity(labels, clients, rng, alpha=size_alpha, min_size=min_size)])
    return _dealt_by_mix(labels, sizes, alpha, rng)


def quantity(
    labels: np.ndarray,
    clients: int,
    rng: np.random.Generator,
    *,
    alpha: float = 0.5,
    min_size: int | None = None,
) -> list[np.ndarray]:
    """Quantity skew: client sizes follow Dir(alpha), labels are IID.

    Args:
        labels: class of each row, shape (n,), integers.
        clients: number of parts, 1 to n.
        rng: source of all randomness.
        alpha: concentration; small is skewed.
        min_size: fewest rows of a client; None means ``min(10, n // (2 * clients))``.

    Returns:
        ``clients`` sorted int64 index arrays, each row in exactly one.

    Raises:
        ConfigError: no clients, more clients than rows, a bad alpha, or a ``min_size`` that cannot be had.
    """
    check_clients(labels, clients)
    check_alpha(alpha)
    smallest = smallest_of(min_size, len(labels), clients)
    sizes = _redrawn(lambda: _dirichlet_sizes([len(labels)], clients, rng, alpha, capped=False), smallest)[0]
    parts = cut(rng.permutation(len(labels)), sizes)
    if sizes.min() < smallest:
        parts = repair(parts, smallest, rng)
    return in_order(parts)
