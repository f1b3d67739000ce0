import numpy as np
import pytest
import torch

from benchmarks.precision import _independent
from immiscible_diffusion.features._resize import Resize, resized

pytestmark = pytest.mark.medium

SIZES = [(32, 32, 299), (40, 23, 17), (8, 8, 8)]


def raw(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def bilinear(x: torch.Tensor, size: int, offset: float) -> torch.Tensor:
    """Return images read at (i + offset) old / new - offset, a pixel at a time, in float64."""
    images = x.double().numpy()
    result = np.zeros((*images.shape[:2], size, size))

    def neighbours(i: int, old: int) -> tuple[int, int, float]:
        place = min(max((i + offset) * old / size - offset, 0), old - 1)
        return int(place), min(int(place) + 1, old - 1), place - int(place)

    for i in range(size):
        top, bottom, down = neighbours(i, images.shape[2])
        for j in range(size):
            left, right, along = neighbours(j, images.shape[3])
            above = images[:, :, top, left] * (1 - along) + images[:, :, top, right] * along
            below = images[:, :, bottom, left] * (1 - along) + images[:, :, bottom, right] * along
            result[:, :, i, j] = above * (1 - down) + below * down
    return torch.from_numpy(result)


@pytest.mark.parametrize(("height", "width", "size"), [*SIZES[1:], pytest.param(*SIZES[0], marks=pytest.mark.slow)])
@pytest.mark.parametrize(("how", "offset"), [("pytorch_fid", 0.5), ("tensorflow", 0.0)])
def test_bilinear_equals_its_formula(height: int, width: int, size: int, how: Resize, offset: float) -> None:
    x = raw(height, width)
    torch.testing.assert_close(resized(x, size, how).double(), bilinear(x, size, offset), rtol=0, atol=2e-3)
    if size != 8:  # at its own size an image stays the same either way
        assert float((resized(x, size, how) - bilinear(x, size, 0.5 - offset)).abs().max()) > 5


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_bicubic_equals_pillow(height: int, width: int, size: int) -> None:
    x = raw(height, width)
    torch.testing.assert_close(resized(x, size, "clean_fid"), _independent.pillow_bicubic(x, size), rtol=0, atol=2e-3)
    assert resized(x, size, "clean_fid").min() >= 0


def test_tensorflow_equals_the_grid_of_stylegans_network() -> None:
    x = raw(32, 48)
    torch.testing.assert_close(
        resized(x, 299, "tensorflow"), _independent.tensorflow_bilinear(x, 299), rtol=0, atol=5e-3
    )
