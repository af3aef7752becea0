"""The vectorised augmentation against a naive one, image by image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ddfed.domain import Draw
from ddfed.errors import ConfigError, UnknownNameError
from ddfed_image.augment import DSA, OPS, DCEval, IDCMix, cutout

SHAPES = [(3, 32, 32), (1, 28, 28), (1, 8, 8), (3, 9, 7)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sampled(image: np.ndarray, theta: list[list[float]]) -> np.ndarray:
    """Bilinear sampling of one image with torch's own grid functions."""
    x = torch.from_numpy(image)[None]
    grid = F.affine_grid(torch.tensor([theta], dtype=x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0].numpy()


def naive(op: str, image: np.ndarray, u: np.ndarray) -> np.ndarray:
    """One operation on one image (C, H, W) float64, written out from the definitions of DSA."""
    _, height, width = image.shape
    if op == "color":
        image = image + (u[0] - 0.5)
        over_channels = image.mean(0, keepdims=True)
        image = (image - over_channels) * (2.0 * u[1]) + over_channels
        return (image - image.mean()) * (u[2] + 0.5) + image.mean()
    if op == "crop":
        limits = [int(n * 0.125 + 0.5) for n in (height, width)]
        move = [-s + math.floor(number * (2 * s + 1)) for s, number in zip(limits, u)]
        out = np.zeros_like(image)
        for i in range(height):
            for j in range(width):
                if 0 <= i + move[0] < height and 0 <= j + move[1] < width:
                    out[:, i, j] = image[:, i + move[0], j + move[1]]
        return out
    if op == "cutout":
        out = image.copy()
        sizes = [int(n * 0.5 + 0.5) for n in (height, width)]
        centres = [math.floor(u[k] * (n + 1 - sizes[k] % 2)) for k, n in enumerate((height, width))]
        for i in range(centres[0] - sizes[0] // 2, centres[0] - sizes[0] // 2 + sizes[0]):
            for j in range(centres[1] - sizes[1] // 2, centres[1] - sizes[1] // 2 + sizes[1]):
                out[:, min(max(i, 0), height - 1), min(max(j, 0), width - 1)] = 0  # as the DSA code clamps
        return out
    if op == "flip":
        return image[:, :, ::-1].copy() if u[0] < 0.5 else image
    if op == "scale":
        sx, sy = (1 / 1.2 + (1.2 - 1 / 1.2) * number for number in u[:2])
        return sampled(image, [[sx, 0, 0], [0, sy, 0]])
    angle = (u[0] - 0.5) * 2 * 15 / 180 * math.pi
    return sampled(image, [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])


def naive_mix(ops: tuple[str, ...], image: np.ndarray, chosen: int, u: np.ndarray) -> np.ndarray:
    """IDC's composition; columns of u: flip 1, colour 3, geometric 2, cutout 2."""
    geometric = [op for op in ops if op in ("crop", "scale", "rotate")]
    if "flip" in ops:
        image = naive("flip", image, u[0:1])
    if "color" in ops:
        image = naive("color", image, u[1:4])
    if geometric:
        image = naive(geometric[chosen], image, u[4:6])
    return naive("cutout", image, u[6:8]) if "cutout" in ops else image


def batch(shape: tuple[int, ...], rows: int = 40) -> torch.Tensor:
    return torch.randn(rows, *shape, dtype=torch.float64, generator=generator(7))


@pytest.mark.parametrize("shape", SHAPES)
def test_dsa_equals_the_naive_version(shape):
    augmentation = DSA()
    draw = augmentation.draw(15, generator())
    assert set(draw.op.tolist()) == set(range(len(OPS)))  # every operation is under test
    x, groups = batch(shape), torch.arange(40) % 15
    found = augmentation(x, draw, groups)
    for row, group in enumerate(groups.tolist()):
        want = naive(augmentation.ops[draw.op[group]], x[row].numpy(), draw.u[group].double().numpy())
        np.testing.assert_allclose(found[row], want, atol=1e-9)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_operation_equals_the_naive_version(op, shape):
    augmentation = DSA(op)
    x = batch(shape)
    draw = augmentation.draw(40, generator(1))
    found = augmentation(x, draw, torch.arange(40))
    for row in range(40):
        np.testing.assert_allclose(found[row], naive(op, x[row].numpy(), draw.u[row].double().numpy()), atol=1e-9)


@pytest.mark.parametrize("strategy", ["_".join(OPS), "color_crop_cutout", "flip_color", "rotate", "cutout"])
def test_idc_mix_equals_the_naive_composition(strategy):
    augmentation = IDCMix(strategy)
    x, groups = batch((3, 16, 16)), torch.arange(40) % 13
    draw = augmentation.draw(13, generator(2))
    found = augmentation(x, draw, groups)
    for row, group in enumerate(groups.tolist()):
        want = naive_mix(augmentation.ops, x[row].numpy(), int(draw.op[group]), draw.u[group].double().numpy())
        np.testing.assert_allclose(found[row], want, atol=1e-9)


@pytest.mark.parametrize("augmentation", [DSA(), IDCMix()], ids=["dsa", "idc"])
def test_real_and_synthetic_rows_of_a_group_undergo_the_same(augmentation):
    draw = augmentation.draw(10, generator())
    syn, real = batch((3, 32, 32), 10), batch((3, 32, 32), 30)
    real[:10] = syn
    among_others = augmentation(real, draw, torch.arange(30) % 10)
    torch.testing.assert_close(among_others[:10], augmentation(syn, draw, torch.arange(10)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("augmentation", [DSA(), IDCMix(), DCEval((3, 8, 8)), DCEval((3, 8, 8), True)])
def test_randomness_is_the_draw_alone(augmentation):
    x = batch((3, 8, 8), 12)
    before = torch.random.get_rng_state()
    original = x.clone()
    draw = augmentation.draw(12, generator(3))
    again = augmentation.draw(12, generator(3))
    assert torch.equal(draw.op, again.op) and torch.equal(draw.u, again.u)
    assert torch.equal(augmentation(x, draw, torch.arange(12)), augmentation(x, again, torch.arange(12)))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(x, original)


def test_training_shares_the_operation_and_not_its_numbers():
    draw = DSA().draw(64, generator(), one_op=True)
    assert len(draw.op.unique()) == 1 and len(draw.u[:, 0].unique()) == 64
    assert len(DSA().draw(64, generator()).op.unique()) == len(OPS)
    assert len({int(DSA().draw(8, generator(seed), one_op=True).op[0]) for seed in range(40)}) == len(OPS)


@pytest.mark.parametrize("op", OPS)
def test_differentiable_in_the_images(op):
    augmentation = DSA(op)
    x = batch((2, 6, 6), 3).requires_grad_()
    draw = augmentation.draw(3, generator(4))
    assert torch.autograd.gradcheck(lambda rows: augmentation(rows, draw, torch.arange(3)), (x,))


def test_differentiable_twice():
    augmentation = DSA()
    draw = Draw(torch.arange(len(OPS)), torch.rand(len(OPS), 3, generator=generator()))
    x = batch((2, 5, 5), len(OPS)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda rows: augmentation(rows, draw, torch.arange(len(OPS))) ** 2, (x,))


@pytest.mark.parametrize("augmentation", [DSA(), IDCMix(), DCEval((3, 8, 8))])
@pytest.mark.parametrize("rows", [0, 1])
def test_empty_and_single_batches(augmentation, rows):
    x = torch.rand(rows, 3, 8, 8)
    assert augmentation(x, augmentation.draw(5, generator()), torch.full((rows,), 4)).shape == x.shape


def test_extreme_numbers_stay_in_range():
    """u next to 1 rounds up in single precision; positions must not leave their range."""
    u = torch.tensor([[0.0, 0.0, 0.0], [1 - 2**-24] * 3])
    for number, op in enumerate(OPS):
        out = DSA()(torch.ones(2, 3, 32, 32), Draw(torch.tensor([number] * 2), u), torch.arange(2))
        assert bool(out.isfinite().all()), op


def test_cutout_hole_is_half_a_side_in_the_middle():
    hole = cutout(torch.ones(1, 1, 32, 32), torch.full((1, 2), 0.5))
    assert int((hole == 0).sum()) == 16 * 16


@pytest.mark.parametrize(
    ("op", "low", "high"), [("crop", -4, 4), ("rotate", -15, 15), ("scale", 1 / 1.2, 1.2)], ids=str
)
def test_ranges_are_reached_and_uniform(op, low, high):
    """Recovered from a ramp image, whose values say where they came from."""
    side, rows = 32, 3000
    ramp = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    x = ramp.expand(side, side)[None, None].expand(rows, 1, side, side)
    augmentation = DSA(op)
    out = augmentation(x, augmentation.draw(rows, generator(5)), torch.arange(rows))[:, 0]
    centre = out[:, 15, 16] - 0.5  # a column right of the middle, half a pixel off
    slope = out[:, 15, 17] - out[:, 15, 16]
    tilt = out[:, 16, 16] - out[:, 15, 16]
    found = {"crop": centre, "scale": slope, "rotate": -torch.rad2deg(torch.asin(tilt.clamp(-1, 1)))}[op]
    if op == "crop":
        # Bilinear ramps have zero rows where the shift leaves the image; the middle never does.
        assert set(found.round().int().tolist()) == set(range(-4, 5))
    assert low - 1e-6 <= found.min() < low + 0.02 * (high - low)
    assert high - 0.02 * (high - low) < found.max() <= high + 1e-6
    assert abs(found.mean() - (low + high) / 2) < 0.05 * (high - low)


@pytest.mark.parametrize("bn", [False, True])
def test_dc_eval_keeps_a_constant_batch_constant(bn):
    """Crop and rotation fill with the mean, so a constant stays; a shrunk image has a zero frame."""
    augmentation = DCEval((3, 12, 12), bn)
    x = torch.full((60, 3, 12, 12), 0.7)
    draw = augmentation.draw(60, generator(), one_op=True)
    assert len(draw.op.unique()) > 1  # one operation per image, also in training
    out = augmentation(x, draw, torch.arange(60))
    kept = draw.op != 1
    torch.testing.assert_close(out[kept], x[kept])
    if bn:
        noise = out[~kept] - 0.7
        assert 0.0009 < noise.std() < 0.0011 and abs(noise.mean()) < 1e-4
    else:
        assert out[~kept].min() < 0.1


@pytest.mark.parametrize(("strategy", "near"), [("color_crp", "crop"), ("colour", "color")])
def test_unknown_operation_names_the_near_one(strategy, near):
    with pytest.raises(UnknownNameError, match=f"Did you mean '{near}'"):
        DSA(strategy)


def test_an_operation_named_twice_or_none_is_refused():
    with pytest.raises(ConfigError, match="twice"):
        DSA("crop_crop")
    with pytest.raises(UnknownNameError):
        IDCMix("")


def test_domain_names(domain, task_info):
    """Defaults drop the mirror where it would change the class; explicit operations stand as they are."""
    photos, digits = task_info((3, 32, 32)), task_info((1, 8, 8), mirror_axis=None)
    for name in domain.augmentations:
        made = domain.augmentation(name, digits)
        assert (made is None) is (name == "none")
    assert domain.augmentation("dsa", photos).ops == OPS
    assert "flip" not in domain.augmentation("dsa", digits).ops
    assert domain.augmentation("idc-match", photos).ops == ("color", "crop", "cutout")
    assert set(OPS) - set(domain.augmentation("idc-train", photos).ops) == {"cutout"}
    assert set(OPS) - set(domain.augmentation("idc-train", digits).ops) == {"cutout", "flip"}
    assert domain.augmentation("dsa:flip_crop", digits).ops == ("flip", "crop")
    assert isinstance(domain.augmentation("idc:flip_crop", digits), IDCMix)
    assert isinstance(domain.augmentation("dc-eval", photos), DCEval)


def test_unknown_augmentation_names_the_near_one(domain, task_info):
    with pytest.raises(UnknownNameError, match="Did you mean 'idc-train'"):
        domain.augmentation("idc-tran", task_info())
    with pytest.raises(UnknownNameError, match="Did you mean 'crop'"):
        domain.augmentation("dsa:crops", task_info())
