"""Pools around given weights: exact, ball, blend and trust."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ddfed.domain import Network
from ddfed.errors import ConfigError
from ddfed.pool.base import ModelPool, PoolContext, frozen
from ddfed.pool.live import Inner


class ExactPool(ModelPool):
    """exact: the given weights themselves, at every step."""

    name = "exact"
    around = True

    def __init__(self, ctx: PoolContext, **options: Any) -> None:
        super().__init__(ctx, **options)
        if not ctx.center:
            raise ConfigError(
                f"pool {self.name!r} draws around given weights, and none were given; central recipes use 'R'"
            )
        self._net = frozen(ctx.fresh(0)).eval()
        self._net.load_state_dict(dict(ctx.center))

    def draw(self, step: int) -> Network:
        return self._net


class BallPool(ExactPool):
    """ball: weights at distance ``rho`` from the given ones, a fresh direction at every step (FedDM).

    w = center + min(1, rho / |eps|) * eps with eps ~ N(0, I) over all parameters jointly. As |eps| is about the
    root of the number of parameters, the clip is always active for the usual rho, so draws lie on the
    sphere. The radius is absolute; give ``rho_per_sqrt_param`` instead to scale it with the network.

    Source: Xiong et al., FedDM, CVPR 2023, section 3.2. Buffers are untouched, the network is in eval mode.
    """

    name = "ball"
    defaults = {"rho": 5.0, "rho_per_sqrt_param": None}

    def __init__(self, ctx: PoolContext, **options: Any) -> None:
        super().__init__(ctx, **options)
        self._parameters = list(self._net.parameters())
        self._center = torch.nn.utils.parameters_to_vector(self._parameters).clone()
        relative = self.options["rho_per_sqrt_param"]
        self.rho = self.options["rho"] if relative is None else relative * self._center.numel() ** 0.5
        if self.rho < 0:
            raise ConfigError(f"rho must not be negative, got {self.rho}")

    def draw(self, step: int) -> Network:
        generator = self.ctx.streams.torch("ball", step)
        eps = torch.randn(self._center.numel(), generator=generator).to(self._center)
        scale = min(1.0, self.rho / float(eps.norm()))
        torch.nn.utils.vector_to_parameters(self._center + scale * eps, self._parameters)
        return self._net


class BlendPool(ExactPool):
    """blend: given weights mixed with fresh random ones at every step (FedAF).

    w = gamma * center + (1 - gamma) * w', with w' a draw of the network's own initialiser. Buffers are the given
    ones, the network is in eval mode.

    Source: Wang et al., FedAF, CVPR 2024, section 3.2 (resampling of the matching network). A third-party
    reimplementation adds normal noise to every parameter instead, norms and biases included.
    """

    name = "blend"
    defaults = {"gamma": 0.9}

    def __init__(self, ctx: PoolContext, **options: Any) -> None:
        super().__init__(ctx, **options)
        if not 0 <= self.options["gamma"] <= 1:
            raise ConfigError(f"pool 'blend': gamma must be from 0 to 1, got {self.options['gamma']}")
        self._parameters = list(self._net.parameters())
        self._center = torch.nn.utils.parameters_to_vector(self._parameters).clone()
        self._other = frozen(ctx.fresh(0))

    def draw(self, step: int) -> Network:
        self.ctx.redraw(self._other, "blend", step)
        fresh = torch.nn.utils.parameters_to_vector(self._other.parameters())
        gamma = self.options["gamma"]
        torch.nn.utils.vector_to_parameters(gamma * self._center + (1 - gamma) * fresh, self._parameters)
        return self._net


class TrustPool(Inner):
    """trust: a walk from given weights along training on the synthetic set, within a radius (FedLAP).

    A walk begins at the given weights and stays ``length`` outer steps at each of its points; between points the
    network is trained on the synthetic set. It ends, and the next begins at the given weights again, after ``points``
    points or once it is ``radius`` away. Only the synthetic set drives it, so it costs no privacy.

    Source: Wang et al., FedLAP-DP, PoPETs 2024, Algorithm 1, client side, with the authors' settings for the private
    form (4 walks of at most 5 points, radius 1.5).

    Args:
        length: outer steps at a point.
        points: most points of a walk.
        radius: Euclidean distance of all weights together at which a walk ends.
        epochs: passes over the synthetic set between points; 0 stays at the given weights.
        batch: rows per step of these passes.
    """

    name = "trust"
    defaults = {
        "length": 50, "points": 5, "radius": 1.5, "epochs": 2, "batch": 512, "lr": 0.002, "momentum": 0.0,
        "weight_decay": 0.0,
    }  # fmt: skip

    def __init__(self, ctx: PoolContext, **options: Any) -> None:
        super().__init__(ctx, **options)
        if not ctx.center:
            raise ConfigError("pool 'trust' walks from given weights, and none were given; central recipes use 'RS'")
        if self.options["radius"] <= 0 or min(self.options[k] for k in ("length", "points")) < 1:
            raise ConfigError(
                f"pool 'trust' needs radius above 0 and length and points of at least 1, got {dict(self.options)}"
            )
        self._point = 0
        self._return()

    def _return(self) -> None:
        self._net.load_state_dict(dict(self.ctx.center or {}))
        self._optimizer, self._point = self._fresh_optimizer(), 0

    def draw(self, step: int) -> Network:
        return frozen(self._net).eval()

    @property
    def travelled(self) -> float:
        """Distance from the given weights."""
        given = dict(self.ctx.center or {})
        apart = [(p.detach() - given[name].to(p)).square().sum() for name, p in self._net.named_parameters()]
        return float(torch.stack(apart).sum().sqrt())

    def advance(self, step: int, syn: Callable[[], tuple[Tensor, Tensor]], loss: Any) -> None:
        if self.place(step + 1)[1]:
            return
        x, y = syn()
        for epoch in range(self.options["epochs"]):
            self._pass(x, y, loss, step, epoch)
        self._point += 1
        if self._point >= self.options["points"] or self.travelled >= self.options["radius"]:
            self._return()

    def state(self) -> dict[str, Any]:
        return {**super().state(), "point": self._point}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self._point = int(state["point"])
