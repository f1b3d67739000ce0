"""The distributions that sampling starts from."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from immiscible_diffusion.priors import Gaussian, StandardNormal


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def directions(r: int, d: int) -> Tensor:
    """Return orthonormal rows, (r, d)."""
    basis: Tensor = torch.linalg.qr(torch.randn(d, r, generator=generator(7), dtype=torch.float64)).Q
    return basis.T


def gaussian(scale: float | Tensor = 1.0) -> Gaussian:
    return Gaussian(torch.tensor([1.0, -2.0, 0.0, 0.5]), directions(2, 4).float(), torch.tensor([4.0, 0.25]), scale)


def covariance(prior: Gaussian) -> Tensor:
    scale = float(prior.scale)
    excess = prior.directions.T @ torch.diag(prior.variances - scale) @ prior.directions
    return scale * torch.eye(prior.mean.numel()) + excess


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_samples_have_the_moments_of_the_gaussian(scale: float) -> None:
    prior, n = gaussian(scale), 100_000
    sample = prior.sample((n, 2, 2), generator()).reshape(n, 4)
    error = 5 * 4 * math.sqrt(2 / n)  # five standard errors of the greatest variance, 4
    torch.testing.assert_close(sample.mean(0), prior.mean, rtol=0, atol=error)
    torch.testing.assert_close(sample.T.cov(), covariance(prior), rtol=0, atol=error)
    assert (sample.T.cov() - torch.eye(4)).abs().max() > 5 * error
    assert (sample.T.cov() - covariance(gaussian(1.6 - scale))).abs().max() > 2 * error


def test_the_standard_normal_is_the_generators_own_draw() -> None:
    sample = StandardNormal().sample((5, 3, 2), generator(3))
    assert torch.equal(sample, torch.randn(5, 3, 2, generator=generator(3)))


def test_a_gaussian_moves_the_draws_of_the_standard_normal() -> None:
    """Across its directions the two differ by the mean alone, along them by the factor of the variance."""
    prior = gaussian()
    plain = StandardNormal().sample((50, 4), generator(3))
    moved = prior.sample((50, 4), generator(3)) - prior.mean
    along = plain @ prior.directions.T
    torch.testing.assert_close(moved @ prior.directions.T, along * torch.tensor([2.0, 0.5]))
    torch.testing.assert_close(
        moved - moved @ prior.directions.T @ prior.directions, plain - along @ prior.directions, atol=1e-5, rtol=0
    )
    assert torch.equal(Gaussian(torch.zeros(4), prior.directions, torch.ones(2)).sample((50, 4), generator(3)), plain)


def test_moments_of_low_rank_are_kept_in_full() -> None:
    axes, values = directions(3, 10), torch.tensor([3.0, -0.5, 0.8], dtype=torch.float64)
    mean = torch.randn(10, generator=generator(1))
    excess = axes.T @ torch.diag(values) @ axes
    prior = Gaussian.from_moments(mean, excess)
    assert torch.equal(prior.mean, mean)
    assert prior.directions.shape == (3, 10)
    torch.testing.assert_close(prior.variances, torch.tensor([4.0, 1.8, 0.5]))
    torch.testing.assert_close(prior.directions @ prior.directions.T, torch.eye(3))
    torch.testing.assert_close(covariance(prior), torch.eye(10) + excess.float())


@pytest.mark.parametrize(
    ("keep", "kept"), [(0.3, [8.0]), (0.65, [8.0, 5.0]), (0.9, [8.0, 5.0, 0.2]), (0.97, [8.0, 5.0, 0.2, 1.4])]
)
def test_the_cut_keeps_the_fewest_directions_that_reach_the_share(keep: float, kept: list[float]) -> None:
    """The absolute eigenvalues 7, 4, 0.8, 0.4, 0.1 have the shares 0.569, 0.894, 0.959, 0.992, 1."""
    values = torch.tensor([0.1, 0.4, -0.8, 4.0, 7.0], dtype=torch.float64)
    prior = Gaussian.from_moments(torch.zeros(5), torch.diag(values), keep=keep)
    torch.testing.assert_close(prior.variances, torch.tensor(kept))


def test_an_excess_of_nothing_gives_the_standard_normal() -> None:
    prior = Gaussian.from_moments(torch.zeros(4), torch.zeros(4, 4, dtype=torch.float64))
    assert prior.directions.shape == (0, 4)
    assert torch.equal(prior.sample((6, 4), generator()), StandardNormal().sample((6, 4), generator()))


def test_moments_about_a_scale_are_kept_in_full() -> None:
    axes, values = directions(2, 10), torch.tensor([3.0, -0.5], dtype=torch.float64)
    excess = axes.T @ torch.diag(values) @ axes
    prior = Gaussian.from_moments(torch.zeros(10), excess, scale=0.7)
    assert prior.scale == 0.7
    torch.testing.assert_close(prior.variances, torch.tensor([3.7, 0.2]))
    torch.testing.assert_close(covariance(prior), 0.7 * torch.eye(10) + excess.float())


@pytest.mark.parametrize("scale", [1.0, 0.1, torch.tensor(0.9), torch.tensor([0.9], dtype=torch.float64)])
def test_a_file_gives_the_start_back(scale: Any, tmp_path: Path) -> None:
    """A file of before there was a scale means a scale of 1."""
    save_file(gaussian(scale).tensors(), tmp_path / "prior.safetensors")
    tensors = load_file(tmp_path / "prior.safetensors")
    expected = gaussian(scale).sample((6, 4), generator())
    assert torch.equal(Gaussian(**tensors).sample((6, 4), generator()), expected)
    del tensors["scale"]
    assert torch.equal(Gaussian(**tensors).sample((6, 4), generator()), expected) == (scale == 1.0)


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_tensors_describe_the_start_in_full(scale: float) -> None:
    prior = gaussian(scale)
    again = Gaussian(**prior.tensors())
    assert torch.equal(again.sample((6, 4), generator()), prior.sample((6, 4), generator()))
    for name, value in again.tensors().items():
        assert torch.equal(value, torch.as_tensor(getattr(prior, name), dtype=value.dtype))


def test_no_sample_has_no_rows() -> None:
    start = Gaussian(torch.zeros(4), torch.eye(4)[:1], torch.ones(1))
    assert start.sample((0, 2, 2), torch.Generator()).shape == (0, 2, 2)


def test_a_row_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"this start has 4 coordinates; the shape asked is \(2, 5\)"):
        gaussian().sample((2, 5), generator())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shapes", [(3, (2, 4), 2), (4, (2, 4), 3), (4, (2, 3), 2)])
def test_shapes_that_do_not_fit_are_refused(shapes: Any) -> None:
    mean, rows, variances = shapes
    message = rf"there came \({mean},\), \({rows[0]}, {rows[1]}\) and \({variances},\)"
    with pytest.raises(ValueError, match=message):
        Gaussian(torch.zeros(mean), torch.zeros(rows), torch.ones(variances))


@pytest.mark.parametrize("least", [0.0, -0.5, torch.nan])
def test_variances_must_be_positive(least: float) -> None:
    with pytest.raises(ValueError, match=rf"variances must be positive; the least is {least}"):
        Gaussian(torch.zeros(4), directions(2, 4).float(), torch.tensor([1.0, least]))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, torch.tensor(-1.0), torch.tensor(math.nan)])
def test_the_scale_must_be_positive(scale: Any) -> None:
    with pytest.raises(ValueError, match=rf"scale must be positive and finite; there came {float(scale)}"):
        gaussian(scale)


def test_the_scale_must_be_one_number() -> None:
    with pytest.raises(ValueError, match=r"scale must be one number; there came a tensor of shape \(2,\)"):
        gaussian(torch.ones(2))


def test_moments_that_no_distribution_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"variances must be positive; the least is -1\.0"):
        Gaussian.from_moments(torch.zeros(2), torch.diag(torch.tensor([-2.0, 0.0], dtype=torch.float64)))
