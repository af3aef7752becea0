"""ZCA whitening under its three published names, which do not mix.

A "with ZCA" accuracy compares only inside its line of work: on CIFAR the absolute regularisation of the MTT
line adds about 1.6 mean eigenvalues, the relative one 0.1 of one.

- ``mtt`` (Cazenave et al., MTT, CVPR 2022; FTD, DATM): pixels in [0, 1] without mean and deviation; subtract
  the mean vector of the training set, covariance divided by N - 1, W = V diag((s + 0.1)^-1/2) V^T.
- ``frepo`` (Zhou et al., FRePo, NeurIPS 2022; RCIG): standardise per channel, subtract the mean vector,
  covariance C divided by N, W = V diag(s^-1/2) V^T with s, V of C + 0.1 (tr C / d) I.
- ``kip`` (Nguyen et al., NeurIPS 2021): divides every image by its own norm, which no fixed linear map can.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddfed.errors import ConfigError, DataError, UnknownNameError, one_of, suggest

WHITENINGS = ("mtt", "frepo", "kip")
EPSILON = 0.1


def check(name: str) -> str:
    """The name, if a `ddfed.space.Space` can hold that whitening.

    Raises:
        UnknownNameError: no such definition.
        ConfigError: ``kip``, which is no linear map.
    """
    if not isinstance(name, str) or name not in ("", *WHITENINGS):
        raise UnknownNameError(
            f"unknown whitening {name!r}.{suggest(str(name), WHITENINGS)} Possible: '' (none), {one_of(WHITENINGS[:2])}"
        )
    if name == "kip":
        raise ConfigError(
            "whitening 'kip' first brings every image to zero mean and unit norm of its own, so the map "
            "differs from image to image and a synthetic one could not be shown or evaluated again; it is "
            "not offered. Use 'frepo', which has the same regularisation, or 'mtt'."
        )
    return name


def fit(rows: Tensor, name: str, chunk: int = 4096) -> dict[str, Tensor]:
    """Whitening of a training set.

    Args:
        rows: (n, *item), n >= 2: pixels in [0, 1] for ``mtt``, standardised values for ``frepo``.
        name: ``"mtt"`` or ``"frepo"``.
        chunk: rows per partial sum; bounds the float64 copies.

    Returns:
        ``center`` (d,) and symmetric ``matrix`` (d, d), float32: white = (x - center) @ matrix.

    Raises:
        UnknownNameError, ConfigError: see `check`.
        DataError: fewer than two rows, or nothing but equal ones under ``frepo``.
    """
    check(name)
    flat = rows.flatten(1)
    count, width = flat.shape
    if count < 2:
        raise DataError(f"whitening needs at least 2 training items, got {count}")
    center = sum(part.double().sum(0) for part in flat.split(chunk)) / count
    assert isinstance(center, Tensor)
    center32 = center.float()
    scatter = torch.zeros(width, width, dtype=torch.float64)
    for part in flat.split(chunk):
        # Products in float32 halve the time; summing the chunks in float64 keeps seven digits.
        centred = part.float() - center32
        scatter += (centred.T @ centred).double()
    matrix = _mtt(scatter / (count - 1)) if name == "mtt" else _frepo(scatter / count, count)
    return {"center": center32, "matrix": matrix.float()}


def _mtt(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * (values.clamp(min=0) + EPSILON).rsqrt()) @ vectors.T


def _frepo(covariance: Tensor, count: int) -> Tensor:
    width = len(covariance)
    ridge = EPSILON * covariance.trace() / width
    if ridge <= 0:
        raise DataError("whitening 'frepo' needs training items that differ; all are equal. Leave it out.")
    values, vectors = torch.linalg.eigh(covariance)
    scales = (values.clamp(min=0) + ridge).rsqrt()
    if count < width:
        # Directions no sample spans are left as they are (KIP's code, taken over by FRePo). eigh ascends.
        scales[: width - count] = 1.0
    return (vectors * scales) @ vectors.T
