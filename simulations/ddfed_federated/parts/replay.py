"""Training that is sent instead of its result: tiny soft-labelled sets from which weights are made again."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.artifact import SyntheticSet
from ddfed.domain import Network
from ddfed.errors import ConfigError
from ddfed.match.adjoint import SGD, Minibatch, Student, Unrolled
from ddfed_federated import codecs
from ddfed_federated.methods.base import ServerContext


def replayed(
    net: Network, start: Tensor, x: Tensor, soft: Tensor, lrs: Tensor, rows: Callable[[int], Tensor]
) -> Tensor:
    """Where steps of gradient descent on the items lead from ``start``, (weights,).

    The arithmetic is that of the engine that made the items, so both ends of a link get the same bits from the same
    arrays (on one kind of device with one version of torch).

    Args:
        net: gives the structure.
        start: its parameters one after another, (weights,).
        x: items (m, *item).
        soft: probabilities of the classes, (m, classes).
        lrs: step size of each step, (steps,).
        rows: positions of the items of a step.
    """
    student = Student(net, lambda logits, wanted: F.cross_entropy(logits, wanted, reduction="none"))
    run = Unrolled(student, SGD(), x.to(start), soft.to(start), lrs.to(start), lambda t: Minibatch(rows(t)))
    return run.forward(start)[0]


def travelling(syn: SyntheticSet, codec: str) -> dict[str, Tensor]:
    """A set with learned logits as it arrives: items through the codec, probabilities as float16, float32 again."""
    x, _ = syn.decoded()
    soft = syn.labels.targets(torch.arange(len(x))).detach().softmax(1)
    return {
        "x": codecs.decode(codecs.encode(x, codec), codec),
        "y": syn.labels.classes,
        "soft": soft.to(torch.float16).to(torch.float32),
    }


def check_no_buffers(context: ServerContext) -> None:
    """Refuse a network whose state is more than its parameters.

    Raises:
        ConfigError: it has buffers, such as the running statistics of batch norms.
    """
    found = [name for name, _ in context.network().named_buffers()]
    if found:
        raise ConfigError(
            f"method {context.settings.method!r} sends how parameters move, and the network keeps more than these "
            f"({found[0]!r}). Take one without batch norm (distill.network), such as the domain's default."
        )


__all__ = ["check_no_buffers", "replayed", "travelling"]
