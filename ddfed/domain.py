"""The contract of a modality adapter.

A domain loads data, builds networks, augments, renders and exports. It does not distil, evaluate, split or
account: the core does these for every modality and asks the domain only for what is its own.
`ddfed.testing` holds the checks that a domain inherits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ddfed.data import Task, TaskInfo
from ddfed.errors import ConfigError, UnknownNameError, one_of, suggest

if TYPE_CHECKING:
    from ddfed.artifact import SyntheticSet


class Network(nn.Module):
    """A classifier with a tap: ``forward(x) == head(embed(x))``.

    `embed` gives the tensor that enters the last linear map, shape (rows, width). Subclasses build their
    layers in ``__init__`` with the default initialisation, so that `reset` can redraw them in place.
    """

    head: nn.Module

    #: True if rows influence each other in training mode (BatchNorm); engines that put all classes in one
    #: forward, and per-example privacy, refuse such networks.
    mixes_rows: bool = False

    def embed(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def stages(self, x: Tensor) -> list[Tensor]:
        """What engines that look inside match: the activations after each nonlinearity, then `embed`'s result.

        Activations are (rows, channels, *positions) or (rows, width), in the order of the forward pass. A
        network that does not open itself gives the last alone.
        """
        return [self.embed(x)]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


@dataclass(frozen=True)
class Draw:
    """Parameters of one augmentation draw; replaying it gives the same transform.

    Args:
        op: which operation each group undergoes, shape (groups,), int64.
        u: uniform numbers in [0, 1) the operations are parametrised by, shape (groups, width).
    """

    op: Tensor
    u: Tensor

    def __len__(self) -> int:
        return len(self.op)


class Augmentation(ABC):
    """A differentiable augmentation whose randomness is a value, never a generator's state.

    Siamese use draws one entry per class and applies it to real and synthetic rows of that class; training
    use draws one entry per row.
    """

    name: str = ""

    @abstractmethod
    def draw(self, groups: int, generator: torch.Generator, one_op: bool = False) -> Draw:
        """Draw parameters for ``groups`` groups.

        Args:
            groups: number of independent parameter sets.
            generator: CPU generator.
            one_op: all groups share one operation (with parameters of their own), as in network training.
        """

    @abstractmethod
    def __call__(self, x: Tensor, draw: Draw, groups: Tensor) -> Tensor:
        """Transform row i of ``x`` (rows, *item) by entry ``groups[i]`` of ``draw``; differentiable in ``x``."""

    def at(self, progress: float) -> Augmentation:
        """The augmentation as it is when this part of the outer steps is made, in [0, 1]; itself but for a curriculum.

        It takes the same draws.
        """
        return self


@dataclass(frozen=True)
class Capabilities:
    """What engines must know before they start.

    Args:
        independent_rows: rows may be mini-batched, mixed and concatenated. False for one coupled graph.
        soft_labels: the task loss accepts class probabilities.
        second_order: networks whose double backward is exact.
    """

    independent_rows: bool = True
    soft_labels: bool = True
    second_order: bool = True


class Domain(ABC):
    """One modality. Constructors take nothing; loading and checking belong to the methods."""

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities] = Capabilities()
    #: network names, the default first
    models: ClassVar[tuple[str, ...]] = ()
    #: augmentation names; "none" always exists
    augmentations: ClassVar[tuple[str, ...]] = ("none",)
    #: formats that `export` writes, the default first
    export_formats: ClassVar[tuple[str, ...]] = ()
    #: rows that stand beside every result unless somebody says otherwise; see `ddfed.evaluate.Bench`
    baselines: ClassVar[tuple[str, ...]] = ("random", "label-only", "full")

    @abstractmethod
    def load(self, dataset: str, root: Path | None, options: Mapping[str, Any]) -> Task:
        """Load a data set.

        Args:
            dataset: name within the domain.
            root: folder that holds the files; None for embedded data.
            options: the domain's own settings, such as ``whitening``; unknown keys are refused.

        Raises:
            MissingDataError: a file is absent; says which file is expected where.
            DataError: a file is corrupt or truncated; says where and how.
            UnknownNameError: no such data set.
        """

    @abstractmethod
    def network(self, name: str, info: TaskInfo) -> Network:
        """Build an untrained network for the task. Called under `ddfed.seeds.isolated`.

        Raises:
            UnknownNameError: no such network.
            ConfigError: the network cannot take items of this shape.
        """

    @abstractmethod
    def augmentation(self, name: str, info: TaskInfo) -> Augmentation | None:
        """The augmentation called ``name`` for this task, None for ``"none"``."""

    @abstractmethod
    def render(self, syn: SyntheticSet, path: Path, per_class: int = 10) -> Path:
        """Write something a person can look at; returns the file written."""

    @abstractmethod
    def export(self, syn: SyntheticSet, folder: Path, fmt: str) -> list[Path]:
        """Write the set in the modality's own ecosystem format; returns the files written."""

    def default_network(self, info: TaskInfo) -> str:
        """The network used when none is asked for."""
        return self.models[0]

    def default_judge(self, info: TaskInfo) -> str:
        """The network that is trained on a finished set when none is asked for."""
        return self.default_network(info)

    def default_baselines(self, info: TaskInfo) -> tuple[str, ...]:
        """The rows that stand beside a result of this task unless somebody says otherwise."""
        return self.baselines

    def coupling(self, info: TaskInfo) -> str:
        """Why a gradient of one row of this task is not of one record alone, and what to do instead; empty if it is."""
        return "" if self.capabilities.independent_rows else "its rows influence each other"

    def facts(self, syn: SyntheticSet, task: Task) -> dict[str, Any]:
        """What people of this modality want to know of a set beside its accuracy, JSON values; for summaries."""
        return {}

    def check_name(self, kind: str, name: str, options: tuple[str, ...]) -> str:
        """``name`` if it is one of ``options``, else an error with the near name."""
        if name not in options:
            raise UnknownNameError(
                f"unknown {kind} {name!r} of domain {self.name!r}.{suggest(name, options)} Possible: {one_of(options)}"
            )
        return name

    def check_options(self, options: Mapping[str, Any], known: tuple[str, ...]) -> None:
        """Refuse unknown options, suggesting the near one."""
        for key in options:
            if key not in known:
                raise ConfigError(
                    f"unknown option {key!r} for domain {self.name!r}.{suggest(key, known)} Possible: {one_of(known)}"
                )


def check_per_example(domain: Domain, info: TaskInfo, network: Network) -> None:
    """Refuse clipping of per-example gradients where a gradient is not of one example alone.

    The bound of differential privacy then fails silently: clipping row i does not bound what record j does to the sum.
    To be called by whoever clips, before anything is asked of the gate.

    Raises:
        ConfigError: the task's rows are coupled, or the network mixes them; says what to do instead.
    """
    why = domain.coupling(info)
    if why:
        raise ConfigError(f"per-example clipping is invalid for {info.dataset!r} of domain {domain.name!r}: {why}")
    if network.mixes_rows:
        raise ConfigError(
            "per-example clipping is invalid for a network that mixes rows (BatchNorm): each row influences the "
            "gradients of all others. Take one with another normalisation, such as 'convnet' (instance norm)."
        )


def reset(network: nn.Module) -> None:
    """Redraw all weights in place with the modules' default initialisation; call under `seeds.isolated`.

    Equal to building the network anew under the same seed, without allocating (and keeping compiled code
    valid).
    """
    for module in network.modules():
        redraw = getattr(module, "reset_parameters", None)
        if callable(redraw):
            redraw()
