"""Model pools: which network judges the synthetic set at each outer step.

A pool has three verbs: `draw` gives a network for this step, `advance` lets it learn a little (on real data,
on the synthetic set, or not at all), and `state` makes it resumable. Networks are redrawn in place, so
nothing is allocated in the loop and compiled code stays valid.

Codes follow the common map of the field: R random, RS random then trained on the synthetic set, RT random
then trained on real data, Q a queue of networks in training, exact and ball the neighbourhood of given weights.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.data import Batch
from ddfed.domain import Augmentation, Network, reset
from ddfed.errors import ConfigError
from ddfed.gate import Gate, Query
from ddfed.mixing import cutmix
from ddfed.pool.flat import Flat
from ddfed.seeds import Streams, isolated

if TYPE_CHECKING:
    from ddfed.domain import Domain
    from ddfed.settings import DataSettings


def _no_teachers() -> tuple[Network, ...]:
    raise ConfigError("a part asks for the run's teachers, which only a distillation has")


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
        trained: networks of the run's pool that were trained on real data (see `ModelPool.trained`).
        teachers: the run's networks trained on real data (``distill.teacher``), in evaluation mode, weights frozen;
            trained when first asked for.
        prepare: trains a fresh network, in place, on what was distilled in earlier stages (see `ddfed.stages`).
        steps: outer steps of the run; 0 where that is not known.
        coupled: synthetic rows must be shown to a network together and in their order; see
            `ddfed.store.Store.coupled`.
        public: what is known beside the rows behind the gate; see `ddfed.distill.distill`.
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
    trained: Callable[[], Iterator[Network]] = lambda: iter(())
    teachers: Callable[[], tuple[Network, ...]] = _no_teachers
    prepare: Callable[[Network, tuple[str | int, ...]], None] | None = None
    steps: int = 0
    coupled: bool = False
    public: Mapping[str, Tensor] = field(default_factory=dict)

    def order(self, rows: int, batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Batches of a pass over the synthetic rows: in random order, or all rows as they stand where coupled."""
        return (torch.arange(rows),) if self.coupled else torch.randperm(rows, generator=generator).split(batch)

    def experts(self) -> Iterator[Network]:
        """Networks trained on real data: those that the pool has, or the run's teachers where it has none."""
        has = False
        for net in self.trained():
            has = True
            yield net
        if not has:
            yield from self.teachers()

    def fresh(self, *names: str | int) -> Network:
        """A new network whose weights come from the stream ``names``."""
        with isolated(self.streams.seed("network", *names)):
            net = self.build().to(self.device)
        self._prepare(net, names)
        return net

    def redraw(self, net: Network, *names: str | int) -> None:
        """Give ``net`` the weights that `fresh` would have, in place."""
        with isolated(self.streams.seed("network", *names)):
            reset(net)
        self._prepare(net, names)

    def _prepare(self, net: Network, names: tuple[str | int, ...]) -> None:
        if self.prepare is None:
            return
        learned, mode = [p.requires_grad for p in net.parameters()], net.training
        self.prepare(net, names)
        net.train(mode)
        for parameter, learns in zip(net.parameters(), learned):
            parameter.requires_grad_(learns)


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
    #: it draws the run's teachers instead of networks of its own
    of_teachers: ClassVar[bool] = False
    #: it draws around weights that it is given
    around: ClassVar[bool] = False

    def __init__(self, ctx: PoolContext, **options: Any) -> None:
        unknown = sorted(set(options) - set(self.defaults))
        if unknown:
            raise ConfigError(f"pool {self.name!r} has no option {unknown[0]!r}; it knows {sorted(self.defaults)}")
        self.ctx = ctx
        self.options = {**self.defaults, **options}

    @classmethod  # noqa: B027 - optional
    def check(cls, options: Mapping[str, Any], data: DataSettings, domain: Domain, gate: Gate, network: str) -> None:
        """Refuse what can be known to fail before a run begins, such as files that must be there beforehand.

        Args:
            options: of the pool.
            data: which data the run is on.
            domain: of the data.
            gate: to the training rows.
            network: its name, empty for the domain's default.
        """

    @classmethod
    def prepared(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options for networks that begin prepared (`PoolContext.prepare`); what was stored beforehand is not."""
        return dict(options)

    @abstractmethod
    def draw(self, step: int) -> Network:
        """The network of outer step ``step`` (0-based), weights frozen."""

    def advance(self, step: int, syn: Callable[[], tuple[Tensor, Tensor]], loss: Any) -> None:  # noqa: B027 - optional
        """Let networks learn after the step.

        Args:
            step: the step just made.
            syn: gives the decoded synthetic rows and targets, detached; where rows are drawn, others at every step.
            loss: per-row loss of the label store.
        """

    @property
    def skill(self) -> float:
        """Running training accuracy of the drawn network in percent (IDM's class weight); 0 if untrained."""
        return 0.0

    def place(self, step: int) -> tuple[int, int]:
        """Where outer step ``step`` stands in the papers' double loop.

        Returns:
            Networks begun before the one of this step, and outer steps already made with it.
        """
        return step, 0

    @property
    def expert(self) -> Network | None:
        """A network trained on real data that goes with the drawn one, weights frozen; None if there is none."""
        return None

    def trained(self) -> Iterator[Network]:
        """Networks trained on real data beforehand that the pool has, in evaluation mode, for labels and selection.

        One network may be used for all, so each is done with before the next is asked for. None by default.
        """
        return iter(())

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


@dataclass(frozen=True)
class Training:
    """How a network is trained on real data, in steps through the gate.

    Args:
        steps: training steps.
        batch: real rows per step, over all classes.
        lr, momentum, weight_decay: of SGD.
        augment: name of the domain's augmentation, a draw of its own for each row; the IDC line's pools use one.
        rho, alpha: look for flat minima (see `Flat`), at the cost of two gradients a step; rho 0 does not.
        schedule: ``constant``, or ``cosine`` down to zero over the steps (teachers of the decoupled line).
        objective: ``classes``, or ``barlow``, which asks for no class; see `barlow_twins`.
        redundancy: of ``barlow``.
    """

    steps: int = 300
    batch: int = 256
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: str = "none"
    rho: float = 0.0
    alpha: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    objective: Literal["classes", "barlow"] = "classes"
    redundancy: float = 0.005

    def lr_at(self, step: int) -> float:
        """Step size of a 0-based step."""
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    @property
    def twins(self) -> float:
        """Redundancy of twins, 0 for training by class."""
        return self.redundancy if self.objective == "barlow" else 0.0

    @property
    def flat(self) -> Flat | None:
        return Flat(self.rho, self.alpha) if self.rho else None


def trained_network(
    ctx: PoolContext,
    training: Training,
    *names: str | int,
    on_step: Callable[[int, Network], None] | None = None,
    among: Callable[[int], Tensor | None] = lambda step: None,
) -> Network:
    """A fresh network trained on real data; its randomness hangs below the stream ``names``.

    Args:
        ctx: see `PoolContext`; its ``report`` is told how far it is.
        training: how.
        names: which network.
        on_step: called with (steps done, network) after each step, and with 0 before the first.
        among: rows that a step (0-based) may draw, as for `Query.among`; None for all.

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
        for group in optimizer.param_groups:
            group["lr"] = training.lr_at(step)
        train_on_real(
            net,
            optimizer,
            ctx,
            training.batch,
            (*names, step),
            augmentation,
            flat=training.flat,
            among=among(step),
            twins=training.twins,
        )
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
    mix: float = 0.0,
    flat: Flat | None = None,
    among: Tensor | None = None,
    twins: float = 0.0,
) -> tuple[int, int]:
    """One training step on real rows, through the gate.

    Args:
        net, optimizer: what is trained, in place.
        ctx: see `PoolContext`.
        rows: real rows, over all classes.
        names: the stream that draws them.
        augmentation: a draw of its own for each row, or None.
        mix: probability of CutMix for a pass of the gate. Rows of a pass then influence each other, so a private
            gate must not be asked this way.
        flat: take the gradient where flat minima are looked for; the gate is asked twice.
        among: draw among these rows only (see `Query.among`).
        twins: above 0, no class is learned but that two views are alike: the redundancy of `barlow_twins` of a pass
            of the gate. Its rows influence each other as with ``mix``.

    Returns:
        How many rows of the batch were classified as their own class, and how many there were.
    """
    net.train().requires_grad_(True)
    parameters = list(net.parameters())
    query = Query("training gradient", ctx.classes, rows, per_class=False, among=among)
    right = 0

    def gradient() -> tuple[list[Tensor], int]:
        # Streams are made anew, so the second gradient of a flat step is of the same rows under the same draws.
        draws = ctx.streams.torch(*names, "augment")
        grads, count = ctx.gate.gradient(query, parameters, lambda batch: loss(batch, draws), ctx.streams.torch(*names))
        return [grad / max(count, 1) for grad in grads], count

    def loss(batch: Batch, draws: torch.Generator) -> Tensor:
        nonlocal right
        if twins:
            views = [net(augmented(batch.inputs.to(ctx.device), augmentation, draws)) for _ in range(2)]
            return barlow_twins(views[0], views[1], twins).expand(len(batch))
        x = augmented(batch.inputs.to(ctx.device), augmentation, draws)
        classes, axes = batch.classes.to(ctx.device), ctx.gate.info.cell_axes
        partner, kept = torch.arange(len(x), device=ctx.device), 1.0
        if mix and axes and len(x) and float(torch.rand((), generator=draws)) < mix:
            partner = torch.randperm(len(x), generator=draws).to(ctx.device)
            x, kept = cutmix(x, partner, axes, draws)
        logits = net(x)
        right += int((logits.detach().argmax(1) == classes).sum())
        own = F.cross_entropy(logits, classes, reduction="none")
        if kept == 1.0:
            return own
        return kept * own + (1 - kept) * F.cross_entropy(logits, classes[partner], reduction="none")

    grads, count = gradient()
    hits = right
    if flat is not None:
        here = [p.detach().clone() for p in parameters]
        _set(parameters, [w + move for w, move in zip(here, flat.climb(here, grads))])
        grads = flat.combined(grads, gradient()[0])
        _set(parameters, here)
    for parameter, grad in zip(parameters, grads):
        parameter.grad = grad
    optimizer.step()
    optimizer.zero_grad()
    net.requires_grad_(False)
    return hits, count


def barlow_twins(one: Tensor, two: Tensor, redundancy: float) -> Tensor:
    """Loss of two views of the same rows: outputs should agree between views and say different things.

    With C the correlations over rows between the outputs of either view, sum_i (1 - C_ii)^2 + redundancy
    sum_{i != j} C_ij^2. Correlations couple rows, so the loss of a batch is no sum over rows.

    Source: Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction, ICML 2021, equations 1 and
    2 (redundancy .005).

    Args:
        one, two: (rows, outputs).
        redundancy: weight of what outputs have in common.

    Raises:
        ConfigError: a single row has no correlation.
    """
    if len(one) < 2:
        raise ConfigError(
            f"the loss of Barlow Twins correlates rows that are shown together, and {len(one)} is shown: raise "
            f"distill.chunk. A private gate, which shows rows one by one, cannot train a network so."
        )
    first, second = ((z - z.mean(0)) / z.std(0, unbiased=False).clamp(min=1e-6) for z in (one, two))
    correlation = first.T @ second / len(one)
    own = correlation.diagonal()
    return (1 - own).square().sum() + redundancy * (correlation.square().sum() - own.square().sum())


def _set(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values):
            parameter.copy_(value)


def augmented(x: Tensor, augmentation: Augmentation | None, generator: torch.Generator) -> Tensor:
    if augmentation is None:
        return x
    return augmentation(x, augmentation.draw(len(x), generator, one_op=True), torch.arange(len(x)))
