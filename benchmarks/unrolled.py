"""The derivative through a training by one long graph, which the adjoint is held against; and a process that measures.

    python benchmarks/unrolled.py adjoint|graph STEPS ROWS

prints the growth of the process's peak memory over one derivative, in MB, as JSON.
"""

from __future__ import annotations

import json
import resource
import sys

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from ddfed.data import TaskInfo
from ddfed.domain import Network
from ddfed.match.adjoint import SGD, Minibatch, Student, Unrolled
from ddfed.seeds import isolated
from ddfed.space import Space
from ddfed_image.domain import ImageDomain

LR = 0.01
CLASSES = tuple(map(str, range(10)))
INFO = TaskInfo(domain="image", dataset="benchmark", shape=(3, 32, 32), classes=CLASSES, space=Space())


def setting(rows: int) -> tuple[Network, Tensor, Tensor, Tensor]:
    """ConvNet-3-128, random rows of CIFAR's shape with their classes, and weights to end at."""
    with isolated(0):
        net = ImageDomain().network("convnet", INFO).requires_grad_(False)
        x, y = torch.randn(rows, 3, 32, 32), torch.arange(rows) % 10
        target = torch.cat([p.flatten() for p in ImageDomain().network("convnet", INFO).parameters()]).detach()
    return net, x, y, target


def by_adjoint(net: Network, x: Tensor, y: Tensor, target: Tensor, steps: int) -> Tensor:
    """Derivative of |weights after training - target|^2 by the rows."""
    student = Student(net, lambda z, t: F.cross_entropy(z, t, reduction="none"))
    everything = Minibatch(torch.arange(len(x)))
    run = Unrolled(student, SGD(), x, y, torch.full((steps,), LR), lambda t: everything)
    end = run.forward(student.weights)
    return run.backward([2 * (end[0] - target)]).x


def by_graph(net: Network, x: Tensor, y: Tensor, target: Tensor, steps: int) -> Tensor:
    """The same with the graph of all steps, as the published code of trajectory matching keeps it."""
    x = x.clone().requires_grad_()
    shapes = {name: p.shape for name, p in net.named_parameters()}
    weights = torch.cat([p.flatten() for p in net.parameters()]).requires_grad_()
    for _ in range(steps):
        parts = weights.split([shape.numel() for shape in shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts)}
        loss = F.cross_entropy(functional_call(net, named, (x,)), y)
        weights = weights - LR * torch.autograd.grad(loss, weights, create_graph=True)[0]
    return torch.autograd.grad((weights - target).square().sum(), x)[0]


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    torch.set_num_threads(2)
    how, steps, rows = {"adjoint": by_adjoint, "graph": by_graph}[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
    net, x, y, target = setting(rows)
    Student(net, lambda z, t: F.cross_entropy(z, t, reduction="none")).gradient(target, x[:1], y[:1])  # loads kernels
    before = peak()
    how(net, x, y, target, steps)
    print(json.dumps({"grown_mb": peak() - before}))
