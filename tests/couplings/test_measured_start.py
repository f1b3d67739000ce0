"""The measured start against couplings whose moments are known."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from immiscible_diffusion.couplings import Assignment, Independent, Nearest
from immiscible_diffusion.couplings._measured_start import measured_prior
from immiscible_diffusion.priors import Gaussian, StandardNormal
from immiscible_diffusion.types import Prior

pytestmark = pytest.mark.medium


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def covariance(prior: Gaussian) -> Tensor:
    scale = float(prior.scale)
    excess = prior.directions.T @ torch.diag(prior.variances - scale) @ prior.directions
    return scale * torch.eye(prior.mean.numel()) + excess


@dataclass(frozen=True)
class Bent:
    """Noise of variance ``scale`` but ``along`` in the second coordinate, with a mean in the first."""

    scale: float = 0.8
    along: float = 1.7
    mean: float = 0.3

    def __call__(
        self,
        x: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        index: Tensor | None = None,
        step: int = 0,
        mask: Tensor | None = None,
    ) -> Tensor:
        noise: Tensor = torch.randn(x.shape, generator=generator) * self.scale**0.5
        noise[:, 1] *= (self.along / self.scale) ** 0.5
        noise[:, 0] += self.mean
        return noise

    def prior(self, data: Iterable[Tensor]) -> Prior:
        return StandardNormal()


def data(rows: int, d: int) -> Tensor:
    """Return rows whose first three coordinates are strong."""
    x = 0.1 * randn(rows, d)
    x[:, :3] += 3 * randn(rows, 3, seed=1) + 1
    return x


@pytest.mark.parametrize("d", [5, 60, 700])
@pytest.mark.parametrize("scale", [0.8, 1.0])
def test_the_moments_are_those_of_the_coupling(d: int, scale: float) -> None:
    """Errors: 0.01 for a mean, 0.02 for a variance, at four standard errors of 16,000 noises; less for the rest's."""
    x = data(4000, d)
    prior = measured_prior(Bent(scale), x.chunk(8), max_rank=16)
    assert float(prior.scale) == pytest.approx(scale, abs=0.02)
    assert (prior.scale == 1) == (scale == 1)
    mean, expected = torch.zeros(d), float(prior.scale) * torch.eye(d)
    mean[0], expected[1, 1] = 0.3, 1.7
    expected[0, 0] = scale
    torch.testing.assert_close(prior.mean, mean, atol=0.03, rtol=0)
    torch.testing.assert_close(covariance(prior), expected, atol=0.08, rtol=0)
    assert (covariance(prior) - torch.eye(d)).abs().max() > 0.5


@pytest.mark.parametrize("couple", [Independent(), Assignment()])
@pytest.mark.parametrize("d", [1, 6, 300])
def test_chance_is_not_taken_for_moments(couple: Any, d: int) -> None:
    prior = measured_prior(couple, data(2000, max(d, 3))[:, :d].chunk(40), draws=1)
    noise = prior.sample((3, d), torch.Generator().manual_seed(1))
    assert torch.equal(noise, torch.randn(3, d, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("k", [8, 64])
def test_nearest_by_dot_has_the_moments_of_its_closed_form(k: int) -> None:
    x, couple = data(3000, 40) * torch.logspace(-1, 1, 3000)[:, None], Nearest(k, "dot")
    exact, measured = (
        couple.prior([x]),
        measured_prior(couple, x[torch.randperm(3000, generator=torch.Generator().manual_seed(3))].chunk(10), draws=16),
    )
    assert isinstance(exact, Gaussian)
    torch.testing.assert_close(measured.mean, exact.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(covariance(measured), covariance(exact), atol=0.05, rtol=0)
    assert exact.mean.abs().max() > 0.1
    assert (covariance(exact) - torch.eye(40)).abs().max() > 0.1


def test_long_rows_need_no_square_matrix() -> None:
    """A 200,000 x 200,000 moment would take 320 GB."""
    x = torch.zeros(40, 200_000)
    x[:, :3] = randn(40, 3)
    prior = measured_prior(Bent(), [x], max_rank=4, draws=2)
    assert float(prior.scale) == pytest.approx(0.8, abs=0.005)


def test_data_are_read_once_and_nothing_global_is_drawn() -> None:
    x, state = data(600, 8), torch.get_rng_state()
    one, other = (measured_prior(Bent(), iter(x.chunk(5)), max_rank=rank) for rank in (8, 8))
    for name, value in one.tensors().items():
        assert torch.equal(value, other.tensors()[name])
    assert torch.equal(state, torch.get_rng_state())


def test_variances_stay_positive_where_noise_is_the_data() -> None:
    prior = measured_prior(Bent(along=1e-6), data(400, 5).chunk(5))
    assert 0 < prior.variances.min() < 2e-3


def test_data_of_nothing_but_zeros_have_no_directions() -> None:
    prior = measured_prior(Bent(), [torch.zeros(40, 60)])
    assert prior.directions.shape == (0, 60)
    assert float(prior.scale) == pytest.approx(0.8, abs=0.1)


def test_data_that_are_not_finite_are_named() -> None:
    x = data(20, 5)
    x[7, 2] = torch.nan
    with pytest.raises(ValueError, match="data holds NaN or infinity, first in row 7"):
        measured_prior(Bent(), [x])


def test_no_data_is_named() -> None:
    with pytest.raises(ValueError, match="matched start of Bent needs data; there came none"):
        measured_prior(Bent(), [])
