"""Pool path: two points of a path of weights that is known beside the data, such as a federation's global models."""

from __future__ import annotations

from typing import Any

import torch

from ddfed.domain import Network
from ddfed.errors import ConfigError
from ddfed.pool.base import ModelPool, PoolContext, frozen
from ddfed.pool.buffer import Recorded, put_snapshot, snapshot_of

#: Where the path stands in what is publicly known (`ddfed.distill.distill`): (snapshots, values), as experts are kept.
TRAJECTORY = "trajectory"


class GivenPath(ModelPool):
    """path: a snapshot w_s of a given path, and as its expert the mean of a few of those that follow.

    The start is drawn evenly; the target is the mean of j snapshots drawn with replacement from w_{s+1} ... w_{s+span},
    j evenly from ``average``. A mean is steadier than any of them where single steps of the path are noisy.

    Source: Pi et al., DYNAFED, CVPR 2023, section 3.2 and its code (span 3, two or three snapshots, starts up to 50).

    Options:
        span: how far after the start targets lie at most.
        average: [least, most] snapshots that a target is the mean of.
        max_start: starts lie below; None for as far as the path allows.

    Raises:
        ConfigError: no path was given, one of another network, or one that is too short.
    """

    name = "path"
    defaults = {"span": 3, "average": [2, 3], "max_start": 50}

    def __init__(self, ctx: PoolContext, **options: Any) -> None:
        super().__init__(ctx, **options)
        span, average, most = (self.options[key] for key in ("span", "average", "max_start"))
        if span < 1 or len(average) != 2 or not 1 <= average[0] <= average[1] or (most is not None and most < 1):
            raise ConfigError(
                f"pool 'path': span and max_start are 1 or more and average is [least, most] from 1; got span {span}, "
                f"average {average}, max_start {most}"
            )
        given = ctx.public.get(TRAJECTORY)
        if given is None:
            raise ConfigError(
                "pool 'path' follows weights that are known beside the data, and none were given; central recipes "
                "follow experts of their own (distill.pool = 'X')"
            )
        self._net, self._expert = frozen(ctx.fresh("path", 0)), ctx.fresh("path", 0).eval().requires_grad_(False)
        self._from, values = Recorded([given]), snapshot_of(self._net).numel()
        if given.ndim != 2 or given.shape[1] != values:
            raise ConfigError(
                f"the given path has the shape {tuple(given.shape)}, and snapshots of this network have {values} values"
            )
        if len(given) <= span:
            raise ConfigError(
                f"the given path has {len(given)} snapshots, and a start with {span} after it needs {span + 1}. Lower "
                f"span, or give a longer path."
            )
        self._starts = min(len(given) - span, most or len(given))

    def draw(self, step: int) -> Network:
        pick = self.ctx.streams.torch("path", step)
        start = int(torch.randint(self._starts, (1,), generator=pick))
        least, most = self.options["average"]
        count = int(torch.randint(least, most + 1, (1,), generator=pick))
        later = torch.randint(1, self.options["span"] + 1, (count,), generator=pick).tolist()
        put_snapshot(self._net, self._from.snapshot(0, start))
        put_snapshot(self._expert, torch.stack([self._from.snapshot(0, start + ahead) for ahead in later]).mean(0))
        return self._net

    @property
    def expert(self) -> Network:
        return self._expert
