"""Nearest of k against the law it claims: k explicit noises of which one is kept."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import log_ndtr
from scipy.stats import chi2, ks_2samp, kstest, norm
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from immiscible_diffusion.couplings import Assignment, Independent, Nearest, nearest
from immiscible_diffusion.couplings.nearest import max_normal_moments
from immiscible_diffusion.priors import Gaussian, StandardNormal

COSTS = ["l2", "dot", "cosine", "l1"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def reference(x: Tensor, k: int, cost: str) -> Tensor:
    """Return the best of k noises for each row of x, (b, d), each noise drawn in full."""
    source, kept, least = generator(1), torch.zeros_like(x), torch.full((len(x),), torch.inf)
    for _ in range(k):
        noise = torch.randn(x.shape, generator=source)
        if cost in ("l2", "l1"):
            value = torch.linalg.vector_norm(x - noise, 2 if cost == "l2" else 1, dim=1)
        else:
            value = -torch.linalg.vecdot(x, noise) / (noise.norm(dim=1) if cost == "cosine" else 1)
        kept, least = torch.where((value < least)[:, None], noise, kept), torch.minimum(value, least)
    return kept


def split(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the noise's part along x / |x|, (b,), and the rest, (b, d); a row of zeros counts as the first axis."""
    unit = torch.where(x.norm(dim=1, keepdim=True) > 0, x, torch.eye(x.shape[1])[0])
    unit = unit / unit.norm(dim=1, keepdim=True)
    along = torch.linalg.vecdot(unit, noise)
    return along, noise - along[:, None] * unit


def p_value(x: Tensor, noise: Tensor, other: Tensor) -> float:
    """Return the lesser p of two-sample tests of the projection on x and of the norm."""
    ours, theirs = ((split(x, each)[0], each.norm(dim=1)) for each in (noise, other))
    return min(float(ks_2samp(a.numpy(), b.numpy()).pvalue) for a, b in zip(ours, theirs, strict=True))


DATA: dict[str, Callable[[int, int], Tensor]] = {
    "one": lambda rows, d: randn(1, d, seed=100 + d).expand(rows, d),
    "many, some of them zero": lambda rows, d: 2 * randn(rows, d, seed=100 + d) * (torch.arange(rows) % 4 > 0)[:, None],
    "zero": torch.zeros,
}


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize(("d", "k", "rows"), [(1, 4, 4000), (2, 8, 4000), (3, 64, 2000), (64, 8, 3000), (3072, 8, 400)])
@pytest.mark.parametrize("data", DATA)
@pytest.mark.medium
def test_the_law_is_that_of_k_explicit_noises(data: str, d: int, k: int, rows: int, cost: Any) -> None:
    x = DATA[data](rows, d)
    assert p_value(x, nearest(x, k, cost=cost, generator=generator(2)), reference(x, k, cost)) > 1e-4


def flipped(x: Tensor, noise: Tensor) -> Tensor:
    return 2 * split(x, noise)[1] - noise


def not_rescaled(x: Tensor, noise: Tensor) -> Tensor:
    return noise - split(x, noise)[1] + split(x, randn(*x.shape, seed=5))[1]


def another(cost: str) -> Any:
    return {"l2": "dot", "dot": "l2", "cosine": "l2", "l1": "dot"}[cost]


BROKEN: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "twice the k": lambda x, cost: nearest(x, 16, cost=cost, generator=generator(2)),
    "half the k": lambda x, cost: nearest(x, 4, cost=cost, generator=generator(2)),
    "independent": lambda x, cost: randn(*x.shape, seed=2),
    "another cost": lambda x, cost: nearest(x, 8, cost=another(cost), generator=generator(2)),
    "another x": lambda x, cost: nearest(x.roll(1, 0), 8, cost=cost, generator=generator(2)),
    "flipped": lambda x, cost: flipped(x, nearest(x, 8, cost=cost, generator=generator(2))),
    "not rescaled": lambda x, cost: not_rescaled(x, nearest(x, 8, cost=cost, generator=generator(2))),
}
# With dot the rest of the noise is as it was drawn: a fresh one has the same law.
BREAKS = [(law, cost) for law in BROKEN for cost in COSTS if (law, cost) != ("not rescaled", "dot")]


@pytest.mark.parametrize(("law", "cost"), BREAKS)
def test_a_broken_law_fails_the_check_of_the_law(law: str, cost: str) -> None:
    x = randn(6000, 8)
    assert p_value(x, BROKEN[law](x, cost), reference(x, 8, cost)) < 1e-4


def anisotropy(x: Tensor, noise: Tensor) -> float:
    """Return the greatest deviation from isotropy across one x, in standard errors; the noise along x counts too."""
    frame = torch.linalg.qr(torch.cat([x[:1].T, torch.eye(x.shape[1])], 1)).Q.T
    turned = (noise @ frame.T).double()
    turned = torch.cat([turned[:, :1] - turned[:, 0].mean(), turned[:, 1:]], 1)
    moments = turned.T @ turned / len(turned)
    variance = moments.diagonal()[1:].mean()
    expected = variance * torch.eye(len(moments), dtype=torch.float64)
    expected[0, 0] = moments[0, 0]
    worst = (moments - expected).abs().max() / (variance * math.sqrt(2 / len(x)))
    drift = turned[:, 1:].mean(0).abs().max() / (variance / len(x)).sqrt()
    return float(torch.maximum(worst, drift))


@pytest.mark.parametrize("cost", ["l2", "dot", "cosine"])
def test_the_noise_is_isotropic_across_x(cost: Any) -> None:
    x = DATA["one"](40_000, 6)
    noise = nearest(x, 8, cost=cost, generator=generator(2))
    assert anisotropy(x, noise) < 5
    assert anisotropy(x, noise * torch.tensor([1, 1, 1.1, 1, 1, 1])) > 5
    assert anisotropy(x, noise + 0.05 * torch.eye(6)[2]) > 5


def moments_by_quadrature(k: float) -> list[float]:
    def density(a: float) -> float:
        return math.exp(math.log(k) + norm.logpdf(a) + (k - 1) * log_ndtr(a))

    peak = float(norm.ppf(0.5 ** (1 / k)))
    return [float(quad(lambda a, n=n: a**n * density(a), -10, 15, points=[peak], limit=400)[0]) for n in (1, 2)]


@pytest.mark.parametrize("k", [1, 1.3, 2, 2.5, 8, 64, 1e3, 1e6])
def test_moments_of_the_maximum_are_those_of_quadrature(k: float) -> None:
    assert max_normal_moments(k) == pytest.approx(moments_by_quadrature(k), abs=1e-7)  # the error of quad itself


def test_moments_of_the_maximum_have_known_values() -> None:
    assert max_normal_moments(1) == pytest.approx((0, 1), abs=1e-12)
    assert max_normal_moments(2)[0] == pytest.approx(1 / math.sqrt(math.pi), abs=1e-12)
    assert max_normal_moments(3)[0] == pytest.approx(1.5 / math.sqrt(math.pi), abs=1e-12)


@pytest.mark.parametrize("k", [1, 1.5, 2.5, 64, 1e6])
def test_dot_takes_the_maximum_of_a_real_number_of_normals(k: float) -> None:
    x = DATA["one"](20_000, 5)
    along, rest = split(x, nearest(x, k, cost="dot", generator=generator(2)))
    first, second = moments_by_quadrature(k)
    spread = math.sqrt(second - first**2)
    assert along.isfinite().all()
    assert float(along.mean()) == pytest.approx(first, abs=5 * spread / math.sqrt(len(x)))
    assert kstest(along.numpy(), lambda a: np.exp(k * log_ndtr(a))).pvalue > 1e-4
    assert kstest(along.numpy(), lambda a: np.exp(1.2 * k * log_ndtr(a))).pvalue < 1e-4
    assert kstest(rest.square().sum(1).numpy(), chi2(4).cdf).pvalue > 1e-4


@pytest.mark.parametrize("cost", COSTS)
def test_the_nearest_of_one_is_independent_noise(cost: Any) -> None:
    noise = nearest(2 * randn(4000, 5), 1, cost=cost, generator=generator(2))
    assert kstest(noise.flatten().numpy(), norm.cdf).pvalue > 1e-4


@pytest.mark.parametrize("k", [8, 64])
@pytest.mark.parametrize("s", [0.5, 1.0])
@pytest.mark.medium
def test_closed_forms_of_the_nearest_by_distance(k: int, s: float) -> None:
    """To first order in 1 / sqrt(d), which leaves 2 per cent of each at d = 3072; half the k fails all three."""
    d, x = 3072, s * randn(2000, 3072)
    c = max_normal_moments(k)[0]
    expected = {
        "reduction": c * math.sqrt(2 * d + 4 * s**2 * d) / (2 * d * (1 + s**2)),
        "shrinkage": 2 * c / math.sqrt((2 + 4 * s**2) * d),
        "shift": 2 * c * s / math.sqrt(2 + 4 * s**2),
    }
    measured, halved = (
        {
            "reduction": 1 - float((x - noise).norm(dim=1).mean() / (x - randn(2000, d, seed=4)).norm(dim=1).mean()),
            "shrinkage": 1 - float(noise.square().mean()),
            "shift": float(split(x, noise)[0].mean()),
        }
        for noise in (nearest(x, k, generator=generator(3)), nearest(x, k // 2, generator=generator(3)))
    )
    assert measured == pytest.approx(expected, rel=0.06)
    for name, value in expected.items():
        assert halved[name] != pytest.approx(value, rel=0.06)


def peak_bytes(run: Callable[[], object], folder: Path) -> int:
    """Return the most that a call holds beyond what was held before it, its result included, in bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    del result
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    assert changes
    return int(np.cumsum([change for _, change in changes]).max())


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.medium
def test_memory_is_a_few_batches_and_not_k(cost: Any, tmp_path: Path) -> None:
    x = randn(256, 3072)
    assert x.nbytes <= peak_bytes(lambda: nearest(x, 64, cost=cost, generator=generator(2)), tmp_path) < 4 * x.nbytes


@pytest.mark.medium
def test_explicit_noises_fail_the_check_of_memory(tmp_path: Path) -> None:
    x = randn(256, 3072)
    assert peak_bytes(lambda: (x[:, None] - randn(256, 8, 3072)).norm(dim=2).argmin(1), tmp_path) > 4 * x.nbytes


@pytest.mark.parametrize("cost", COSTS)
def test_randomness_comes_from_the_generator_alone(cost: Any) -> None:
    x, state = randn(4, 3, 2), torch.get_rng_state()
    noise = nearest(x, 8, cost=cost, generator=generator(2))
    assert torch.equal(noise, nearest(x, 8, cost=cost, generator=generator(2)))
    assert not torch.equal(noise, nearest(x, 8, cost=cost, generator=generator(3)))
    assert torch.equal(state, torch.get_rng_state())
    with torch.random.fork_rng():
        torch.manual_seed(5)
        drawn = nearest(x, 8, cost=cost)
        assert not torch.equal(drawn, nearest(x, 8, cost=cost))
        torch.manual_seed(5)
        assert torch.equal(drawn, nearest(x, 8, cost=cost))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("cost", COSTS)
def test_whole_k_may_come_as_float_or_from_numpy(cost: Any) -> None:
    x = randn(4, 3)
    for k in (8.0, np.int64(8), np.float32(8)):
        noise = nearest(x, k, cost=cost, generator=generator(2))  # type: ignore[arg-type]
        assert torch.equal(noise, nearest(x, 8, cost=cost, generator=generator(2)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("k", [0, -1, 0.5, math.nan, math.inf, True, "a", None])
def test_k_that_is_no_count_is_named(k: Any, cost: Any) -> None:
    message = rf"k is {k!r}; it must be a {'' if cost == 'dot' else 'whole '}number >= 1"
    with pytest.raises(ValueError, match=message):
        nearest(randn(2, 3), k, cost=cost)
    with pytest.raises(ValueError, match=message):
        Nearest(k=k, cost=cost)


@pytest.mark.parametrize("cost", ["l2", "cosine", "l1"])
def test_k_must_be_whole_but_for_dot(cost: Any) -> None:
    with pytest.raises(ValueError, match=r"k is 1.5; it must be a whole number >= 1"):
        nearest(randn(2, 3), 1.5, cost=cost)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("cost", COSTS)
def test_misuse_is_named(cost: Any) -> None:
    bad: list[tuple[Any, str]] = [
        (torch.tensor([[1.0, 2.0], [torch.nan, 0.0]]), r"x holds NaN or infinity, first in row 1"),
        (torch.tensor([[1.0, torch.inf]]), r"x holds NaN or infinity, first in row 0"),
        (torch.full((2, 3), 1e30), r"rows whose norm is beyond float32; scale the data"),
        (torch.ones(2, 3, dtype=torch.long), r"x is a torch.int64 tensor; it must be a floating-point tensor"),
        (torch.ones(0, 3), r"x has shape \(0, 3\)"),
        (torch.tensor(1.0), r"x has shape \(\)"),
        ([[1.0]], r"x is a list"),
    ]
    for x, message in bad:
        with pytest.raises(ValueError, match=message):
            nearest(x, 8, cost=cost)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_cost_is_named() -> None:
    for call in (lambda: nearest(randn(2, 3), 8, cost="l3"), lambda: Nearest(cost="l3")):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"no cost named 'l3'; there are \['l2', 'dot', 'l1', 'cosine'\]"):
            call()


def covariance(prior: Gaussian) -> Tensor:
    stretch = prior.directions.T * (prior.variances - 1)
    return torch.eye(prior.mean.numel()) + stretch @ prior.directions


@pytest.mark.parametrize("k", [1.5, 8])
def test_the_prior_of_dot_has_the_moments_of_the_coupled_noise(k: float) -> None:
    data = (randn(40, 6) + torch.tensor([2.0, 1.0, 0.0, 0.0, -0.5, 0.0])) * torch.logspace(-1, 1, 40)[:, None]
    couple, rows = Nearest(k=k, cost="dot"), 4000
    prior = couple.prior(iter([data[:7], data[7:]]))
    assert isinstance(prior, Gaussian)
    noise = couple(data.repeat(rows, 1), generator=generator(2))
    drawn = prior.sample((40 * rows, 6), generator(3))
    error = math.sqrt(1 / (40 * rows))  # five standard errors; 0.002 for the part of the excess that is cut
    for sample in (noise, drawn):
        torch.testing.assert_close(sample.mean(0), prior.mean, rtol=0, atol=5 * error)
        torch.testing.assert_close(sample.T.cov(), covariance(prior), rtol=0, atol=5 * 1.5 * error + 0.002)
    assert (noise.mean(0)).abs().max() > 10 * error
    assert (noise.T.cov() - torch.eye(6)).abs().max() > 20 * error


def test_the_prior_of_dot_needs_data() -> None:
    with pytest.raises(ValueError, match="matched start of nearest needs data; there came none"):
        Nearest(cost="dot").prior([])


@pytest.mark.parametrize("couple", [Independent(), Assignment()])
def test_a_permutation_starts_from_the_standard_normal(couple: Any) -> None:
    assert couple.prior([randn(8, 3)]) == StandardNormal()
