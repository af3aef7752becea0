"""The engine of GDEM: features along eigenvectors, matched between the real and the condensed graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.errors import ConfigError
from ddfed.match.base import Cotangent, Judgement, Objective, Precision
from ddfed_graph.eigenbasis import signed_adjacency, spectrum
from ddfed_graph.selectors import graph_of


class SpectrumMatching(Objective):
    """Subspaces of features along each eigenvector, means of classes, and that U' stays a basis; no network.

    With z_k = u_k^T X of length one, the terms are the mean over k of |z_k z_k^T - z'_k z'_k^T|^2, which is
    2 (1 - (z_k z'_k)^2), the mean square of H H'^T - I for the class means of once smoothed features, of length one,
    and the mean square of U'^T U' - I. No d x d matrix is ever made.

    Source: Liu, Bo and Shi, GDEM, ICML 2024, equations 6 to 9. Departures: the first term is summed over the d x d
    entries that its code averages over; real class means are of training nodes in all components, smoothed with all
    eigenvectors. (Where training nodes lie outside the largest component its code replaces them by others and uses
    their labels.)

    Options:
        alpha, beta, gamma: weights of the three terms.
        low: share of eigenpairs from the low end, as in ``init_options``.
    """

    name = "spectrum"
    whole_set = True
    takes_coupled = True
    defaults = {"alpha": 1.0, "beta": 10.0, "gamma": 1.0, "low": 0.8}

    def __init__(self, precision: Precision | None = None, **options: object) -> None:
        super().__init__(precision, **options)
        for key, most in (("alpha", float("inf")), ("beta", float("inf")), ("gamma", float("inf")), ("low", 1.0)):
            given = self.options[key]
            if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= given <= most:
                limits = "from 0 to 1" if most == 1 else "of at least 0"
                raise ConfigError(f"objective 'spectrum': {key} must be a number {limits}, got {given!r}")
        self._real: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, judgement: Judgement) -> Cotangent:
        j = judgement
        d, rows = j.gate.info.shape[0], len(j.x)
        x, a, u = j.x[:, :d], j.x[:, d : d + rows], j.x[:, d + rows :]
        if not u.shape[1]:
            raise ConfigError(
                "objective 'spectrum' judges eigenvectors, which only store 'eigenbasis' holds. Set distill.store = "
                "'eigenbasis' and distill.init = 'eigenbasis'."
            )
        if self._real is None:
            self._real = self._of_graph(j, a, u)
        values, along, means = (t.to(j.device) for t in self._real)
        projected = u.T @ x
        cosine = (F.normalize(projected, dim=1) * along).sum(1)
        smooth = u @ ((1 - values)[:, None] * projected)
        own = F.normalize(torch.stack([smooth[j.row_class == c].mean(0) for c in j.classes]), dim=1)
        loss = self.options["alpha"] * 2 * (1 - cosine.square()).mean()
        loss = loss + self.options["beta"] * _from_identity(means @ own.T)
        loss = loss + self.options["gamma"] * _from_identity(u.T @ u)
        if not j.y.requires_grad:
            return Cotangent.of(loss, j.x)
        # Labels are not looked at; this keeps autograd defined.
        return Cotangent.of(loss + 0.0 * j.y.sum(), j.x, j.y)

    def _of_graph(self, j: Judgement, a: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvalues (K,), features along eigenvectors (K, d) and class means (classes, d), both of length one."""
        data = j.gate.raw("eigenvectors of the graph, and means of classes")
        graph = graph_of(data)
        found = spectrum(graph, u.shape[1], float(self.options["low"]))
        values = found.values.float()
        if not torch.allclose(signed_adjacency(u.detach().cpu(), values), a.detach().cpu(), atol=1e-4):
            raise ConfigError(
                f"the store holds other eigenvalues than engine 'spectrum' takes from the graph. Set distill."
                f"init_options.low and distill.objective_options.low (here {self.options['low']}) alike."
            )
        along = found.vectors.T @ graph.features[found.nodes].double()
        h = graph.hop(1)[data.inputs]
        means = torch.stack([h[data.labels == c].mean(0) for c in j.classes])
        return values, F.normalize(along.float(), dim=1), F.normalize(means, dim=1)


def _from_identity(matrix: Tensor) -> Tensor:
    """Mean square of a matrix less the identity."""
    return (matrix - torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)).square().mean()
