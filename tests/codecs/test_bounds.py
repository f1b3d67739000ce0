import math

import pytest
import torch

from immiscible_diffusion.codecs import Bounds

pytestmark = pytest.mark.medium


def test_bounds_are_kept_and_undone() -> None:
    codec = Bounds((0.0, -2.0), (512.0, 2.0))
    raw = torch.rand(6, 3, 2) * torch.tensor([512.0, 4.0]) - torch.tensor([0.0, 2.0])
    x = codec.encode(raw)
    assert float(x.abs().max()) <= 1
    torch.testing.assert_close(codec.decode(x), raw, atol=1e-4, rtol=1e-5)
    assert codec.decode(torch.full((1, 1, 2), 9.0)).tolist() == [[[512.0, 2.0]]]
    assert not torch.allclose(Bounds((-2.0,), (512.0,)).encode(raw), x)


def test_constant_coordinates_are_zero_and_come_back() -> None:
    for low, high in ((5.0, 5.0), (0.0, 0.0), (1e6, 1e6 + 0.5), (0.0, 1e-300), (-3.0, -3.0 + 1e-9)):
        codec = Bounds((0.0, low), (512.0, high))
        raw = torch.tensor([[256.0, low], [512.0, high]])
        x = codec.encode(raw)
        assert x.tolist() == [[0.0, 0.0], [1.0, 0.0]]
        torch.testing.assert_close(codec.decode(x), raw, rtol=1e-6, atol=1e-6)
        assert codec.decode(torch.full((1, 2), 9.0)).tolist() == [[512.0, torch.tensor(low).item()]]


def test_small_ranges_are_scaled() -> None:
    for low, high in ((0.0, 1e-30), (1000.0, 1000.25), (-1e-7, 1e-7)):
        raw = torch.tensor([[low], [(low + high) / 2], [high]])
        codec = Bounds((low,), (high,))
        assert codec.encode(raw).tolist() == [[-1.0], [0.0], [1.0]]
        torch.testing.assert_close(codec.decode(codec.encode(raw)), raw, rtol=1e-6, atol=0)


def test_values_outside_the_bounds_are_counted_and_refused() -> None:
    codec = Bounds((0.0, 0.0), (512.0, 1.0))
    inside = torch.tensor([[0.0, 1.0], [512.0, 0.5]])
    assert codec.encode(inside).abs().max() == 1
    message = (
        r"^2 of 8 values of a batch lie outside the bounds, first of coordinate 1, which runs from -3 to 9: "
        r"codec.low is 0 and codec.high 1; set them to the data's range$"
    )
    with pytest.raises(ValueError, match=message):
        codec.encode(torch.tensor([[[0.0, 9.0], [1.0, 0.5]], [[2.0, -3.0], [3.0, 1.0]]]))
    for value in (513.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"^1 of 2 values .* coordinate 0, .*codec.low is 0 and codec.high 512"):
            codec.encode(torch.tensor([[value, 0.5]]))
    with pytest.raises(ValueError, match=r"1 of 1 values .* coordinate 0"):
        Bounds((5.0,), (5.0,)).encode(torch.tensor([[5.1]]))


def test_what_does_not_fit_is_refused() -> None:
    for low, high in (
        ((1.0,), (0.0,)),
        ((0.0, 1.0), (1.0,)),
        ((math.nan,), (1.0,)),
        ((0.0,), (math.inf,)),
        ((-3e38,), (3e38,)),
        ((1e39,), (1e39,)),
    ):
        with pytest.raises(
            ValueError, match=r"codec.low is .* and codec.high .* as many finite numbers, each low at most its high"
        ):
            Bounds(low, high)
    with pytest.raises(ValueError, match="2 coordinates; the data have 3"):
        Bounds((0.0, 0.0), (1.0, 1.0)).encode(torch.zeros(4, 3))
    assert Bounds((-8e37,), (8e37,)).encode(torch.tensor([[8e37]])).tolist() == [[1.0]]  # the control of large bounds
