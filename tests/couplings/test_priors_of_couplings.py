"""The start of sampling has the moments of the coupled noise; N(0, I) has not, unless the coupling permutes."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from immiscible_diffusion.couplings import Assignment, Nearest
from immiscible_diffusion.couplings import _nearest_start as kept
from immiscible_diffusion.couplings._nearest_start import kept_moments, kept_prior, max_normal_moments
from immiscible_diffusion.priors import Gaussian, StandardNormal
from sweeps import sweep

pytestmark = pytest.mark.medium


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def brute_moments(norm: float, d: int, k: int, cost: str, rows: int) -> tuple[Tensor, Tensor]:
    """Return (a, a^2, r^2) of the best of k explicit noises, averaged over rows, and their standard errors."""
    x, noise = torch.zeros(d, dtype=torch.float64), randn(rows * k, d, seed=3).double().reshape(rows, k, d)
    x[0] = norm
    value = (noise - x).square().sum(2) if cost == "l2" else -noise[:, :, 0] / noise.norm(dim=2)
    best = noise[torch.arange(rows), value.argmin(1)]
    moments = torch.stack([best[:, 0], best[:, 0].square(), best[:, 1:].square().sum(1)])
    return moments.mean(1), moments.std(1) / math.sqrt(rows)


LAWS = [(1, 4), (2, 2), (2, 64), (3, 8), (20, 8), (20, 300), (500, 8)]


@pytest.mark.parametrize("norm", [0.0, 0.3, 3.0, 40.0, None])
@pytest.mark.parametrize(("d", "k"), LAWS)
def test_moments_of_the_kept_noise_are_those_of_explicit_noises(d: int, k: int, norm: float | None) -> None:
    """A norm of None stands for ``cosine``, where it makes no difference. The control is three quarters of k."""
    cost: Any = "cosine" if norm is None else "l2"
    length, rows = 2.0 if norm is None else norm, 2_000_000 // (k * d) + 300
    mean, error = brute_moments(length, d, k, cost, rows)
    tolerance = 5 * error + 1e-3 * torch.tensor([1.0, 1.0, max(d - 1, 1)])  # the quadrature's own, per coordinate

    def fits(law: tuple[float, float, float]) -> bool:
        return bool(((torch.tensor(law) - mean).abs() <= tolerance).all())

    assert fits(kept_moments(length, d, k, cost))
    if d > 1 and rows > 10_000:
        assert not fits(kept_moments(length, d, k // 2, cost))


def test_moments_of_the_kept_noise_have_known_values() -> None:
    for d in (1, 2, 7, 3072):
        for cost in ("l2", "cosine"):
            assert kept_moments(3.0, d, 1, cost) == pytest.approx((0, 1, d - 1), rel=2e-4, abs=2e-4)
        assert kept_moments(3.0, d, 2.5, "dot") == (*max_normal_moments(2.5), d - 1)
        assert kept_moments(1e5 * d, d, 8, "l2") == pytest.approx((*max_normal_moments(8), d - 1), rel=1e-3)
    assert kept_moments(1.0, 1, 3, "cosine")[0] == pytest.approx(0.75 * math.sqrt(2 / math.pi))
    # The greatest of two cosines in three dimensions is uniform's greatest on [-1, 1]: mean 1/3; E|n| = sqrt(8 / pi).
    assert kept_moments(1.0, 3, 2, "cosine")[0] == pytest.approx(math.sqrt(8 / math.pi) / 3, abs=1e-6)
    quantiles = 2 * beta(49.5, 49.5).ppf((np.arange(200_000) + 0.5) / 200_000) ** (1.0) - 1
    assert kept_moments(1.0, 100, 1, "cosine")[1] == pytest.approx(100 * float(np.mean(quantiles**2)), rel=1e-4)


def data_of(d: int) -> Tensor:
    """Return 40 rows with a mean, strong and weak directions, norms over two decades, and a row of zeros."""
    rows = randn(40, d) * torch.logspace(0.5, -1, d) + 1.5 * randn(1, d, seed=9)
    return (
        rows
        * torch.logspace(-1, 1, 40)[torch.randperm(40, generator=generator(1))][:, None]
        * (torch.arange(40) != 5).unsqueeze(1)
    )


def covariance(prior: Any, d: int) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of a start, float64."""
    if isinstance(prior, StandardNormal):
        return torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)
    assert isinstance(prior, Gaussian)
    axes, scale = prior.directions.double(), float(prior.scale)
    return prior.mean.double(), scale * torch.eye(d) + axes.T @ ((prior.variances.double() - scale)[:, None] * axes)


def misfit(noise: Tensor, mean: Tensor, spread: Tensor) -> dict[str, float]:
    """Return by how much the noise's moments miss others, each in what is granted: five standard errors, and 0.003.

    The variances are taken along the principal directions of the data and of the start: those of the noise itself have
    by chance more and less than any. What is granted beside chance is for the quadrature, its interpolation between
    norms, and the 0.1 per cent of the excess that is cut off.
    """
    n, d = noise.shape
    cov, data = noise.double().T.cov().reshape(noise.shape[1], -1), data_of(d).double()
    axes = torch.cat([torch.linalg.eigh(matrix).eigenvectors.T for matrix in (data.T @ data, spread)])
    along, expected = (((axes @ matrix) * axes).sum(1) for matrix in (cov, spread))
    drift = ((noise.double().mean(0) - mean) @ axes.T).abs()
    error = math.sqrt(1 / n)
    total = (cov.trace() - spread.trace()).abs() / d
    return {
        "mean": float((drift / (5 * along.sqrt() * error + 0.003)).max()),
        "variance": float(((along - expected).abs() / (5 * 2**0.5 * along * error + 0.003)).max()),
        "total": float(total / (5 * (2 / d) ** 0.5 * error + 0.003)),
    }


COUPLINGS = [
    *[Nearest(k=k, cost="dot") for k in (1.5, 8, 64)],
    *[Nearest(k=k, cost="l2") for k in (2, 8, 64)],
    *[Nearest(k=k, cost="cosine") for k in (2, 8)],
]


@pytest.mark.parametrize("d", [1, 8, 50])
@pytest.mark.parametrize("couple", sweep(COUPLINGS, 3), ids=str)
def test_the_start_has_the_moments_of_the_coupled_noise(couple: Nearest, d: int) -> None:
    data = data_of(d)
    prior, repeats = couple.prior(iter([data[:7], data[7:]])), 2000 if couple.k < 64 else 500
    noise = couple(data.repeat(repeats, 1), generator=generator(2))
    assert max(misfit(noise, *covariance(prior, d)).values()) <= 1
    drawn = prior.sample((40 * repeats, d), generator(3))
    assert max(misfit(drawn, *covariance(prior, d)).values()) <= 1
    if d > 1 or couple.cost != "cosine":  # on a line a cosine is a sign, and data of both signs leave N(0, 1)
        assert max(misfit(noise, *covariance(StandardNormal(), d)).values()) > 1.5


@pytest.mark.parametrize("couple", [Nearest(k=8), Nearest(k=8, cost="cosine"), Nearest(k=8, cost="dot")], ids=str)
def test_a_start_that_is_almost_right_fails_the_check(couple: Nearest) -> None:
    data = data_of(8)
    prior, noise = couple.prior([data]), couple(data.repeat(4000, 1), generator=generator(2))
    mean, spread = covariance(prior, 8)
    assert max(misfit(noise, mean, spread).values()) <= 1
    broken = {
        "another k": covariance(Nearest(k=6, cost=couple.cost).prior([data]), 8),
        "raw second moment": (mean, spread + torch.outer(mean, mean)),
        "no mean": (0 * mean, spread),
        "other data": covariance(couple.prior([data.roll(1, 1)]), 8),
        "a larger rest": (mean, spread + 0.05 * torch.eye(8)),
    }
    for name, (other_mean, other_spread) in broken.items():
        assert max(misfit(noise, other_mean, other_spread).values()) > 1, name


def test_each_moment_of_the_check_sees_its_own_break() -> None:
    noise, mean, spread = randn(100_000, 8), torch.zeros(8).double(), torch.eye(8).double()
    assert max(misfit(noise, mean, spread).values()) <= 1
    assert misfit(noise + 0.05, mean, spread)["mean"] > 1
    assert misfit(noise * torch.tensor([1.1, 1, 1, 1, 1, 1, 1, 1]), mean, spread)["variance"] > 1
    assert misfit(noise * 1.03, mean, spread)["total"] > 1


@pytest.mark.slow
def test_a_permutation_starts_from_the_standard_normal() -> None:
    data, couple = data_of(8), Assignment()
    assert couple.prior([data]) == StandardNormal()
    source = generator(2)
    noise = torch.cat([couple(data, generator=source) for _ in range(1000)])
    assert max(misfit(noise, *covariance(StandardNormal(), 8)).values()) <= 1
    moved = torch.cat([Nearest(k=2)(data, generator=source) for _ in range(1000)])
    assert max(misfit(moved, *covariance(StandardNormal(), 8)).values()) > 1


def test_the_start_of_l1_is_measured() -> None:
    """Over the data's strongest direction, to the sampling error of four noises for each of 4,000 rows."""
    data, couple = data_of(8).repeat(100, 1), Nearest(k=8, cost="l1")
    mean, spread = covariance(couple.prior(torch.split(data, 400)), 8)
    noise = couple(data.repeat(10, 1), generator=generator(2))
    cov, expected = noise.double().T.cov(), torch.eye(8).double()
    error = 5 * math.sqrt(2 / 16_000)
    assert (noise.double().mean(0) - mean).abs().max() < error
    assert (cov.diagonal() - spread.diagonal()).abs().max() < error
    assert (noise.double().mean(0)).abs().max() > 2 * error
    assert (cov.diagonal() - expected.diagonal()).abs().max() > 2 * error


@pytest.mark.parametrize("cost", ["l2", "dot", "cosine", "l1"])
def test_the_start_needs_data(cost: Any) -> None:
    with pytest.raises(ValueError, match=r"matched start of [nN]earest needs data; there came none"):
        Nearest(cost=cost).prior([])


def long_rows(n: int, d: int) -> Tensor:
    """Return rows of a spectrum that falls fast, with a mean."""
    axes = torch.linalg.qr(randn(d, 40, seed=5)).Q.T
    strong: Tensor = randn(n, 40, seed=6) * torch.logspace(1, -1, 40) @ axes
    data: Tensor = strong + 0.02 * randn(n, d, seed=7) + 3 * axes[3]
    return data


@pytest.mark.parametrize(("k", "cost"), [(8, "l2"), (8, "dot"), (1.5, "dot"), (8, "cosine")])
def test_the_start_of_long_rows_keeps_their_leading_directions(
    k: float, cost: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """512 coordinates by the sketch against the exact second moment; one of 5 directions of 40 is the control."""
    data = long_rows(600, 512)
    mean, spread = covariance(kept_prior([data], k, cost), 512)
    monkeypatch.setattr(kept, "_EXACT", 100)
    worst = {}
    for rank in (100, 5):
        monkeypatch.setattr(kept, "_RANK", rank)
        prior = kept_prior(torch.split(data, 128), k, cost)
        assert len(prior.directions) <= rank + 1
        other_mean, other_spread = covariance(prior, 512)
        torch.testing.assert_close(other_mean, mean, rtol=0, atol=1e-6)
        assert float(other_spread.trace()) == pytest.approx(float(spread.trace()), rel=2e-5)
        worst[rank] = float(torch.linalg.matrix_norm(other_spread - spread, 2))
    scale = float(torch.linalg.matrix_norm(spread - torch.eye(512), 2))
    assert worst[100] < 0.01 * scale < worst[5]


def peak_bytes(run: Any, folder: Path) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    assert changes
    return int(np.cumsum([change for _, change in changes]).max())


def test_the_start_of_long_rows_needs_no_memory_of_d_squared(tmp_path: Path) -> None:
    """At d = 4,500 the second moment alone is 162 MB; 256 directions in float64 are 9 MB, of which some are held."""
    data = long_rows(64, 4500)
    assert peak_bytes(lambda: kept_prior([data], 8, "l2"), tmp_path) < 4500**2 * 8 / 4
    assert peak_bytes(lambda: data.double().T @ data.double(), tmp_path) > 4500**2 * 8 / 4
