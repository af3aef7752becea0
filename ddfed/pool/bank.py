"""Pools that draw from a bank of networks trained on real data beforehand: PI, T, PW."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from ddfed.domain import Network
from ddfed.errors import ConfigError, one_of, suggest
from ddfed.pool.base import ModelPool, PoolContext, Training, frozen, trained_network
from ddfed.pool.live import RealTrainedPool
from ddfed.registry import registry

_BANK = {"networks": 5, "training": {}}


class Bank:
    """Networks trained on real data, each when it is first asked for, and kept in checkpoints.

    Args:
        ctx: see `PoolContext`.
        networks: how many there are.
        training: settings of `Training` that differ from its defaults.

    Raises:
        ConfigError: no network, or an unknown setting of training.
    """

    def __init__(self, ctx: PoolContext, networks: int, training: Mapping[str, Any]) -> None:
        if networks < 1:
            raise ConfigError(f"a pool with a bank needs networks = 1 or more, got {networks}")
        known = [field.name for field in fields(Training)]
        for key in training:
            if key not in known:
                raise ConfigError(
                    f"pool_options.training has no setting {key!r}.{suggest(key, known)} Possible: {one_of(known)}"
                )
        self.ctx, self.networks, self.training = ctx, networks, Training(**training)
        self._trained: dict[int, dict[str, Tensor]] = {}

    def pick(self, step: int) -> int:
        """Which network outer step ``step`` draws."""
        return int(torch.randint(self.networks, (1,), generator=self.ctx.streams.torch("bank", "draw", step)))

    def trained(self, number: int, net: Network) -> Network:
        """Give ``net`` the trained weights of a network of the bank, in place."""
        if number not in self._trained:
            weights = trained_network(self.ctx, self.training, "bank", number).state_dict()
            self._trained[number] = {name: value.detach().clone() for name, value in weights.items()}
        net.load_state_dict(self._trained[number])
        return net

    def untrained(self, number: int, net: Network) -> Network:
        """Give ``net`` the weights from which `trained` began, in place."""
        self.ctx.redraw(net, "bank", number)
        return net

    def state(self) -> dict[str, Any]:
        return {str(number): weights for number, weights in self._trained.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        on = self.ctx.device
        self._trained = {int(n): {k: v.to(on) for k, v in weights.items()} for n, weights in state.items()}


class _BankPool(ModelPool):
    """A pool with a bank; the network drawn last is `_drawn`."""

    defaults = _BANK

    def __init__(self, ctx: PoolContext, **options: Any) -> None:
        super().__init__(ctx, **options)
        self.bank = Bank(ctx, self.options["networks"], self.options["training"])
        self._expert = ctx.fresh("bank", 0).eval().requires_grad_(False)

    @property
    def expert(self) -> Network:
        return self._expert

    def trained(self) -> Iterator[Network]:
        return (self.bank.trained(number, self._expert) for number in range(self.bank.networks))

    def state(self) -> dict[str, Any]:
        return {"bank": self.bank.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        self.bank.load(state["bank"])


class TrainedPool(_BankPool):
    """T: one of ``networks`` networks trained on real data, drawn at every step; it is its own expert.

    Options:
        networks: how many.
        training: how, as `Training`; few steps give networks that are half trained (DSDM).
    """

    name = "T"

    def draw(self, step: int) -> Network:
        return self.bank.trained(self.bank.pick(step), self._expert)


class PathPool(_BankPool):
    """PI: a point on the line between a network's first and its trained weights (DANCE).

    w = u * first + (1 - u) * trained with u uniform in [0, 1] and a network of the bank drawn at every step. The
    expert is the trained one. Parameters are interpolated, buffers are those of the trained network.

    Source: Zhang et al., DANCE, IJCAI 2024, section 3.2.

    Options:
        networks, training: of the bank.
        drawn: ``path``, or another pool that gives the drawn networks, so that the bank gives the expert alone (IID).
        drawn_options: options of that pool.
    """

    name = "PI"
    defaults = {**_BANK, "drawn": "path", "drawn_options": {}}

    def __init__(self, ctx: PoolContext, **options: Any) -> None:
        super().__init__(ctx, **options)
        self._host: ModelPool | None = None
        if self.options["drawn"] != "path":
            kind = registry().load("pool", self.options["drawn"], "pool_options.drawn; 'path' is possible too")
            self._host = kind(ctx, **self.options["drawn_options"])
        elif self.options["drawn_options"]:
            raise ConfigError("pool 'PI': drawn_options are of the pool named by drawn, and drawn is 'path'")
        self._net = frozen(ctx.fresh(0))

    def draw(self, step: int) -> Network:
        number = self.bank.pick(step)
        self.bank.trained(number, self._expert)
        if self._host:
            return self._host.draw(step)
        share = float(torch.rand((), generator=self.ctx.streams.torch("bank", "share", step)))
        self.bank.untrained(number, self._net)
        first = [p.clone() for p in self._net.parameters()]
        self._net.load_state_dict(self._expert.state_dict())
        for parameter, start in zip(self._net.parameters(), first):
            parameter.lerp_(start, share)
        return self._net

    def advance(self, step: int, syn: Callable[[], tuple[Tensor, Tensor]], loss: Any) -> None:
        if self._host:
            self._host.advance(step, syn, loss)

    @property
    def skill(self) -> float:
        return self._host.skill if self._host else 0.0

    def place(self, step: int) -> tuple[int, int]:
        return self._host.place(step) if self._host else super().place(step)

    def state(self) -> dict[str, Any]:
        return {**super().state(), **({"drawn": self._host.state()} if self._host else {})}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        if self._host:
            self._host.load(state["drawn"])


class NoisyPool(RealTrainedPool):
    """PW: an early-stage network of a bank with noise on its weights, then trained as in RT (Acc-DD).

    w + a d1 + b d2 with |a| and |b| uniform in ``noise`` and random signs. d1 and d2 are Gaussian; each filter (slice
    of the first axis) has the norm of the filter it is added to, and biases and norm weights get none.

    Source: Zhang et al., Accelerating Dataset Distillation via Model Augmentation, CVPR 2023, section 3.3.

    Options:
        networks: in the bank.
        training: how the bank is trained; two epochs in the paper.
        noise: least and greatest size of the noise.
        length, steps, batch, lr, momentum, weight_decay, augment, cutmix: of `RealTrainedPool`, between outer steps.
    """

    name = "PW"
    defaults = {**RealTrainedPool.defaults, **_BANK, "noise": [0.01, 0.09]}

    def __init__(self, ctx: PoolContext, **options: Any) -> None:
        super().__init__(ctx, **options)
        self.bank = Bank(ctx, self.options["networks"], self.options["training"])
        low, high = self.options["noise"]
        if not 0 <= low <= high:
            raise ConfigError(f"pool 'PW': noise must be [least, greatest] of 0 or more, got {self.options['noise']}")

    def draw(self, step: int) -> Network:
        net = super().draw(step)
        begun, seen = self.place(step)
        if seen == 0:
            self.bank.trained(self.bank.pick(begun), net)
            self._perturb(net, begun)
        return net

    def _perturb(self, net: Network, number: int) -> None:
        generator = self.ctx.streams.torch("bank", "noise", number)
        low, high = self.options["noise"]
        size = low + (high - low) * torch.rand(2, generator=generator)
        sign = torch.randint(2, (2,), generator=generator) * 2 - 1
        # Both directions start from the same weights, so they are added at the end.
        noises = [
            [amount * direction for amount, direction in zip((size * sign).tolist(), _directions(p, generator))]
            for p in net.parameters()
        ]
        for parameter, (one, two) in zip(net.parameters(), noises):
            parameter.add_(one + two)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "bank": self.bank.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self.bank.load(state["bank"])


def _directions(parameter: nn.Parameter, generator: torch.Generator) -> list[Tensor]:
    """Two Gaussian directions whose filters have the norms of the parameter's; zero for one axis or none."""
    found = []
    for _ in range(2):
        drawn = torch.randn(parameter.shape, generator=generator).to(parameter)
        if parameter.ndim < 2:
            found.append(torch.zeros_like(drawn))
            continue
        axes = tuple(range(1, parameter.ndim))
        norm = torch.linalg.vector_norm(drawn, dim=axes, keepdim=True)
        found.append(drawn * torch.linalg.vector_norm(parameter, dim=axes, keepdim=True) / norm)
    return found
