"""Pools whose networks start at random and learn as the run goes: R, RS, RT, Q."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddfed.domain import Network
from ddfed.errors import ConfigError
from ddfed.pool.base import ModelPool, PoolContext, augmented, frozen, train_on_real


class RandomPool(ModelPool):
    """R: a fresh random network at every step (DM), or every ``every`` steps (M3D's ipm)."""

    name = "R"
    defaults = {"every": 1}

    def __init__(self, ctx: PoolContext, **options: Any) -> None:
        super().__init__(ctx, **options)
        self._net = frozen(ctx.fresh(0))

    def draw(self, step: int) -> Network:
        self.ctx.redraw(self._net, self.place(step)[0])
        return self._net

    def place(self, step: int) -> tuple[int, int]:
        return divmod(step, self.options["every"])


class Inner(ModelPool):
    """A network restarted every ``length`` steps and trained between them."""

    def __init__(self, ctx: PoolContext, **options: Any) -> None:
        super().__init__(ctx, **options)
        self._net = ctx.fresh(0)
        self._optimizer = self._fresh_optimizer()

    def _fresh_optimizer(self) -> torch.optim.Optimizer:
        if self.options.get("optimizer") == "adam":
            return torch.optim.Adam(
                self._net.parameters(), lr=self.options["lr"], weight_decay=self.options["weight_decay"]
            )
        return torch.optim.SGD(
            self._net.parameters(),
            lr=self.options["lr"],
            momentum=self.options["momentum"],
            weight_decay=self.options["weight_decay"],
        )

    def draw(self, step: int) -> Network:
        begun, seen = self.place(step)
        if seen == 0:
            self.ctx.redraw(self._net, begun)
            self._optimizer = self._fresh_optimizer()
        return frozen(self._net)

    def place(self, step: int) -> tuple[int, int]:
        return divmod(step, self.options["length"])

    def _pass(self, x: Tensor, y: Tensor, loss: Any, step: int, epoch: int) -> None:
        """Train once on every row."""
        self._net.requires_grad_(True)
        generator = self.ctx.streams.torch("inner", step, epoch)
        for rows in self.ctx.order(len(x), self.options["batch"], generator):
            inputs = augmented(x[rows], self.ctx.augmentation, generator)
            self._optimizer.zero_grad()
            loss(self._net(inputs), y[rows]).mean().backward()
            self._optimizer.step()

    def state(self) -> dict[str, Any]:
        return {"net": self._net.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        self._net.load_state_dict(state["net"])
        self._optimizer.load_state_dict(dict(state["optimizer"]))


class SynTrainedPool(Inner):
    """RS: a random network, trained on the synthetic set between outer steps (DC, DSA).

    Training uses the augmentation of matching, if any, with a draw of its own for each row (DSA). After the last
    step of a length nothing is trained, as the network is given up.

    Args:
        length: outer steps before a fresh network.
        epochs: passes over the synthetic set after each step but the last of a length.
        batch: rows per step of these passes; coupled rows go together.
        optimizer: ``sgd`` or ``adam`` (GCond); ``momentum`` is of SGD.

    Raises:
        ConfigError: no such optimiser.
    """

    name = "RS"
    defaults = {
        "length": 10, "epochs": 50, "batch": 256, "lr": 0.01, "momentum": 0.0, "weight_decay": 0.0, "optimizer": "sgd",
    }  # fmt: skip

    def __init__(self, ctx: PoolContext, **options: Any) -> None:
        given = options.get("optimizer", "sgd")
        if given not in ("sgd", "adam"):
            raise ConfigError(f"pool 'RS' has no optimizer {given!r}. Possible: 'sgd' and 'adam'")
        super().__init__(ctx, **options)

    def advance(self, step: int, syn: Callable[[], tuple[Tensor, Tensor]], loss: Any) -> None:
        if self.place(step + 1)[1] == 0:
            return
        x, y = syn()
        for epoch in range(self.options["epochs"]):
            self._pass(x, y, loss, step, epoch)


class RealTrainedPool(Inner):
    """RT: a random network, trained on real data between outer steps (IDC).

    Args:
        length: outer steps before a fresh network.
        steps: training steps after each outer step.
        batch: real rows per training step, over all classes.
        augment: name of the domain's augmentation, a draw of its own for each row.
        cutmix: probability of CutMix for a pass of the gate (IDC).
        begins: part of the outer steps before which nothing is trained, for objectives that look at networks later.

    Raises:
        ConfigError: ``begins`` is no part.
    """

    name = "RT"
    defaults = {
        "length": 100, "steps": 8, "batch": 256, "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4,
        "augment": "none", "cutmix": 0.0, "begins": 0.0,
    }  # fmt: skip

    def __init__(self, ctx: PoolContext, **options: Any) -> None:
        super().__init__(ctx, **options)
        if not 0 <= self.options["begins"] <= 1:
            raise ConfigError(f"pool 'RT': begins must be from 0 to 1, got {self.options['begins']}")
        self._augmentation = ctx.augmentation_named(self.options["augment"])

    def advance(self, step: int, syn: Callable[[], tuple[Tensor, Tensor]], loss: Any) -> None:
        # The published code trains after the last step of a length too; the network is given up, so we do not.
        if self.place(step + 1)[1] == 0 or step < self.options["begins"] * self.ctx.steps:
            return
        for inner in range(self.options["steps"]):
            train_on_real(
                self._net,
                self._optimizer,
                self.ctx,
                self.options["batch"],
                ("inner", step, inner),
                self._augmentation,
                self.options["cutmix"],
            )


class QueuePool(ModelPool):
    """Q: a queue of networks in training on real data (IDM).

    Starts with ``start`` networks; every ``grow_every`` steps a fresh one joins and, beyond ``capacity``, the
    oldest leaves. A random one is drawn each step; after it, ``visits`` random ones train ``steps`` steps.
    """

    name = "Q"
    defaults = {
        "start": 3,
        "grow_every": 30,
        "capacity": 100,
        "visits": 2,
        "steps": 10,
        "batch": 256,
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 5e-4,
    }

    def __init__(self, ctx: PoolContext, **options: Any) -> None:
        super().__init__(ctx, **options)
        self._members: list[_Member] = [self._member(i) for i in range(self.options["start"])]
        self._born = len(self._members)
        self._drawn = self._members[0]

    def _member(self, number: int) -> _Member:
        net = self.ctx.fresh("queue", number)
        options = self.options
        return _Member(
            net,
            torch.optim.SGD(
                net.parameters(), options["lr"], momentum=options["momentum"], weight_decay=options["weight_decay"]
            ),
        )

    def draw(self, step: int) -> Network:
        while self._born < self.options["start"] + step // self.options["grow_every"]:
            self._members.append(self._member(self._born))
            self._born += 1
            del self._members[: -self.options["capacity"]]
        pick = self.ctx.streams.torch("queue", "draw", step)
        self._drawn = self._members[int(torch.randint(len(self._members), (1,), generator=pick))]
        # IDM judges with networks in evaluation mode.
        return self._drawn.net.requires_grad_(False).eval()

    @property
    def skill(self) -> float:
        return self._drawn.skill

    def advance(self, step: int, syn: Callable[[], tuple[Tensor, Tensor]], loss: Any) -> None:
        generator = self.ctx.streams.torch("queue", "visit", step)
        for number in torch.randperm(len(self._members), generator=generator)[: self.options["visits"]].tolist():
            member = self._members[number]
            right = seen = 0
            for inner in range(self.options["steps"]):
                hits, rows = train_on_real(
                    member.net,
                    member.optimizer,
                    self.ctx,
                    self.options["batch"],
                    ("queue", "train", step, number, inner),
                )
                right, seen = right + hits, seen + rows
            member.skill = 100.0 * right / max(seen, 1)

    def state(self) -> dict[str, Any]:
        return {
            "born": self._born,
            "members": [
                {"net": m.net.state_dict(), "optimizer": m.optimizer.state_dict(), "skill": m.skill}
                for m in self._members
            ],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self._born = state["born"]
        self._members = []
        for number, saved in enumerate(state["members"]):
            member = self._member(number)
            member.net.load_state_dict(saved["net"])
            member.optimizer.load_state_dict(dict(saved["optimizer"]))
            member.skill = saved["skill"]
            self._members.append(member)
        self._drawn = self._members[0]


@dataclass
class _Member:
    net: Network
    optimizer: torch.optim.Optimizer
    skill: float = 0.0
