"""Client part: train the global model on the client's own rows (P1 ``sgd``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ddfed.data import RealData
from ddfed.domain import Network
from ddfed.errors import ConfigError
from ddfed.evaluate import Protocol, train
from ddfed.federation import Broadcast, Expectation, Release
from ddfed.gate import Gate
from ddfed.seeds import Streams, isolated
from ddfed.store import HardLabels
from ddfed_federated.methods.base import (
    ClientContext,
    ClientPart,
    ClientState,
    ServerContext,
    ServerState,
    check_one_network,
    weights_of,
)
from ddfed_federated.settings import LocalSettings

#: Adds a scalar to the loss of every row.
Pull = Callable[[], Tensor]


class Correction:
    """What a method changes about local training. This one changes nothing: FedAvg.

    A correction is a value; what it remembers from round to round lies in the client's state.
    """

    #: it remembers something from round to round
    stateful = False

    def check(self, context: ServerContext) -> None:
        """Refuse settings that this does not work with, as `ClientPart.check`."""

    def together(self, context: ClientContext) -> float | None:
        """mu of the pull towards the start, where that is all that it changes (`cohort.train_cohort`); else None."""
        return 0.0 if type(self) is Correction else None

    def tables(self, context: ServerContext) -> Mapping[str, tuple[int | None, ...]]:
        """Shapes of the tables that are sent beside the weights."""
        return {}

    def pull(self, net: Network, state: ClientState, broadcast: Broadcast, context: ClientContext) -> Pull | None:
        """What is added to the loss of every row of a batch; ``net`` holds the global weights when this is asked."""
        return None

    def dressed(self, net: Network, state: ClientState, broadcast: Broadcast, context: ClientContext) -> nn.Module:
        """What is trained in place of ``net``: a module that shares its weights and may show more than logits."""
        return net

    def row_loss(self, shown: Tensor, classes: Tensor, context: ClientContext) -> Tensor:
        """Loss of each row from what the dressed network shows, (rows,)."""
        return HardLabels.loss(shown, classes)

    def after(
        self, net: Network, state: ClientState, broadcast: Broadcast, context: ClientContext, steps: int
    ) -> tuple[Mapping[str, Tensor], ClientState]:
        """Tables to send, and the new memory, once ``net`` has made its steps."""
        return {}, state


class Proximal(Correction):
    """(mu / 2) |w - w_r|^2 over all parameters (Li et al., FedProx, MLSys 2020, equation 2)."""

    def together(self, context: ClientContext) -> float | None:
        return context.settings.local.proximal_mu

    def pull(self, net: Network, state: ClientState, broadcast: Broadcast, context: ClientContext) -> Pull | None:
        mu = context.settings.local.proximal_mu
        if not mu:
            return None
        anchor = [p.detach().clone() for p in net.parameters()]

        def distance() -> Tensor:
            apart = [(p - a).square().sum() for p, a in zip(net.parameters(), anchor)]
            return 0.5 * mu * torch.stack(apart).sum()

        return distance


@dataclass(frozen=True)
class Trains(ClientPart):
    """Train the global model on the client's rows and send the weights.

    Where no weights were sent, the client trains a network of its own from its own start; see `TrainsOwn`.
    """

    correction: Correction = Correction()

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        return self.correction.stateful

    def check(self, context: ServerContext) -> None:
        check_one_network(context, "clients train the global weights")
        self.correction.check(context)

    def expects(self, client: int, state: ServerState, context: ServerContext) -> Expectation:
        tables = self.correction.tables(context)
        return Expectation(
            ("weights", "statistics") if tables else ("weights",), weights=state.weights, statistics=tables
        )

    def __call__(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        data = gate.raw("local training")
        if not len(data):
            return context.release(broadcast), state
        local, correction = context.settings.local, self.correction
        net, beside = context.network(gate.info, broadcast.weights or None), self.beside(state)
        trained = self._together(net, broadcast, context) if beside is None else None
        if trained is not None:
            net.load_state_dict(trained)
        else:
            train_on_records(
                correction.dressed(net, state, broadcast, context),
                data,
                local,
                context.streams.child("local", broadcast.round),
                context.device,
                beside=beside,
                pull=correction.pull(net, state, broadcast, context),
                row_loss=lambda shown, classes: correction.row_loss(shown, classes, context),
            )
        tables, state = correction.after(net, state, broadcast, context, steps_of(len(data), local))
        payload = {"weights": weights_of(net), **({"statistics": dict(tables)} if tables else {})}
        return context.release(broadcast, payload, examples=len(data)), state

    def beside(self, state: ClientState) -> tuple[Tensor, Tensor] | None:
        """Further rows that train with the client's own, in model space, and their classes; here none."""
        return None

    def _together(self, net: Network, broadcast: Broadcast, context: ClientContext) -> Mapping[str, Tensor] | None:
        """Weights from training in a cohort, where the run wants that and the method allows it."""
        together = self.correction.together(context)
        if context.cohorts is None or together is None or not broadcast.weights:
            return None
        return context.cohorts.trained(context.client, broadcast, net, together)


@dataclass(frozen=True)
class TrainsOwn(Trains):
    """Train a network of the client's own structure (``federation.networks``) from the client's own start.

    For phases that send no weights down.
    """

    def check(self, context: ServerContext) -> None:
        self.correction.check(context)

    def expects(self, client: int, state: ServerState, context: ServerContext) -> Expectation:
        return replace(super().expects(client, state, context), weights=context.network_of(client).state_dict())


def steps_of(rows: int, local: LocalSettings) -> int:
    """Optimiser steps that a client with so many rows makes in a round."""
    return local.epochs * (-(-rows // local.batch) if local.batch else 1)


def gradient_mass(steps: int, momentum: float) -> float:
    """What the gradients of so many steps of SGD weigh together in the way that the weights go, in step sizes.

    w_r - w_k = lr * sum_i a_i g_i with a_i = (1 - rho^(tau - i)) / (1 - rho) for the i-th of tau steps, counted from 0,
    because a gradient lives on in the momentum; this is sum_i a_i, and tau without momentum.

    Source: Wang et al., FedNova, NeurIPS 2020, section 4.1 (|a|_1 of momentum SGD); holds for `torch.optim.SGD`, whose
    momentum begins with the first gradient and is not damped.

    Args:
        steps: tau.
        momentum: rho.
    """
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)


def check_sgd(context: ServerContext, why: str) -> None:
    """Refuse another optimiser of clients than SGD, whose steps are sums of gradients.

    Args:
        why: what needs it, as the beginning of the message.

    Raises:
        ConfigError: another one is set.
    """
    local = context.settings.local
    if local.optimizer != "sgd":
        raise ConfigError(
            f"{why} divides what a client moved by the steps it took, which means a mean gradient for SGD alone; "
            f"local.optimizer is {local.optimizer!r}. Set local.optimizer = 'sgd', for this method alone by "
            f"methods.{context.settings.method}.local.optimizer."
        )


def train_on_records(
    net: nn.Module,
    data: RealData,
    local: LocalSettings,
    streams: Streams,
    device: torch.device,
    *,
    beside: tuple[Tensor, Tensor] | None = None,
    epochs: int | None = None,
    pull: Pull | None = None,
    row_loss: Callable[[Tensor, Tensor], Tensor] = HardLabels.loss,
    on_epoch: Callable[[int], None] | None = None,
) -> nn.Module:
    """Train a network in place as clients of averaging methods train theirs.

    Args:
        net: on its device.
        data: real rows, at least one.
        local: how.
        streams: order and the network's own randomness (dropout) hang below these.
        device: that of the network.
        beside: further rows that train with them, in model space, and their classes.
        epochs: in place of those of ``local``.
        pull: what is added to the loss of every row, scalar; None for nothing.
        row_loss: (what the network shows, classes) -> (rows,).
        on_epoch: called after each pass with its 1-based number.
    """

    def loss(shown: Tensor, targets: Tensor) -> Tensor:
        rows = row_loss(shown, targets)
        return rows if pull is None else rows + pull()

    def rows(index: Tensor) -> tuple[Tensor, Tensor]:
        if beside is None:
            batch = data.batch(index)
            return batch.inputs.to(device), batch.classes.to(device)
        batch, others = data.batch(index[index < len(data)]), index[index >= len(data)] - len(data)
        inputs = torch.cat([batch.inputs, beside[0][others].to(batch.inputs)])
        return inputs.to(device), torch.cat([batch.classes, beside[1][others].to(batch.classes)]).to(device)

    count = len(data) + (len(beside[1]) if beside else 0)
    protocol = Protocol(
        name="local",
        epochs=local.epochs if epochs is None else epochs,
        lr=local.lr,
        momentum=local.momentum,
        weight_decay=local.weight_decay,
        batch=local.batch,
        optimizer=local.optimizer,
        drops=(),
    )
    with isolated(streams.seed("noise")):
        return train(net, rows, count, loss, protocol, None, streams, on_epoch=on_epoch)  # type: ignore[arg-type]
