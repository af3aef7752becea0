"""Averaging baselines through Flower's own strategies: FedAvg, FedProx, FedAvgM, FedAdam.

The client's local training is ours; what the server does with the weights is Flower's code, called once per
round with its memory put in and taken out, so that a round is a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddfed.errors import FederationError
from ddfed.federation import Broadcast, Release
from ddfed.gate import Gate
from ddfed.recipes import Preset
from ddfed.seeds import isolated
from ddfed_federated.methods.base import (
    ClientContext,
    ClientState,
    FederatedMethod,
    ServerContext,
    ServerState,
    train_on_records,
)
from ddfed_federated.methods.presets import DEFAULTS, PRESETS
from ddfed_federated.settings import LocalSettings


def _fedavg(local: LocalSettings) -> Any:
    from flwr.serverapp.strategy import FedAvg

    return FedAvg(**_QUIET)


def _fedprox(local: LocalSettings) -> Any:
    from flwr.serverapp.strategy import FedProx

    return FedProx(**_QUIET, proximal_mu=local.proximal_mu)


def _fedavgm(local: LocalSettings) -> Any:
    from flwr.serverapp.strategy import FedAvgM

    return FedAvgM(**_QUIET, server_learning_rate=local.server_lr, server_momentum=local.server_momentum)


def _fedadam(local: LocalSettings) -> Any:
    from flwr.serverapp.strategy import FedAdam

    return FedAdam(**_QUIET, eta=local.adam_eta, tau=local.adam_tau)


#: Sampling is ours, so Flower's is told to take whoever is there.
_QUIET: dict[str, Any] = {"fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1}
#: Attributes in which Flower's strategies keep their memory between rounds.
_MEMORY = ("current_arrays", "momentum_vector", "m_t", "v_t")


@dataclass(frozen=True)
class AveragingMethod(FederatedMethod):
    """Clients send weights, a Flower strategy merges them.

    Args:
        strategy: builds the Flower strategy from the settings.
        proximal: whether the local loss pulls towards the global weights.
    """

    name: str
    title: str
    citation: str
    strategy: Callable[[LocalSettings], Any]
    sends: str = "weights"
    defaults: Mapping[str, Any] = field(default_factory=lambda: DEFAULTS)
    presets: tuple[Preset, ...] = PRESETS
    departures: tuple[str, ...] = ()
    proximal: bool = False

    def client(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        """Train the global model on the client's records."""
        local, number = context.settings.local, broadcast.round
        data = gate.raw("local training")
        if not len(data):
            return Release(context.client, number, "empty"), state
        info = gate.info
        name = context.settings.distill.network or context.domain.default_network(info)
        with isolated(0):  # overwritten by the global weights
            net = context.domain.network(name, info).to(context.device)
        net.load_state_dict(dict(broadcast.weights))
        mu = local.proximal_mu if self.proximal else 0.0
        anchor = [p.detach().clone() for p in net.parameters()]

        def pull() -> Tensor:
            # Squared norm over all parameters, as in the paper (Li et al. 2020, equation 2).
            apart = [(p - a).square().sum() for p, a in zip(net.parameters(), anchor)]
            return 0.5 * mu * torch.stack(apart).sum()

        streams = context.streams.child("local", number)
        train_on_records(net, data, local, streams, context.device, pull=pull if mu else None)
        weights = {k: v.detach().cpu().clone() for k, v in net.state_dict().items()}
        return Release(context.client, number, "weights", weights, examples=len(data)), state

    def server(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        """One aggregation by the Flower strategy."""
        from flwr.app import Array, ArrayRecord

        useful = [r for r in releases if r.kind == "weights" and r.examples]
        if not useful:
            raise FederationError(f"round {state.round + 1}: no client sent weights")
        strategy = self.strategy(context.settings.local)
        _put_memory(strategy, state.memory)
        arrays = ArrayRecord({k: Array(v.cpu().numpy()) for k, v in state.weights.items()})
        _configure(strategy, state.round + 1, arrays)
        merged, _ = strategy.aggregate_train(state.round + 1, [_as_reply(r) for r in useful])
        if merged is None:
            raise FederationError(f"round {state.round + 1}: {type(strategy).__name__} returned nothing")
        weights = {k: torch.from_numpy(merged[k].numpy().copy()).to(state.weights[k].dtype) for k in state.weights}
        return ServerState(state.round + 1, weights, _take_memory(strategy))


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
            "arrays": ArrayRecord({k: Array(v.cpu().numpy()) for k, v in release.arrays.items()}),
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


FEDAVG = AveragingMethod(
    "fedavg",
    "average of locally trained weights",
    "McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017",
    _fedavg,
)
FEDPROX = AveragingMethod(
    "fedprox",
    "FedAvg with a pull towards the global weights",
    "Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020",
    _fedprox,
    proximal=True,
)
FEDAVGM = AveragingMethod(
    "fedavgm",
    "FedAvg with momentum at the server",
    "Hsu, Qi and Brown, Measuring the Effects of Non-Identical Data Distribution, 2019",
    _fedavgm,
)
FEDADAM = AveragingMethod(
    "fedadam",
    "Adam at the server on the averaged update",
    "Reddi et al., Adaptive Federated Optimization, ICLR 2021",
    _fedadam,
)
