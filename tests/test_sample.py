import warnings

import pytest
import torch
from torch import Tensor

from immiscible_diffusion import MLP, Betas, Denoising, Pixels, Straight, Trained, generate
from immiscible_diffusion.methods import Consistency, Edm
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.sample import with_sampler
from immiscible_diffusion.types import Method

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


def test_an_unknown_sampler_is_refused(unchecked: None) -> None:
    with pytest.raises(ValueError, match=r"method\.sampler is 'plms'; it must be one of"):
        with_sampler(model(Denoising()), "plms")
