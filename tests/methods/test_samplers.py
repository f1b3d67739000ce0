"""Sampling step by step against diffusers' schedulers, and closed forms."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from immiscible_diffusion import Betas, Denoising, Straight
from immiscible_diffusion.methods import Edm
from immiscible_diffusion.methods.samplers import Sampler, fresh_like
from immiscible_diffusion.streams import stream

pytestmark = [
    pytest.mark.medium,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers, numpy 2
]

NOISE = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def toy(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
    return torch.tanh(x_t) * (1 - t[:, None, None, None]) + 0.1


def follow(scheduler: Any, x_t: Tensor, steps: int, *, times: int = 1000, **options: Any) -> Tensor:
    """Return where a diffusers scheduler ends, with the toy as its net."""
    scheduler.set_timesteps(steps)
    for i in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x_t, i)
        x_t = scheduler.step(toy(scaled, (i / times).expand(3), None), i, x_t, **options).prev_sample
    return x_t


@pytest.mark.parametrize("steps", [1, 2, 10, 50])  # where 1000 is no multiple, diffusers' DDIM misses its own grid
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_fresh_noise_equals_diffusers(steps: int, eta: float) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=False, beta_start=1e-4, beta_end=0.02)
    generator = torch.Generator().manual_seed(5)
    expected = follow(scheduler, NOISE, steps, eta=eta, generator=generator)
    method = Denoising(Betas(), "eps", eta=eta)
    ours = method.sample(toy, NOISE, steps=steps, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-4)  # diffusers' cumulative product is float32
    other = method.sample(toy, NOISE, steps=steps, generator=torch.Generator().manual_seed(6))
    assert torch.equal(ours, other) == (steps == 1)  # control: the fresh noise is what differs
    assert method.stochastic(steps) == (steps > 1)


@pytest.mark.slow
def test_full_eta_over_all_levels_is_ddpm() -> None:
    """Ancestral sampling of DDPM with its small variance, whose step from the first level to data adds no noise."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(clip_sample=False, beta_start=1e-4, beta_end=0.02, variance_type="fixed_small")
    expected = follow(scheduler, NOISE, 1000, generator=torch.Generator().manual_seed(5))
    method = Denoising(Betas(), "eps", eta=1.0)
    ours = method.sample(toy, NOISE, steps=1000, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=1e-3)  # a thousand steps on a float32 product


def ve(scheduler: Any) -> Tensor:
    """Return the start in the scheduler's scale, which counts x_t / alpha."""
    scheduler.set_timesteps(9)
    start: Tensor = NOISE * (1 + scheduler.sigmas[0].double() ** 2).sqrt()
    return start


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_betas_equal_diffusers_solvers_in_sigma(sampler: Sampler) -> None:
    """DDIM is Euler's step in sigma / alpha; diffusers counts x_t / alpha, and its Heun lists every level twice."""
    from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler

    options = {"beta_start": 1e-4, "beta_end": 0.02, "timestep_spacing": "trailing"}
    kind = EulerDiscreteScheduler if sampler == "ddim" else HeunDiscreteScheduler
    scheduler = kind(**options)
    expected = follow(scheduler, ve(scheduler), 9)
    ours = Denoising(Betas(), "eps", sampler).sample(toy, NOISE, steps=9)
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=1e-3)  # diffusers' is float32 at sigma = 157
    other: Sampler = "heun" if sampler == "ddim" else "ddim"
    assert float((Denoising(Betas(), "eps", other).sample(toy, NOISE, steps=9) - expected).abs().max()) > 0.02


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50])
def test_dpmpp_equals_diffusers(steps: int) -> None:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        beta_start=1e-4, beta_end=0.02, final_sigmas_type="zero", timestep_spacing="trailing"
    )
    expected = follow(scheduler, NOISE, steps)
    ours = Denoising(Betas(), "eps", "dpmpp").sample(toy, NOISE, steps=steps)
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)
    if steps > 2:  # control: the first order differs
        assert float((Denoising(Betas(), "eps").sample(toy, NOISE, steps=steps) - expected).abs().max()) > 1e-2


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_straight_paths_equal_diffusers_flow_matching(sampler: Sampler) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

    steps, x_t = 8, NOISE
    if sampler == "ddim":
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    else:
        scheduler = FlowMatchHeunDiscreteScheduler()
        scheduler.set_timesteps(steps)
    for i in scheduler.timesteps:
        x_t = scheduler.step(toy(x_t, (i / 1000).expand(3), None), i, x_t).prev_sample
    method = Denoising(Straight(), "velocity", sampler)
    if sampler == "heun":  # its grid ends at 1 / 1000, not at 1 / steps
        grid = scheduler.sigmas[:-1].unique().flip(0)
        method = Denoising(Grid(tuple(grid.tolist())), "velocity", sampler)
    torch.testing.assert_close(method.sample(toy, NOISE, steps=steps), x_t, atol=1e-5, rtol=1e-5)


class Grid(Straight):
    """The straight path at given times."""

    def __init__(self, grid: tuple[float, ...]) -> None:
        object.__setattr__(self, "grid", grid)

    def times(self, steps: int) -> Tensor:
        return torch.tensor(self.grid)[:steps]  # type: ignore[attr-defined]


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp"])
@pytest.mark.parametrize("steps", [1, 4, 18])
def test_edm_equals_diffusers(sampler: Sampler, steps: int) -> None:
    from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler

    kind = {"ddim": EDMEulerScheduler, "dpmpp": EDMDPMSolverMultistepScheduler}[sampler]
    scheduler = kind(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    scheduler.set_timesteps(steps)
    x_t = 80 * NOISE.float()
    low, high = math.log(0.002) / 4, math.log(80) / 4
    for c_noise in scheduler.timesteps:
        t = ((c_noise - low) / (high - low)).expand(3)
        raw = toy(scheduler.scale_model_input(x_t, c_noise), t, None)
        x_t = scheduler.step(raw, c_noise, x_t).prev_sample
    ours = Edm(sampler=sampler).sample(toy, NOISE, steps=steps)
    torch.testing.assert_close(ours.float(), x_t, atol=1e-4, rtol=1e-4)
    if steps == 18:
        assert float((Edm().sample(toy, NOISE, steps=steps).float() - x_t).abs().max()) > 1e-3


def algorithm_2(steps: int, churn: float, generator: torch.Generator) -> Tensor:
    """Write out Alg. 2 of Karras et al. with S_tmin = 0, S_tmax infinite and S_noise = 1."""
    rho, sd = 7, 0.5
    levels = [(80 ** (1 / rho) + i / (steps - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho for i in range(steps)]
    levels.append(0.0)

    def denoise(x: Tensor, s: float) -> Tensor:
        t = torch.full((3,), math.log(s / 0.002) / math.log(80 / 0.002), dtype=torch.float32)
        raw = toy(x / math.sqrt(s**2 + sd**2), t, None)
        return sd**2 / (s**2 + sd**2) * x + s * sd / math.sqrt(s**2 + sd**2) * raw

    x = 80 * NOISE
    for s, s_next in pairwise(levels):
        hat = s * (1 + min(churn / steps, math.sqrt(2) - 1))
        if churn:
            x = x + math.sqrt(hat**2 - s**2) * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        d = (x - denoise(x, hat)) / hat
        x_next = x + (s_next - hat) * d
        if s_next:
            x_next = x + (s_next - hat) * (d + (x_next - denoise(x_next, s_next)) / s_next) / 2
        x = x_next
    return x


@pytest.mark.parametrize("churn", [0.0, 4.0, 40.0])
def test_edm_is_algorithm_2(churn: float) -> None:
    method = Edm(churn=churn)
    ours = method.sample(toy, NOISE, steps=6, generator=torch.Generator().manual_seed(1))
    # A churned sigma above 80 is told to the net as 80.
    expected = algorithm_2(6, churn, torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours, expected, atol=1e-4 if churn == 0 else 2e-2, rtol=1e-5 if churn == 0 else 2e-2)
    assert method.stochastic(6) == (churn > 0)


@pytest.mark.parametrize(
    ("method", "least"),
    [
        (Denoising(Betas(), "eps"), 0.8),
        (Denoising(Betas(), "eps", "heun"), 1.5),
        (Denoising(Betas(), "eps", "dpmpp"), 1.3),
        (Edm(sampler="ddim"), 0.8),
        (Edm(sampler="heun"), 1.6),
        (Edm(sampler="dpmpp"), 1.3),
    ],
    ids=str,
)
def test_more_steps_come_closer_to_the_exact_answer(method: Denoising | Edm, least: float) -> None:
    """Gaussian data N(0, s^2) have a linear posterior mean, and the exact flow scales the noise: order by halving."""
    s = 0.5
    edm = isinstance(method, Edm)

    def net(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        if edm:  # D = s^2 / (s^2 + sigma^2) x_t is c_skip x_t
            return torch.zeros_like(x_t)
        alpha, sigma = Betas().coefficients(t)
        return (sigma / (alpha**2 * s**2 + sigma**2))[:, None] * x_t

    noise = torch.ones(1, 1, dtype=torch.float64)
    if edm:
        exact = 80 * s / math.sqrt(80**2 + s**2)
    else:
        alpha, sigma = (float(value) for value in Betas().coefficients(torch.tensor([0.999], dtype=torch.float64)))
        exact = s / math.sqrt(alpha**2 * s**2 + sigma**2)
    few, many = (abs(float(method.sample(net, noise, steps=steps)) - exact) for steps in (20, 80))
    assert math.log2(few / many) / 2 > least


def test_an_image_draws_its_fresh_noise_from_its_own_stream() -> None:
    x = torch.zeros(4, 2, 3)
    whole = fresh_like(x, [stream(0, i, "sample") for i in range(4)])
    part = fresh_like(x[2:], [stream(0, i, "sample") for i in (2, 3)])
    assert torch.equal(whole[2:], part)
    assert not torch.equal(whole[0], whole[1])
    whole, part = (fresh_like(rows, stream(0, 2, "sample")) for rows in (x, x[2:]))
    assert not torch.equal(whole[2:], part)  # control: one stream for all depends on who else is in the batch


def test_errors_say_which_samplers_there_are(unchecked: None) -> None:
    with pytest.raises(ValueError, match=r"no sampler named 'euler'; there are \['ddim', 'heun', 'dpmpp'\]; Euler's"):
        Denoising(sampler="euler")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no sampler named 'plms'"):
        Edm(sampler="plms")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"eta is 1\.5 with sampler 'ddim'"):
        Denoising(eta=1.5)
    with pytest.raises(ValueError, match=r"clip is 1\.0 with sampler 'heun'"):
        Denoising(Betas(), "eps", "heun", clip=1.0)
    with pytest.raises(ValueError, match=r"clip is -1\.0 with sampler 'ddim'"):
        Denoising(Betas(), "eps", clip=-1.0)
    with pytest.raises(ValueError, match=r"eta is 0\.5 with sampler 'heun'"):
        Denoising(sampler="heun", eta=0.5)
    with pytest.raises(ValueError, match="churn is 3 with sampler 'dpmpp'"):
        Edm(sampler="dpmpp", churn=3)
    with pytest.raises(ValueError, match="is 0; it must be a whole number >= 1"):
        Edm().sample(toy, NOISE, steps=0)
