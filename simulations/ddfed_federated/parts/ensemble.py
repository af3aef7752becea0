"""Server part: a student of all clients' networks, taught on rows that a generator makes up (P4, P5 of DENSE).

The networks may differ in structure: nothing of them is used but their answers and what their batch norms remember.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ddfed.domain import Network
from ddfed.errors import ConfigError, DivergedError
from ddfed.evaluate import train
from ddfed.federation import Release
from ddfed.match.teacher import batch_norms, evaluating, inputs_of, moments_of
from ddfed.pool import Committee
from ddfed.pool.base import augmented
from ddfed.registry import registry
from ddfed.seeds import Streams, isolated
from ddfed.settings import Settings
from ddfed.store.latent import check_made
from ddfed_federated.methods.base import ServerContext, ServerPart, ServerState
from ddfed_federated.parts.steps import senders
from ddfed_federated.parts.union import server_protocol


class DenseSettings(Settings):
    """DENSE's own settings; the student's training is that of ``server``, whose epochs count generated batches."""

    generator: str = Field("conv", description="generator of rows; conv needs cell axes, mlp takes any items")
    generator_options: dict[str, Any] = Field(
        default_factory=lambda: {"latent": 256}, description="of the generator, such as latent and width"
    )
    steps: int = Field(30, ge=1, description="steps of each generator")
    lr: float = Field(1e-3, gt=0, description="Adam's step size in them")
    batch: int = Field(256, ge=2, description="rows that a generator makes")
    classes: float = Field(1.0, ge=0, description="weight of the ensemble's cross-entropy to the drawn classes")
    statistics: float = Field(1.0, ge=0, description="weight of the distance to what batch norms remember")
    adversarial: float = Field(1.0, ge=0, description="weight of the student's divergence where it is of another mind")
    temperature: float = Field(20.0, gt=0, description="of the ensemble's answers that the student learns")


def ensemble_of(releases: Sequence[Release], context: ServerContext) -> Committee:
    """The clients' networks as one whose logits are the mean of theirs; in evaluation mode, frozen."""
    nets = [context.network_of(r.client, r.weights) for r in releases if r.weights]
    return Committee(nets).eval().requires_grad_(False)


def ensemble_beside(releases: Sequence[Release], context: ServerContext) -> dict[str, Network]:
    """The ensemble is what the student can become at best, so its accuracy stands beside."""
    return {"ensemble": ensemble_of(releases, context)}


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of each row.

    Args:
        student, teacher: logits, (rows, classes).
        temperature: T.

    Returns:
        (rows,).
    """
    learned, taught = (F.log_softmax(logits / temperature, 1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(learned, taught, reduction="none", log_target=True).sum(1)


def remembered_distance(norms: Sequence[_BatchNorm], entered: Sequence[Tensor]) -> Tensor:
    """Sum over batch norms of |mean - mean*|_2 + |var - var*|_2; starred is what they remember.

    Args:
        norms: batch norms with running statistics.
        entered: what entered each in a pass, (rows, channels, *positions).
    """
    total = torch.zeros(())
    for norm, values in zip(norms, entered, strict=True):
        mean, variance = moments_of(values)
        assert norm.running_mean is not None and norm.running_var is not None
        far = torch.linalg.vector_norm(mean - norm.running_mean) + torch.linalg.vector_norm(variance - norm.running_var)
        total = total.to(far) + far
    return total


@dataclass(frozen=True)
class DistilsEnsemble(ServerPart):
    """A new generator, a batch of its rows, a pass of the student over all batches so far; ``server.epochs`` times.

    Source: Zhang, Chen, Li, Lyu, Wu, Ding, Shen and Wu, DENSE, NeurIPS 2022, algorithm 1, and the released code for the
    constants, the new generator in every epoch and the growing pool.
    """

    def check(self, context: ServerContext) -> None:
        info = context.task.info
        if not context.domain.capabilities.independent_rows:
            raise ConfigError(
                f"method 'dense' makes up rows one by one, and those of {info.domain}/{info.dataset} cannot be seen "
                f"apart from others. Take a method whose clients send sets, such as 'feddm'."
            )
        try:
            generator, z, classes = _new_generator(context, context.streams.child("check"))
            check_made(generator(z[:2], classes[:2]), 2, info, context.options.generator)
        except ConfigError as error:
            raise ConfigError(
                f"method 'dense' needs a generator of rows of shape {info.shape} ({info.domain}/{info.dataset}): "
                f"{error} Set options.generator = 'mlp' for items without cell axes."
            ) from error

    def __call__(self, state: ServerState, releases: Sequence[Release], context: ServerContext) -> ServerState:
        ensemble = ensemble_of(senders(state, releases)[0], context)
        student, made = context.network(state.weights), list[Tensor]()
        for number in range(context.settings.server.epochs):
            streams = context.streams.child("dense", number)
            made.append(make_up(ensemble, student, context, streams))
            teach(student, ensemble, torch.cat(made), context, streams)
        return state.having(student)


def _new_generator(context: ServerContext, streams: Streams) -> tuple[nn.Module, Tensor, Tensor]:
    """A generator with fresh weights, its noise (rows, *latent) and the classes of the rows, sorted."""
    options, info = context.options, context.task.info
    factory = registry().load("generator", options.generator, "options.generator")
    with isolated(streams.seed("generator")):
        generator = factory(info, **options.generator_options).to(context.device)
    z = torch.randn(options.batch, *generator.latent_shape, generator=streams.torch("noise"))
    classes = torch.randint(info.num_classes, (options.batch,), generator=streams.torch("classes")).sort().values
    return generator, z.to(context.device), classes.to(context.device)


def make_up(ensemble: Committee, student: Network, context: ServerContext, streams: Streams) -> Tensor:
    """Train a new generator and its noise, and give the rows whose loss was the lowest.

    With z_E and z_S the logits of ensemble and student for the augmented rows, and N clients,

        classes * CE(z_E, y) + statistics / N * sum_l (|mean_l - mean*_l| + |var_l - var*_l|)
            - adversarial * mean(KL(z_E || z_S) where their argmaxes differ)

    Returns:
        (options.batch, *item), detached.

    Raises:
        DivergedError: no loss was finite.
    """
    options = context.options
    augmentation = context.domain.augmentation(context.settings.server.augment, context.task.info)
    generator, z, classes = _new_generator(context, streams)
    optimizer = torch.optim.Adam([z.requires_grad_(), *generator.parameters()], lr=options.lr, betas=(0.5, 0.999))
    norms = batch_norms(ensemble)
    lowest, best = math.inf, None
    student.requires_grad_(False)
    for step in range(options.steps):
        rows = generator(z, classes)
        seen = augmented(rows, augmentation, streams.torch("view", step))
        with evaluating(student), inputs_of(norms) as entered:
            taught, learned = ensemble(seen), student(seen)
        differs = taught.argmax(1) != learned.argmax(1)
        loss = (
            options.classes * F.cross_entropy(taught, classes)
            + options.statistics * remembered_distance(norms, entered).to(taught) / len(ensemble.members)
            - options.adversarial * (divergence(learned, taught) * differs).mean()
        )
        if float(loss.detach()) < lowest:
            lowest, best = float(loss.detach()), rows.detach()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if best is None:
        raise DivergedError(
            f"dense: no loss of the generator was finite in {options.steps} steps (options.lr {options.lr}). Lower it."
        )
    return best


class _Taught(nn.Module):
    """A student that shows its logits and, behind them, those of its teacher for the same rows."""

    def __init__(self, student: Network, teacher: Network) -> None:
        super().__init__()
        self.student = student
        # In a tuple it is no part of the module: nobody trains it or sets its mode.
        self._still = (teacher,)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            answers = self._still[0](x)
        return torch.cat([self.student(x), answers], 1)


def teach(student: Network, teacher: Network, rows: Tensor, context: ServerContext, streams: Streams) -> None:
    """One pass of the student over made-up rows, towards the teacher's answers; in place.

    Args:
        rows: (rows, *item), on the device.
        streams: order, views and the network's own randomness hang below these.
    """
    settings = context.settings

    def loss(shown: Tensor, _: Tensor) -> Tensor:
        learned, taught = shown.chunk(2, 1)
        return divergence(learned, taught, context.options.temperature)

    with isolated(streams.seed("student")):
        train(
            _Taught(student, teacher),  # type: ignore[arg-type]
            lambda index: (rows[index], index),
            len(rows),
            loss,
            replace(server_protocol(settings), epochs=1),
            context.domain.augmentation(settings.server.augment, context.task.info),
            streams.child("student"),
        )
