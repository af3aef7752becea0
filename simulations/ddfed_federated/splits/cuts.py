"""Splits that deal whole classes, or cut one order: IID, shards, a few classes per client.

References:
    McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017
    (shards). Li et al., Federated Learning on Non-IID Data Silos, ICDE 2022 (`pathological`). Song et al., Federated
    Learning via Decentralized Dataset Distillation in Resource-Constrained Edge Environments (FedD3), IJCNN 2023
    (`consecutive`). Wang et al., FedLAP-DP, 2023 (`disjoint`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddfed.errors import ConfigError, one_of
from ddfed_federated.splits.common import check_clients, in_order, rows_by_class


def iid(labels: np.ndarray, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
    """One permutation, cut in near-equal parts.

    Args:
        labels: class of each row, shape (n,), integers.
        clients: number of parts, 1 to n.
        rng: drawn from once.

    Returns:
        ``clients`` sorted int64 index arrays; sizes differ by at most 1.

    Raises:
        ConfigError: no clients, or more clients than rows.
    """
    check_clients(labels, clients)
    return in_order(np.array_split(rng.permutation(len(labels)), clients))


def pathological(
    labels: np.ndarray,
    clients: int,
    rng: np.random.Generator,
    *,
    classes_per_client: int = 2,
    dealt: str = "evenly",
) -> list[np.ndarray]:
    """Each client holds a fixed number of classes; each class is cut equally among its holders.

    A class with fewer rows than holders leaves some of them without.

    Args:
        labels: class of each row, shape (n,), integers.
        clients: number of parts, 1 to n.
        rng: source of all randomness.
        classes_per_client: distinct classes of one client.
        dealt: ``evenly``: the numbers of holders differ by at most 1, ties broken at random. ``randomly``: client i
            gets class i mod C and others at random (NIID-Bench's "#label"), so that some classes have few holders.

    Returns:
        ``clients`` sorted int64 index arrays, each row in exactly one.

    Raises:
        ConfigError: no clients, more clients than rows, more classes per client than there are classes, or
            too few places for every class to have a holder.
    """
    check_clients(labels, clients)
    classes = rows_by_class(labels)
    if not 1 <= classes_per_client <= len(classes):
        raise ConfigError(
            f"classes_per_client = {classes_per_client}: the data hold {len(classes)} classes; use 1 to {len(classes)}"
        )
    if clients * classes_per_client < len(classes):
        raise ConfigError(
            f"{clients} clients with {classes_per_client} classes each cannot hold all {len(classes)} classes; "
            f"use classes_per_client >= {-(-len(classes) // clients)} or more clients"
        )
    holders = _holders(len(classes), clients, classes_per_client, rng, dealt)
    return _among_holders(classes, holders, clients, rng)


def _holders(classes: int, clients: int, each: int, rng: np.random.Generator, dealt: str = "evenly") -> list[list[int]]:
    """Clients of each class, by rising number."""
    holders: list[list[int]] = [[] for _ in range(classes)]
    if dealt == "randomly" and clients < classes:
        raise ConfigError(
            f"dealt = 'randomly' gives client i the class i, so {clients} clients may leave some of {classes} classes "
            f"to nobody; use {classes} clients or more, or dealt = 'evenly'"
        )
    if dealt not in ("evenly", "randomly"):
        raise ConfigError(f"dealt = {dealt!r} is unknown. Possible: 'evenly', 'randomly'")
    for client in range(clients):
        counts = np.array([len(h) for h in holders])
        chosen = np.lexsort((rng.random(classes), counts))[:each]
        if dealt == "randomly":
            first = client % classes
            others = rng.permutation(np.delete(np.arange(classes), first))
            chosen = np.array([first, *others[: each - 1]])
        for c in chosen:
            holders[c].append(client)
    return holders


def _among_holders(
    classes: Sequence[np.ndarray], holders: Sequence[Sequence[int]], clients: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Each class in equal contiguous pieces of a random order, one per holder."""
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for rows, who in zip(classes, holders):
        for client, piece in zip(who, np.array_split(rng.permutation(rows), len(who))):
            parts[client].append(piece)
    return in_order([np.concatenate(pieces) for pieces in parts])


def consecutive(
    labels: np.ndarray, clients: int, rng: np.random.Generator, *, classes_per_client: int = 2
) -> list[np.ndarray]:
    """Client i holds the classes i, i + 1, ..., i + c - 1 modulo C; each is cut equally among its holders (FedD3).

    Classes are counted among those that occur, by rising label.

    Args:
        labels: class of each row, shape (n,), integers.
        clients: number of parts, 1 to n.
        rng: orders the rows of each class.
        classes_per_client: c, 1 to C.

    Returns:
        ``clients`` sorted int64 index arrays, each row in exactly one.

    Raises:
        ConfigError: no clients, more clients than rows, c out of range, or classes that nobody would hold.
    """
    check_clients(labels, clients)
    classes = rows_by_class(labels)
    count = len(classes)
    if not 1 <= classes_per_client <= count:
        raise ConfigError(f"classes_per_client = {classes_per_client}: the data hold {count} classes; use 1 to {count}")
    if clients + classes_per_client <= count:
        reached = clients + classes_per_client - 1
        raise ConfigError(
            f"{clients} clients with {classes_per_client} consecutive classes each reach {reached} of {count} classes; "
            f"use classes_per_client >= {count - clients + 1} or more clients"
        )
    holders = [[k for k in range(clients) if (c - k) % count < classes_per_client] for c in range(count)]
    return _among_holders(classes, holders, clients, rng)


#: Orders of classes that papers fix, by name: the classes of each client.
CLASS_ORDERS = {"fedlap-dp": ((5, 6), (1, 2), (0, 8), (9, 3), (4, 7))}


def disjoint(
    labels: np.ndarray,
    clients: int,
    rng: np.random.Generator,
    *,
    order: str | Sequence[Sequence[int]] = "rising",
) -> list[np.ndarray]:
    """Each class belongs to one client: C / K classes each, in a fixed order.

    Args:
        labels: class of each row, shape (n,), integers.
        clients: number of parts, at most the number of classes.
        rng: not drawn from.
        order: ``rising`` for near-equal runs of rising labels; ``fedlap-dp`` for that paper's five pairs of ten
            classes; or the classes of each client, such as ``[[0, 1], [2, 3]]``.

    Returns:
        ``clients`` sorted int64 index arrays, each row in exactly one.

    Raises:
        ConfigError: more clients than classes, an unknown order, or one that does not name each class once.
    """
    check_clients(labels, clients)
    occurring = np.unique(labels)
    if clients > len(occurring):
        raise ConfigError(
            f"{clients} clients cannot have a class each of {len(occurring)}; use at most {len(occurring)} clients, or "
            f"partition 'pathological', which cuts classes"
        )
    if order == "rising":
        return in_order([np.flatnonzero(np.isin(labels, own)) for own in np.array_split(occurring, clients)])
    if isinstance(order, str) and order not in CLASS_ORDERS:
        raise ConfigError(
            f"order = {order!r} is unknown. Possible: {one_of(['rising', *CLASS_ORDERS])}, or the classes of each "
            f"client, such as [[0, 1], [2, 3]]"
        )
    given = CLASS_ORDERS[order] if isinstance(order, str) else order
    try:
        named = sorted(int(c) for own in given for c in own)
    except (TypeError, ValueError):
        raise ConfigError(f"order must be lists of classes, such as [[0, 1], [2, 3]]; got {order!r}") from None
    if len(given) != clients or len(set(named)) != len(named) or not set(occurring.tolist()) <= set(named):
        raise ConfigError(
            f"order must give {clients} clients the classes {occurring.tolist()}, each once; got "
            f"{[list(own) for own in given]}"
        )
    return in_order([np.flatnonzero(np.isin(labels, list(own))) for own in given])


def shards(
    labels: np.ndarray, clients: int, rng: np.random.Generator, *, shards_per_client: int = 2
) -> list[np.ndarray]:
    """Sort by label, cut in ``shards_per_client * clients`` shards, deal them out at random (FedAvg paper).

    A client sees about ``shards_per_client`` classes; a shard may straddle two.

    Args:
        labels: class of each row, shape (n,), integers.
        clients: number of parts, 1 to n.
        rng: source of all randomness.
        shards_per_client: shards of one client, at least 1.

    Returns:
        ``clients`` sorted int64 index arrays, each row in exactly one.

    Raises:
        ConfigError: no clients, more clients than rows, or more shards than rows.
    """
    check_clients(labels, clients)
    total = shards_per_client * clients
    if not 1 <= shards_per_client <= len(labels) // clients:
        raise ConfigError(
            f"shards_per_client = {shards_per_client}: {len(labels)} rows for {clients} clients allow "
            f"1 to {len(labels) // clients}"
        )
    order = np.concatenate([rng.permutation(rows) for rows in rows_by_class(labels)])
    pieces = np.array_split(order, total)
    dealt = rng.permutation(total).reshape(clients, shards_per_client)
    return in_order([np.concatenate([pieces[s] for s in hand]) for hand in dealt])
