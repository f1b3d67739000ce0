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
    assert not torch.allclose(Bounds((0.0,), (512.0,)).encode(raw), x)


def test_what_does_not_fit_is_refused() -> None:
    for low, high in (((0.0,), (0.0,)), ((0.0, 1.0), (1.0,)), ((float("nan"),), (1.0,))):
        with pytest.raises(ValueError, match="below its high"):
            Bounds(low, high)
    with pytest.raises(ValueError, match="2 coordinates; the data have 3"):
        Bounds((0.0, 0.0), (1.0, 1.0)).encode(torch.zeros(4, 3))
