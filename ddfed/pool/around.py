"""Pools around given weights: exact and ball."""

from __future__ import annotations

from typing import Any

import torch

from ddfed.domain import Network
from ddfed.errors import ConfigError
from ddfed.pool.base import ModelPool, PoolContext, frozen


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
