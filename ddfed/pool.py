"""Model pools: which network judges the synthetic set at each outer step.

A pool has three verbs: `draw` gives a network for this step, `advance` lets it learn a little (on real data,
on the synthetic set, or not at all), and `state` makes it resumable. Networks are redrawn in place, so
nothing is allocated in the loop and compiled code stays valid.

Codes follow the common map of the field: R random, RS random then trained on the synthetic set, RT random
then trained on real data, Q a queue of networks in training, exact and ball the neighbourhood of given weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.data import Batch
from ddfed.domain import Augmentation, Network, reset
from ddfed.errors import ConfigError
from ddfed.gate import Gate, Query
from ddfed.seeds import Streams, isolated


@dataclass
class PoolContext:
    """What pools may use.

    Args:
        build: makes an untrained network (call under `isolated`).
        gate: real data; RT and Q train on it.
        streams: the run's streams.
        classes: classes being distilled.
        center: weights around which `exact` and `ball` draw (a state dict).
        augmentation: used while networks train on the synthetic set; None for none.
        device: where networks live.
        augmentation_named: the domain's augmentation of a name, for pools that train networks as a paper does.
        report: told (what, steps done, steps in all) while networks are trained beforehand.
    """

    build: Callable[[], Network]
    gate: Gate
    streams: Streams
    classes: tuple[int, ...]
    center: Mapping[str, Tensor] | None = None
    augmentation: Augmentation | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    augmentation_named: Callable[[str], Augmentation | None] = lambda name: None
    report: Callable[[str, int, int], None] = lambda what, done, total: None

    def fresh(self, *names: str | int) -> Network:
        """A new network whose weights come from the stream ``names``."""
        with isolated(self.streams.seed("network", *names)):
            return self.build().to(self.device)

    def redraw(self, net: Network, *names: str | int) -> None:
        """Give ``net`` the weights that `fresh` would have, in place."""
        with isolated(self.streams.seed("network", *names)):
            reset(net)


SynBatch = Callable[[], tuple[Tensor, Tensor]]


class ModelPool(ABC):
    """A source of networks.

    Args:
        ctx: see `PoolContext`.
        options: the pool's own settings.

    Raises:
        ConfigError: an unknown option.
    """

    name: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, ctx: PoolContext, **options: Any) -> None:
        unknown = sorted(set(options) - set(self.defaults))
        if unknown:
            raise ConfigError(f"pool {self.name!r} has no option {unknown[0]!r}; it knows {sorted(self.defaults)}")
        self.ctx = ctx
        self.options = {**self.defaults, **options}

    @abstractmethod
    def draw(self, step: int) -> Network:
        """The network of outer step ``step`` (0-based), weights frozen."""

    def advance(self, step: int, syn: Callable[[], tuple[Tensor, Tensor]], loss: Any) -> None:  # noqa: B027 - optional
        """Let networks learn after the step.

        Args:
            step: the step just made.
            syn: gives the decoded synthetic rows and targets, detached.
            loss: per-row loss of the label store.
        """

    @property
    def skill(self) -> float:
        """Running training accuracy of the drawn network in percent (IDM's class weight); 0 if untrained."""
        return 0.0

    @property
    def expert(self) -> Network | None:
        """A network trained on real data that goes with the drawn one, weights frozen; None if there is none."""
        return None

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold beyond the streams."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - optional
        """Inverse of `state`."""


def frozen(net: Network) -> Network:
    """The network with gradients off for its weights, in training mode.

    Training mode matters only for networks whose normalisation mixes rows.
    """
    return net.train().requires_grad_(False)


class RandomPool(ModelPool):
    """R: a fresh random network at every step (DM), or every ``every`` steps (M3D's ipm)."""

    name = "R"
    defaults = {"every": 1}

    def __init__(self, ctx: PoolContext, **options: Any) -> None:
        super().__init__(ctx, **options)
        self._net = frozen(ctx.fresh(0))

    def draw(self, step: int) -> Network:
        self.ctx.redraw(self._net, step // self.options["every"])
        return self._net


class _Inner(ModelPool):
    """A network restarted every ``length`` steps and trained between them."""

    def __init__(self, ctx: PoolContext, **options: Any) -> None:
        super().__init__(ctx, **options)
        self._net = ctx.fresh(0)
        self._optimizer = self._fresh_optimizer()

    def _fresh_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            self._net.parameters(),
            lr=self.options["lr"],
            momentum=self.options["momentum"],
            weight_decay=self.options["weight_decay"],
        )

    def draw(self, step: int) -> Network:
        if step % self.options["length"] == 0:
            self.ctx.redraw(self._net, step // self.options["length"])
            self._optimizer = self._fresh_optimizer()
        return frozen(self._net)

    def state(self) -> dict[str, Any]:
        return {"net": self._net.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        self._net.load_state_dict(state["net"])
        self._optimizer.load_state_dict(dict(state["optimizer"]))


class SynTrainedPool(_Inner):
    """RS: a random network, trained on the synthetic set between outer steps (DC, DSA).

    Args:
        length: outer steps before a fresh network.
        epochs: passes over the synthetic set after each step but the last of a length.
        batch: rows per step of these passes.
    """

    name = "RS"
    defaults = {"length": 10, "epochs": 50, "batch": 256, "lr": 0.01, "momentum": 0.0, "weight_decay": 0.0}

    def advance(self, step: int, syn: Callable[[], tuple[Tensor, Tensor]], loss: Any) -> None:
        if (step + 1) % self.options["length"] == 0:
            return
        x, y = syn()
        self._net.requires_grad_(True)
        for epoch in range(self.options["epochs"]):
            generator = self.ctx.streams.torch("inner", step, epoch)
            for rows in torch.randperm(len(x), generator=generator).split(self.options["batch"]):
                inputs = _augmented(x[rows], self.ctx.augmentation, generator)
                self._optimizer.zero_grad()
                loss(self._net(inputs), y[rows]).mean().backward()
                self._optimizer.step()


class RealTrainedPool(_Inner):
    """RT: a random network, trained on real data between outer steps (IDC).

    Args:
        length: outer steps before a fresh network.
        steps: training steps after each outer step.
        batch: real rows per training step, over all classes.
    """

    name = "RT"
    defaults = {"length": 100, "steps": 8, "batch": 256, "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}

    def advance(self, step: int, syn: Callable[[], tuple[Tensor, Tensor]], loss: Any) -> None:
        for inner in range(self.options["steps"]):
            train_on_real(self._net, self._optimizer, self.ctx, self.options["batch"], ("inner", step, inner))


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


class ExactPool(ModelPool):
    """exact: the given weights themselves, at every step."""

    name = "exact"

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


@dataclass(frozen=True)
class Training:
    """How a network is trained on real data, in steps through the gate.

    Args:
        steps: training steps.
        batch: real rows per step, over all classes.
        lr, momentum, weight_decay: of SGD.
        augment: name of the domain's augmentation, a draw of its own for each row; the IDC line's pools use one.
    """

    steps: int = 300
    batch: int = 256
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: str = "none"


def trained_network(
    ctx: PoolContext,
    training: Training,
    *names: str | int,
    on_step: Callable[[int, Network], None] | None = None,
) -> Network:
    """A fresh network trained on real data; its randomness hangs below the stream ``names``.

    Args:
        ctx: see `PoolContext`; its ``report`` is told how far it is.
        training: how.
        names: which network.
        on_step: called with (steps done, network) after each step, and with 0 before the first.

    Returns:
        The network in evaluation mode, weights frozen.
    """
    net = ctx.fresh(*names)
    optimizer = torch.optim.SGD(
        net.parameters(), training.lr, momentum=training.momentum, weight_decay=training.weight_decay
    )
    augmentation = ctx.augmentation_named(training.augment)
    title = "network " + " ".join(map(str, names))
    if on_step:
        on_step(0, net)
    for step in range(training.steps):
        train_on_real(net, optimizer, ctx, training.batch, (*names, step), augmentation)
        ctx.report(title, step + 1, training.steps)
        if on_step:
            on_step(step + 1, net)
    return net.eval().requires_grad_(False)


def train_on_real(
    net: Network,
    optimizer: torch.optim.Optimizer,
    ctx: PoolContext,
    rows: int,
    names: tuple[str | int, ...],
    augmentation: Augmentation | None = None,
) -> tuple[int, int]:
    """One training step on real rows, through the gate; returns (right, rows) of the training batch."""
    net.train().requires_grad_(True)
    parameters = list(net.parameters())
    right = 0
    draws = ctx.streams.torch(*names, "augment")

    def loss(batch: Batch) -> Tensor:
        nonlocal right
        logits = net(_augmented(batch.inputs.to(ctx.device), augmentation, draws))
        classes = batch.classes.to(ctx.device)
        right += int((logits.detach().argmax(1) == classes).sum())
        return F.cross_entropy(logits, classes, reduction="none")

    query = Query("training gradient", ctx.classes, rows, per_class=False)
    grads, count = ctx.gate.gradient(query, parameters, loss, ctx.streams.torch(*names))
    for parameter, grad in zip(parameters, grads):
        parameter.grad = grad / max(count, 1)
    optimizer.step()
    optimizer.zero_grad()
    net.requires_grad_(False)
    return right, count


def _augmented(x: Tensor, augmentation: Augmentation | None, generator: torch.Generator) -> Tensor:
    if augmentation is None:
        return x
    return augmentation(x, augmentation.draw(len(x), generator, one_op=True), torch.arange(len(x)))
