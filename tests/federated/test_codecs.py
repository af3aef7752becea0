"""Codecs: stated errors hold, edges work, nonsense is refused in words."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddfed.errors import ReleaseError, UnknownNameError
from ddfed_federated.codecs import CODECS, codec_name, decode, encode, parts_of


def items(shape, scale=1.0, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (1, 1, 4), (7, 2), (0, 3, 8, 8), (4, 1, 2, 3, 2), (6,)])
def test_items_of_any_shape_come_back(codec, shape):
    x = items(shape)
    back = decode(encode(x, codec), codec)
    assert back.shape == x.shape
    assert back.dtype == torch.float32
    assert torch.allclose(back, x, atol=0.02)


def test_float32_is_exact():
    x = items((5, 3, 4, 4), 1e6)
    assert torch.equal(decode(encode(x, "float32"), "float32"), x)


@settings(max_examples=60, deadline=None)
@given(low=st.floats(-1e4, 1e4), span=st.floats(1e-3, 1e4), seed=st.integers(0, 1000))
def test_uint8_is_off_by_half_a_step_at_most(low, span, seed):
    x = torch.rand((6, 3, 5, 5), generator=torch.Generator().manual_seed(seed)) * span + low
    back = decode(encode(x, "uint8"), "uint8")
    for c in range(3):
        channel = x[:, c].double()
        bound = (channel.max() - channel.min()) / 510
        # A value near `low` cannot be stored more finely than float32 allows.
        rounding = 4 * torch.finfo(torch.float32).eps * channel.abs().max()
        assert (back[:, c].double() - channel).abs().max() <= bound + rounding


def test_uint8_keeps_extremes_and_constant_channels_exactly():
    x = items((4, 2, 3, 3))
    x[:, 1] = 0.3
    back = decode(encode(x, "uint8"), "uint8")
    assert torch.equal(back[:, 1], x[:, 1])
    assert (back[:, 0].min(), back[:, 0].max()) == (x[:, 0].min(), x[:, 0].max())


def test_uint8_survives_the_whole_float_range():
    extreme = torch.finfo(torch.float32).max
    x = torch.tensor([[-extreme], [0.0], [extreme]])
    back = decode(encode(x, "uint8"), "uint8")
    assert torch.isfinite(back).all()
    assert torch.equal(back[[0, 2]], x[[0, 2]])


def test_uint8_costs_a_quarter_and_eight_bytes_a_channel():
    sizes = {
        codec: sum(t.numel() * t.element_size() for t in encode(items((10, 3, 8, 8)), codec).values())
        for codec in CODECS
    }
    assert sizes == {"float32": 7680, "float16": 3840, "uint8": 1920 + 24}


def test_encoding_twice_changes_nothing_more():
    once = decode(encode(items((4, 3, 6, 6)), "uint8"), "uint8")
    assert torch.allclose(decode(encode(once, "uint8"), "uint8"), once, atol=1e-6)


def test_what_does_not_fit_in_float16_is_refused():
    assert decode(encode(torch.full((1, 1), 65504.0), "float16"), "float16").item() == 65504
    with pytest.raises(ReleaseError, match="up to 65504, the set reaches 7e\\+04"):
        encode(torch.full((1, 1), 70000.0), "float16")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(codec, value):
    with pytest.raises(ReleaseError, match="not finite"):
        encode(torch.tensor([[value]]), codec)


def test_integers_are_refused():
    with pytest.raises(ReleaseError, match="takes floating items"):
        encode(torch.zeros(2, 2, dtype=torch.int64), "uint8")


def test_names_are_checked_and_the_long_name_works():
    assert codec_name("uint8_affine") == "uint8"
    assert parts_of("uint8_affine") == ("x", "x_low", "x_high")
    with pytest.raises(UnknownNameError, match="Did you mean 'float16'"):
        encode(torch.zeros(1, 1), "flaot16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_low": None}, "needs 'x', 'x_low', 'x_high'"),
        ({"x": torch.zeros(2, 3)}, "must be torch.uint8"),
        ({"x_low": torch.zeros(5)}, "3 channels but ranges of shape"),
        ({"x_low": torch.full((3,), float("nan"))}, "not finite or runs backwards"),
        ({"x_low": torch.full((3,), 9e9)}, "not finite or runs backwards"),
    ],
)
def test_foreign_parts_are_refused(change, message):
    parts = {**encode(items((2, 3)), "uint8"), **change}
    with pytest.raises(ReleaseError, match=message):
        decode({k: v for k, v in parts.items() if v is not None}, "uint8")
