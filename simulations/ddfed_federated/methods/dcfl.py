"""DCFL: FedAvg in which each client also trains on the condensed sets of a few clients that see differently.

Sha and Sun, DCFL: Non-IID Awareness Data Condensation Aided Federated Learning, 2024 (arXiv 2312.14219).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import Tensor

from ddfed.federation import Broadcast, Expectation, Release
from ddfed.gate import Gate
from ddfed.recipes import Preset
from ddfed.seeds import Streams
from ddfed.settings import Settings
from ddfed_federated.methods.base import (
    ClientContext,
    ClientPart,
    ClientState,
    FederatedMethod,
    Phase,
    ServerContext,
    ServerPart,
    ServerState,
    begin_with_network,
    check_one_network,
    send_nothing,
)
from ddfed_federated.methods.presets import DEFAULTS, digits
from ddfed_federated.parts.averaging import Averages, fedavg
from ddfed_federated.parts.distil import Distils
from ddfed_federated.parts.handed import KeepsSets, Nothing, TakesSets, TrainsForCluster
from ddfed_federated.parts.local import train_on_records


class DCFLOptions(Settings):
    """DCFL's own settings."""

    group: int = Field(2, ge=2, description="clients that see each other's sets")
    probes: int = Field(64, ge=2, description="shared inputs of noise on which features are compared")
    warmup: int = Field(5, ge=1, description="passes over its rows that a client makes before it shows its features")


# --- who sees differently -----------------------------------------------------------------------------------------


def linear_cka(one: Tensor, two: Tensor) -> float:
    """|X^T Y|_F^2 / (|X^T X|_F |Y^T Y|_F) of centred features.

    It is 1 for features that are equal up to rotation and scale, and 0 for unrelated ones.

    Source: Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019, section 3.

    Args:
        one, two: of the same inputs, (inputs, width); widths may differ.

    Returns:
        0 where the features of either are the same for all inputs.
    """
    x, y = (features.double() - features.double().mean(0) for features in (one, two))
    own = float((x.T @ x).norm() * (y.T @ y).norm())
    return float((x.T @ y).square().sum()) / own if own > 0 else 0.0


def complementary(alike: Tensor, size: int) -> list[list[int]]:
    """Groups whose members are as unlike as can be, one group after another.

    A group begins with the first client that is left, and takes the one that is least like its members on average until
    it has ``size``. A single client that is left over joins the last group.

    Args:
        alike: similarity of every pair, (clients, clients).
        size: of a group.

    Returns:
        Positions in ``alike``, each in one group.
    """
    left, groups = list(range(len(alike))), list[list[int]]()
    while left:
        group = [left.pop(0)]
        while left and len(group) < size:
            nearest = min(left, key=lambda k: (float(alike[k, group].mean()), k))
            left.remove(nearest)
            group.append(nearest)
        groups.append(group)
    if len(groups) > 1 and len(groups[-1]) == 1:
        alone = groups.pop()
        groups[-1] += alone
    return groups


def probes(shape: Sequence[int], count: int, seed: Tensor) -> Tensor:
    """The inputs that all clients show their features of: standard normal in model space, (count, *shape)."""
    return torch.randn(count, *shape, generator=Streams(int(seed)).torch("probes"))


def _begin(context: ServerContext) -> ServerState:
    with torch.no_grad():
        net = context.network().eval()
        width = net.embed(torch.zeros(1, *context.task.info.shape, device=context.device)).shape[1]
    return begin_with_network(context).having(seed=torch.tensor(context.streams.seed("probes")), width=width)


def _send_probes(state: ServerState, context: ServerContext) -> Broadcast:
    """P6: the model and the seed of the probes."""
    return Broadcast(0, weights=state.weights, arrays={"seed": state.memory["seed"]})


@dataclass(frozen=True)
class ShowsFeatures(ClientPart):
    """Trains the common start on its rows for a while, and sends the features of the probes."""

    def check(self, context: ServerContext) -> None:
        check_one_network(context, "clients train the global weights")

    def expects(self, client: int, state: ServerState, context: ServerContext) -> Expectation:
        shape = (context.options.probes, int(state.memory["width"]))
        return Expectation(("statistics",), statistics={"features": shape})

    def __call__(
        self, state: ClientState, gate: Gate, broadcast: Broadcast, context: ClientContext
    ) -> tuple[Release, ClientState]:
        data, options = gate.raw("local training"), context.options
        if not len(data):
            return context.release(broadcast), state
        net = context.network(gate.info, broadcast.weights)
        local, streams = context.settings.local, context.streams.child("warm-up")
        train_on_records(net, data, local, streams, context.device, epochs=options.warmup)
        net.eval()
        with torch.no_grad():
            shown = net.embed(probes(gate.info.shape, options.probes, broadcast.arrays["seed"]).to(context.device))
        return context.release(broadcast, {"statistics": {"features": shown.cpu()}}, examples=len(data)), state


@dataclass(frozen=True)
class Groups(ServerPart):
    """Clients whose features resemble each other least come together."""

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        shown = [r.statistics["features"] for r in releases]
        alike = torch.tensor([[linear_cka(one, two) for two in shown] for one in shown])
        who = [r.client for r in releases]
        groups = [[who[k] for k in group] for group in complementary(alike, context.options.group)]
        return state.having(groups=groups, alike=alike)


def _sets_of_group(client: int, broadcast: Broadcast, state: ServerState, context: ServerContext) -> Broadcast | None:
    """The sets of the others in the client's group; who sent none is not asked again."""
    groups: list[list[int]] = state.memory["groups"]
    group = next((members for members in groups if client in members), [])
    sets = [s for s in state.memory["sets"][-1] if s["client"] in group and s["client"] != client]
    if not sets:
        return None
    arrays = {name: torch.cat([s[name] for s in sets]) for name in ("x", "y")}
    return replace(broadcast, arrays=arrays)


DCFL = FederatedMethod(
    name="dcfl",
    title="FedAvg whose clients also train on the condensed sets of a few clients that see differently",
    citation="Sha and Sun, DCFL: Non-IID Awareness Data Condensation Aided Federated Learning, 2024",
    setup=(
        Phase("features", ShowsFeatures(), Groups(), down=_send_probes),
        Phase("sets", Distils(), KeepsSets(), down=send_nothing),
        Phase("groups", TakesSets(), Nothing(), down=send_nothing, to=_sets_of_group),
    ),
    phases=(Phase("training", TrainsForCluster(), Averages(fedavg)),),
    options=DCFLOptions,
    defaults={
        "distill": {
            **DEFAULTS["distill"],
            "objective_options": {"rows": 256, "top_up": False, "logits": False},
            "pool": "R",
            "pool_options": {},
        },
        "federation": {"rounds": 20},
    },
    presets=(
        digits(steps=50),
        Preset({"local": {"epochs": 10}}, ("digits",), source="as FedAvg", domains=("image",)),
    ),
    departures=(
        "the preprint has no code and no constants; sets circulate once, whole, before the first round: neither items "
        "nor clients are selected by similarity later on",
        "features are compared on noise that all clients draw from one seed, after a warm-up from a common start",
        "the server relays the sets, so it sees them",
    ),
    begin=_begin,
)

__all__ = ["DCFL", "DCFLOptions", "complementary", "linear_cka", "probes"]
