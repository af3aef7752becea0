"""Terms that compare the rows of a class one by one."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ddfed.errors import ConfigError
from ddfed.gate import Answer
from ddfed.match.terms.base import Real, RowTerm, Scene, View, mean_distance

#: The five bandwidths of M3D's Gaussian kernel, as powers of two of the mean squared distance.
_OCTAVES = (-2, -1, 0, 1, 2)
#: Fixed rates of what the authors call a Laplace kernel, which is a sum of Gaussians.
_LAPLACE = (0.1, 1.0, 5.0)


class MMD(RowTerm):
    """mmd: squared maximum mean discrepancy, the biased V-statistic with its diagonals (M3D, equation 7).

    Kernels: ``gaussian`` is the sum over j = -2..2 of exp(-|u - v|^2 / (2^j h)), where h is the mean squared distance
    of distinct rows of the joint batch. h is detached: else the set shrinks the kernel instead of matching.
    ``linear`` is the term ``mean``; ``polynomial`` is (u v + 1)^2; ``laplace`` is a sum of Gaussians of fixed width.
    ``fourier`` is ``gaussian`` by random frequencies, drawn anew every step: a distance of class means, which needs
    sums of real rows only, but cannot measure h; its value is `bandwidth`.

    Options:
        kernel: see above.
        bandwidth: h; None to measure it (not with ``fourier``).
        frequencies: ``fourier``: how many for each of the five widths.
    """

    name = "mmd"
    defaults = {"kernel": "gaussian", "bandwidth": None, "frequencies": 256, "network": "drawn"}
    KERNELS: ClassVar[tuple[str, ...]] = ("gaussian", "linear", "polynomial", "laplace", "fourier")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.kernel = self._choice("kernel", self.KERNELS)
        self.bandwidth: float | None = self.options["bandwidth"]
        if self.bandwidth is not None and not self.bandwidth > 0:
            raise ConfigError(f"term 'mmd': bandwidth must be above 0, got {self.bandwidth}")
        if self.kernel == "fourier":
            self.asks = "sums"
            if self.bandwidth is None:
                raise ConfigError(
                    "term 'mmd': kernel 'fourier' asks for sums only, which do not tell how far rows are apart. Give "
                    "bandwidth, a squared distance, or take kernel 'gaussian', which measures it."
                )

    def prepare(self, scene: Scene) -> None:
        self._streams, self._step = scene.judgement.streams, scene.judgement.step
        self._frequencies: Tensor | None = None

    def contribution(self, real: View) -> Tensor:
        return self._waves(real.features) if self.kernel == "fourier" else real.features

    def loss(self, syn: View, real: Real | None) -> Tensor:
        if isinstance(real, Answer):
            return mean_distance(real.means, syn.means(self.contribution(syn)))
        return super().loss(syn, real)

    def distance(self, real: Tensor, syn: Tensor) -> Tensor:
        if self.kernel == "linear":
            return (real.mean(0) - syn.mean(0)).square().sum()
        if self.kernel == "polynomial":
            return _discrepancy(real, syn, lambda u, v: (u @ v.T + 1).square())
        if self.kernel == "laplace":
            return _gaussians(real, syn, _LAPLACE)
        h = mean_squared_distance(torch.cat([syn.detach(), real])) if self.bandwidth is None else self.bandwidth
        return _gaussians(real, syn, [1 / (h * 2.0**octave) for octave in _OCTAVES])

    def _waves(self, features: Tensor) -> Tensor:
        """Features whose inner product estimates the kernel: cos and sin of w x with w ~ N(0, 2 / (2^j h))."""
        assert self.bandwidth is not None
        count = int(self.options["frequencies"])
        if self._frequencies is None:
            generator = self._streams.torch("fourier", self._step)
            drawn = torch.randn(len(_OCTAVES), count, features.shape[1], generator=generator)
            scale = torch.tensor([(2 / (self.bandwidth * 2.0**octave)) ** 0.5 for octave in _OCTAVES])
            self._frequencies = (drawn * scale[:, None, None]).flatten(0, 1).to(features)
        angles = features @ self._frequencies.T
        return torch.cat([angles.cos(), angles.sin()], 1) / count**0.5


def mean_squared_distance(rows: Tensor) -> Tensor:
    """Mean of |u - v|^2 over pairs of distinct rows (n, width), n >= 2; from sums, without the n^2 distances."""
    n = len(rows)
    total = 2 * (n * rows.square().sum() - rows.sum(0).square().sum())
    return (total / (n * n - n)).clamp(min=torch.finfo(rows.dtype).tiny)


def _gaussians(real: Tensor, syn: Tensor, rates: Any) -> Tensor:
    def kernel(u: Tensor, v: Tensor) -> Tensor:
        squared = (u.square().sum(1)[:, None] + v.square().sum(1) - 2 * u @ v.T).clamp(min=0)
        return torch.stack([torch.exp(-squared * rate) for rate in rates]).sum(0)

    return _discrepancy(real, syn, kernel)


def _discrepancy(real: Tensor, syn: Tensor, kernel: Any) -> Tensor:
    # The block of real rows is a constant of the synthetic ones, but makes the value a squared distance.
    return kernel(syn, syn).mean() - 2 * kernel(syn, real).mean() + kernel(real, real).mean()


class Covariance(RowTerm):
    """covariance: |Cov_syn - Cov_real|_F^2 of the features of each class, with n - 1 (DSDM, equation 7).

    By the Gram identity |A^T A - B^T B|^2 = |A A^T|^2 + |B B^T|^2 - 2 |A B^T|^2 nothing of size width x width is
    made. Published weights divide by the width; write 50 / 2048 where a paper has 50 and a mean.
    """

    name = "covariance"
    defaults = {"network": "drawn"}
    fewest = 2

    def distance(self, real: Tensor, syn: Tensor) -> Tensor:
        a, b = ((rows - rows.mean(0)) / (len(rows) - 1) ** 0.5 for rows in (syn, real))
        return (a @ a.T).square().sum() + (b @ b.T).square().sum() - 2 * (a @ b.T).square().sum()


class Quantile(RowTerm):
    """quantile: mean over i of |s_(i) - q_i|^2, summed over the width, with s sorted in each dimension (LQM).

    q_i is the real batch's quantile at level (2 i - 1) / (2 n), i = 1..n, linear between order statistics; these
    levels minimise the Cramer-von Mises statistic of n points. At one row a class it matches the median.
    """

    name = "quantile"
    defaults = {"network": "drawn"}

    def distance(self, real: Tensor, syn: Tensor) -> Tensor:
        n = len(syn)
        levels = (2 * torch.arange(n, device=real.device) + 1) / (2 * n)
        return (syn.sort(0).values - quantiles(real, levels)).square().sum() / n


def quantiles(rows: Tensor, levels: Tensor) -> Tensor:
    """Quantiles of each column of ``rows`` (n, width), (levels, width); as `torch.quantile`, of any size."""
    ordered = rows.sort(0).values
    place = levels.to(rows) * (len(rows) - 1)
    below = place.floor().long()
    share = (place - below).unsqueeze(1)
    return ordered[below] * (1 - share) + ordered[(below + 1).clamp(max=len(rows) - 1)] * share


class Hausdorff(RowTerm):
    """hausdorff: average Hausdorff distance, (mean_s min_t |s - t| + mean_t min_s |s - t|) / 2 (finite cover).

    The gradient flows through the nearest pairs. At distance zero, as when a set starts from real rows, it is zero.

    Options:
        of: ``items`` for the rows themselves, or ``features`` under a network.
    """

    name = "hausdorff"
    defaults = {"of": "items", "network": "drawn"}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sees = (self._choice("of", ("items", "features")),)

    def contribution(self, real: View) -> Tensor:
        return real.x.flatten(1) if self.sees == ("items",) else real.features

    def distance(self, real: Tensor, syn: Tensor) -> Tensor:
        with torch.no_grad():
            gaps = torch.cdist(syn, real)
            to_real, to_syn = gaps.argmin(1), gaps.argmin(0)
        # Only the pairs are differentiated: exact near zero, and no (syn, real) table is kept.
        there = torch.linalg.vector_norm(syn - real[to_real], dim=1).mean()
        back = torch.linalg.vector_norm(syn[to_syn] - real, dim=1).mean()
        return (there + back) / 2
