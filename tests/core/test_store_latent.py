"""Latents of a generator: found, decoded, tied to the weights they were made for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddfed.data import TaskInfo
from ddfed.errors import ArtifactError, ConfigError, UnknownNameError
from ddfed.registry import Component, registry
from ddfed.seeds import Streams, isolated
from ddfed.store import Latents
from ddfed.store.latent import Generator
from ddfed.testing import twin_task

INFO = twin_task().info


class Linear(Generator):
    """Another linear map for each class; its weights come from a seed."""

    def __init__(self, info: TaskInfo, seed: int = 0, width: int = 32) -> None:
        super().__init__()
        self.latent_shape, self._shape = (width,), info.shape
        with isolated(seed):
            # Orthonormal rows, so that a search is well conditioned.
            self.weight = nn.Parameter(torch.linalg.qr(torch.randn(info.num_classes, 32, width)).Q.mT.contiguous())

    def forward(self, z: Tensor, classes: Tensor) -> Tensor:
        return torch.einsum("nw,nwd->nd", z, self.weight[classes]).view(-1, *self._shape)


@pytest.fixture(autouse=True)
def linear(monkeypatch: pytest.MonkeyPatch):
    """The generator ``linear`` as a plugin would offer it."""
    offered = Component("generator", "linear", f"{__name__}:Linear")
    monkeypatch.setitem(registry()._components, ("generator", "linear"), offered)


def rows(count: int) -> Tensor:
    return torch.randn(count, 1, *INFO.shape, generator=torch.Generator().manual_seed(1))


def test_a_generator_that_enlarges_reproduces_what_is_smooth():
    store = Latents(INFO, torch.tensor([0, 1]))
    small = torch.randn(2, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    store.params["latents"] = small.clone().requires_grad_()
    smooth = store.decode(torch.arange(2))[0].detach()
    assert smooth.shape == (2, *INFO.shape)
    ones = torch.ones(2, 1, *INFO.shape)
    store.fill(ones)
    assert torch.allclose(store.decode(torch.arange(2))[0], ones[:, 0], atol=1e-6)


def test_latents_are_searched_where_the_generator_cannot_invert_and_classes_matter():
    store = Latents(INFO, torch.tensor([0, 2, 1]), generator="linear", fit_steps=800)
    x = rows(3)
    store.fill(x, Streams(0))
    error = (store.decode(torch.arange(3))[0] - x[:, 0]).square().mean()
    assert float(error.detach()) < 0.01
    store.classes = torch.tensor([1, 2, 0])
    swapped = (store.decode(torch.arange(3))[0] - x[:, 0]).square().flatten(1).mean(1)
    assert float(swapped[1].detach()) < 0.01 < float(swapped[0].detach())


def test_gradients_reach_the_latents_and_not_the_generator():
    store = Latents(INFO, torch.tensor([0, 1]), generator="linear", fit_steps=0)
    store.fill(rows(2))
    store.decode(torch.tensor([1]))[0].sum().backward()
    grad = store.params["latents"].grad
    assert grad is not None and bool((grad[0] == 0).all()) and bool((grad[1] != 0).any())
    assert all(p.grad is None for p in store.generator.parameters())


def test_other_weights_are_refused():
    one = Latents(INFO, torch.tensor([0]), generator="linear", fit_steps=0)
    one.fill(rows(1))
    Latents(INFO, torch.tensor([0]), generator="linear").load(one.tensors())
    with pytest.raises(ArtifactError, match="other weights of generator 'linear'"):
        Latents(INFO, torch.tensor([0]), generator="linear", settings={"seed": 1}).load(one.tensors())


def test_a_budget_counts_items_or_bytes():
    few = {"generator": "linear", "settings": {"width": 4}}
    assert Latents.items_per_class(INFO, 2, 3, **few) == 2
    # 2 plain items of 32 values each and class, less 32 bytes of fingerprint, hold 15 latents of 4 values.
    assert Latents.items_per_class(INFO, 2, 3, **few, count="bytes") == 15


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"generator": "linera"}, UnknownNameError, "linera.*linear"),
        ({"count": "pixels"}, ConfigError, "count must be 'items' or 'bytes'"),
        ({"settings": {"share": 2}}, ConfigError, "share must be above 0 and up to 1"),
        ({"fit_lr": 0}, ConfigError, "fit_lr must be a number above 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        Latents(INFO, torch.tensor([0]), **options)


def test_a_generator_of_other_shapes_is_refused():
    store = Latents(INFO, torch.tensor([0]), generator="linear", fit_steps=0)
    store.info = replace(INFO, shape=(2, 4, 5))
    with pytest.raises(ConfigError, match=r"makes rows of shape \(2, 4, 4\).*have \(2, 4, 5\)"):
        store.decode(torch.tensor([0]))


def test_without_real_rows_latents_begin_as_the_generator_was_taught_them():
    store = Latents(INFO, torch.tensor([0, 1]), generator="linear")
    store.fill_noise(Streams(3))
    again = Latents(INFO, torch.tensor([0, 1]), generator="linear")
    again.fill_noise(Streams(3))
    z = store.params["latents"].detach()
    assert torch.equal(z, again.params["latents"])
    assert 0.6 < float(z.std()) < 1.4
    store.check_buffers()


def test_a_generator_that_inverts_begins_with_what_it_makes_of_noise():
    store = Latents(INFO, torch.tensor([0, 1]))
    store.fill_noise(Streams(3))
    noise = torch.randn(2, 1, *INFO.shape, generator=Streams(3).torch("init noise"))
    expected = Latents(INFO, torch.tensor([0, 1]))
    expected.fill(noise)
    assert torch.equal(store.params["latents"], expected.params["latents"])
