"""Differentiable augmentation of image batches, with the randomness passed in as numbers.

Parameters are one row of uniform numbers per *group*; row i of a batch uses the parameters of its group, so
that real and synthetic images of a class undergo the same transform, and all classes, each with an
operation of its own, go through in one call.

Sources: Zhao and Bilen, Dataset Condensation with Differentiable Siamese Augmentation (DSA), ICML 2021, and
its code for the ranges; Kim et al., Dataset Condensation via Efficient Synthetic-Data Parameterization
(IDC), ICML 2022, for the composed form; Zhao et al., Dataset Condensation with Gradient Matching (DC), ICLR
2021, for `DCEval`.

Departure from the DSA code: that one reseeds the global generator before every number it draws, which makes
unrelated parts of a process correlated. Here nothing is drawn inside; see `ddfed.domain.Draw`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfed.cropping import parts_of
from ddfed.domain import Augmentation, Draw
from ddfed.errors import ConfigError, UnknownNameError, one_of, suggest

COLOR_RANGES = (1.0, 2.0, 0.5)  # brightness, saturation, contrast
CROP_RATIO = 0.125
CUTOUT_RATIO = 0.5
SCALE_RATIO = 1.2
ROTATE_DEGREES = 15.0

#: uniform numbers each operation takes
WIDTHS = {"color": 3, "crop": 2, "cutout": 2, "flip": 1, "scale": 2, "rotate": 1}
OPS = tuple(WIDTHS)


def color(x: Tensor, u: Tensor) -> Tensor:
    """Brightness, then saturation, then contrast, in one pass.

    The three are affine in the image, its mean over channels and its mean over everything, so their
    composition is written out instead of making three copies.

    Args:
        x: (rows, C, H, W), model space.
        u: (rows, 3) in [0, 1): x + (u0 - .5); (x - m_c) * 2 u1 + m_c; (x - m) * (u2 + .5) + m.
    """
    shift = _per_row(u[:, 0] - 0.5) * COLOR_RANGES[0]
    saturation = _per_row(u[:, 1]) * COLOR_RANGES[1]
    contrast = _per_row(u[:, 2]) + COLOR_RANGES[2]
    grey = x.mean(1, keepdim=True)
    mean = grey.mean((2, 3), keepdim=True)
    # Saturation moves neither the mean over channels nor the mean over everything.
    rest = contrast * (1 - saturation) * grey + (1 - contrast) * mean + shift
    return contrast * saturation * x + rest


def crop(x: Tensor, u: Tensor) -> Tensor:
    """Shift by whole pixels in [-s, s] along rows (u0) and columns (u1), s = int(n / 8 + .5), zero-filled."""
    height, width = x.shape[2:]
    rows = _whole(u[:, 0], -int(height * CROP_RATIO + 0.5), int(height * CROP_RATIO + 0.5))
    columns = _whole(u[:, 1], -int(width * CROP_RATIO + 0.5), int(width * CROP_RATIO + 0.5))
    return _shifted(x, rows, columns)


def cutout(x: Tensor, u: Tensor) -> Tensor:
    """Zero a square of half the side, its centre uniform over the image, clipped at the border.

    An even square has no centre pixel; as in the DSA code its position then takes one value more.
    """
    height, width = x.shape[2:]
    hole = []
    for number, length in ((u[:, 0], height), (u[:, 1], width)):
        size = int(length * CUTOUT_RATIO + 0.5)
        first = _whole(number, 0, length - size % 2) - size // 2
        position = torch.arange(length, device=x.device) - first[:, None]
        hole.append((position >= 0) & (position < size))
    inside = hole[0][:, None, :, None] & hole[1][:, None, None, :]
    return x.masked_fill(inside, 0.0)


def flip(x: Tensor, u: Tensor) -> Tensor:
    """Mirror left to right where u < .5."""
    return torch.where(_per_row(u[:, 0]) < 0.5, x.flip(-1), x)


def scale(x: Tensor, u: Tensor) -> Tensor:
    """Stretch each axis by its own factor; the sampling grid is multiplied by [1 / 1.2, 1.2].

    u0 belongs to the columns and u1 to the rows (the order of ``affine_grid``). Below 1 enlarges. Bilinear,
    zero-filled.
    """
    low, high = 1 / SCALE_RATIO, SCALE_RATIO
    return _stretched(x, low + (high - low) * u[:, 1], low + (high - low) * u[:, 0])


def rotate(x: Tensor, u: Tensor, degrees: float = ROTATE_DEGREES) -> Tensor:
    """Rotate by an angle uniform in [-degrees, degrees], bilinear, zero-filled."""
    angle = (u[:, 0] - 0.5) * (2 * degrees * math.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(theta.to(x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "color": color,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
}


class DSA(Augmentation):
    """One operation per group (mode "single" of the paper).

    Args:
        strategy: operations joined by ``_``, such as ``"color_crop_cutout_flip_scale_rotate"``.

    Raises:
        UnknownNameError: an operation nobody knows.
        ConfigError: an operation is named twice.
    """

    def __init__(self, strategy: str = "_".join(OPS)) -> None:
        self.ops = parse_strategy(strategy)
        self.name = f"dsa:{strategy}"
        self._width = max(WIDTHS[op] for op in self.ops)

    def draw(self, groups: int, generator: torch.Generator, one_op: bool = False) -> Draw:
        return _draw(groups, len(self.ops), self._width, generator, one_op)

    def __call__(self, x: Tensor, draw: Draw, groups: Tensor) -> Tensor:
        op, u = _look_up(x, draw, groups)
        return _each(x, op, u, [_FUNCTIONS[name] for name in self.ops])


class IDCMix(Augmentation):
    """Composed: flip if listed, colour if listed, exactly one of crop, scale and rotate, cutout if listed.

    Args:
        strategy: operations joined by ``_``; the order is fixed by the method, not by the string.

    Raises:
        UnknownNameError: an operation nobody knows.
        ConfigError: an operation is named twice.
    """

    #: which numbers of a draw each part takes
    COLUMNS = {"flip": slice(0, 1), "color": slice(1, 4), "geometric": slice(4, 6), "cutout": slice(6, 8)}
    WIDTH = 8

    def __init__(self, strategy: str = "_".join(OPS)) -> None:
        self.ops = parse_strategy(strategy)
        self.name = f"idc:{strategy}"
        self._geometric = tuple(op for op in self.ops if op in ("crop", "scale", "rotate"))

    def draw(self, groups: int, generator: torch.Generator, one_op: bool = False) -> Draw:
        return _draw(groups, max(len(self._geometric), 1), self.WIDTH, generator, one_op)

    def __call__(self, x: Tensor, draw: Draw, groups: Tensor) -> Tensor:
        op, u = _look_up(x, draw, groups)
        for name in ("flip", "color"):
            if name in self.ops:
                x = _FUNCTIONS[name](x, u[:, self.COLUMNS[name]])
        if self._geometric:
            x = _each(x, op, u[:, self.COLUMNS["geometric"]], [_FUNCTIONS[name] for name in self._geometric])
        return cutout(x, u[:, self.COLUMNS["cutout"]]) if "cutout" in self.ops else x


class DCEval(Augmentation):
    """DC's augmentation for evaluation: one of crop, scale and rotate per image (crop and noise for BN nets).

    The crop and the rotation fill with the mean of each channel over the batch, so this one looks at more
    than a row; it is for training on a finished set, not for matching.

    Departures from the DC code, which works image by image in numpy: scaling is bilinear rather than
    nearest, rotation bilinear rather than cubic and filled channel by channel, and the angle is not rounded
    to a whole degree.

    Args:
        shape: shape of one item; noise takes a number per pixel.
        batch_norm: the variant for networks with batch normalisation.
    """

    PAD, RATIO, DEGREES, NOISE = 4, 0.2, 45.0, 0.001

    def __init__(self, shape: tuple[int, ...], batch_norm: bool = False) -> None:
        self.name = "dc-eval-bn" if batch_norm else "dc-eval"
        self._noisy = batch_norm
        self._ops = 2 if batch_norm else 3
        # Noise needs a number per pixel; they are part of the draw like all others.
        self._width = max(2, math.prod(shape)) if batch_norm else 2

    def draw(self, groups: int, generator: torch.Generator, one_op: bool = False) -> Draw:
        """One operation per group even with ``one_op``: the paper draws one for every image."""
        return _draw(groups, self._ops, self._width, generator, False)

    def __call__(self, x: Tensor, draw: Draw, groups: Tensor) -> Tensor:
        if not len(x):
            return x
        op, u = _look_up(x, draw, groups)
        mean = x.mean((0, 2, 3)).view(1, -1, 1, 1)

        # Centred first, so that the filling with zero becomes a filling with the mean. Around a scaled image
        # the DC code fills with zero itself.
        def cropped(rows: Tensor, numbers: Tensor) -> Tensor:
            return self._crop(rows - mean, numbers) + mean

        def rotated(rows: Tensor, numbers: Tensor) -> Tensor:
            return rotate(rows - mean, numbers, self.DEGREES) + mean

        return _each(x, op, u, [cropped, self._noise] if self._noisy else [cropped, self._scale, rotated])

    def _crop(self, x: Tensor, u: Tensor) -> Tensor:
        # The code draws an offset in [0, 2 pad), hence a shift in [-pad, pad).
        return _shifted(x, _whole(u[:, 0], -self.PAD, self.PAD - 1), _whole(u[:, 1], -self.PAD, self.PAD - 1))

    def _scale(self, x: Tensor, u: Tensor) -> Tensor:
        factor = 1 - self.RATIO + 2 * self.RATIO * u
        return _stretched(x, 1 / factor[:, 0], 1 / factor[:, 1])

    def _noise(self, x: Tensor, u: Tensor) -> Tensor:
        # u lies in [0, 1); kept off both ends, where the normal quantile is infinite.
        quantile = (2 * u[:, : x[0].numel()] - 1).clamp(-1 + 1e-6, 1 - 1e-6)
        return x + self.NOISE * math.sqrt(2) * torch.erfinv(quantile).view_as(x)


class Chain(Augmentation):
    """Operations one after another, each with numbers of its own: ``"rrc:0.08+flip+roll:4"``.

    Beside the operations of `DSA` there are:

    - ``rrc:LOW``: a part of the image, its area uniform in [LOW, 1] and the logarithm of its ratio of sides uniform
      between 3/4 and 4/3, resized to the whole (random resized crop). LOW is 0.08 where nothing is said.
      ``rrc:HIGH..LOW`` is a curriculum: the bound falls from HIGH to LOW by the cosine as the outer steps go (CDA, Yin
      and Shen, TMLR 2024).
    - ``roll:N``: shift by whole pixels in [-N, N] along rows and columns; what leaves on one side enters on the other
      (the jitter of DeepInversion and SRe2L).

    Departure of ``rrc`` from torchvision's: where a part of the drawn area and ratio would not fit, the ratio is drawn
    among those that fit, instead of ten new tries and then the middle of the image.

    Args:
        parts: operations joined by ``+``.
        progress: which part of the outer steps is made, in [0, 1]; for curricula.

    Raises:
        UnknownNameError: an operation nobody knows.
        ConfigError: a bound or a distance that means nothing.
    """

    def __init__(self, parts: str, progress: float = 0.0) -> None:
        self.name = parts
        self._progress = progress
        self._parts = [_part(part, progress) for part in parts.split("+")]
        self._width = sum(width for width, _ in self._parts)

    def at(self, progress: float) -> Chain:
        return Chain(self.name, progress) if ".." in self.name else self

    def draw(self, groups: int, generator: torch.Generator, one_op: bool = False) -> Draw:
        return _draw(groups, 1, self._width, generator, True)

    def __call__(self, x: Tensor, draw: Draw, groups: Tensor) -> Tensor:
        _, u = _look_up(x, draw, groups)
        widths, functions = zip(*self._parts)
        for function, numbers in zip(functions, u.split(list(widths), 1)):
            x = function(x, numbers)
        return x


def resized_crop(x: Tensor, u: Tensor, low: float = 0.08) -> Tensor:
    """A part of the image resized to the whole; see `Chain`.

    Args:
        x: (rows, C, H, W).
        u: (rows, 4) in [0, 1): area, ratio, top, left.
        low: least share of the area.
    """
    height, width = x.shape[2:]
    area = low + (1 - low) * u[:, 0]
    most = torch.minimum(-area.log(), torch.full_like(area, math.log(4 / 3)))
    ratio = ((2 * u[:, 1] - 1) * most).exp()
    sizes = torch.stack([height * (area / ratio).sqrt(), width * (area * ratio).sqrt()], 1).round().clamp(min=1)
    room = torch.tensor([height, width], device=x.device) - sizes + 1
    starts = torch.minimum((u[:, 2:4] * room).floor(), room - 1)
    return parts_of(x, (-2, -1), starts, sizes, (height, width))


def roll(x: Tensor, u: Tensor, most: int) -> Tensor:
    """Shift by whole pixels in [-most, most] along rows (u0) and columns (u1), circular."""
    height, width = x.shape[2:]
    i = (torch.arange(height, device=x.device) - _whole(u[:, 0], -most, most)[:, None]) % height
    j = (torch.arange(width, device=x.device) - _whole(u[:, 1], -most, most)[:, None]) % width
    index = (i[:, :, None] * width + j[:, None, :]).flatten(1)
    return x.flatten(2).gather(2, index[:, None].expand(-1, x.shape[1], -1)).view_as(x)


def _part(part: str, progress: float) -> tuple[int, Callable[[Tensor, Tensor], Tensor]]:
    """How many numbers an operation of a `Chain` takes, and what it does."""
    name, colon, value = part.partition(":")
    if name in WIDTHS and not colon:
        return WIDTHS[name], _FUNCTIONS[name]
    if name == "roll":
        if not value.isdecimal():
            raise ConfigError(f"augmentation {part!r}: say by how many pixels at most, such as 'roll:4'")
        return 2, lambda x, u: roll(x, u, int(value))
    if name == "rrc":
        low = _lower_bound(part, value or "0.08", progress)
        return 4, lambda x, u: resized_crop(x, u, low)
    raise UnknownNameError(
        f"unknown operation {part!r} in an augmentation.{suggest(name, CHAINED)} "
        f"Possible, joined by '+': {one_of(CHAINED)}"
    )


CHAINED = (*OPS, "rrc", "roll")


def _lower_bound(part: str, value: str, progress: float) -> float:
    try:
        bounds = [float(bound) for bound in value.split("..")]
    except ValueError:
        bounds = []
    if not 1 <= len(bounds) <= 2 or not all(0 < bound <= 1 for bound in bounds):
        raise ConfigError(
            f"augmentation {part!r}: the least share of the area must lie above 0 and up to 1, such as 'rrc:0.08', or "
            f"be a curriculum such as 'rrc:1..0.08'"
        )
    first, last = bounds[0], bounds[-1]
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


def parse_strategy(strategy: str) -> tuple[str, ...]:
    """``"color_crop"`` -> ``("color", "crop")``.

    Raises:
        UnknownNameError: an operation nobody knows.
        ConfigError: an operation is named twice, or none is named.
    """
    ops = tuple(strategy.split("_"))
    for op in ops:
        if op not in WIDTHS:
            raise UnknownNameError(
                f"unknown operation {op!r} in the augmentation strategy {strategy!r}.{suggest(op, OPS)} "
                f"Possible, joined by '_': {one_of(OPS)}"
            )
    if len(set(ops)) != len(ops):
        raise ConfigError(f"augmentation strategy {strategy!r} names an operation twice; name each once")
    return ops


def _draw(groups: int, ops: int, width: int, generator: torch.Generator, one_op: bool) -> Draw:
    op = torch.randint(ops, (1,) if one_op else (groups,), generator=generator).expand(groups)
    return Draw(op.clone(), torch.rand(groups, width, generator=generator))


def _look_up(x: Tensor, draw: Draw, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Operation (on the CPU, where it steers the control flow) and numbers (beside ``x``) of each row."""
    at = groups.to(draw.op.device)
    return draw.op[at], draw.u[at].to(x)


def _each(x: Tensor, op: Tensor, u: Tensor, functions: list[Callable[[Tensor, Tensor], Tensor]]) -> Tensor:
    """Apply ``functions[op[i]]`` to row i, one call per function."""
    counts = torch.bincount(op, minlength=len(functions)).tolist()
    used = [(function, count) for function, count in zip(functions, counts) if count]
    if not used:
        return x
    if len(used) == 1:
        return used[0][0](x, u)
    order = torch.argsort(op, stable=True)
    back = torch.argsort(order).to(x.device)
    order = order.to(x.device)
    pieces = [count for _, count in used]
    done = [
        function(rows, numbers)
        for (function, _), rows, numbers in zip(used, x[order].split(pieces), u[order].split(pieces))
    ]
    return torch.cat(done)[back]


def _per_row(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _whole(u: Tensor, low: int, high: int) -> Tensor:
    """Whole numbers uniform in [low, high], from u in [0, 1)."""
    # In half precision, and for u next to 1 in single precision, the product can round up to the bound.
    return (low + (u * (high - low + 1)).floor().long()).clamp(max=high)


def _shifted(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pixel (i, j) becomes pixel (i + rows, j + columns) of ``x``, zero outside.

    One gather along the flattened image; measured 4 times faster than indexing a padded copy and than
    ``grid_sample``.
    """
    height, width = x.shape[2:]
    i = torch.arange(height, device=x.device) + rows[:, None]
    j = torch.arange(width, device=x.device) + columns[:, None]
    inside = ((i >= 0) & (i < height))[:, :, None] & ((j >= 0) & (j < width))[:, None, :]
    index = i.clamp(0, height - 1)[:, :, None] * width + j.clamp(0, width - 1)[:, None, :]
    moved = x.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, x.shape[1], -1)).view_as(x)
    return moved.masked_fill(~inside[:, None], 0.0)


def _stretched(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Bilinear sampling on a grid multiplied by ``rows`` and ``columns``; separable: two small products."""
    down = _sampling(x.shape[2], rows)[:, None]
    across = _sampling(x.shape[3], columns)[:, None]
    return down @ x @ across.transpose(-1, -2)


def _sampling(length: int, factor: Tensor) -> Tensor:
    """Matrices (rows, length, length) of linear interpolation at ``factor`` times the centred position.

    Equal to ``affine_grid`` and ``grid_sample`` with ``align_corners=False`` and zero padding.
    """
    position = torch.arange(length, device=factor.device, dtype=factor.dtype)
    middle = (length - 1) / 2
    source = factor[:, None] * (position - middle) + middle
    return (1 - (source[:, :, None] - position).abs()).clamp(min=0)
