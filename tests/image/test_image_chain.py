"""Augmentations in a chain: the random resized crop, its curriculum and the roll, against the library's own."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.errors import ConfigError, UnknownNameError
from ddfed_image.augment import Chain, crop, flip, resized_crop, roll

SHAPES = [(3, 32, 32), (1, 8, 8), (3, 9, 7)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(shape: tuple[int, ...], count: int = 16) -> Tensor:
    return torch.rand(count, *shape, generator=generator(1), dtype=torch.float64)


@pytest.mark.parametrize("low", [0.08, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_resized_crop_is_a_part_resized_by_the_library(shape: tuple[int, ...], low: float):
    x = images(shape)
    u = torch.rand(16, 4, generator=generator(2), dtype=torch.float64)
    found = resized_crop(x, u, low)
    height, width = shape[1:]
    for i in range(16):
        area = low + (1 - low) * float(u[i, 0])
        most = min(math.log(4 / 3), -math.log(area))
        ratio = math.exp((2 * float(u[i, 1]) - 1) * most)
        h, w = max(1, round(height * math.sqrt(area / ratio))), max(1, round(width * math.sqrt(area * ratio)))
        assert h <= height and w <= width
        top, left = int(float(u[i, 2]) * (height - h + 1)), int(float(u[i, 3]) * (width - w + 1))
        part = x[i : i + 1, :, top : top + h, left : left + w]
        want = F.interpolate(part, (height, width), mode="bilinear", align_corners=False)
        torch.testing.assert_close(found[i : i + 1], want)
    if low == 1.0:
        torch.testing.assert_close(found, x)


def test_areas_and_ratios_stay_in_their_ranges():
    u = torch.rand(5000, 4, generator=generator(), dtype=torch.float64)
    # A ramp along each axis tells where the part begins and how large it is.
    ramp = torch.arange(64.0, dtype=torch.float64)
    x = torch.stack([ramp[:, None].expand(64, 64), ramp[None].expand(64, 64)])[None].expand(5000, -1, -1, -1)
    made = resized_crop(x, u, 0.25)
    spans = [made[:, 0, :, 0].amax(1) - made[:, 0, :, 0].amin(1) + 1, made[:, 1, 0].amax(1) - made[:, 1, 0].amin(1) + 1]
    area, ratio = spans[0] * spans[1] / 64**2, spans[1] / spans[0]
    assert 0.23 < float(area.min()) < 0.27 and 0.97 < float(area.max()) <= 1.0
    assert 0.72 < float(ratio.min()) < 0.78 and 1.29 < float(ratio.max()) < 1.39
    assert float(area.mean()) == pytest.approx(0.625, abs=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_roll_is_the_librarys_and_rolls_back(shape: tuple[int, ...]):
    x, most = images(shape), 3
    u = torch.rand(16, 2, generator=generator(), dtype=torch.float64)
    found = roll(x, u, most)
    seen = set()
    for i in range(16):
        down, right = (math.floor(float(n) * (2 * most + 1)) - most for n in u[i])
        seen.update((down, right))
        assert torch.equal(found[i], torch.roll(x[i], (down, right), (1, 2)))
        assert torch.equal(torch.roll(found[i], (-down, -right), (1, 2)), x[i])
    assert seen <= set(range(-3, 4)) and len(seen) == 7
    back = roll(found, 1 - 1e-9 - u, most)
    assert torch.equal(back, x)


def test_a_chain_applies_its_parts_in_order_with_numbers_of_their_own():
    x = images((3, 16, 16))
    chain = Chain("rrc:0.4+flip+crop+roll:2")
    draw = chain.draw(16, generator())
    assert draw.u.shape == (16, 9) and int(draw.op.abs().max()) == 0
    u = draw.u.double()
    want = roll(crop(flip(resized_crop(x, u[:, :4], 0.4), u[:, 4:5]), u[:, 5:7]), u[:, 7:], 2)
    assert torch.equal(chain(x, draw, torch.arange(16)), want)
    assert torch.equal(chain(x, draw, torch.arange(16)), chain(x, draw, torch.arange(16)))
    shared = chain(x[:1].expand(4, -1, -1, -1), draw, torch.full((4,), 5))
    assert torch.equal(shared[0], shared[3])
    assert chain(x[:0], draw, torch.zeros(0, dtype=torch.int64)).shape == (0, 3, 16, 16)


def test_every_pixel_that_is_shown_gets_its_gradient():
    x = images((1, 6, 6), 3).requires_grad_()
    chain = Chain("rrc:0.5+flip+roll:2")
    draw = chain.draw(3, generator())
    assert torch.autograd.gradcheck(lambda rows: chain(rows, draw, torch.arange(3)), (x,))


def test_a_curriculum_falls_by_the_cosine_and_takes_the_same_draws():
    chain = Chain("rrc:1..0.08+flip")
    x = images((3, 16, 16))
    draw = chain.draw(16, generator())
    for progress in (0.0, 0.3, 1.0):
        low = 0.08 + 0.92 * (1 + math.cos(math.pi * progress)) / 2
        want = Chain(f"rrc:{low!r}+flip")(x, draw, torch.arange(16))
        torch.testing.assert_close(chain.at(progress)(x, draw, torch.arange(16)), want)
    plain = Chain("rrc:0.2+flip")
    assert plain.at(0.5) is plain


def test_the_domain_drops_the_mirror_where_it_changes_the_class(domain, task_info):
    mirrored = task_info((3, 16, 16))
    plain = task_info((1, 16, 16))
    assert mirrored.mirror_axis == -1 or plain.mirror_axis is None
    for info in (mirrored, plain):
        names = [domain.augmentation(name, info) for name in ("rrc:0.3+flip", "flip", "roll:2")]
        wanted = ["rrc:0.3+flip", "flip", "roll:2"] if info.mirror_axis is not None else ["rrc:0.3", None, "roll:2"]
        assert [None if one is None else one.name for one in names] == wanted


@pytest.mark.parametrize("name", ["rrc:0", "rrc:2", "rrc:x", "rrc:1..0.5..0.2", "roll:x", "roll", "roll:-1"])
def test_bounds_that_mean_nothing_are_refused(domain, task_info, name: str):
    with pytest.raises(ConfigError, match="such as"):
        domain.augmentation(name, task_info((3, 8, 8)))


def test_an_unknown_operation_suggests_the_near_one(domain, task_info):
    with pytest.raises(UnknownNameError, match="Did you mean 'flip'"):
        domain.augmentation("rrc:0.5+flipp", task_info((3, 8, 8)))
