"""Whitening against an independent numpy version of each definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddfed.errors import ConfigError, DataError, UnknownNameError
from ddfed.space import Space
from ddfed_image import zca


def rows(count: int, width: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(count, width, generator=generator) @ torch.rand(width, width, generator=generator)).view(
        count, 3, 2, 2
    )


def mtt_by_svd(x: np.ndarray) -> np.ndarray:
    covariance = np.cov(x, rowvar=False)
    u, s, _ = np.linalg.svd(covariance)
    return u @ np.diag(1 / np.sqrt(s + 0.1)) @ u.T


def frepo_by_svd(x: np.ndarray) -> np.ndarray:
    count, width = x.shape
    centred = x - x.mean(0)
    covariance = centred.T @ centred / count
    u, s, _ = np.linalg.svd(covariance + 0.1 * np.trace(covariance) / width * np.eye(width))
    scales = s**-0.5
    if count < width:
        scales = np.concatenate([scales[:count], np.ones(width - count)])
    return np.einsum("ij,j,kj->ik", u, scales, u)


@pytest.mark.parametrize(("name", "naive"), [("mtt", mtt_by_svd), ("frepo", frepo_by_svd)])
@pytest.mark.parametrize("chunk", [7, 4096])
def test_agrees_with_numpy(name, naive, chunk):
    x = rows(50)
    found = zca.fit(x, name, chunk)
    flat = x.flatten(1).double().numpy()
    np.testing.assert_allclose(found["center"], flat.mean(0), atol=1e-6)
    np.testing.assert_allclose(found["matrix"], naive(flat), atol=1e-4)


def test_directions_without_samples_keep_their_scale():
    """With 5 rows in 12 dimensions, frepo leaves 7 directions at scale 1."""
    x = rows(5)
    matrix = zca.fit(x, "frepo")["matrix"]
    values = torch.linalg.eigvalsh(matrix.double())
    assert ((values - 1).abs() < 1e-5).sum() == 7
    # Of the 4 directions the centred rows do span, the images agree with the naive version.
    flat = x.flatten(1).double().numpy()
    centred = flat - flat.mean(0)
    np.testing.assert_allclose(centred @ matrix.numpy(), centred @ frepo_by_svd(flat), atol=1e-4)


def test_scaling_the_pixels_changes_mtt_only():
    """Absolute against relative regularisation: the reason why the two do not compare."""
    x = rows(50)
    white = {}
    for name in ("mtt", "frepo"):
        for factor in (1.0, 10.0):
            space = Space(whitening=name, tensors=zca.fit(x * factor, name))
            white[name, factor] = space.encode(x * factor)
    torch.testing.assert_close(white["frepo", 1.0], white["frepo", 10.0], atol=1e-3, rtol=1e-3)
    assert (white["mtt", 1.0] - white["mtt", 10.0]).abs().max() > 0.1


def test_unit_covariance_when_nothing_is_regularised(monkeypatch):
    monkeypatch.setattr(zca, "EPSILON", 1e-9)
    x = rows(200)
    space = Space(whitening="mtt", tensors=zca.fit(x, "mtt"))
    covariance = np.cov(space.encode(x).flatten(1).numpy(), rowvar=False)
    np.testing.assert_allclose(covariance, np.eye(12), atol=1e-2)


@pytest.mark.parametrize("name", ["mtt", "frepo"])
def test_a_whitened_task_decodes_to_its_pixels(domain, name):
    plain = domain.load("digits", None, {})
    task = domain.load("digits", None, {"whitening": name})
    assert task.info.space.kind == "whitened"
    assert bool(task.info.space.mean) is (name == "frepo")
    assert task.train.info is task.info and task.test.info is task.info
    batch = task.test.batch(torch.arange(8))
    pixels = plain.info.space.decode(plain.test.batch(torch.arange(8)).inputs)
    torch.testing.assert_close(task.info.space.decode(batch.inputs), pixels, atol=1e-4, rtol=0)


def test_whitening_is_remembered(domain, own_cache, monkeypatch):
    first = domain.load("digits", None, {"whitening": "mtt"}).info.space.tensors
    monkeypatch.setattr(zca, "fit", lambda *_: pytest.fail("computed again"))
    again = domain.load("digits", None, {"whitening": "mtt"}).info.space.tensors
    assert torch.equal(first["matrix"], again["matrix"])
    assert len(list(own_cache.iterdir())) == 1


def test_kip_is_refused_with_alternatives(domain):
    with pytest.raises(ConfigError, match="'frepo'.*'mtt'"):
        domain.load("digits", None, {"whitening": "kip"})


def test_unknown_whitening_names_the_near_one(domain):
    with pytest.raises(UnknownNameError, match="Did you mean 'frepo'"):
        domain.load("digits", None, {"whitening": "freppo"})


def test_too_few_or_equal_rows():
    with pytest.raises(DataError, match="at least 2"):
        zca.fit(torch.rand(1, 3), "mtt")
    with pytest.raises(DataError, match="all are equal"):
        zca.fit(torch.ones(4, 3), "frepo")
