"""What real images score in place of samples."""

import numpy as np
import pytest
import torch

from immiscible_diffusion.metrics import Frechet, Precision, frechet_distance, noise_floor


def rows(seed: int, n: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)) + shift


def test_it_is_the_mean_over_draws_of_distinct_rows() -> None:
    """With 4 of 5 rows there are five draws: every value is one of theirs."""
    training, held_out = rows(0, 5), rows(1, 30)
    possible = [frechet_distance(held_out, training[[i for i in range(5) if i != left]]) for left in range(5)]
    singles = [noise_floor(training, held_out, Frechet(), 4, draws=1, seed=seed).mean for seed in range(40)]
    assert all(min(abs(single - value) for value in possible) < 1e-9 for single in singles)
    assert len({round(single, 9) for single in singles}) == 5
    floor = noise_floor(training, held_out, Frechet(), 4, draws=400)
    assert floor.mean == pytest.approx(np.mean(possible), abs=float(4 * np.std(possible) / 20))
    assert floor.sd == pytest.approx(np.std(possible), rel=0.2)


def test_it_falls_with_the_samples_and_tells_another_distribution() -> None:
    training, held_out = rows(0, 4000), rows(1, 2000)
    few, many = (noise_floor(training, held_out, Frechet(), n) for n in (100, 1000))
    assert many.mean < few.mean / 3
    other = frechet_distance(held_out, rows(2, 1000, shift=0.3))
    assert other > many.mean + 10 * many.sd  # the control: what is not real lies above it


def test_equal_draws_for_equal_seeds() -> None:
    training, held_out = rows(0, 200), rows(1, 100)
    first = noise_floor(training, held_out, Precision(), 50)
    assert first == noise_floor(training, held_out, Precision(), 50)
    assert first != noise_floor(training, held_out, Precision(), 50, seed=1)
    assert noise_floor(training, held_out, Frechet(), 200).sd < 1e-9  # every draw has all rows


@pytest.mark.parametrize(("samples", "draws"), [(6, 8), (0, 8), (3, 0)])
def test_impossible_draws_are_refused(samples: int, draws: int) -> None:
    with pytest.raises(ValueError, match=f"{draws} draws of {samples} rows"):
        noise_floor(rows(0, 5), rows(1, 5), Frechet(), samples, draws)
