"""Pixels: their range, and what has no picture."""

import math

import pytest
import torch

from immiscible_diffusion import Pixels
from immiscible_diffusion.checks import NotFiniteError
from immiscible_diffusion.codecs import Bounds
from immiscible_diffusion.types import HasRange

RAW = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)


@pytest.mark.parametrize("codec", [Pixels(), Pixels(120.7, 64.2)], ids=str)
def test_the_limits_are_black_and_white(codec: Pixels) -> None:
    x = codec.encode(RAW)
    assert isinstance(codec, HasRange)
    assert codec.limits == pytest.approx((float(x.min()), float(x.max())))


def test_bounds_have_limits_too() -> None:
    codec = Bounds((0.0,), (512.0,))
    assert isinstance(codec, HasRange)
    assert codec.limits == (float(codec.encode(torch.zeros(1, 1))), float(codec.encode(torch.full((1, 1), 512.0))))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_no_picture(value: float) -> None:
    x = Pixels().encode(RAW)
    assert torch.equal(Pixels().decode(x), RAW)
    assert Pixels().decode(1e30 * x).max() == 255  # control: what is finite is clipped
    x[1, 0, 2, 3] = x[3, 0, 0, 0] = value
    with pytest.raises(NotFiniteError, match=r"^2 of 4 images hold NaN or infinity"):
        Pixels().decode(x)
