"""Federated methods: declarations whose client and server are pure functions."""

from ddfed_federated.methods.base import ClientContext, FederatedMethod, ServerContext, ServerState, train_on_records

__all__ = ["ClientContext", "FederatedMethod", "ServerContext", "ServerState", "train_on_records"]
