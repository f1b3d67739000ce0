"""The real GaussianDiffusion trains on the coupling's noise, in x_t and in the target; its own option does not."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from immiscible_diffusion import one_noise
from immiscible_diffusion.couplings import Assignment
from immiscible_diffusion.integrations.lucidrains import immiscible

WHY = "needs denoising-diffusion-pytorch: pip install 'immiscible-diffusion[hosts]'"
IMAGES = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Leaf(nn.Module):
    """A net whose output is a leaf: the gradient of a squared loss there is a multiple of the target, row by row."""

    channels = out_dim = 3
    self_condition = False

    def forward(self, x: Tensor, t: Tensor, *args: Any) -> Tensor:
        self.x_t, self.t, self.out = x, t, torch.zeros_like(x).requires_grad_()
        return self.out


class Keeping(Assignment):
    """Assignment that keeps what it was given and what it gave."""

    def pair(self, x: Tensor, rows: Any) -> Tensor:
        noise = super().pair(x, rows)
        vars(self)["x"], vars(self)["noise"] = x, noise
        return noise.clone()


class Losses:
    """What a host's ``p_losses`` looks like."""

    def p_losses(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None, scale: float = 1.0) -> Any:
        return self, x_start, t, noise, scale


def test_noise_that_is_handed_over_stays_and_a_copy_is_its_own() -> None:
    losses, x, couple = immiscible(Losses(), Keeping()), torch.randn(4, 3), torch.zeros(4, 3)
    owner, x_start, t, noise, scale = losses.p_losses(x, torch.ones(4), scale=2.0)
    assert owner is losses
    assert torch.equal(x_start, x)
    assert noise.shape == x.shape
    assert (float(t.sum()), scale) == (4.0, 2.0)
    assert losses.p_losses(x, t, noise=couple)[3] is couple
    assert losses.p_losses(x, t, couple)[3] is couple
    for other in (copy.deepcopy(losses), pickle.loads(pickle.dumps(losses))):  # noqa: S301
        assert other.p_losses(x, t)[0] is other
    again = immiscible(losses, Keeping()).p_losses
    assert type(again.losses).__name__ == "method"  # not wrapped twice
    with pytest.raises(ValueError, match=r"object has no p_losses\(x_start, t, noise=...\)"):
        immiscible(object())


@pytest.fixture(scope="module")
def host() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("denoising_diffusion_pytorch.denoising_diffusion_pytorch", reason=WHY)


def trained(diffusion: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return data, x_t, and the target up to a factor for each row, of one call as a trainer makes it."""
    torch.manual_seed(0)
    times = torch.arange(32) * 30 + 20
    diffusion(IMAGES, times=times).backward()
    return 2 * IMAGES - 1, diffusion.model.x_t, -diffusion.model.out.grad


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["pred_noise", "pred_v"])
@pytest.mark.parametrize("options", [{}, {"immiscible": True}, {"min_snr_loss_weight": True}], ids=str)
def test_x_t_and_target_hold_the_noise_of_the_coupling(host: Any, objective: str, options: dict[str, Any]) -> None:
    couple = Keeping()
    diffusion = immiscible(host.GaussianDiffusion(Leaf(), image_size=8, objective=objective, **options), couple)
    x, x_t, target = trained(diffusion)
    one_noise(x, x_t, target)
    assert torch.equal(vars(couple)["x"], x)
    t = diffusion.model.t.reshape(-1, 1, 1, 1)
    alpha, sigma = diffusion.sqrt_alphas_cumprod[t], diffusion.sqrt_one_minus_alphas_cumprod[t]
    torch.testing.assert_close(x_t, alpha * x + sigma * vars(couple)["noise"])


@pytest.mark.slow
def test_noise_offset_is_added_to_the_coupled_noise(host: Any) -> None:
    diffusion = immiscible(
        host.GaussianDiffusion(Leaf(), image_size=8, objective="pred_noise", offset_noise_strength=0.1)
    )
    one_noise(*trained(diffusion))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["pred_noise", "pred_v"])
def test_the_package_itself_trains_on_other_noise(host: Any, objective: str) -> None:
    """The control: plain training is right, its own option is not."""
    one_noise(*trained(host.GaussianDiffusion(Leaf(), image_size=8, objective=objective)))
    with pytest.raises(ValueError, match="x_t holds other noise than target"):
        one_noise(*trained(host.GaussianDiffusion(Leaf(), image_size=8, objective=objective, immiscible=True)))
