"""Server part: weights averaged by Flower's own strategies (P4 ``avg``).

What the server does with the weights is Flower's code, called once per round with its memory put in and taken out, so
that a round is a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ddfed.errors import FederationError
from ddfed.federation import Release
from ddfed_federated.methods.base import ServerContext, ServerPart, ServerState
from ddfed_federated.settings import LocalSettings


def fedavg(local: LocalSettings) -> Any:
    from flwr.serverapp.strategy import FedAvg

    return FedAvg(**_QUIET)


def fedprox(local: LocalSettings) -> Any:
    from flwr.serverapp.strategy import FedProx

    return FedProx(**_QUIET, proximal_mu=local.proximal_mu)


def fedavgm(local: LocalSettings) -> Any:
    from flwr.serverapp.strategy import FedAvgM

    return FedAvgM(**_QUIET, server_learning_rate=local.server_lr, server_momentum=local.server_momentum)


def fedadam(local: LocalSettings) -> Any:
    from flwr.serverapp.strategy import FedAdam

    return FedAdam(**_QUIET, eta=local.adam_eta, tau=local.adam_tau)


#: Sampling is ours, so Flower's is told to take whoever is there.
_QUIET: dict[str, Any] = {"fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1}
#: Attributes in which Flower's strategies keep their memory between rounds.
_MEMORY = ("current_arrays", "momentum_vector", "m_t", "v_t")


@dataclass(frozen=True)
class Averages(ServerPart):
    """One aggregation by a Flower strategy.

    Args:
        strategy: builds it from the settings.
    """

    strategy: Callable[[LocalSettings], Any]

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        from flwr.app import Array, ArrayRecord

        useful = [r for r in releases if r.weights and r.examples]
        if not useful:
            raise FederationError(f"round {state.round + 1}: no client sent weights")
        strategy = self.strategy(context.settings.local)
        _put_memory(strategy, state.memory.get("strategy", {}))
        arrays = ArrayRecord({k: Array(v.cpu().numpy()) for k, v in state.weights.items()})
        _configure(strategy, state.round + 1, arrays)
        merged, _ = strategy.aggregate_train(state.round + 1, [_as_reply(r) for r in useful])
        if merged is None:
            raise FederationError(f"round {state.round + 1}: {type(strategy).__name__} returned nothing")
        weights = {k: torch.from_numpy(merged[k].numpy().copy()).to(state.weights[k].dtype) for k in state.weights}
        return ServerState(state.round, weights, {**state.memory, "strategy": _take_memory(strategy)})


class _Roster:
    """Stands in for a grid while a strategy configures a round: its messages are not used, its memory is."""

    def get_node_ids(self) -> list[int]:
        return [1]


def _configure(strategy: Any, number: int, arrays: Any) -> None:
    from flwr.app import ConfigRecord

    _identify()
    list(strategy.configure_train(number, arrays, ConfigRecord(), _Roster()))


def _identify() -> None:
    """Flower's messages can be made only inside a run; outside one (a test, a notebook) stand in for it."""
    from flwr.common.constant import SUPERLINK_NODE_ID
    from flwr.supercore.task_identity import TaskIdentity

    try:
        _ = TaskIdentity.run_id
    except RuntimeError:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID


def _as_reply(release: Release) -> Any:
    """A validated release in the shape that Flower's aggregation expects."""
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

    content = RecordDict(
        {
            "arrays": ArrayRecord({k: Array(v.cpu().numpy()) for k, v in release.weights.items()}),
            "metrics": MetricRecord({"num-examples": release.examples}),
        }
    )
    return Message(content, dst_node_id=1, message_type="train")


def _take_memory(strategy: Any) -> dict[str, Any]:
    """The strategy's memory as tensors: dicts and lists of arrays, whichever the strategy uses."""
    found: dict[str, Any] = {}
    for name in _MEMORY:
        value = getattr(strategy, name, None)
        if not value:
            continue
        if isinstance(value, list):
            found[name] = [torch.from_numpy(v.copy()) for v in value]
        else:
            found[name] = {k: torch.from_numpy(_numpy(v).copy()) for k, v in value.items()}
    return found


def _put_memory(strategy: Any, memory: Mapping[str, Any]) -> None:
    from flwr.app import Array, ArrayRecord

    for name, value in memory.items():
        if isinstance(value, list):
            restored: Any = [v.numpy() for v in value]
        else:
            restored = {k: v.numpy() for k, v in value.items()}
            if name == "current_arrays" and hasattr(strategy, "momentum_vector"):
                restored = ArrayRecord({k: Array(v) for k, v in restored.items()})
        setattr(strategy, name, restored)


def _numpy(value: Any) -> Any:
    return value.numpy() if hasattr(value, "numpy") else value
