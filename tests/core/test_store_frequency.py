"""The cosine store against scipy, and its masks against a loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import scipy.fft
import torch

from ddfed.errors import ArtifactError
from ddfed.space import Space
from ddfed.store import Frequencies
from ddfed.store.frequency import cosine_transform
from ddfed.testing import twin_task

INFO = twin_task().info


def info(*shape: int, cells: tuple[int, ...] = (-2, -1)):
    return replace(INFO, shape=shape, cell_axes=cells, space=Space())


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_the_transform_is_orthonormal_and_scipys(length: int):
    matrix = cosine_transform(length)
    assert torch.allclose(matrix @ matrix.T, torch.eye(length), atol=1e-6)
    want = scipy.fft.dct(torch.eye(length).numpy(), axis=0, norm="ortho")
    assert torch.allclose(matrix, torch.from_numpy(want).float(), atol=1e-6)


@pytest.mark.parametrize(("shape", "cells"), [((3, 8, 6), (-2, -1)), ((2, 9), (-1,)), ((2, 3, 4, 5), (-3, -2, -1))])
def test_all_frequencies_reproduce_the_rows(shape: tuple[int, ...], cells: tuple[int, ...]):
    store, x = Frequencies(info(*shape, cells=cells), torch.tensor([0, 1, 1]), share=1.0), random(3, 1, *shape)
    store.fill(x)
    rows, origin = store.decode(torch.tensor([2, 0]))
    assert torch.allclose(rows, x[[2, 0], 0], atol=1e-5) and origin.tolist() == [0, 1]


@pytest.mark.parametrize("by", ["variance", "energy"])
def test_what_is_kept_is_what_a_loop_over_classes_keeps(by: str):
    classes = torch.tensor([2, 0, 2, 0, 2])
    store, x = Frequencies(info(3, 6, 4), classes, share=0.3, by=by), random(5, 1, 3, 6, 4) + 0.5
    store.fill(x)
    spectrum = torch.from_numpy(scipy.fft.dctn(x[:, 0].double().numpy(), axes=(2, 3), norm="ortho"))
    rows, _ = store.decode(torch.arange(5))
    assert store.kept == 7
    for c in (0, 2):
        grey = spectrum[classes == c].mean(1)
        score = grey.var(0) if by == "variance" else (grey**2).mean(0)
        mask = torch.zeros(24, dtype=torch.bool)
        mask[score.flatten().sort(descending=True).indices[:7]] = True
        for item in torch.nonzero(classes == c).flatten():
            want = scipy.fft.idctn((spectrum[item] * mask.view(6, 4)).numpy(), axes=(1, 2), norm="ortho")
            assert torch.allclose(rows[item].double(), torch.from_numpy(want), atol=1e-5)


def test_variance_does_not_see_the_mean_of_a_class_and_energy_does():
    noise = 0.1 * random(4, 1, 2, 4, 4)
    x = noise - noise.mean((2, 3, 4), keepdim=True) + 5.0  # frequency 0 is large and the same for all rows
    for by, seen in (("variance", False), ("energy", True)):
        store = Frequencies(info(2, 4, 4), torch.zeros(4, dtype=torch.int64), share=0.3, by=by)
        store.fill(x)
        assert (0 in store.buffers["frequencies"][0].tolist()) is seen


def test_a_single_row_keeps_its_strongest_frequencies():
    store, x = Frequencies(info(1, 4, 4), torch.tensor([1]), share=0.25), random(1, 1, 1, 4, 4)
    store.fill(x)
    spectrum = torch.from_numpy(scipy.fft.dctn(x[0, 0, 0].numpy(), norm="ortho")).flatten()
    assert sorted(store.buffers["frequencies"][0].tolist()) == sorted(spectrum.abs().topk(4).indices.tolist())


@pytest.mark.parametrize(("shape", "bytes_each"), [((3, 16, 16), 1), ((3, 32, 32), 2)])
def test_masks_count_in_the_budget_in_the_smallest_integers(shape: tuple[int, ...], bytes_each: int):
    positions, channels = shape[1] * shape[2], shape[0]
    kept = positions // 4
    want = (10 * 4 * channels * positions - kept * bytes_each) // (4 * channels * kept)
    assert Frequencies.items_per_class(info(*shape), 10, 3) == want == 39
    store = Frequencies(info(*shape), torch.arange(3))
    assert store.buffers["frequencies"].element_size() == bytes_each


def test_items_of_some_classes_keep_their_masks_alone():
    classes = torch.tensor([0, 1, 1, 2])
    store = Frequencies(info(2, 6, 6), classes, share=0.2)
    store.fill(random(4, 1, 2, 6, 6))
    taken = store.take(torch.tensor([3, 1]))
    assert torch.equal(taken.buffers["frequencies"], store.buffers["frequencies"][[1, 2]])
    assert torch.equal(taken.decode(torch.arange(2))[0], store.decode(torch.tensor([3, 1]))[0])


def test_coefficients_are_not_clamped_by_the_range_of_values():
    store = Frequencies(info(2, 6, 6), torch.arange(2))
    store.fill(9 * random(2, 1, 2, 6, 6))
    before = store.params["coefficients"].detach().clone()
    store.constrain()
    assert torch.equal(store.params["coefficients"], before) and float(before.detach().max()) > 1


def test_frequencies_outside_are_refused():
    store = Frequencies(info(1, 4, 4), torch.arange(2))
    with pytest.raises(ArtifactError, match="frequencies leave the range 0 to 15"):
        store.load({**store.tensors(), "frequencies": torch.full((2, 4), 16, dtype=torch.uint8)})
    with pytest.raises(ArtifactError, match="must be torch.uint8"):
        store.load({**store.tensors(), "frequencies": torch.zeros(2, 4, dtype=torch.int64)})
