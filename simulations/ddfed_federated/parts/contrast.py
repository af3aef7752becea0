"""Client part: features that stay near the global model's and away from the client's last ones (MOON)."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ddfed.domain import Network
from ddfed.federation import Broadcast
from ddfed.settings import Settings
from ddfed.store import HardLabels
from ddfed_federated.methods.base import ClientContext, ClientState, weights_of
from ddfed_federated.parts.local import Correction


class MoonSettings(Settings):
    """MOON's own settings."""

    mu: float = Field(1.0, ge=0, description="weight of the contrastive term; 0 makes it FedAvg")
    temperature: float = Field(0.5, gt=0, description="of the similarities in it")


class Compared(nn.Module):
    """A network that shows, beside its logits, how much its features resemble those of two networks that stand still.

    Args:
        net: the one that learns; its parameters are this module's.
        near, far: in evaluation mode, frozen.

    Shape of what it shows: (rows, classes + 2); last are the cosines to ``near`` and to ``far``.
    """

    def __init__(self, net: Network, near: Network, far: Network) -> None:
        super().__init__()
        self.net = net
        # In a tuple they are no part of the module: nobody trains them or sets their mode.
        self._still = (near.eval().requires_grad_(False), far.eval().requires_grad_(False))

    def forward(self, x: Tensor) -> Tensor:
        features = self.net.embed(x)
        with torch.no_grad():
            others = [net.embed(x) for net in self._still]
        cosines = [F.cosine_similarity(features, other)[:, None] for other in others]
        return torch.cat([self.net.head(features), *cosines], 1)


def contrast(cosines: Tensor, temperature: float) -> Tensor:
    """-log(e^(near / T) / (e^(near / T) + e^(far / T))) of each row.

    Source: Li, He and Song, Model-Contrastive Federated Learning, CVPR 2021, equation 3.

    Args:
        cosines: to what features should be near and far, (rows, 2).
        temperature: T.

    Returns:
        (rows,).
    """
    return F.softplus((cosines[:, 1] - cosines[:, 0]) / temperature)


class Contrastive(Correction):
    """Cross-entropy and ``mu`` times `contrast` to the global model (near) and to the client's last one (far).

    In a client's first round its last model is the global one, and the term has no gradient.

    Source: Li, He and Song, CVPR 2021, equation 4 and algorithm 1.
    """

    stateful = True

    def dressed(self, net: Network, state: ClientState, broadcast: Broadcast, context: ClientContext) -> nn.Module:
        far = deepcopy(net)
        far.load_state_dict(state or broadcast.weights)
        return Compared(net, deepcopy(net), far)

    def row_loss(self, shown: Tensor, classes: Tensor, context: ClientContext) -> Tensor:
        options = context.options
        return HardLabels.loss(shown[:, :-2], classes) + options.mu * contrast(shown[:, -2:], options.temperature)

    def after(
        self, net: Network, state: ClientState, broadcast: Broadcast, context: ClientContext, steps: int
    ) -> tuple[Mapping[str, Tensor], ClientState]:
        return {}, weights_of(net)
