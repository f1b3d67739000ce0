import math

import numpy as np
import pytest
import torch

from benchmarks.precision import _independent
from immiscible_diffusion.metrics import Cmmd, Kernel, _rows, gaussian_distance, kernel_distance, kernel_subsets


def draws(seed: int, n: int, f: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, f, generator=torch.Generator().manual_seed(seed)) + shift


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draws(0, 50, 4), draws(1, 33, 4, 0.3)
    whole = kernel_distance(x, y), gaussian_distance(x, y, sigma=2.0)
    monkeypatch.setattr(_rows, "_BLOCK", 7)
    assert (kernel_distance(x, y), gaussian_distance(x, y, sigma=2.0)) == pytest.approx(whole, rel=1e-12)


def test_subsets_estimate_the_same_distance_with_more_noise() -> None:
    x, y = draws(0, 600, 4), draws(1, 500, 4, 0.3)
    mean, sd = kernel_subsets(x, y, subsets=60, size=100, seed=3)
    assert abs(mean - kernel_distance(x, y)) < 4 * sd / math.sqrt(60)
    assert sd > 0
    assert kernel_subsets(x, y, subsets=60, size=100, seed=3) == (mean, sd)
    assert kernel_subsets(x, y, subsets=60, size=100, seed=4).mean != mean
    assert Kernel(subsets=60, size=100, seed=3)(x, y) == mean
    whole = kernel_subsets(x[:500], y, subsets=1, size=500)
    assert whole.mean == pytest.approx(kernel_distance(x[:500], y), rel=1e-9)
    assert whole.sd == 0


def test_subsets_do_not_repeat_rows() -> None:
    """Drawn with replacement, two equal sets of n rows would differ from themselves."""
    x = draws(0, 40, 3)
    assert kernel_subsets(x, x, subsets=3, size=40).mean == pytest.approx(kernel_distance(x, x), abs=1e-12)


def test_the_gaussian_kernel_equals_its_sums_and_its_closed_form() -> None:
    x, y = draws(0, 9, 3), draws(1, 7, 3, 0.5)

    def mean(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(np.mean([[math.exp(-float((p - q).double().square().sum()) / 8) for q in b] for p in a]))

    expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert gaussian_distance(x, y, sigma=2.0) == pytest.approx(expected, rel=1e-5)  # p - q was rounded to float32
    assert gaussian_distance(x, x) == pytest.approx(0, abs=1e-9)
    far, values = 2.0, []
    for i in range(40):
        shifted = draws(2 * i, 400, 4)
        shifted[:, 0] += far**0.5
        values.append(gaussian_distance(shifted, draws(2 * i + 1, 400, 4), sigma=3.0) / 1000)
    exact = _independent.gaussian_mmd_of_gaussians(4, far, 3.0) + 2 * (1 - (9 / 11) ** 2) / 400
    assert abs(np.mean(values) - exact) < 3.5 * np.std(values) / math.sqrt(40)
    assert abs(np.mean(values) - 1.15 * exact) > 3.5 * np.std(values) / math.sqrt(40)  # the test's own power


def test_the_kernels_closed_form() -> None:
    values = []
    for i in range(60):
        shifted = draws(2 * i, 300, 5)
        shifted[:, 2] += 1.0
        values.append(kernel_distance(shifted, draws(2 * i + 1, 300, 5)))
    exact = _independent.kernel_of_gaussians(5, 1.0)
    assert abs(np.mean(values) - exact) < 3.5 * np.std(values) / math.sqrt(60)
    assert abs(np.mean(values) - 1.2 * exact) > 3.5 * np.std(values) / math.sqrt(60)


def test_values_out_of_range_are_refused(unchecked: None) -> None:
    x = draws(0, 9, 3)
    for options in ({"subsets": 0, "size": 5}, {"subsets": 2, "size": 10}, {"subsets": 2, "size": 1}):
        with pytest.raises(ValueError, match=r"of 2\.\.9 rows each"):
            kernel_subsets(x, x, **options)
    with pytest.raises(ValueError, match="subsets >= 0"):
        Kernel(subsets=-1)
    for make in (lambda: Cmmd(sigma=0), lambda: gaussian_distance(x, x, sigma=float("nan"))):
        with pytest.raises(ValueError, match="must be positive"):
            make()
    for metric in (kernel_distance, gaussian_distance):
        with pytest.raises(ValueError, match="not finite"):
            metric(x, x / 0)
