"""Guidance: the formula, by two calls; its ends; and that every prediction is guided alike."""

import pytest
import torch
from torch import Tensor, nn

from immiscible_diffusion import MLP, Betas, Denoising
from immiscible_diffusion.methods.denoising import Prediction
from immiscible_diffusion.nets import Dit, UNetCondition, guided
from immiscible_diffusion.types import Net

X_T = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.1, 0.25, 0.5, 0.9, 0.999])
LABELS = torch.tensor([0, 1, 2, 1, 0])


@pytest.fixture(
    params=[UNetCondition(channels=(8, 16), conditional=True), Dit(depth=2, conditional=True)], ids=["unet", "dit"]
)
def net(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    built: nn.Module = request.param.build((4, 8, 8), 3)
    return built.eval().requires_grad_(False)


def test_guidance_is_the_null_prediction_and_a_multiple_of_the_difference(net: nn.Module) -> None:
    within, without = net(X_T, T, LABELS), net(X_T, T, None)
    assert float((within - without).abs().mean()) > 1e-3
    for scale in (0.0, 0.5, 3.0, 7.5):
        expected = without + scale * (within - without)
        torch.testing.assert_close(guided(net, scale)(X_T, T, LABELS), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(guided(net, 0.0)(X_T, T, LABELS), without, atol=1e-6, rtol=1e-5)
    assert guided(net, 1.0) is net
    assert torch.equal(guided(net, 7.5)(X_T, T, None), without)


def test_a_net_that_knows_no_null_condition_is_refused() -> None:
    for built in (MLP(conditional=True).build((4, 8, 8), 3), UNetCondition().build((4, 8, 8), 3)):
        with pytest.raises(ValueError, match=r"guidance is 2.0; this net .* was not trained with a condition"):
            guided(built, 2.0)
        assert guided(built, 1.0) is built
    for scale in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="it must be a number >= 0"):
            guided(Dit(conditional=True).build((4, 8, 8), 3), scale)


class Told(nn.Module):
    """A net that says one eps in the words of any prediction."""

    conditional = True

    def __init__(self, eps: Net, said: Denoising) -> None:
        super().__init__()
        self.eps, self.said = eps, said

    def null(self, cond: Tensor) -> Tensor:
        return torch.zeros_like(cond)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        x, noise = Denoising(Betas(), "eps").split(x_t, t, self.eps(x_t, t, cond))
        alpha, sigma = (each.reshape(-1, 1, 1, 1) for each in Betas().coefficients(t))
        return {"eps": noise, "x0": x, "v": alpha * noise - sigma * x, "velocity": noise - x}[self.said.predict]


@pytest.mark.parametrize("predict", ["eps", "x0", "v", "velocity"])
def test_guidance_is_the_same_whatever_is_predicted(predict: Prediction) -> None:
    def eps(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        return x_t * (1 + 0.1 * cond.reshape(-1, 1, 1, 1))

    t = torch.full((5,), 0.5)
    said = Denoising(Betas(), predict)
    _, noise = said.split(X_T, t, guided(Told(eps, said), 3.0)(X_T, t, LABELS))
    expected = X_T * (1 + 3.0 * 0.1 * LABELS.reshape(-1, 1, 1, 1))
    torch.testing.assert_close(noise, expected, atol=1e-4, rtol=1e-4)
