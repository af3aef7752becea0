"""Server parts that count what clients did as steps instead of averaging where they ended: FedNova and SCAFFOLD.

Both move the global weights along the clients' ways, w <- w + sum_k b_k (w_k - w), with coefficients of their own. What
is no parameter (running statistics of batch norms, counters) is no sum of gradients and is averaged as FedAvg does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ddfed.domain import Network
from ddfed.errors import FederationError
from ddfed.federation import Broadcast, Release
from ddfed.settings import Settings
from ddfed_federated.methods.base import (
    ClientContext,
    ClientState,
    ServerContext,
    ServerPart,
    ServerState,
    begin_with_network,
)
from ddfed_federated.parts.local import Correction, Pull, check_sgd, gradient_mass, steps_of


def senders(state: ServerState, releases: Sequence[Release]) -> tuple[list[Release], Tensor]:
    """Releases that hold weights, and the share of the records that each stands for, (clients,) float64.

    Raises:
        FederationError: there is none.
    """
    useful = [r for r in releases if r.weights and r.examples]
    if not useful:
        raise FederationError(f"round {state.round + 1}: no client sent weights")
    rows = torch.tensor([r.examples for r in useful], dtype=torch.float64)
    return useful, rows / rows.sum()


def moved(
    before: Mapping[str, Tensor],
    after: Sequence[Mapping[str, Tensor]],
    along: Tensor,
    shares: Tensor,
    parameters: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The global state dict after a step along the clients' ways.

    Args:
        before: the global state dict that clients began with.
        after: theirs.
        along: what each client's way weighs, (clients,).
        shares: what each client's buffers weigh, (clients,), sum 1.
        parameters: by name; all other entries of a state dict are buffers.
    """

    def summed(name: str, weights: Tensor, origin: Tensor) -> Tensor:
        return sum((w * (a[name].double() - origin) for w, a in zip(weights, after)), torch.zeros_like(origin))

    found = {}
    for name, value in before.items():
        old = value.double()
        new = old + summed(name, along, old) if name in parameters else summed(name, shares, torch.zeros_like(old))
        found[name] = new.to(value.dtype)
    return found


@dataclass(frozen=True)
class NormalisesSteps(ServerPart):
    """Average the clients' mean gradients instead of their sums, so that who makes more steps has no more say.

    With tau_k steps, a_k their gradients' weights (`gradient_mass`) and p_k the share of the records,

        d_k = (w_r - w_k) / |a_k|_1,   w <- w_r - (sum_k p_k |a_k|_1) sum_k p_k d_k

    Source: Wang et al., FedNova, NeurIPS 2020, equations 9 and 10 with tau_eff = sum p_k |a_k|_1.
    """

    def check(self, context: ServerContext) -> None:
        check_sgd(context, "FedNova")

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        useful, shares = senders(state, releases)
        local = context.settings.local
        mass = shares.new_tensor([gradient_mass(steps_of(r.examples, local), local.momentum) for r in useful])
        along = (shares * mass).sum() * shares / mass
        net = context.network(state.weights)
        merged = moved(state.weights, [r.weights for r in useful], along, shares, dict(net.named_parameters()))
        return ServerState(state.round, merged, state.memory)


class ScaffoldSettings(Settings):
    """SCAFFOLD's own settings."""

    server_lr: float = Field(1.0, gt=0, description="step size of the server along the mean of the clients' ways")
    weighting: Literal["uniform", "count"] = Field(
        "uniform", description="of clients in the step: all alike (the paper), or by their records (as FedAvg)"
    )


class Controlled(Correction):
    """Local steps corrected for the client's drift: SCAFFOLD, the client's side.

    The step -eta (g - c_k + c) is that of the loss with <c - c_k, w> added. Afterwards c_k becomes the mean gradient
    of the way (option II):

        c_k+ = c_k - c + (w_r - w_k) / (eta |a|_1)

    where |a|_1 (`gradient_mass`) is the number of steps tau without momentum, the paper's case; with momentum the
    plain tau would make c_k up to 1 / (1 - rho) times too large.

    Source: Karimireddy et al., SCAFFOLD, ICML 2020, algorithm 1 and equations 3 to 5.
    """

    stateful = True

    def check(self, context: ServerContext) -> None:
        check_sgd(context, "SCAFFOLD")

    def tables(self, context: ServerContext) -> Mapping[str, tuple[int | None, ...]]:
        return {name: tuple(p.shape) for name, p in context.network().named_parameters()}

    def pull(self, net: Network, state: ClientState, broadcast: Broadcast, context: ClientContext) -> Pull | None:
        drift = [(p, (c - _own(state, name, c)).to(p.device)) for (name, p), c in _controlled(net, broadcast)]
        return lambda: torch.stack([(d * p).sum() for p, d in drift]).sum()

    def after(
        self, net: Network, state: ClientState, broadcast: Broadcast, context: ClientContext, steps: int
    ) -> tuple[Mapping[str, Tensor], ClientState]:
        local = context.settings.local
        length = local.lr * gradient_mass(steps, local.momentum)
        change, new = {}, {}
        for (name, p), c in _controlled(net, broadcast):
            old = _own(state, name, c)
            new[name] = old - c + (broadcast.weights[name] - p.detach().cpu()) / length
            change[name] = new[name] - old
        return change, new


def _controlled(net: Network, broadcast: Broadcast) -> Any:
    """Each (name, parameter) with the server's control variate."""
    return (((name, p), broadcast.arrays[name]) for name, p in net.named_parameters())


def _own(state: ClientState, name: str, like: Tensor) -> Tensor:
    """The client's control variate; zero before it has one."""
    return state.get(name, torch.zeros_like(like))


@dataclass(frozen=True)
class Controls(ServerPart):
    """The server's side of SCAFFOLD: w <- w_r + eta_g mean_k (w_k - w_r), c <- c + (m / K) mean_k (c_k+ - c_k).

    m clients of K answered. Buffers are averaged by records.

    Source: Karimireddy et al., SCAFFOLD, ICML 2020, algorithm 1, lines 16 and 17.
    """

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        useful, shares = senders(state, releases)
        options, control = context.options, state.memory["control"]
        heard = shares if options.weighting == "count" else torch.full_like(shares, 1 / len(useful))
        weights = moved(state.weights, [r.weights for r in useful], options.server_lr * heard, shares, control)
        clients = context.settings.federation.clients
        new = {name: c + sum(r.statistics[name] for r in useful) / clients for name, c in control.items()}
        return ServerState(state.round, weights, {**state.memory, "control": new})


def begin_without_drift(context: ServerContext) -> ServerState:
    """The global network, and control variates of zero."""
    parameters = context.network().named_parameters()
    return begin_with_network(context).having(control={name: torch.zeros_like(p).cpu() for name, p in parameters})


def send_control(state: ServerState, context: ServerContext) -> Broadcast:
    """P6: the global model and the server's control variate."""
    return Broadcast(0, weights=state.weights, arrays=dict(state.memory["control"]))
