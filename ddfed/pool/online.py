"""A pool of networks in training on the synthetic set, of many ages at once: QS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddfed.domain import Network
from ddfed.errors import ConfigError
from ddfed.pool.base import ModelPool, PoolContext, augmented, frozen


@dataclass(eq=False)
class _Member:
    """A network, its optimiser, how many steps it has made and which network of the pool's life it is."""

    net: Network
    optimizer: torch.optim.Optimizer
    age: int
    number: int


class OnlinePool(ModelPool):
    """QS: networks in training on the synthetic set; a random one judges each step, then makes one step of its own.

    A network whose age passes ``max_age`` is replaced by a fresh one. The first ones count as of evenly spread ages, so
    that they are not all replaced together; they start untrained like the others. The loss is the label store's,
    training uses the augmentation of matching, if any, with a draw of its own for each row.

    Source: Zhou et al., FRePo, NeurIPS 2022, section 3.3.

    Options:
        networks: how many.
        max_age: steps of its own after which a network is replaced.
        rows: most synthetic rows of such a step, drawn at random.
        lr: of Adam.
        steps: most steps of a visit; how many is drawn evenly from 1 on (RCIG, which visits less often, takes 15).
    """

    name = "QS"
    defaults = {"networks": 10, "max_age": 100, "rows": 1000, "lr": 3e-4, "steps": 1}

    def __init__(self, ctx: PoolContext, **options: Any) -> None:
        super().__init__(ctx, **options)
        for key in ("networks", "max_age", "rows", "steps"):
            if self.options[key] < 1:
                raise ConfigError(f"pool 'QS': {key} must be at least 1, got {self.options[key]}")
        count, oldest = self.options["networks"], self.options["max_age"]
        self._members = [self._member(i, i * oldest // count) for i in range(count)]
        self._born = count

    def draw(self, step: int) -> Network:
        return frozen(self._drawn(step).net)

    def advance(self, step: int, syn: Callable[[], tuple[Tensor, Tensor]], loss: Any) -> None:
        member, (x, y) = self._drawn(step), syn()
        generator = self.ctx.streams.torch("online", "train", step)
        member.net.train().requires_grad_(True)
        visit = self.options["steps"]
        if visit > 1:
            visit = int(torch.randint(1, visit + 1, (1,), generator=self.ctx.streams.torch("online", "visit", step)))
        for _ in range(visit):
            rows = self.ctx.order(len(x), self.options["rows"], generator)[0]
            inputs = augmented(x[rows], self.ctx.augmentation, generator)
            member.optimizer.zero_grad()
            loss(member.net(inputs), y[rows]).mean().backward()
            member.optimizer.step()
            member.age += 1
        if member.age > self.options["max_age"]:
            self._members[self._members.index(member)] = self._member(self._born, 0)
            self._born += 1

    def state(self) -> dict[str, Any]:
        return {
            "born": self._born,
            "members": [
                {"net": m.net.state_dict(), "optimizer": m.optimizer.state_dict(), "age": m.age, "number": m.number}
                for m in self._members
            ],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self._born, self._members = int(state["born"]), []
        for saved in state["members"]:
            member = self._member(int(saved["number"]), int(saved["age"]))
            member.net.load_state_dict(saved["net"])
            member.optimizer.load_state_dict(dict(saved["optimizer"]))
            self._members.append(member)

    def _member(self, number: int, age: int) -> _Member:
        net = self.ctx.fresh("online", number)
        return _Member(net, torch.optim.Adam(net.parameters(), lr=self.options["lr"]), age, number)

    def _drawn(self, step: int) -> _Member:
        pick = self.ctx.streams.torch("online", "draw", step)
        return self._members[int(torch.randint(len(self._members), (1,), generator=pick))]
