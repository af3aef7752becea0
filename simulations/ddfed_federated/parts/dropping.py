"""Forgetting by dropping: sets of what is forgotten leave the server's store, and a new model learns the rest (P8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ddfed.errors import FederationError
from ddfed_federated.methods.base import Forgetting, ServerContext, ServerState
from ddfed_federated.parts.union import train_on_union, union_of_sets
from ddfed_federated.targets import Targets


def drop_and_retrain(state: ServerState, targets: Targets, context: ServerContext) -> ServerState:
    """Train a fresh model on the sets that stay, for as many epochs as all rounds had together; nobody is asked.

    The sets that stay were made around models that had seen what is forgotten, so a trace of it may stay in them; the
    forgetting is approximate. Nothing of the forgotten sets themselves is left.

    Raises:
        FederationError: no set stays.
    """
    rounds = [[kept for one in sets if (kept := without(one, targets))] for sets in state.memory["sets"]]
    if not any(rounds):
        raise FederationError(f"the server keeps no set but those of {targets}, so nothing is left to train on")
    server = context.settings.server
    whole = server.model_copy(update={"epochs": server.epochs * max(state.round, 1)})
    training = replace(context, settings=context.settings.model_copy(update={"server": whole}))
    net = train_on_union(context.network(), union_of_sets(rounds, context), training, state.round + 1)
    return state.having(net, sets=rounds)


def without(packed: Mapping[str, Any], targets: Targets) -> dict[str, Any]:
    """A remembered set less the items that are forgotten; empty where none stays."""
    meant = targets.meant(int(packed["client"]), packed["y"])
    if bool(meant.all()):
        return {}
    counts = [0 if number in targets.classes else count for number, count in enumerate(packed["counts"])]
    return {**packed, **{k: packed[k][~meant] for k in ("x", "y", "soft") if k in packed}, "counts": counts}


DROPS = Forgetting("its sets are dropped and a new model is trained on the rest", drop_and_retrain)
