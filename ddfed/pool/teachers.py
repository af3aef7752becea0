"""The run's teachers: networks trained on real data once, for recovery, selection and labels alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ddfed.domain import Network
from ddfed.errors import ConfigError
from ddfed.pool.base import ModelPool, PoolContext, Training, trained_network


class Teachers:
    """Networks trained on real data, when first asked for; kept in checkpoints.

    Args:
        ctx: see `PoolContext`.
        training: how each is trained.
        builders: one for each network.
    """

    def __init__(self, ctx: PoolContext, training: Training, builders: Sequence[Callable[[], Network]]) -> None:
        self._training = training
        self._contexts = [replace(ctx, build=build) for build in builders]
        self._nets: tuple[Network, ...] = ()

    def __call__(self) -> tuple[Network, ...]:
        if not self._nets:
            self._nets = tuple(trained_network(ctx, self._training, *_names(k)) for k, ctx in enumerate(self._contexts))
        return self._nets

    def __len__(self) -> int:
        return len(self._contexts)

    def state(self) -> dict[str, Any]:
        return {str(k): dict(net.state_dict()) for k, net in enumerate(self._nets)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state`; nothing is trained again."""
        if not state:
            return
        nets = [ctx.fresh(*_names(k)) for k, ctx in enumerate(self._contexts)]
        for k, net in enumerate(nets):
            net.load_state_dict(state[str(k)])
        self._nets = tuple(net.eval().requires_grad_(False) for net in nets)


def _names(number: int) -> tuple[str | int, ...]:
    return ("teacher", number) if number else ("teacher",)


class Committee(Network):
    """The mean of several networks' logits, for labels.

    Args:
        members: trained networks.
    """

    def __init__(self, members: Sequence[Network]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.mixes_rows = any(net.mixes_rows for net in members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([net(x) for net in self.members]).mean(0)


class TeacherPool(ModelPool):
    """Tk: the run's teachers in turn, in evaluation mode; the expert is the next one.

    They are those that label the set (``distill.teacher``), so nothing is trained twice. Step i draws teacher i mod N
    (G-VBSM), or one at random.

    Options:
        order: ``cycle`` or ``random``.
    """

    name = "teachers"
    defaults = {"order": "cycle"}
    of_teachers = True

    def __init__(self, ctx: PoolContext, **options: Any) -> None:
        super().__init__(ctx, **options)
        if self.options["order"] not in ("cycle", "random"):
            raise ConfigError(f"pool 'teachers': order must be 'cycle' or 'random', got {self.options['order']!r}")
        self._nets = ctx.teachers()
        self._number = 0

    def draw(self, step: int) -> Network:
        self._number = self.place(step)[0]
        return self._nets[self._number]

    def place(self, step: int) -> tuple[int, int]:
        """Number of the teacher, and rounds of all teachers made."""
        count = len(self._nets)
        if self.options["order"] == "cycle":
            return step % count, step // count
        drawn = torch.randint(count, (1,), generator=self.ctx.streams.torch("teachers", step))
        return int(drawn), step // count

    @property
    def expert(self) -> Network | None:
        return self._nets[(self._number + 1) % len(self._nets)]
