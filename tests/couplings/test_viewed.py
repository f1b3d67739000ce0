"""Assignment by a view: what the view holds, that the noise stays whole, and that low frequencies line up."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import kstest, norm
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from immiscible_diffusion.couplings import Assignment, Independent, assign_index
from immiscible_diffusion.couplings.viewed import Viewed, pooled, standardised
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Coupling


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


@pytest.mark.parametrize("size", [1, 3, 4, 5, 8, 20])
@pytest.mark.parametrize("shape", [(8, 8), (7, 12), (3, 9)])
def test_the_pooled_view_is_that_of_torch_with_noise_of_unit_variance(shape: tuple[int, int], size: int) -> None:
    x, noise = randn(40, 2, *shape), randn(40, 2, *shape, seed=1)
    cells, places = (min(size, shape[0]), min(size, shape[1])), shape[0] * shape[1]
    seen, low = pooled(x, noise, size=size)
    torch.testing.assert_close(seen, adaptive_avg_pool2d(x, cells))
    weights = adaptive_avg_pool2d(torch.eye(places).reshape(places, 1, *shape), cells)
    deviation = weights.square().sum(0).sqrt()
    torch.testing.assert_close(low, adaptive_avg_pool2d(noise, cells) / deviation)
    assert cells == shape or (deviation < 0.8).any()


def test_video_is_pooled_frame_by_frame() -> None:
    x, noise = randn(3, 2, 5, 9, 8), randn(3, 2, 5, 9, 8, seed=1)
    seen, low = pooled(x, noise, size=4)
    for frame in range(5):
        expected = pooled(x[:, :, frame], noise[:, :, frame], size=4)
        torch.testing.assert_close(seen[:, :, frame], expected[0])
        torch.testing.assert_close(low[:, :, frame], expected[1])


@pytest.mark.parametrize("shape", [(50, 3, 4, 5), (50, 3, 2, 4, 5), (50, 6), (50, 6, 3), (50,)])
def test_the_standardised_view_has_mean_nought_and_variance_one(shape: tuple[int, ...]) -> None:
    scale = torch.logspace(-2, 3, shape[1] if len(shape) > 1 else 1).reshape(-1, *[1] * (len(shape) - 2))
    x = (randn(*shape) * scale + 7 * scale).double()
    seen = standardised(x)
    channels = (
        seen.transpose(0, 1).flatten(1).T if len(shape) >= 4 else seen.flatten(1) if len(shape) > 1 else seen[:, None]
    )
    torch.testing.assert_close(channels.mean(0), torch.zeros_like(channels[0]), rtol=0, atol=1e-9)
    torch.testing.assert_close(channels.var(0, correction=0), torch.ones_like(channels[0]))
    if len(shape) >= 4:  # within a channel, proportions stay
        assert not torch.allclose(seen.mean(0), torch.zeros_like(seen[0]), atol=0.01)


def test_a_coordinate_that_does_not_vary_is_nought() -> None:
    x = torch.cat([torch.full((6, 1), 3.0), randn(6, 2)], 1)
    assert torch.equal(standardised(x)[:, 0], torch.zeros(6))
    assert torch.equal(standardised(x[:1]), torch.zeros(1, 3))


def test_standardised_pairing_ignores_the_unit_of_a_coordinate() -> None:
    x, unit = randn(64, 4), torch.tensor([100.0, 1.0, 0.01, 1.0])
    viewed, plain = (
        [couple(data, generator=generator(1)) for data in (x, x * unit + unit)] for couple in (Viewed(), Assignment())
    )
    assert torch.equal(*viewed)
    assert not torch.equal(*plain)


def smooth(b: int) -> Tensor:
    """Return images of a few long waves and a little grain, (b, 3, 32, 32), of about unit variance."""
    waves = torch.nn.functional.interpolate(randn(b, 3, 4, 4), 32, mode="bicubic")
    return waves / waves.std() + 0.3 * randn(b, 3, 32, 32, seed=1)


def alignment(x: Tensor, noise: Tensor, size: int) -> float:
    """Return the mean cosine of data and noise in the low frequencies alone."""
    seen, low = pooled(x, noise, size=size)
    return float(torch.cosine_similarity(seen.flatten(1), low.flatten(1)).mean())


def test_low_frequencies_line_up_better_than_by_plain_assignment() -> None:
    x = smooth(128) + 2 * randn(128, 3, 32, 32, seed=2)
    noise = {
        couple: couple(x, generator=stream(0, 0, "noise"))
        for couple in (Viewed("pooled", size=4), Assignment(), Independent())
    }
    low, plain, independent = (alignment(x, drawn, 4) for drawn in noise.values())
    assert low > 2 * plain
    assert plain > 0.1
    assert abs(independent) < 0.05
    assert torch.equal(noise[Assignment()].flatten(1).sort(0).values, noise[Independent()].flatten(1).sort(0).values)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"cost": "dot", "precision": "bf16"},
    {"view": "pooled"},
    {"view": "pooled", "size": 2, "cost": "l1"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_noise_is_whole_and_paired_by_what_the_cost_sees(options: dict[str, Any]) -> None:
    x, noise = smooth(20), torch.randn(20, 3, 32, 32, generator=generator(5))
    couple = Viewed(**options)
    paired = couple(x, generator=generator(5))
    view = (standardised(x), noise) if couple.view == "standardised" else pooled(x, noise, size=couple.size)
    index = assign_index(*view, cost=couple.cost, precision=couple.precision)
    assert torch.equal(index.sort().values, torch.arange(20))
    assert torch.equal(paired, noise[index])
    assert kstest(paired.flatten().numpy(), norm.cdf).pvalue > 1e-4


def test_each_option_is_the_one_that_was_asked_for() -> None:
    x = randn(200, 3, 9, 9) * torch.tensor([5.0, 1.0, 0.2]).reshape(3, 1, 1)
    couples: list[Any] = [Assignment(), *(Viewed(**options) for options in OPTIONS)]
    noises = [couple(x, generator=generator(5)) for couple in couples]
    assert all(not torch.equal(a, b) for i, a in enumerate(noises) for b in noises[:i])


@pytest.mark.parametrize("view", ["standardised", "pooled"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_noise_is_like_x(view: Any, dtype: torch.dtype) -> None:
    x = smooth(5).to(dtype).transpose(2, 3).requires_grad_()
    before = x.detach().clone()
    noise = Viewed(view)(x, generator=generator(0))
    assert (noise.shape, noise.dtype, noise.requires_grad) == (x.shape, dtype, False)
    assert torch.equal(x, before)


def test_it_is_a_coupling_and_starts_from_the_standard_normal() -> None:
    assert isinstance(Viewed(), Coupling)
    assert Viewed("pooled").prior([smooth(2)]) == StandardNormal()


X = randn(4, 6)
NAN = X.clone()
NAN[2, 1] = torch.nan
FAILURES: dict[str, tuple[Callable[[], object], str]] = {
    "rows": (lambda: Viewed("pooled")(X), r"x has shape \(4, 6\); pooled views need images \(b, c, h, w\)"),
    "shapes": (lambda: pooled(smooth(2), smooth(2)[..., 1:]), r"x rows have shape \(3, 32, 32\), noise rows"),
    "nan": (lambda: Viewed()(NAN), r"x holds NaN or infinity, first in row 2"),
    "view": (lambda: Viewed("flat"), r"no view named 'flat'; there are \['standardised', 'pooled'\]"),  # type: ignore[arg-type]
    "size": (lambda: Viewed(size=0), r"size is 0; it must be a whole number >= 1"),
    "size in call": (lambda: pooled(smooth(2), smooth(2), size=0), r"size is 0"),
    "cost": (lambda: Viewed(cost="l3"), r"no cost named 'l3'"),  # type: ignore[arg-type]
    "precision": (lambda: Viewed(precision="fp8"), r"no precision named 'fp8'"),  # type: ignore[arg-type]
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("failure", FAILURES)
def test_misuse_is_named(failure: str) -> None:
    call, message = FAILURES[failure]
    with pytest.raises(ValueError, match=message):
        call()
