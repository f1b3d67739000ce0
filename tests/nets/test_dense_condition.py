"""A condition that enters the net beside its input."""

import pytest
import torch

from immiscible_diffusion.nets import MLP, UNet

pytestmark = pytest.mark.medium

T = torch.full((4,), 0.5)


@pytest.mark.parametrize(
    ("described", "shape", "cond"),
    [
        (UNet(channels=(8, 16), beside=5), (3, 8, 8), (5, 8, 8)),
        (MLP(width=16, depth=1, beside=5), (2, 6), (5,)),
    ],
    ids=["unet", "mlp"],
)
@pytest.mark.medium
def test_the_condition_reaches_the_prediction(
    described: UNet | MLP, shape: tuple[int, ...], cond: tuple[int, ...]
) -> None:
    net = described.build(shape, None).eval()
    x, beside = torch.randn(4, *shape), torch.randn(4, *cond)
    first, second = net(x, T, beside), net(x, T, beside.neg())
    assert first.shape == x.shape
    assert not torch.allclose(first, second, atol=1e-4)
    for wrong in (None, beside[:2], torch.randn(4, cond[0] + 1, *cond[1:])):
        with pytest.raises(ValueError, match=r"net\.beside = 5"):
            net(x, T, wrong)


def test_without_one_the_net_is_as_it_was() -> None:
    """Control: labels or nothing as before, and never both."""
    net = UNet(channels=(8, 16)).build((3, 8, 8), None)
    assert net(torch.randn(4, 3, 8, 8), T).shape == (4, 3, 8, 8)
    for described in (UNet, MLP):
        with pytest.raises(ValueError, match="beside"):
            described(beside=-1)
        with pytest.raises(ValueError, match="labels"):
            described(beside=3, conditional=True)
