import dataclasses
import math
import warnings

import pytest
import torch
from torch import Tensor

from immiscible_diffusion import MLP, VAE, Betas, Denoising, Pixels, Straight, Trained, generate
from immiscible_diffusion.checks import NotFiniteError
from immiscible_diffusion.codecs import Bounds
from immiscible_diffusion.experiments.experiment import read_experiment
from immiscible_diffusion.experiments.values import built_in
from immiscible_diffusion.methods import Consistency, Edm
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.sample import clip_problem, with_sampler
from immiscible_diffusion.types import Codec, Method
from sweeps import sweep

pytestmark = pytest.mark.medium

FRESH: list[Method] = [Denoising(Betas(), "eps", eta=1.0), Edm(churn=20.0), Consistency()]
PLAIN: list[Method] = [Denoising(), Denoising(Betas(), "v", "heun"), Denoising(Straight(), "x0", "dpmpp"), Edm()]


def model(method: Method, coupling: str = "independent") -> Trained:
    torch.manual_seed(0)
    net = MLP(width=16, depth=1).build((1, 4, 4), None).eval()
    return Trained(net, method, Pixels(), StandardNormal(), (1, 4, 4), coupling)


def images(trained: Trained, n: int, batch: int, seed: int = 0) -> Tensor:
    return torch.cat(list(generate(trained, n, steps=4, seed=seed, batch=batch)))


@pytest.mark.parametrize("method", [*FRESH, *PLAIN], ids=str)
def test_an_image_is_the_same_in_any_batch(method: Method) -> None:
    trained = model(method)
    whole = images(trained, 7, 7).int()
    # A product over another number of rows rounds otherwise, which may turn a grey level.
    assert int((whole - images(trained, 7, 3).int()).abs().max()) <= 1
    assert int((whole[:3] - images(trained, 3, 7).int()).abs().max()) <= 1
    assert int((whole - images(trained, 7, 7, seed=1).int()).abs().max()) > 20


@pytest.mark.parametrize("method", FRESH, ids=str)
def test_one_stream_for_a_batch_would_not_do(method: Method) -> None:
    """Control of the test above: a single generator gives other images."""
    trained, noise = model(method), torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    whole, part = (
        method.sample(trained.net, rows, steps=4, generator=torch.Generator().manual_seed(1))
        for rows in (noise, noise[2:])
    )
    assert float((whole[2:] - part).abs().max()) > 0.1


@pytest.mark.parametrize("method", FRESH, ids=str)
def test_fresh_noise_after_a_coupling_is_warned_of(method: Method) -> None:
    with pytest.warns(UserWarning, match=r"in 4 steps adds fresh noise.*paired with it by 'assignment'"):
        next(generate(model(method, "assignment"), 2, steps=4))


@pytest.mark.parametrize("method", [*FRESH, *PLAIN], ids=str)
def test_nothing_else_is_warned_of(method: Method) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(generate(model(method), 2, steps=4))
        if method in PLAIN:
            next(generate(model(method, "assignment"), 2, steps=4))
        if isinstance(method, Consistency):
            next(generate(model(method, "assignment"), 2, steps=1))


def test_another_sampler_of_the_same_model() -> None:
    trained = model(Denoising(Betas(), "v"))
    other = with_sampler(trained, "heun")
    assert other.method == Denoising(Betas(), "v", "heun")
    assert other.net is trained.net
    assert not torch.equal(images(trained, 3, 3), images(other, 3, 3))
    assert with_sampler(trained, "ddim", eta=0.5).method == Denoising(Betas(), "v", eta=0.5)
    both = model(Denoising(Betas(), "v", eta=0.5, clip=1.0))
    with pytest.warns(UserWarning, match=r"by 'heun' drops what the model has for 'ddim': eta = 0\.5, clip = 1\.0$"):
        clipped = with_sampler(both, "heun")
    assert clipped.method == Denoising(Betas(), "v", "heun")  # eta and clip are ddim's own
    assert with_sampler(both, "heun", eta=0.0, clip=0.0).method == clipped.method  # said, so not warned of
    assert with_sampler(model(Denoising(Betas(), "v", clip=1.0)), "ddim", eta=0.5).method.clip == 1.0  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"unknown key method.churn; there are \['schedule'"):
        with_sampler(trained, "ddim", churn=1.0)
    with pytest.raises(ValueError, match="'consistency' has one way to sample"):
        with_sampler(model(Consistency()), "heun")


WIDE = Pixels(120.7, 64.2)
"""Unit variance: black at -1.88, white at 2.09."""


@pytest.mark.parametrize(
    ("codec", "clip", "reason"),
    [
        (Pixels(), 1.0, ""),
        (Pixels(), 0.999, ""),  # an eighth of a grey level
        (Pixels(), 0.9, "method.clip is 0.9; data in model space reach from -1 to 1, "),
        (WIDE, 1.0, "method.clip is 1; data in model space reach from -1.88 to 2.09, "),
        (WIDE, 2.092, ""),
        (WIDE, 1.9, "set method.clip to 2.092, or to 0 for none"),  # white alone is cut
        (WIDE, 0.0, ""),
        (Bounds(), 0.5, "reach from -1 to 1"),
    ],
)
def test_clipping_below_the_range_of_the_data_is_a_problem(codec: Codec, clip: float, reason: str) -> None:
    problem = clip_problem(codec, Denoising(Betas(), "v", clip=clip))
    assert reason in problem
    assert bool(problem) == bool(reason)


def test_clipping_is_no_problem_where_no_range_or_no_clip_is_known() -> None:
    assert clip_problem(VAE("nowhere"), Denoising(Betas(), "v", clip=1.0)) == ""
    assert clip_problem(WIDE, Consistency()) == ""


@pytest.mark.parametrize("name", sweep(built_in(), 4))
def test_no_experiment_clips_its_data(name: str) -> None:
    experiment = read_experiment(name)
    for scale in (None, *experiment.scale):
        for cell in experiment.cells(scale, [("train.seed", 0), ("source", "digits")]):
            assert clip_problem(cell.config.codec, cell.config.method) == "", (name, scale, cell.arm)


def test_clipping_white_away_is_why() -> None:
    """A net that knows the data draws them unclipped, and half of them wrong by many grey levels clipped at 1."""
    raw = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x = WIDE.encode(raw)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    drawn = {
        clip: WIDE.decode(Denoising(Betas(), "x0", clip=clip).sample(lambda *_: x, noise, steps=10)).int()
        for clip in (0.0, 2.092, 1.0)
    }
    assert torch.equal(drawn[0.0], raw.int())
    assert torch.equal(drawn[2.092], raw.int())
    assert float((drawn[1.0] != raw).float().mean()) > 0.4


def test_another_clip_of_a_model_is_checked() -> None:
    wide = dataclasses.replace(model(Denoising(Betas(), "v")), codec=WIDE)
    with pytest.raises(ValueError, match=r"^method\.clip is 1; data in model space reach from -1\.88 to 2\.09"):
        with_sampler(wide, "", clip=1.0)
    clipping = dataclasses.replace(wide, method=Denoising(Betas(), "v", clip=1.0))  # of which load_export warns
    assert with_sampler(clipping, "", eta=0.5).method == Denoising(Betas(), "v", eta=0.5, clip=1.0)
    assert with_sampler(wide, "", clip=2.1).method == Denoising(Betas(), "v", clip=2.1)
    assert with_sampler(model(Denoising(Betas(), "v")), "", clip=1.0).method == Denoising(Betas(), "v", clip=1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_samples_that_are_not_finite_are_counted_and_refused(value: float) -> None:
    trained = model(Denoising())

    class Broken(torch.nn.Module):
        def __init__(self, rows: int) -> None:
            super().__init__()
            self.weight, self.rows = torch.nn.Parameter(torch.zeros(1)), rows

        def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            out = 0 * x_t
            out[: self.rows, 0, 0, 0] = value
            return out

    assert next(generate(dataclasses.replace(trained, net=Broken(0)), 5, steps=3)).shape == (5, 1, 4, 4)  # control
    with pytest.raises(NotFiniteError, match=r"^2 of 5 samples in 3 sampling steps hold NaN or infinity"):
        next(generate(dataclasses.replace(trained, net=Broken(2)), 5, steps=3))


def test_an_unknown_sampler_is_refused(unchecked: None) -> None:
    with pytest.raises(ValueError, match=r"method\.sampler is 'plms'; it must be one of"):
        with_sampler(model(Denoising()), "plms")
