"""What a training step gives the net and wants from it, against diffusers' schedulers, and its gradient."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from immiscible_diffusion import Betas, Denoising, Straight
from immiscible_diffusion.methods import Edm, Prediction

pytestmark = pytest.mark.medium

X, NOISE = torch.randn(2, 6, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        out: Tensor = self.layer(x_t.flatten(1)) * (1 + t[:, None])
        return out.reshape(x_t.shape)


def told(method: Denoising | Edm) -> tuple[Tensor, Tensor]:
    """Return x_t and t that the method shows to a net."""
    seen = {}

    def net(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        seen["x_t"], seen["t"] = x_t, t
        return torch.zeros_like(x_t)

    method.loss(net, X, NOISE, generator=torch.Generator().manual_seed(1))
    return seen["x_t"], seen["t"]


def weights_after(net: nn.Module, loss: Tensor) -> Tensor:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return torch.cat([each.detach().flatten() for each in net.parameters()])


def steps(method: Denoising | Edm, x_t: Tensor, t: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights after one step of the method, and of a loop written by hand."""
    torch.manual_seed(0)
    ours = Small()
    reference = copy.deepcopy(ours)
    loss = method.loss(ours, X, NOISE, generator=torch.Generator().manual_seed(1)).mean()
    by_hand = (weight * (reference(x_t, t) - target).square().mean((1, 2, 3))).mean()
    torch.testing.assert_close(loss, by_hand, rtol=1e-4, atol=1e-6)
    return weights_after(ours, loss), weights_after(reference, by_hand)


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
def test_a_step_of_ddpm_equals_one_with_diffusers(predict: Prediction) -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02)
    method = Denoising(Betas(), predict)
    x_t, t = told(method)
    levels = (t * 1000).round().long()
    added = scheduler.add_noise(X, NOISE, levels)
    torch.testing.assert_close(x_t, added, rtol=1e-4, atol=1e-5)
    target = {"eps": NOISE, "x0": X, "v": scheduler.get_velocity(X, NOISE, levels)}[predict]
    ours, expected = steps(method, added, t, target, torch.ones(6))
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
    _, apart = steps_apart(method, added, t, target.roll(1, 0))
    assert float((ours - apart).abs().max()) > 1e-3


def steps_apart(method: Denoising, x_t: Tensor, t: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Control: the target of another row."""
    torch.manual_seed(0)
    net = Small()
    return x_t, weights_after(net, (net(x_t, t) - target).square().mean())


def test_a_step_of_flow_matching_equals_one_with_diffusers() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    method = Denoising(Straight(), "velocity")
    x_t, t = told(method)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=sorted(t.tolist(), reverse=True))
    order = torch.tensor([int((scheduler.sigmas[:-1] - time).abs().argmin()) for time in t])
    added = scheduler.scale_noise(X, scheduler.timesteps[order], NOISE)
    torch.testing.assert_close(x_t, added, rtol=1e-5, atol=1e-6)
    ours, expected = steps(method, added, t, NOISE - X, torch.ones(6))
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_a_step_of_edm_equals_one_with_diffusers() -> None:
    from diffusers import EDMEulerScheduler

    scheduler, method = EDMEulerScheduler(sigma_data=0.5), Edm()
    shown, t = told(method)
    sigma = (0.002 * (80 / 0.002) ** t.double()).float()
    wide = sigma[:, None, None, None]
    scaled = scheduler.precondition_inputs(X + wide * NOISE, wide)
    torch.testing.assert_close(shown, scaled, rtol=1e-4, atol=1e-5)
    normals = (sigma.log() + 1.2) / 1.2
    torch.testing.assert_close(
        normals, torch.randn(6, generator=torch.Generator().manual_seed(1)), rtol=1e-3, atol=1e-4
    )
    torch.manual_seed(0)
    ours = Small()
    reference = copy.deepcopy(ours)
    loss = method.loss(ours, X, NOISE, generator=torch.Generator().manual_seed(1)).mean()
    x = scheduler.precondition_outputs(X + wide * NOISE, reference(scaled, t), wide)
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    by_hand = (weight * (x - X).square().mean((1, 2, 3))).mean()
    torch.testing.assert_close(loss, by_hand, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(weights_after(ours, loss), weights_after(reference, by_hand), rtol=1e-3, atol=1e-4)


def test_edm_draws_its_published_law() -> None:
    """ln(sigma) ~ N(-1.2, 1.2^2) (arXiv:2206.00364, Table 1), by Kolmogorov and Smirnov."""
    from scipy.stats import kstest, norm

    def drawn(method: Edm) -> Tensor:
        seen = []

        def net(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
            seen.append(t)
            return torch.zeros_like(x_t)

        x = torch.zeros(20_000, 1)
        method.loss(net, x, x, generator=torch.Generator().manual_seed(0))
        return math.log(0.002) + seen[0].double() * math.log(80 / 0.002)

    law = norm(-1.2, 1.2).cdf
    assert kstest(drawn(Edm()).numpy(), law).pvalue > 0.01
    assert kstest(drawn(Edm(p_std=1.3)).numpy(), law).pvalue < 1e-6


@pytest.mark.parametrize(
    "method", [Denoising(Betas(), "eps"), Denoising(Betas(), "v"), Denoising(), Denoising(Straight(), "x0")], ids=str
)
def test_the_gradient_by_finite_differences(method: Denoising) -> None:
    torch.manual_seed(1)
    x, noise, weight = torch.randn(8, 3).double(), torch.randn(8, 3).double(), torch.randn(3, 3).double()

    def loss(w: Tensor) -> Tensor:
        def net(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
            return torch.tanh(x_t @ w)

        return method.loss(net, x, noise, generator=torch.Generator().manual_seed(0)).mean()

    assert torch.autograd.gradcheck(loss, weight.requires_grad_(), eps=1e-6, atol=1e-5, rtol=1e-4)
