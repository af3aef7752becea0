"""Natural and model values: one map, its inverse, and the card that carries it."""

from __future__ import annotations

import json

import pytest
import torch

from ddfed.errors import ArtifactError, ConfigError
from ddfed.space import Space


def whitened(size: int = 18, mean: tuple[float, ...] = (), std: tuple[float, ...] = ()) -> Space:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.eye(size) * 3 + 0.1 * torch.randn(size, size, generator=generator)
    return Space(
        mean, std, whitening="test", tensors={"center": torch.rand(size, generator=generator), "matrix": matrix}
    )


SPACES = {
    "identity": Space(),
    "affine": Space((0.2, 0.5), (0.1, 2.0)),
    "whitened": whitened(),
    "both": whitened(mean=(0.2, 0.5), std=(0.1, 2.0)),
}


def rows(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SPACES)
def test_decode_inverts_encode(name: str):
    space, x = SPACES[name], rows(4, 2, 3, 3)
    assert torch.allclose(space.decode(space.encode(x)), x, atol=1e-5)
    assert torch.allclose(space.encode(space.decode(x)), x, atol=1e-5)
    assert space.encode(x).shape == x.shape and space.encode(x).dtype == torch.float32


def test_the_channel_axis_is_1_for_items_of_any_rank():
    space = Space((0.0, 1.0), (1.0, 2.0))
    for shape in ((3, 2), (3, 2, 5), (3, 2, 4, 4)):
        coded = space.encode(torch.ones(shape))
        assert bool((coded[:, 0] == 1).all()) and bool((coded[:, 1] == 0).all())


def test_whitening_is_centred_rows_times_the_matrix():
    space, x = SPACES["whitened"], rows(2, 2, 3, 3)
    by_hand = (x.flatten(1) - space.tensors["center"]) @ space.tensors["matrix"]
    assert torch.allclose(space.encode(x).flatten(1), by_hand)


def test_decoding_survives_an_ill_conditioned_matrix():
    scales = torch.logspace(0, 3, 18)
    space = Space(whitening="steep", tensors={"center": torch.zeros(18), "matrix": torch.diag(scales)})
    x = rows(2, 2, 3, 3)
    assert torch.allclose(space.decode(space.encode(x)), x, atol=1e-5)


def test_clamping_bounds_the_natural_values_and_is_idempotent():
    for space in (Space(), Space((0.2, 0.5), (0.1, 2.0)), Space((0.5,), (0.5,), low=-1.0, high=2.0)):
        x = 100 * (rows(5, len(space.mean) or 2, 3) - 0.5)
        once = space.clamp(x)
        natural = space.decode(once)
        assert float(natural.min()) >= space.low - 1e-6 and float(natural.max()) <= space.high + 1e-6
        assert torch.equal(space.clamp(once), once)
        inside = space.encode(rows(5, len(space.mean) or 2, 3))
        assert torch.equal(space.clamp(inside), inside)


def test_clamping_a_whitened_space_is_refused():
    with pytest.raises(ConfigError, match="clamp = false"):
        SPACES["whitened"].clamp(rows(1, 2, 3, 3))


def test_encoding_passes_gradient():
    x = rows(2, 2, 3, 3).requires_grad_()
    SPACES["both"].encode(x).sum().backward()
    assert x.grad is not None and bool((x.grad != 0).all())


@pytest.mark.parametrize("name", SPACES)
def test_a_card_brings_the_space_back(name: str):
    space = SPACES[name]
    card = json.loads(json.dumps(space.to_card()))
    again = Space.from_card(card, space.tensors)
    assert again == space and again.kind == card["kind"] == name.replace("both", "whitened")
    x = rows(2, 2, 3, 3)
    assert torch.equal(again.encode(x), space.encode(x))


def test_broken_spaces_are_refused():
    with pytest.raises(ConfigError, match="as many means as deviations"):
        Space((0.1, 0.2), (1.0,))
    with pytest.raises(ArtifactError, match="'center' and 'matrix'"):
        Space(whitening="zca")
    for field in ("mean", "std", "low", "high", "whitening"):
        card = {k: v for k, v in Space().to_card().items() if k != field}
        with pytest.raises(ArtifactError, match=field):
            Space.from_card(card, {})


def test_spaces_that_whiten_differently_do_not_agree():
    """Bug found by this test: the matrices were left out of every comparison."""
    mine = whitened()
    same = Space(whitening="test", tensors={k: t * (1 + 1e-6) for k, t in mine.tensors.items()})
    other = Space(whitening="test", tensors={**mine.tensors, "matrix": mine.tensors["matrix"] * 1.1})
    assert mine.agrees(mine) and mine.agrees(same)
    assert not mine.agrees(other)
    assert not mine.agrees(whitened(8)) and not mine.agrees(Space()) and not Space().agrees(Space((0.5,), (1.0,)))
