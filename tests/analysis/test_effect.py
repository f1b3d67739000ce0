import pytest
import torch

from immiscible_diffusion import Assignment, Independent, Nearest
from immiscible_diffusion.analysis.effect import effect

DATA = [(torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(i)), None) for i in range(6)]


def test_independent_noise_is_no_nearer() -> None:
    measured = effect(Independent(), DATA)
    assert measured["distance_reduction_percent"] == 0
    assert measured["noise_square"] == pytest.approx(1, abs=0.02)
    assert measured["cosine"] == pytest.approx(0, abs=0.02)
    assert measured["batches"] == 6


def test_the_reduction_is_that_of_the_distances() -> None:
    x, _ = DATA[0]
    noise = Assignment()(x, None, torch.Generator().manual_seed(0))
    measured = effect(Assignment(), DATA)
    assert measured["distance_reduction_percent"] > 1
    assert measured["noise_square"] == pytest.approx(1, abs=0.02)
    assert measured["cosine"] > torch.nn.functional.cosine_similarity(x.flatten(1), noise.roll(1, 0).flatten(1)).mean()


def test_nearest_by_distance_has_shorter_noise() -> None:
    d, c8 = 192, 1.424
    measured = effect(Nearest(8), DATA)
    assert measured["noise_square"] == pytest.approx(1 - 2 * c8 / (6 * d) ** 0.5 + (2 * c8 / 6**0.5) ** 2 / d, abs=0.02)


def test_no_data_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        effect(Assignment(), [])
