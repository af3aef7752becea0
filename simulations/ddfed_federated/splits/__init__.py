"""Schemes: how rows are split among clients, by name."""

from ddfed_federated.splits.common import Scheme
from ddfed_federated.splits.cuts import consecutive, disjoint, iid, pathological, shards
from ddfed_federated.splits.dirichlet import (
    dirichlet,
    dirichlet_minimum,
    doubly_dirichlet,
    inner_dirichlet,
    mixed,
    quantity,
)

#: Those that need the labels alone.
SCHEMES: dict[str, Scheme] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "dirichlet-minimum": dirichlet_minimum,
    "doubly-dirichlet": doubly_dirichlet,
    "inner-dirichlet": inner_dirichlet,
    "mixed": mixed,
    "quantity": quantity,
    "pathological": pathological,
    "consecutive": consecutive,
    "disjoint": disjoint,
    "shards": shards,
}

__all__ = ["SCHEMES", "Scheme"]
