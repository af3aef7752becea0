"""Sets that say how far from the global model they can be trusted (FedLAP)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddfed.data import Batch
from ddfed.domain import Network
from ddfed.evaluate import train
from ddfed.federation import Broadcast, Expectation, Release
from ddfed.gate import Gate, Query
from ddfed.seeds import isolated
from ddfed.store import HardLabels
from ddfed_federated.methods.base import ClientContext, ClientState, ServerContext, ServerState
from ddfed_federated.parts.distil import Distils
from ddfed_federated.parts.union import server_protocol

#: How often the real rows are looked at in the search: the authors look after every epoch, which costs a client more
#: than all its matching.
LOOKS = 10


_CHOICES: dict[str, Callable[[Tensor], Tensor]] = {
    "min": torch.min,
    "median": torch.median,
    "mean": torch.mean,
    "max": torch.max,
}


def distance(net: Network, weights: dict[str, Tensor]) -> float:
    """Euclidean distance of all parameters together from those of a state dict."""
    apart = [(p.detach() - weights[name].to(p)).square().sum() for name, p in net.named_parameters()]
    return float(torch.stack(apart).sum().sqrt())


@dataclass(frozen=True)
class TrustRadius(Distils):
    """As `Distils`, and the distance from the global weights up to which training on the set helps the real rows.

    The client trains from the global weights on its own set as the server will, looks at the loss of its real rows
    `LOOKS` times on the way, and sends the distance at which that loss was lowest, at most the radius of the pool
    ``trust``.

    Source: Wang et al., FedLAP-DP, PoPETs 2024, section 4.3; the authors' code for the form without privacy. The search
    is a question to the real rows like any other, asked of the gate.
    """

    def expects(self, client: int, state: ServerState, context: ServerContext) -> Expectation:
        base = super().expects(client, state, context)
        return replace(base, payload=("set", "statistics"), statistics={**base.statistics, "radius": ()})

    def __call__(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        release, state = super().__call__(state, gate, broadcast, context)
        if not release.payload:
            return release, state
        radius = torch.tensor(self._radius(gate, broadcast, context, release.set["x"], release.set["y"]))
        statistics = {**release.statistics, "radius": radius}
        return replace(release, payload={**release.payload, "statistics": statistics}), state

    def _radius(self, gate: Gate, broadcast: Broadcast, context: ClientContext, x: Tensor, y: Tensor) -> float:
        most = float(context.settings.distill.pool_options.get("radius", 10.0))
        net = context.network(gate.info, broadcast.weights)
        x, y = x.to(context.device), y.to(context.device)
        best = (_real_loss(net, gate, context, broadcast.round, 0), 0.0)
        every = max(1, context.settings.server.epochs // LOOKS)

        def look(epoch: int) -> None:
            nonlocal best
            if epoch % every:
                return
            best = min(
                best,
                (_real_loss(net, gate, context, broadcast.round, epoch), min(most, distance(net, broadcast.weights))),
            )
            net.train()

        streams = context.streams.child("radius", broadcast.round)
        with isolated(streams.seed("noise")):
            train(
                net,
                lambda rows: (x[rows], y[rows]),
                len(y),
                HardLabels.loss,
                server_protocol(context.settings),
                None,
                streams,
                on_epoch=look,
                stop=lambda: distance(net, broadcast.weights) >= most,
            )
        return best[1]


def _real_loss(net: Network, gate: Gate, context: ClientContext, number: int, epoch: int) -> float:
    """Mean cross-entropy of the real rows."""
    net.eval()
    held = gate.held()

    def contribution(batch: Batch) -> Tensor:
        return HardLabels.loss(net(batch.inputs.to(context.device)), batch.classes.to(context.device))[:, None]

    stream = context.streams.torch("real loss", number, epoch)
    answer = gate.sums(Query("loss of the trust radius", held), contribution, stream)
    return float(answer.sums.sum() / answer.counts.sum())


def within_radius(
    state: ServerState, releases: Sequence[Release], context: ServerContext, net: Network
) -> Callable[[], bool]:
    """The server stops at the smallest radius that a client trusts its set for, or what ``options.radius`` says."""
    radii = torch.stack([r.statistics["radius"].float() for r in releases if r.items])
    radius = float(_CHOICES[context.options.radius](radii))
    return lambda: distance(net, state.weights) >= radius
