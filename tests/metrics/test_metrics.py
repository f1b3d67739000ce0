from fractions import Fraction

import numpy as np
import pytest
import scipy.linalg
import torch

from immiscible_diffusion.features import PooledPixels
from immiscible_diffusion.metrics import Moments, frechet_distance, frechet_from_moments, kernel_distance
from shapes import unchecked


def draws(seed: int, n: int, f: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(n, f, generator=torch.Generator().manual_seed(seed)) * scale + shift


def test_frechet_equals_the_closed_form_of_two_gaussians() -> None:
    measured = frechet_distance(draws(0, 200_000, 4), draws(1, 200_000, 4, shift=0.5, scale=2.0))
    assert measured == pytest.approx(4 * 0.25 + 4 * (2 - 1) ** 2, rel=0.01)


@pytest.mark.parametrize(("n", "f"), [(50, 5), (300, 64), (40, 64)])
def test_frechet_equals_the_textbook_formula(n: int, f: int) -> None:
    """The trace of the root is the nuclear norm of the centred rows' product; with n < f covariances are singular."""
    mix = draws(9, f, f)
    real, generated = (draws(0, n, f) @ mix).double().numpy(), draws(1, n, f, 0.3, 1.2).double().numpy()
    first, second = real - real.mean(0), generated - generated.mean(0)
    overlap = scipy.linalg.svdvals(first @ second.T).sum() / (n - 1)
    traces = (np.square(first).sum() + np.square(second).sum()) / (n - 1)
    expected = np.square(real.mean(0) - generated.mean(0)).sum() + traces - 2 * overlap
    measured = frechet_distance(torch.from_numpy(real), torch.from_numpy(generated))
    assert measured == pytest.approx(expected, rel=1e-6)
    same = frechet_distance(torch.from_numpy(real), torch.from_numpy(real))
    assert 0 <= same <= 1e-7 * traces  # the square roots of eigenvalues that are zero but for rounding


def test_frechet_of_fewer_rows_than_features_loses_no_digits() -> None:
    """From covariances, two rows of 2,048 features were .007 away from themselves: below zero, after 40 seconds."""
    two = draws(0, 2, 2048)
    assert frechet_distance(two, two) == 0
    real, generated = draws(1, 5, 300), draws(2, 200, 300, 0.2, 1.3)
    by_covariances = frechet_from_moments(Moments.of(real), Moments.of(generated))
    first, second = (x.double() - x.double().mean(0) for x in (real, generated))
    overlap = torch.linalg.svdvals(first @ second.T).sum() / (4 * 199) ** 0.5
    shift = (real.double().mean(0) - generated.double().mean(0)).square().sum()
    expected = float(shift + first.square().sum() / 4 + second.square().sum() / 199 - 2 * overlap)
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=1e-13)
    assert by_covariances == pytest.approx(expected, rel=1e-6)
    assert by_covariances != pytest.approx(expected, rel=1e-9)  # what the covariances lose


def test_kernel_distance_equals_its_sums() -> None:
    real, generated = draws(0, 6, 3), draws(1, 5, 3, 0.4)

    def k(x: torch.Tensor, y: torch.Tensor) -> float:
        return (float(x.double() @ y.double()) / 3 + 1) ** 3

    within = sum(k(a, b) for i, a in enumerate(real) for j, b in enumerate(real) if i != j) / 30
    other = sum(k(a, b) for i, a in enumerate(generated) for j, b in enumerate(generated) if i != j) / 20
    across = sum(k(a, b) for a in real for b in generated) / 30
    assert kernel_distance(real, generated) == pytest.approx(within + other - 2 * across, rel=1e-9)


def test_kernel_distance_far_from_zero_is_exact() -> None:
    """Values of 1e15 are what the kernel gives at mean 1e4; rational arithmetic agrees."""
    real = draws(0, 8, 3) + 1e4
    rows = [[Fraction(value) for value in row] for row in real.tolist()]
    kernel = [[(sum(a * b for a, b in zip(x, y, strict=True)) / 3 + 1) ** 3 for y in rows] for x in rows]
    total, diagonal = sum(map(sum, kernel)), sum(kernel[i][i] for i in range(8))
    expected = float(2 * (total - diagonal) / 56 - 2 * total / 64)
    assert expected < -1e14
    assert kernel_distance(real, real) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_is_unbiased() -> None:
    values = [kernel_distance(draws(2 * i, 20, 2), draws(2 * i + 1, 20, 2)) for i in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(300)
    assert min(values) < 0 < max(values)
    assert kernel_distance(draws(0, 300, 2), draws(1, 300, 2, 0.5)) > 0.5


@pytest.mark.parametrize("metric", [frechet_distance, kernel_distance])
def test_features_that_do_not_fit_are_refused(metric: object) -> None:
    for real, generated in ((draws(0, 5, 2), draws(0, 5, 3)), (draws(0, 1, 2), draws(0, 5, 2))):
        with unchecked(), pytest.raises(ValueError, match="features must be"):
            metric(real, generated)  # type: ignore[operator]


def test_pooled_pixels_are_averages() -> None:
    raw = torch.arange(2 * 3 * 16, dtype=torch.uint8).reshape(2, 3, 4, 4)
    features = PooledPixels(2)(raw)
    assert features.shape == (2, 12)
    assert float(features[0, 0]) == pytest.approx(float(raw[0, 0, :2, :2].float().mean()) / 255)
