"""Federated methods: declarations of phases, whose parts are in `ddfed_federated.parts`."""

from ddfed_federated.methods.base import (
    ClientContext,
    ClientPart,
    FederatedMethod,
    Phase,
    ServerContext,
    ServerPart,
    ServerState,
)

__all__ = [
    "ClientContext",
    "ClientPart",
    "FederatedMethod",
    "Phase",
    "ServerContext",
    "ServerPart",
    "ServerState",
]
