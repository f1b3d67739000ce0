"""The rotated pairing: an orthogonal map of the coupling's noise, which keeps structure and takes away nearness."""

from typing import Any

import pytest
import torch
from scipy.stats import kstest, norm
from torch import Tensor

from immiscible_diffusion.couplings import Assignment, Cached, Independent, Nearest, Rotated
from immiscible_diffusion.couplings.rotated import rotate
from immiscible_diffusion.priors import Gaussian, StandardNormal
from immiscible_diffusion.registry import describe, make
from immiscible_diffusion.streams import stream


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X = 2 * randn(64, 3, 4, 4)


def noise_of(couple: Any, x: Tensor = X, step: int = 0, **options: Any) -> Tensor:
    noise: Tensor = couple(x, generator=stream(0, step, "noise"), **options)
    return noise


@pytest.mark.parametrize("d", [1, 2, 7, 48, 192, 3072])
def test_the_map_is_orthogonal_and_fixed_by_its_seed(d: int) -> None:
    """All of its matrix up to d = 192, random rows beyond; Parseval's sum of a map without the root would be d."""
    rows = torch.eye(d, dtype=torch.float64) if d <= 192 else randn(9, d).double()
    turned = rotate(rows, 3)
    torch.testing.assert_close(turned @ turned.T, rows @ rows.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rotate(rows.float(), 3), turned.float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(rotate(rows, 3), turned)
    if d > 2:
        assert not torch.allclose(rotate(rows, 4), turned)


@pytest.mark.parametrize("row", ["constant", "ramp", "one pixel"])
def test_structured_rows_become_rows_like_noise(row: str) -> None:
    """Every coordinate is small, as of a random direction; a Hartley transform alone leaves one that is not."""
    d = 192
    x = {"constant": torch.ones(d), "ramp": torch.linspace(-1, 1, d), "one pixel": torch.eye(d)[5]}[row]
    x = x / x.norm()
    for seed in range(20):
        turned = rotate(x.unsqueeze(0), seed)[0]
        assert float(turned.abs().max()) < 6 * d**-0.5
        assert abs(float(turned @ x)) < 6 * d**-0.5
    assert float(x.abs().max()) < 6 * d**-0.5 or row == "one pixel"
    spectrum = torch.fft.fft(x, norm="ortho")
    assert row == "one pixel" or float((spectrum.real - spectrum.imag).abs().max()) > 6 * d**-0.5


def test_pairs_keep_their_structure_and_lose_their_nearness() -> None:
    """The noise turned back is the coupling's; inner products with the data are as of independent noise."""
    near, plain = noise_of(Assignment()), noise_of(Independent())
    apart = noise_of(Rotated())
    torch.testing.assert_close(apart.flatten(1), rotate(near.flatten(1), 0))
    torch.testing.assert_close(
        torch.cdist(apart.flatten(1), apart.flatten(1)),
        torch.cdist(near.flatten(1), near.flatten(1)),
        rtol=1e-3,
        atol=2e-2,
    )
    dots = {name: float((X * noise).flatten(1).sum(1).mean()) for name, noise in {"near": near, "apart": apart}.items()}
    spread = float((X * plain).flatten(1).sum(1).std()) / 8
    assert dots["near"] > 8 * spread
    assert abs(dots["apart"]) < 4 * spread


def test_its_noise_is_standard_normal() -> None:
    noise = torch.cat([noise_of(Rotated(), step=i) for i in range(60)]).flatten(1)
    assert kstest(noise.flatten().numpy(), norm.cdf).pvalue > 1e-4
    covariance = noise.T @ noise / len(noise)
    assert float((covariance - torch.eye(48)).abs().max()) < 6 * len(noise) ** -0.5
    assert kstest((1.05 * noise).flatten().numpy(), norm.cdf).pvalue < 1e-4


def test_the_start_follows() -> None:
    """Measured: the mean of rotated noise is the prior's mean, and not the wrapped coupling's."""
    assert Rotated().prior(iter([X])) == StandardNormal()
    data, inner = X + 3, Nearest(64, "dot")
    prior, before = Rotated(inner).prior(iter([data])), inner.prior(iter([data]))
    assert isinstance(prior, Gaussian)
    assert isinstance(before, Gaussian)
    measured = torch.stack([noise_of(Rotated(inner), data, i).flatten(1).mean(0) for i in range(200)]).mean(0)
    torch.testing.assert_close(prior.mean, measured, rtol=0, atol=0.06)  # 6 standard errors of 12,800 rows
    assert not torch.allclose(before.mean, measured, rtol=0, atol=0.06)
    torch.testing.assert_close(prior.directions @ prior.directions.T, torch.eye(len(prior.directions)))


def test_memory_is_that_of_the_coupling() -> None:
    first, second, index = Rotated(Cached()), Rotated(Cached()), torch.arange(len(X))
    for step in range(2):
        noise_of(first, step=step, index=index)
    second.remember(first.memory())
    assert torch.equal(noise_of(second, step=2, index=index), noise_of(first, step=2, index=index))
    assert Rotated().memory() == {}


def test_it_is_made_from_a_file() -> None:
    couple = make("coupling", {"use": "rotated", "coupling": {"use": "assignment", "cost": "l1"}, "seed": 2})
    assert couple == Rotated(Assignment("l1"), 2)
    assert make("coupling", describe("coupling", couple)) == couple


@pytest.mark.usefixtures("unchecked")
def test_misuse_is_named() -> None:
    with pytest.raises(ValueError, match="it must be a coupling"):
        Rotated("assignment")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"seed is -1"):
        Rotated(seed=-1)
