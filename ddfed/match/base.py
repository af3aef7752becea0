"""The contract of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddfed.domain import Augmentation, Draw, Network
from ddfed.errors import ConfigError
from ddfed.gate import Gate, Query
from ddfed.sample import Sampler, UniformSampler
from ddfed.seeds import Streams


def _no_teachers() -> tuple[Network, ...]:
    raise ConfigError("an objective asks for the run's teachers, which only a distillation has")


@dataclass(frozen=True)
class Cotangent:
    """dL/dx and dL/dy of the decoded rows.

    Every parametrisation works with every objective because the loop pushes these through the decoder,
    whoever made them: autograd, an adjoint recursion or a closed form.

    Args:
        x: shape of the decoded rows.
        y: shape of the targets, or None when labels are not learned.
        loss: value for people.
        skip: the engine refuses to be followed this time; the loop makes no step.
    """

    x: Tensor
    y: Tensor | None
    loss: float
    skip: bool = False

    @classmethod
    def of(cls, loss: Tensor, x: Tensor, y: Tensor | None = None, value: float | None = None) -> Cotangent:
        """Of a scalar loss, by autograd.

        Args:
            loss: what is differentiated.
            x, y: leaves it hangs on.
            value: for people, where ``loss`` only has the right derivative.
        """
        leaves = [x] if y is None else [x, y]
        grads = torch.autograd.grad(loss, leaves)
        return cls(grads[0], grads[1] if y is not None else None, float(loss.detach()) if value is None else value)

    @classmethod
    def none(cls, judgement: Judgement) -> Cotangent:
        """Of an engine that has nothing to say about these rows."""
        j = judgement
        return cls(torch.zeros_like(j.x), torch.zeros_like(j.y) if j.y.requires_grad else None, 0.0)


@dataclass(frozen=True)
class Precision:
    """How networks are run.

    Args:
        bf16: run the real side under bfloat16 autocast; it carries no gradient, so it may be cheaper than the
            synthetic side. Features agree with float32 to about 1e-2 relative; sums are kept in float32.
        compiled: ``torch.compile`` the network's passes, both sides (half a minute at the first step). Agrees
            with eager to float32 rounding.
    """

    bf16: bool = False
    compiled: bool = False


@dataclass
class Judgement:
    """Everything an objective may look at in one outer step.

    Args:
        net: the network drawn from the pool, weights frozen.
        x: decoded synthetic rows, a leaf with gradient, (rows, *item).
        y: their targets; a leaf with gradient when labels are learned.
        row_class: hard class of each row, (rows,).
        classes: classes judged now; all of them, or one when a recipe steps class by class.
        gate: real data.
        augmentation: siamese augmentation, or None.
        label_loss: per-row loss of the label store.
        skill: training accuracy of the network in percent, 0 for an untrained one.
        step: outer step, 0-based.
        streams: named by the objective itself, so that a resumed run draws the same.
        device: where networks and rows live.
        sampler: narrows what is asked of the gate; see `ask`.
        expert: a network trained on real data that goes with ``net``, or None.
        place: networks begun before ``net``, and outer steps made with it; see `ddfed.pool.ModelPool.place`.
        progress: which part of all outer steps is made, in [0, 1].
        vectors: what a regression is fitted to, of targets; see `ddfed.store.LabelStore.vectors`.
        items: number of the stored item that each row was decoded from, (rows,); None where each row is an item.
        teachers: the run's networks trained on real data (``distill.teacher``), in evaluation mode, weights frozen;
            trained when first asked for.
        represent: inputs -> what a regression of real rows is held against in place of their classes, (rows, width);
            None for classes. See `ddfed.store.LabelStore.represents`.
        coupled: rows must be shown to a network together and in this order; see `ddfed.store.Store.coupled`.
        public: what is known beside the rows behind the gate, by name; see `ddfed.distill.distill`.
    """

    net: Network
    x: Tensor
    y: Tensor
    row_class: Tensor
    classes: tuple[int, ...]
    gate: Gate
    augmentation: Augmentation | None
    label_loss: Callable[[Tensor, Tensor], Tensor]
    skill: float
    step: int
    streams: Streams
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    sampler: Sampler = field(default_factory=UniformSampler)
    expert: Network | None = None
    place: tuple[int, int] = (0, 0)
    progress: float = 0.0
    vectors: Callable[[Tensor], Tensor] = lambda targets: targets
    items: Tensor | None = None
    teachers: Callable[[], tuple[Network, ...]] = _no_teachers
    represent: Callable[[Tensor], Tensor] | None = None
    coupled: bool = False
    public: Mapping[str, Tensor] = field(default_factory=dict)

    def ask(self, name: str, rows: int | None, *, top_up: bool = False) -> Query:
        """A query for ``rows`` real rows of each judged class, narrowed by the sampler."""
        query = Query(name, self.classes, rows, top_up=top_up)
        return self.sampler.narrow(query, self.gate, self.net, self.step, self.streams)

    def draw_siamese(self) -> Draw | None:
        """One augmentation draw for each class of the task, the same however classes are chunked; None for none."""
        if self.augmentation is None:
            return None
        return self.augmentation.draw(self.gate.info.num_classes, self._stream("siamese"))

    def real_stream(self) -> torch.Generator:
        """Draws the real rows of this judgement."""
        return self._stream("real")

    def _stream(self, name: str) -> torch.Generator:
        # A recipe that steps class by class draws anew for each, under a name of its own.
        scope = () if len(self.classes) != 1 else (self.classes[0],)
        return self.streams.torch(name, self.step, *scope)


class Objective(ABC):
    """A matching engine.

    Args:
        precision: how the real side is computed.
        options: the engine's own settings.
    """

    name: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {}
    #: differentiates the network twice; refused for domains whose networks do not allow it
    second_order: bool = False
    #: judges all classes together or not at all; refused for scope "sequential"
    whole_set: bool = False
    #: can hold real rows against a teacher's representations of them in place of their classes
    represents: bool = False
    #: can judge rows that a network must see together (`Judgement.coupled`)
    takes_coupled: bool = False

    def __init__(self, precision: Precision | None = None, **options: Any) -> None:
        unknown = set(options) - set(self.defaults)
        if unknown:
            raise ConfigError(
                f"objective {self.name!r} has no option {sorted(unknown)[0]!r}; it knows {sorted(self.defaults)}"
            )
        self.precision = precision or Precision()
        self.options = {**self.defaults, **options}

    @abstractmethod
    def __call__(self, judgement: Judgement) -> Cotangent:
        """Judge the rows."""

    @property
    def members(self) -> tuple[Objective, ...]:
        """The engines that judge: itself, or a host and its terms (`ddfed.match.Together`)."""
        return (self,)

    def ride(self, host: Objective) -> None:  # noqa: B027 - optional
        """Called once on a term, with the engine it rides on, for terms that ask it (`MultisizeSubset`).

        Raises:
            ConfigError: the term cannot ride on this host.
        """

    def frozen(self, judgement: Judgement) -> Tensor | None:
        """Rows that must not move in this step, whoever judges them: (rows,) bool, or None for none of them.

        Asked of every term after it has judged; the sum of cotangents is zero there.
        """
        return None

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold beyond the streams; empty for an engine without memory."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - optional
        """Inverse of `state`."""

    def check(self, net: Network) -> None:  # noqa: B027 - optional
        """Refuse, before any work is done, a network that the engine cannot judge with. Raises `ConfigError`."""

    def training(self) -> dict[str, float | list[float]]:
        """What the finished set asks of whoever trains on it, such as a learned step size ``{"lr": 0.02}``."""
        return {}


class FeaturesAndLogits(nn.Module):
    """A network that gives its features beside its logits, in one pass that ``functional_call`` can take apart.

    Args:
        net: in the mode in which it shall be seen; its parameters are found below ``net.``.
    """

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, *item) -> (rows, width) and (rows, classes)."""
        features = self.net.embed(x)
        return features, self.net.head(features)


@contextmanager
def real_side(precision: Precision, device: torch.device) -> Iterator[None]:
    """Context in which the real side of an engine runs: no gradient, optionally bfloat16."""
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision.bf16):
        yield


def whole_classes(judgement: Judgement, most: int) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """The judged classes in groups of at most ``most`` synthetic rows, with those rows; a class is never divided.

    Coupled rows are one group.
    """
    j = judgement
    if j.coupled:
        yield j.classes, torch.arange(len(j.x))
        return
    sizes = torch.bincount(j.row_class, minlength=j.gate.info.num_classes).tolist()
    parts: list[list[int]] = []
    filled = most
    for c in j.classes:
        if filled + sizes[c] > most:
            parts.append([])
            filled = 0
        parts[-1].append(c)
        filled += sizes[c]
    for part in parts:
        yield tuple(part), torch.nonzero(torch.isin(j.row_class, torch.tensor(part))).flatten()
