"""Where on the spectrum of a graph its features lie, and a term that brings that of a condensed graph to the real one.

The Laplacian energy distribution (LED) of a graph with features X has an atom at every eigenvalue l_k of the Laplacian,
of mass |u_k^T X|^2 / |X|^2. Here L = I - A^, what networks propagate with, so atoms lie in [0, 2).

Source: Tang et al., Rethinking Graph Neural Networks for Anomaly Detection, ICML 2022, for the distribution; Yang et
al., Does Graph Distillation See Like Vision Dataset Counterpart? (SGDD), NeurIPS 2023, for matching it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ddfed.errors import ConfigError
from ddfed.match.base import Cotangent, Judgement, Objective, Precision
from ddfed_graph.facts import symmetric_normalised
from ddfed_graph.graph import Graph
from ddfed_graph.selectors import graph_of

#: Numbers in one of the blocks of features whose energy is looked for together.
_BLOCK = 2**22
#: Eigenvalues that are closer count as one where a difference quotient is taken.
_CLOSE = 1e-7


@dataclass(frozen=True, eq=False)
class Masses:
    """A distribution on a line.

    Args:
        at: places of the atoms, ascending, (k,) float64.
        mass: of each, (k,), at least 0 and 1 in all.
    """

    at: Tensor
    mass: Tensor

    @cached_property
    def _below(self) -> Tensor:
        """Mass up to and with each atom, from 0 on, (k + 1,)."""
        return torch.cat([self.mass.new_zeros(1), self.mass.cumsum(0)])

    @cached_property
    def _moment(self) -> Tensor:
        """Integral of Q up to where each atom begins, (k + 1,)."""
        return torch.cat([self.mass.new_zeros(1), (self.mass * self.at).cumsum(0)])

    def quantile(self, t: Tensor) -> Tensor:
        """Q(t): the place up to which a share t of the mass lies."""
        return self.at[self._atom(t)]

    def integral(self, t: Tensor) -> Tensor:
        """Integral of Q from 0 to t."""
        atom = self._atom(t)
        return self._moment[atom] + (t - self._below[atom]) * self.at[atom]

    @cached_property
    def square(self) -> Tensor:
        """Second moment."""
        return (self.mass * self.at.square()).sum()

    def _atom(self, t: Tensor) -> Tensor:
        return torch.searchsorted(self._below[1:].contiguous(), t).clamp(max=len(self.at) - 1)


@dataclass(frozen=True)
class Transport:
    """The squared Wasserstein-2 distance of one distribution to another, and how it changes with the first.

    Args:
        cost: the distance.
        slope: its derivative in the place of each atom per mass, 2 (x - mean of where it goes), (k,). Atoms at one
            place move together: apart they make a kink, of which this is a supergradient.
        potential: its derivative in the mass of each atom, up to a constant, (k,).
    """

    cost: Tensor
    slope: Tensor
    potential: Tensor


def transport(own: Masses, other: Masses) -> Transport:
    """Optimal transport on a line: the plan is monotone, so the distance is that of the quantile functions.

    With c_i the mass up to atom i, the cost is the sum over i of the integral of (x_i - Q(t))^2 from c_(i-1) to c_i,
    and moving c_i changes it by (x_i - Q(c_i))^2 - (x_(i+1) - Q(c_i))^2.
    """
    ends = own._below.clamp(max=1)
    moved = other.integral(ends).diff()
    cost = own.square - 2 * (own.at * moved).sum() + other.square
    border = other.quantile(ends[1:])
    # Atoms at one place go to the same places, as they may: which goes where would hang on the choice of eigenvectors.
    place = torch.cat([ends.new_zeros(1, dtype=torch.int64), (own.at.diff() > _CLOSE).cumsum(0)])
    mass, goal = (torch.zeros_like(part).index_add(0, place, part)[place] for part in (own.mass, moved))
    # A place without mass goes nowhere; its limit is the quantile at its border.
    goal = torch.where(mass > 1e-12, goal / mass.clamp(min=1e-12), border)
    steps = own.at.diff() * (own.at[1:] + own.at[:-1] - 2 * border[:-1])
    potential = torch.cat([steps.new_zeros(1), steps.cumsum(0)])
    return Transport(cost, 2 * (own.at - goal), potential)


def graph_energy(graph: Graph, depth: int) -> Masses:
    """The LED of a graph, by Lanczos' quadrature: no eigenvectors, and the whole graph at once.

    Every column of features is propagated ``depth`` times; its tridiagonal matrix has as eigenvalues and squared first
    components the places and masses of a rule that is exact for polynomials up to degree 2 depth - 1. So are the
    moments of the sum of all columns.

    Source: Golub and Meurant, Matrices, Moments and Quadrature with Applications, 2010, chapter 4.

    Raises:
        ConfigError: all features are zero.
    """
    lengths = graph.features.double().square().sum(0)
    columns = torch.nonzero(lengths).flatten()
    if not len(columns):
        raise ConfigError("all features of the graph are zero, so they lie nowhere on its spectrum; take another term")
    matrix = graph.normalised.double()
    found = [
        _quadrature(matrix, graph.features[:, some].double(), depth)
        for some in columns.split(max(1, _BLOCK // len(graph)))
    ]
    at, mass = (torch.cat(parts).flatten() for parts in zip(*found))
    order = at.argsort()
    return Masses(1 - at[order].flip(0), (mass[order] / lengths.sum()).flip(0))


def _quadrature(matrix: Tensor, x: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Places and masses for each column of x, (columns, depth); masses of a column add up to its squared length."""
    length = torch.linalg.vector_norm(x, dim=0)
    before, now, link = torch.zeros_like(x), x / length, torch.zeros_like(length)
    t = torch.zeros(x.shape[1], depth, depth, dtype=x.dtype)
    for step in range(depth):
        after = matrix @ now - link * before
        t[:, step, step] = (now * after).sum(0)
        after -= t[:, step, step] * now
        link = torch.linalg.vector_norm(after, dim=0)
        # Nothing new: the rule is exact already, and rows of zeros that follow are apart and have no mass.
        link = torch.where(link > 1e-10, link, 0.0)
        if step + 1 < depth:
            t[:, step, step + 1] = t[:, step + 1, step] = link
        before, now = now, torch.where(link > 0, after / link.clamp(min=1e-10), 0.0)
    values, vectors = torch.linalg.eigh(t)
    return values, vectors[:, 0].square() * length[:, None].square()


def energy_of(adjacency: Tensor, x: Tensor) -> tuple[Masses, Tensor, Tensor]:
    """The LED of a condensed graph, all eigenvectors of L' (k, k), and X' X'^T / |X'|^2 in them (k, k); float64.

    Args:
        adjacency: A', (k, k).
        x: X', (k, d).
    """
    values, vectors = torch.linalg.eigh(torch.eye(len(x), dtype=torch.float64) - symmetric_normalised(adjacency))
    along = vectors.T @ x
    energy = along @ along.T
    energy = energy / energy.trace().clamp(min=1e-30)
    return Masses(values, energy.diagonal()), vectors, energy


def to_real(adjacency: Tensor, x: Tensor, real: Masses) -> Tensor:
    """Squared Wasserstein-2 distance of the LED of (A', X') to another, () float64, differentiable in A' alone.

    The derivative is in closed form (Daleckii and Krein): with S = U^T X' X'^T U / |X'|^2, potential p and slope s of
    `Transport`, dW = sum_ij S_ij G_ij (U^T dL' U)_ij, G_ij = (p_i - p_j) / (l_i - l_j), and s_i where the two meet.
    Autograd through eigenvectors divides by differences of eigenvalues alone, which nodes that are alike make zero.
    """
    a = adjacency.double()
    with torch.no_grad():
        own, vectors, energy = energy_of(a, x.double())
        found = transport(own, real)
        gap = own.at[:, None] - own.at
        near = gap.abs() < _CLOSE
        quotient = (found.potential[:, None] - found.potential) / torch.where(near, 1.0, gap)
        quotient = torch.where(near, found.slope[:, None], quotient)
        gradient = vectors @ (energy * quotient) @ vectors.T
    # L' = I - A^': a linear function with the right value and derivative.
    linear = -(gradient * symmetric_normalised(a)).sum()
    return found.cost + linear - linear.detach()


class LaplacianEnergy(Objective):
    """Squared Wasserstein-2 distance between the Laplacian energy distributions of the condensed and the real graph.

    It moves the adjacency alone: rows' features get no cotangent of it, though a store that makes the adjacency of
    features passes it on to them. The real graph is looked at once; no label is.

    Source: Yang et al., SGDD, NeurIPS 2023, structure term. Departures: the distance is that of the two distributions
    themselves, which on a line has a closed form. The paper's surrogate compares Gaussian signals by a learned plan
    between nodes (coordinated optimal transport), and its code takes adjacencies for Laplacians, leaves the plan's
    normalisation out and zero where decompositions fail; it samples 5,000 nodes of large graphs, where this takes the
    whole graph. The term is there in every step, as a term knows of no turns.

    Options:
        depth: steps of Lanczos' method on the real graph (`graph_energy`).
    """

    name = "laplacian-energy"
    whole_set = True
    takes_coupled = True
    defaults = {"depth": 30}

    def __init__(self, precision: Precision | None = None, **options: Any) -> None:
        super().__init__(precision, **options)
        depth = self.options["depth"]
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise ConfigError(f"objective {self.name!r}: depth must be an integer of at least 1, got {depth!r}")
        self._real: Masses | None = None

    def __call__(self, judgement: Judgement) -> Cotangent:
        j = judgement
        d, rows = j.gate.info.shape[0], len(j.x)
        if not j.coupled or j.x.shape[1] != d + rows:
            raise ConfigError(
                f"objective {self.name!r} judges an adjacency, and rows have {tuple(j.x.shape[1:])} values where "
                f"features and an adjacency are {d + rows}. Set distill.store = 'graphon' or 'pge'."
            )
        if self._real is None:
            data = j.gate.raw("where on the spectrum of the graph its features lie")
            self._real = graph_energy(graph_of(data), self.options["depth"])
        rows_on_cpu = j.x.cpu()
        loss = to_real(rows_on_cpu[:, d:], rows_on_cpu[:, :d].detach(), self._real)
        none = torch.zeros_like(j.y) if j.y.requires_grad else None
        return Cotangent(torch.autograd.grad(loss, j.x)[0], none, float(loss.detach()))
