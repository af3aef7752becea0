"""The naive references: distribution and gradient matching class by class, as published code does it.

Written from the papers and the usual code (DM: Zhao and Bilen, WACV 2023; DSA: Zhao and Bilen, ICML 2021;
FedDM: Xiong et al., CVPR 2023; DC: Zhao, Mopuri and Bilen, ICLR 2021), sharing nothing with ddfed but the random
numbers, so that both must give the same loss and pixel gradient. Habits kept on purpose: one class at a time,
features and logits in separate calls, the real side detached rather than run without gradient (in distribution
matching the weights are frozen, so no graph is built for it either way), a network built (or copied) at every step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Siamese = Callable[[Tensor, int], Tensor]


class ReferenceNet(nn.Module):
    """ConvNet-3-128 as the dataset condensation code writes it."""

    def __init__(self, channels: int = 3, classes: int = 10, width: int = 128, side: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number in range(3):
            layers += [
                nn.Conv2d(channels if number == 0 else width, width, kernel_size=3, padding=1),
                nn.GroupNorm(width, width, affine=True),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(kernel_size=2, stride=2),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * (side // 8) ** 2, classes)

    def embed(self, x: Tensor) -> Tensor:
        out = self.features(x)
        return out.view(out.size(0), -1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.embed(x))


def fresh_network() -> ReferenceNet:
    """A new random network, its weights frozen (DM); draws from torch's global generator."""
    return frozen(ReferenceNet())


def neighbour(center: nn.Module, rho: float, generator: torch.Generator) -> nn.Module:
    """A copy of ``center`` moved by Gaussian noise of norm at most ``rho`` (FedDM)."""
    net = copy.deepcopy(center)
    count = sum(p.numel() for p in net.parameters())
    noise = torch.randn(count, generator=generator)
    noise = noise * min(1.0, rho / float(noise.norm()))
    at = 0
    with torch.no_grad():
        for p in net.parameters():
            p.add_(noise[at : at + p.numel()].view_as(p))
            at += p.numel()
    return frozen(net).eval()


def frozen(net: nn.Module) -> nn.Module:
    for p in net.parameters():
        p.requires_grad = False
    return net


def matching_step(
    net: nn.Module,
    real: Sequence[Tensor],
    syn: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    logits: bool,
    siamese: Siamese | None = None,
) -> float:
    """One outer step.

    Args:
        net: the network that judges.
        real: the real batch of each class.
        syn: (classes * ipc, C, H, W), class after class, with gradient.
        optimizer: of ``syn``.
        logits: match mean logits as well.
        siamese: ``(images, class) -> images``, the same transform for both sides of a class.

    Returns:
        The loss, summed over classes and dimensions.
    """
    ipc = len(syn) // len(real)
    loss = torch.tensor(0.0)
    for c, images in enumerate(real):
        mine = syn[c * ipc : (c + 1) * ipc]
        if siamese is not None:
            images, mine = siamese(images, c), siamese(mine, c)
        output_real = net.embed(images).detach()
        output_syn = net.embed(mine)
        loss = loss + torch.sum((torch.mean(output_real, dim=0) - torch.mean(output_syn, dim=0)) ** 2)
        if logits:
            logits_real = net(images).detach()
            logits_syn = net(mine)
            loss = loss + torch.sum((torch.mean(logits_real, dim=0) - torch.mean(logits_syn, dim=0)) ** 2)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def gradient_step(
    net: nn.Module,
    real: Sequence[Tensor],
    syn: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    siamese: Siamese | None = None,
) -> float:
    """One outer step of DC, or of DSA with ``siamese``.

    Habits kept on purpose: gradients of all parameters are taken, biases and norms included, and these parameters
    collect gradients themselves in the backward pass; the graphs of all classes wait for one backward.

    Args:
        net: its weights have gradients.
        real, syn, optimizer, siamese: see `matching_step`.

    Returns:
        The distance, summed over classes.
    """
    parameters = list(net.parameters())
    ipc = len(syn) // len(real)
    loss = torch.tensor(0.0)
    for c, images in enumerate(real):
        mine = syn[c * ipc : (c + 1) * ipc]
        if siamese is not None:
            images, mine = siamese(images, c), siamese(mine, c)
        loss_real = F.cross_entropy(net(images), torch.full((len(images),), c))
        wanted = [g.detach().clone() for g in torch.autograd.grad(loss_real, parameters)]
        loss_syn = F.cross_entropy(net(mine), torch.full((ipc,), c))
        found = torch.autograd.grad(loss_syn, parameters, create_graph=True)
        for g, h in zip(wanted, found):
            loss = loss + _distance(g, h)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def _distance(g: Tensor, h: Tensor) -> Tensor:
    """One minus the cosine of each output row, summed; nothing for biases and norms."""
    if g.dim() == 4:
        g = g.reshape(g.shape[0], g.shape[1] * g.shape[2] * g.shape[3])
        h = h.reshape(h.shape[0], h.shape[1] * h.shape[2] * h.shape[3])
    elif g.dim() != 2:
        return torch.tensor(0.0)
    product = torch.sum(g * h, dim=-1)
    return torch.sum(1 - product / (torch.norm(g, dim=-1) * torch.norm(h, dim=-1) + 0.000001))


def dsa(x: Tensor, op: str, u: Sequence[float]) -> Tensor:
    """One operation of the default strategy on a whole batch, with numbers in [0, 1) given."""
    rows, _, height, width = x.shape
    if op == "color":
        x = x + (u[0] - 0.5)
        grey = x.mean(dim=1, keepdim=True)
        x = (x - grey) * (2.0 * u[1]) + grey
        mean = x.mean(dim=[1, 2, 3], keepdim=True)
        return (x - mean) * (u[2] + 0.5) + mean
    if op == "crop":
        most = int(height * 0.125 + 0.5)
        down, right = (int(u[i] * (2 * most + 1)) for i in (0, 1))
        return F.pad(x, [most] * 4)[:, :, down : down + height, right : right + width]
    if op == "cutout":
        size = int(height * 0.5 + 0.5)
        mask = torch.ones(rows, height, width)
        top, left = (int(u[i] * (height + 1 - size % 2)) - size // 2 for i in (0, 1))
        mask[:, max(top, 0) : top + size, max(left, 0) : left + size] = 0
        return x * mask.unsqueeze(1)
    if op == "flip":
        return x.flip(3) if u[0] < 0.5 else x
    if op == "scale":
        low, high = 1 / 1.2, 1.2
        theta = torch.diag(torch.tensor([low + (high - low) * u[0], low + (high - low) * u[1]]))
    else:
        angle = torch.tensor((u[0] - 0.5) * 2 * 15 / 180 * torch.pi)
        cos, sin = angle.cos(), angle.sin()
        theta = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
    theta = torch.cat([theta, torch.zeros(2, 1)], dim=1).expand(rows, 2, 3)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)
