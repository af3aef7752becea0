"""Local training of several clients as one batched call, where they work one after another in one process.

A thousand clients with a handful of rows each spend their time in small calls. Their networks have one structure and
one start, so `torch.func` trains a cohort of them at once: the same batches in the same order, the same steps; only the
order of floating-point sums differs. The first client of a cohort that is asked has all of it trained, the others find
their weights ready. Simulation only: a client's share is looked at while another one answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddfed.data import RealData
from ddfed.federation import Broadcast
from ddfed.seeds import Streams

#: Rows that a batched call sees: activations of a cohort lie in memory together, and large batches gain nothing.
_ROWS = 256

Weights = dict[str, Tensor]


def drawn_clients(seed: int, number: int, clients: int, share: float) -> list[int]:
    """Clients asked in a round: without replacement, from seed and round alone, sorted.

    Args:
        seed: of the run.
        number: the round.
        clients: how many there are.
        share: of them, in (0, 1].
    """
    wanted = max(1, round(share * clients))
    return sorted(Streams(seed).numpy("participants", number).permutation(clients)[:wanted].tolist())


@dataclass(frozen=True)
class Member:
    """One client of a cohort.

    Args:
        client: partition id.
        data: its rows, at least one.
        streams: the order of its rows hangs below these, as in `train_on_records`.
    """

    client: int
    data: RealData
    streams: Streams

    def batches(self, epochs: int, batch: int) -> list[Tensor]:
        """Row numbers of each step."""
        count = len(self.data)
        if not batch:
            return [torch.arange(count)] * epochs
        orders = (torch.randperm(count, generator=self.streams.torch("epoch", e)) for e in range(epochs))
        return [rows for order in orders for rows in order.split(batch)]


def fits(net: nn.Module, optimizer: str) -> bool:
    """Whether a network can be trained in a cohort: plain SGD, nothing drawn, nothing counted while it trains."""
    draws = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in net.modules())
    return optimizer == "sgd" and not draws and not any(True for _ in net.buffers())


def train_cohort(net: nn.Module, members: Sequence[Member], local: Any, pull: float = 0.0) -> dict[int, Weights]:
    """Train one network for each member, from the same start.

    Args:
        net: holds the start, on its device; it is not changed.
        members: at least one.
        local: epochs, batch, lr, momentum and weight decay of SGD (`LocalSettings`).
        pull: mu of (mu / 2) |w - start|^2.

    Returns:
        Trained weights by client, on the device.
    """
    plans = [(m, m.batches(local.epochs, local.batch)) for m in members]
    # Who makes most steps comes first, so that those still at work are always the first ones.
    plans.sort(key=lambda plan: -len(plan[1]))
    start = {k: v.detach() for k, v in net.named_parameters()}
    weights = {k: v.expand(len(plans), *v.shape).clone() for k, v in start.items()}
    speed = {k: torch.zeros_like(v) for k, v in weights.items()}
    net.train()

    def loss(own: Weights, x: Tensor, y: Tensor, share: Tensor) -> Tensor:
        return (share * F.cross_entropy(torch.func.functional_call(net, own, (x,)), y, reduction="none")).sum()

    gradients = torch.func.vmap(torch.func.grad(loss))
    for step in range(len(plans[0][1])):
        busy = sum(len(batches) > step for _, batches in plans)
        x, y, share = _padded([(m, batches[step]) for m, batches in plans[:busy]], next(iter(start.values())).device)
        found = gradients({k: v[:busy] for k, v in weights.items()}, x, y, share)
        for name, value in weights.items():
            own = value[:busy]
            push = found[name] + local.weight_decay * own + pull * (own - start[name])
            own -= local.lr * speed[name][:busy].mul_(local.momentum).add_(push)
    return {m.client: {k: v[i].clone() for k, v in weights.items()} for i, (m, _) in enumerate(plans)}


def _padded(parts: Sequence[tuple[Member, Tensor]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Batches of one step side by side, (members, rows, ...), and what each row weighs; padding weighs nothing."""
    most = max(len(rows) for _, rows in parts)
    batches = [m.data.batch(torch.cat([rows, rows[:1].expand(most - len(rows))])) for m, rows in parts]
    share = torch.zeros(len(parts), most)
    for i, (_, rows) in enumerate(parts):
        share[i, : len(rows)] = 1 / len(rows)
    x, y = (torch.stack([getattr(b, name) for b in batches]).to(device) for name in ("inputs", "classes"))
    return x, y, share.to(device)


@dataclass
class Ahead:
    """What has been trained ahead in this process, for one phase of one run.

    Args:
        of: which phase of which run.
        start: the weights that it began with.
        ready: by client, taken away when used.
    """

    of: tuple[Any, ...] = ()
    start: Mapping[str, Tensor] = field(default_factory=dict)
    ready: dict[int, Weights] = field(default_factory=dict)

    def begin(self, of: tuple[Any, ...], broadcast: Broadcast) -> None:
        """Forget what another phase or another start left."""
        same = self.of == of and all(torch.equal(v, self.start[k]) for k, v in broadcast.weights.items())
        if not same:
            self.of, self.start, self.ready = of, dict(broadcast.weights), {}


_AHEAD = Ahead()


@dataclass(frozen=True)
class Cohorts:
    """A client's view of the cohorts of its run.

    Args:
        settings: the run's, for this method.
        share: what a client holds.
        sizes: rows of each client, about.
    """

    settings: Any
    share: Callable[[int], RealData]
    sizes: Sequence[int]

    def trained(self, client: int, broadcast: Broadcast, net: nn.Module, pull: float) -> Weights | None:
        """This client's weights after its local training; None where it has to train alone.

        Args:
            client: partition id.
            broadcast: with the weights that ``net`` holds.
            net: on its device.
            pull: see `train_cohort`.
        """
        federation, local = self.settings.federation, self.settings.local
        asked = drawn_clients(self.settings.run.seed, broadcast.round, federation.clients, federation.participation)
        if client not in asked or not fits(net, local.optimizer) or type(self.share(client)) is not RealData:
            return None
        _AHEAD.begin((self.settings, broadcast.round, broadcast.phase), broadcast)
        if client not in _AHEAD.ready:
            members = [self._member(k, broadcast.round) for k in self._cohort(client, asked)]
            _AHEAD.ready.update(train_cohort(net, [m for m in members if len(m.data)], local, pull))
        weights = _AHEAD.ready.pop(client)
        # Training alone says in its own words how it diverged.
        return weights if all(bool(torch.isfinite(v).all()) for v in weights.values()) else None

    def _cohort(self, client: int, asked: Sequence[int]) -> list[int]:
        """Clients of like size, so that few wait for others; the same ones for each of them."""
        order = sorted(asked, key=lambda k: (self.sizes[k], k))
        rows = max(1, min(self.settings.local.batch or max(self.sizes), max(self.sizes)))
        size = max(1, _ROWS // rows)
        begun = order.index(client) // size * size
        return order[begun : begun + size]

    def _member(self, client: int, number: int) -> Member:
        streams = Streams(self.settings.run.seed).child("client", client).child("local", number)
        return Member(client, self.share(client), streams)


__all__ = ["Cohorts", "Member", "drawn_clients", "fits", "train_cohort"]
