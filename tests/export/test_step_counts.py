"""Stock diffusers and our samplers take the same steps, and draw the same image, at every number of steps."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from immiscible_diffusion import VAE, Betas, Denoising, Pixels, Straight, Trained, UNet, save_export
from immiscible_diffusion.methods import Consistency, Edm, Prediction
from immiscible_diffusion.methods.samplers import Sampler
from immiscible_diffusion.nets import Dit
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.schedules import karras, log_time
from immiscible_diffusion.types import Codec, Net, StockSampling

pytestmark = [
    pytest.mark.medium,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers, numpy 2
]

LATENT = Betas("scaled_linear", 1000, 0.00085, 0.012)
ONE_MORE = 61, 103, 397, 769, 998
"""Counts for which diffusers' arithmetic gives one more time, of -1, at the end."""
SOME = [1, 2, 3, 7, 11, 13, 24, 28, 30, 48, 80, 333, 600, 1000, *ONE_MORE]
COUNTS = [pytest.param(SOME, id="some"), pytest.param(range(1, 1001), id="all", marks=pytest.mark.slow)]


def scheduler_of(stock: StockSampling) -> Any:
    import diffusers

    return getattr(diffusers, stock.scheduler).from_config(stock.options)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("schedule", [Betas(), LATENT], ids=["linear", "scaled"])
def test_levels_equal_those_of_the_exports_scheduler(schedule: Betas, counts: list[int]) -> None:
    scheduler = scheduler_of(Denoising(schedule, "eps").stock_sampling())
    for steps in counts:
        scheduler.set_timesteps(steps)
        times = schedule.times(steps)
        assert torch.equal((times * 1000).round().long(), scheduler.timesteps), steps
        alpha, sigma = schedule.coefficients(times.double())
        # the scheduler's cumulative product is float32
        torch.testing.assert_close(sigma / alpha, scheduler.sigmas[:-1].double(), atol=0, rtol=2e-4)
        assert scheduler.sigmas[-1] == 0
        assert len(times) == steps + (int(times[-1] * 1000) < 0)
    assert all(float(schedule.times(steps)[-1]) < 0 for steps in ONE_MORE)


def test_counts_that_divide_the_levels_are_exact_multiples() -> None:
    for steps in (n for n in range(1, 1001) if 1000 % n == 0):
        exact = [(1000 - i * 1000 // steps - 1) / 1000 for i in range(steps)]
        assert torch.equal(Betas().times(steps), torch.tensor(exact, dtype=torch.float64).float())


def test_ddims_own_scheduler_leaves_its_grid() -> None:
    """Control, and why exports have another: stock DDIM asks the net about other levels than its steps end at."""
    from diffusers import DDIMScheduler

    scheduler, left = DDIMScheduler(timestep_spacing="trailing"), []
    for steps in range(1, 101):
        scheduler.set_timesteps(steps)
        ends = scheduler.timesteps - 1000 // steps
        left += [steps] if bool((ends[:-1] != scheduler.timesteps[1:]).any()) else []
    assert left == [steps for steps in range(1, 101) if 1000 % steps]


@pytest.mark.parametrize("counts", COUNTS)
def test_levels_of_the_other_methods_equal_their_schedulers(counts: list[int]) -> None:
    euler, solver = (scheduler_of(Edm(sampler=name).stock_sampling()) for name in ("ddim", "dpmpp"))
    flow = scheduler_of(Denoising().stock_sampling())
    for steps in counts:
        for scheduler in (euler, solver):
            scheduler.set_timesteps(steps)
            torch.testing.assert_close(
                karras(steps, low=0.002, high=80.0), scheduler.sigmas[:-1].double(), atol=0, rtol=5e-6
            )
        flow.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
        torch.testing.assert_close(flow.sigmas[:-1], Straight().times(steps), atol=2e-7, rtol=0)
        torch.testing.assert_close(flow.timesteps, 1000 * Straight().times(steps), atol=2e-4, rtol=0)


class Levels:
    """A net that is 0 and keeps the noise levels that it is told of, as times."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        self.times.append(float(t[0]))
        return torch.zeros_like(x_t)


def test_consistency_takes_its_schedulers_levels_at_every_count() -> None:
    method = Consistency()
    scheduler = scheduler_of(method.stock_sampling())
    for steps in range(1, 41):
        scheduler.set_timesteps(steps)
        net = Levels()
        method.sample(net, torch.zeros(1, 1, 2, 2), steps=steps)
        torch.testing.assert_close(torch.tensor(net.times), log_time(scheduler.sigmas[:-1]), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="cannot be larger"):
        scheduler.set_timesteps(41)
    with pytest.raises(ValueError, match="41 sampling steps; consistency sampling has 40 levels"):
        method.sample(net, torch.zeros(1, 1, 2, 2), steps=41)


WAYS: list[tuple[Sampler, float]] = [("ddim", 0.0), ("ddim", 1.0), ("dpmpp", 0.0)]
PREDICTIONS: tuple[Prediction, ...] = "eps", "v", "x0"
EVERY = list(product(PREDICTIONS, WAYS))


def exact(method: Denoising) -> Net:
    """Return the perfect net of data drawn from N(0, 1/4)."""

    def net(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        alpha, sigma = (values[0] for values in method.schedule.coefficients(t.double()))
        x = alpha / 4 / (alpha**2 / 4 + sigma**2) * x_t
        eps = (x_t - alpha * x) / sigma
        return {"eps": eps, "v": alpha * eps - sigma * x, "x0": x}[method.predict]

    return net


FOLLOWED = [
    pytest.param([7, 28, 61], id="few"),
    pytest.param([1, 2, 3, 11, 48, 103, 769, 1000], id="more", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("counts", FOLLOWED)
@pytest.mark.parametrize(("predict", "way"), EVERY, ids=str)
@pytest.mark.parametrize("schedule", [Betas(), pytest.param(LATENT, marks=pytest.mark.slow)], ids=["linear", "scaled"])
def test_a_perfect_net_is_followed_alike(
    schedule: Betas, predict: Prediction, way: tuple[Sampler, float], counts: list[int]
) -> None:
    method = Denoising(schedule, predict, way[0], clip=way[1])
    scheduler, net = scheduler_of(method.stock_sampling()), exact(method)
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    for steps in counts:
        scheduler.set_timesteps(steps)
        x_t = noise
        for t in scheduler.timesteps:
            x_t = scheduler.step(net(x_t, t.reshape(1) / 1000, None).float(), t, x_t).prev_sample
        ours = method.sample(net, noise, steps=steps)
        torch.testing.assert_close(ours, x_t, atol=1 / 255, rtol=0)  # half a grey level
        if steps >= 24 and not method.clip:  # both end at the data's deviation, which stock DDIM misses: 0.66 at 600
            assert float(x_t.std() / noise.std()) == pytest.approx(0.5, abs=0.06)


def exported(folder: Path, described: UNet | Dit, method: Denoising, codec: Codec, shape: tuple[int, ...]) -> Trained:
    torch.manual_seed(1)
    net = described.build(shape, None).eval().requires_grad_(False)
    for weight in net.parameters():  # an untrained net predicts next to nothing, whatever it is given
        weight.add_(torch.randn(weight.shape), alpha=0.02)
    model = Trained(net, method, codec, StandardNormal(), shape)
    save_export(model, folder, net=described, classes=None, about={})
    return model


def apart(pipeline: Any, model: Trained, steps: int, **options: Any) -> int:
    """Return how far the pipeline's image is from ours, in levels of 255."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    image = pipeline(generator=generator, num_inference_steps=steps, output_type="np", **options).images[0]
    noise = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor(options["class_labels"]) if "class_labels" in options else None
    ours = model.codec.decode(model.method.sample(model.net, noise, labels, steps=steps))[0].permute(1, 2, 0).numpy()
    assert int(ours.max()) - int(ours.min()) > 20  # a flat picture shows nothing
    return int(np.abs((image * 255).round().astype(int) - ours.astype(int)).max())


FEW = list(zip(PREDICTIONS, WAYS[1:] + WAYS[:1], strict=True))
DRAWN = [
    *(
        pytest.param(predict, way, [7, 61], id=f"{predict}-{way}-few", marks=pytest.mark.slow if i else [])
        for i, (predict, way) in enumerate(FEW)
    ),
    *(pytest.param(*both, [11, 28, 48, 103, 600], id=f"{both}", marks=pytest.mark.slow) for both in EVERY),
]


@pytest.mark.parametrize(("predict", "way", "counts"), DRAWN)
def test_pixels_are_drawn_alike(
    tmp_path: Path, predict: Prediction, way: tuple[Sampler, float], counts: list[int]
) -> None:
    from diffusers import DDIMPipeline, DiffusionPipeline

    method = Denoising(Betas(), predict, way[0], clip=way[1])
    model = exported(tmp_path / "model", UNet(channels=(8, 16)), method, Pixels(), (3, 8, 8))
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model")
    for steps in counts:
        assert apart(pipeline, model, steps) <= 1, steps
    # Control: stock DDIM, which the export's pipeline is not, though unclipped eps of a wild net is black and white.
    if method.sampler == "ddim" and (predict != "eps" or method.clip):
        assert apart(DDIMPipeline.from_pretrained(tmp_path / "model"), model, 61) > 1
    assert "any number of steps from 1 to 1,000" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("predict", "way", "counts"), DRAWN)
def test_latents_are_drawn_alike(
    tmp_path: Path, shared_data: Any, predict: Prediction, way: tuple[Sampler, float], counts: list[int]
) -> None:
    from diffusers import DiffusionPipeline

    method = Denoising(LATENT, predict, way[0], clip=way[1])
    model = exported(tmp_path / "model", Dit(depth=1), method, VAE(str(shared_data("taesd"))), (4, 8, 8))
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model")
    for steps in counts:
        assert apart(pipeline, model, steps, class_labels=[1000], guidance_scale=1.0) <= 1, steps


def test_the_card_says_at_which_counts_ddims_own_scheduler_agrees(tmp_path: Path) -> None:
    from diffusers import DDIMPipeline

    method = Denoising(Betas(), "eps", clip=0.4)
    model = exported(tmp_path / "model", UNet(channels=(8, 16)), method, Pixels(), (3, 8, 8))
    pipeline = DDIMPipeline.from_pretrained(tmp_path / "model")
    assert apart(pipeline, model, 20, use_clipped_model_output=True) <= 1
    assert apart(pipeline, model, 61, use_clipped_model_output=True) > 1
    text = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "draws the images of `immiscible sample` at numbers of steps that divide 1,000" in text
