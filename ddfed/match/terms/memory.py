"""Terms that remember: what they hold goes into checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddfed.data import Batch
from ddfed.domain import Network
from ddfed.errors import ConfigError
from ddfed.gate import Query
from ddfed.match.base import Judgement
from ddfed.match.terms.base import Real, Scene, Term, View
from ddfed.seeds import Streams
from ddfed.select import choose_kmeans


class Prototype(Term):
    """prototype: |mean_s - h_c|^2 with h_c a running mean of the class means of earlier steps (DSDM, equation 9).

    h_c starts as the first mean seen and then moves by 1 - decay of the way to each new one, after it was compared,
    whatever network was drawn.

    Options:
        decay: of the running mean.
        start: outer step from which on the term counts; the mean runs from the first step.
    """

    name = "prototype"
    defaults = {"decay": 0.99, "start": 2000, "network": "drawn"}
    asks = ""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._means: dict[int, Tensor] = {}

    def prepare(self, scene: Scene) -> None:
        self._counts = scene.judgement.step >= self.options["start"]

    def loss(self, syn: View, real: Real | None) -> Tensor:
        means = syn.means(syn.features)
        total = means.new_zeros(())
        for c, mean in zip(syn.classes, means):
            held = self._means.get(c, mean.detach()).to(mean)
            if self._counts:
                total = total + (mean - held).square().sum()
            self._means[c] = held.lerp(mean.detach(), 1 - self.options["decay"])
        return total

    def state(self) -> dict[str, Any]:
        return {"means": {str(c): mean for c, mean in self._means.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        self._means = {int(c): mean for c, mean in state["means"].items()}


class Barycentre(Term):
    """barycentre: |g(S_c) - B_c|_F, row j of a class to atom j, summed over classes (WMDD, equation 8).

    B_c are the atoms of the Wasserstein barycentre of the class's real features under one fixed trained network, as
    many as the class has rows, with uniform weights; see `barycentre`. They are computed when a class is first
    judged, from all its real rows.

    Options:
        rounds: free-support updates.
    """

    name = "barycentre"
    defaults = {"rounds": 10, "network": "expert"}
    asks = ""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._atoms: dict[int, Tensor] = {}
        self._network_sum = 0.0

    def prepare(self, scene: Scene) -> None:
        j, net = scene.judgement, scene.network(self.which)
        total = float(sum(p.detach().double().sum() for p in net.parameters()))
        if self._atoms and not math.isclose(total, self._network_sum, rel_tol=1e-6, abs_tol=1e-6):
            raise ConfigError(
                "term 'barycentre' computes its atoms once under one network, and was now given another. Set "
                "distill.pool = 'T' with distill.pool_options.networks = 1."
            )
        self._network_sum = total
        for c in j.classes:
            if c not in self._atoms:
                self._atoms[c] = self._computed(j, net, c)

    def _computed(self, j: Judgement, net: Network, c: int) -> Tensor:
        def features(batch: Batch) -> Tensor:
            return net.embed(batch.inputs.to(j.device))

        streams, query = j.streams.child("barycentre", c), Query("features for a barycentre", (c,))
        found = j.gate.each(query, features, streams.torch("rows")).values
        atoms = int((j.row_class == c).sum())
        if len(found) < atoms:
            raise ConfigError(
                f"term 'barycentre' needs as many real rows as synthetic ones; class {c} has {len(found)} real and "
                f"{atoms} synthetic rows. Lower distill.ipc."
            )
        return barycentre(found, atoms, streams, int(self.options["rounds"]))

    def loss(self, syn: View, real: Real | None) -> Tensor:
        gaps = [mine - self._atoms[c].to(mine) for c, mine in zip(syn.classes, syn.split(syn.features))]
        return torch.stack([torch.linalg.vector_norm(gap) for gap in gaps]).sum()

    def state(self) -> dict[str, Any]:
        return {"atoms": {str(c): atoms for c, atoms in self._atoms.items()}, "network_sum": self._network_sum}

    def load(self, state: Mapping[str, Any]) -> None:
        self._atoms = {int(c): atoms for c, atoms in state["atoms"].items()}
        self._network_sum = float(state["network_sum"])


def barycentre(points: Tensor, atoms: int, streams: Streams, rounds: int = 10) -> Tensor:
    """Atoms of equal weight nearest to the points in the 2-Wasserstein distance, a local minimum.

    With uniform weights on both sides this is balanced k-means: transport the points to the atoms, each atom taking
    an equal share, and move each atom to the mean of what it took (Cuturi and Doucet, Fast Computation of Wasserstein
    Barycenters, ICML 2014, algorithm 2 with one measure). It starts from the points nearest the k-means centres.

    Args:
        points: (n, width).
        atoms: how many, at most n.
        streams: draws the start.
        rounds: updates.

    Returns:
        (atoms, width), in the dtype of ``points``.
    """
    x = points.double()
    held = x[choose_kmeans(x.cpu(), atoms, streams.torch("start")).to(x.device)]
    for _ in range(rounds):
        plan = balanced_plan(torch.cdist(x, held).square())
        moved = (plan.T @ x) * atoms
        if torch.allclose(moved, held):
            break
        held = moved
    return held.to(points)


def balanced_plan(cost: Tensor, regularisation: float = 2e-3, iterations: int = 100) -> Tensor:
    """Transport of n equal points to m equal atoms of little cost, by Sinkhorn's iterations in logarithms.

    The entropy falls by halves from the largest cost to its last value. Begun at the last one, the iterations would
    take very long where points must cross a gap for the shares to be equal.

    Args:
        cost: (n, m) float64.
        regularisation: last entropy, in units of the largest cost; at 0 the plan would be the cheapest one.
        iterations: most pairs of updates at each entropy.

    Returns:
        (n, m); columns sum to 1 / m, rows to about 1 / n.
    """
    (n, m), largest = cost.shape, float(cost.max())
    atoms = cost.new_zeros(m)  # the dual variables, in units of the cost
    scale = 1.0
    while True:
        scale = max(scale / 2, regularisation)
        entropy = max(scale * largest, torch.finfo(cost.dtype).tiny)
        for _ in range(iterations):
            before = atoms
            points = -entropy * (math.log(n) + torch.logsumexp((atoms - cost) / entropy, 1))
            atoms = -entropy * (math.log(m) + torch.logsumexp((points[:, None] - cost) / entropy, 0))
            if float((atoms - before).abs().max()) < 1e-3 * entropy:  # shares of points are right to a thousandth
                break
        if scale == regularisation:
            return torch.exp((points[:, None] + atoms - cost) / entropy)
