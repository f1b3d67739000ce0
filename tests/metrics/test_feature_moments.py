import numpy as np
import pytest
import torch

from immiscible_diffusion.features import PooledPixels
from immiscible_diffusion.metrics import Moments, features_of, frechet_distance, frechet_from_moments
from immiscible_diffusion.metrics.moments import moments_of


def rows(n: int = 1000, f: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, f, generator=generator) @ torch.randn(f, f, generator=generator) + 1e4


@pytest.mark.parametrize("size", [1, 7, 999, 1000])
def test_any_batches_give_numpys_moments(size: int) -> None:
    x = rows()
    gathered = Moments.of(x[:0])
    for part in torch.split(x, size):
        gathered = gathered.add(part)
    exact = np.cov(x.double().numpy(), rowvar=False)
    assert gathered.count == 1000
    np.testing.assert_allclose(gathered.mean.numpy(), x.double().numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(gathered.covariance.numpy(), exact, atol=1e-11 * np.abs(exact).max())


def test_sums_of_squares_would_have_failed() -> None:
    """The control: the covariance as E[x x'] - m m' loses its digits to the mean of 10^4; in float32 all of them."""
    x = rows()
    naive = x.T @ x / len(x) - torch.outer(x.mean(0), x.mean(0))
    assert float((naive - torch.cov(x.double().T)).abs().max()) > 0.1


def test_processes_merge_in_any_order() -> None:
    x = rows()
    parts = [Moments.of(part) for part in torch.split(x, [1, 400, 0, 599])]
    forward, backward = parts[0], parts[3]
    for part in parts[1:]:
        forward = forward.merge(part)
    for part in parts[2::-1]:
        backward = backward.merge(part)
    whole = Moments.of(x)
    for merged in (forward, backward):
        assert merged.count == 1000
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-13, atol=0)
        torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-9, atol=1e-9)


def test_the_distance_of_moments_is_that_of_rows() -> None:
    x, y = rows(), rows(300) * 1.001
    assert frechet_from_moments(Moments.of(x), Moments.of(y)) == frechet_distance(x, y)


def test_what_cannot_be_joined_is_refused(unchecked: None) -> None:
    x = Moments.of(rows())
    with pytest.raises(ValueError, match="cannot add features of length 5"):
        x.merge(Moments.of(rows(f=5)))
    with pytest.raises(ValueError, match="compared, not added"):
        x.merge(Moments(x.mean, x.covariance, None))
    with pytest.raises(ValueError, match="covariance needs two rows"):
        frechet_from_moments(x, Moments.of(rows()[:1]))
    with pytest.raises(ValueError, match="6 features and of 5"):
        frechet_from_moments(x, Moments.of(rows(f=5)))
    with pytest.raises(ValueError, match="must be finite"):
        Moments(x.mean * torch.nan, x.covariance, 3)
    with pytest.raises(ValueError, match=r"\(f,\) and \(f, f\)"):
        Moments(x.mean, x.covariance[:3], 3)


def test_images_in_batches_give_features_and_moments() -> None:
    raw = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = PooledPixels(2)
    moments, kept = features_of(torch.split(raw, 7), features)
    torch.testing.assert_close(kept, features(raw))
    torch.testing.assert_close(moments.covariance, torch.cov(features(raw).double().T))
    alone = moments_of(iter(torch.split(raw, 16)), features)
    torch.testing.assert_close(alone.covariance, moments.covariance)
    for gather in (features_of, moments_of):
        with pytest.raises(ValueError, match="no images"):
            gather([], features)
