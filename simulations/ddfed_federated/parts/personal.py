"""Clients that keep a model of their own from round to round, of a structure of their own (`federation.networks`)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ddfed.data import TaskInfo
from ddfed.domain import Network
from ddfed.evaluate import accuracy
from ddfed_federated.methods.base import ClientContext, ClientState, weights_of

_OWN = "net."


def own_network(state: ClientState, info: TaskInfo, context: ClientContext) -> Network:
    """The client's model as it remembers it; as its stream initialises it where it remembers none."""
    weights = {name.removeprefix(_OWN): value for name, value in state.items() if name.startswith(_OWN)}
    return context.network(info, weights or None)


def having(state: ClientState, net: Network, **more: Tensor) -> ClientState:
    """The memory with the model as it is now, and with other tensors."""
    return {**state, **{_OWN + name: value for name, value in weights_of(net).items()}, **more}


def judged(net: Network, context: ClientContext) -> dict[str, Any]:
    """What the client reports of its model: its accuracy on test rows as the client sees them, if there are any."""
    return {"accuracy": accuracy(net, context.test)} if context.test is not None and len(context.test) else {}


__all__ = ["having", "judged", "own_network"]
