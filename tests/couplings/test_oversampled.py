"""Assignment among m noises against the law it claims: m explicit noises of which scipy assigns b."""

import importlib
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import ks_2samp, kstest, norm
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from immiscible_diffusion.couplings import Assignment, assign, nearest
from immiscible_diffusion.couplings.oversampled import Oversampled, oversample
from immiscible_diffusion.data import Images
from immiscible_diffusion.priors import Gaussian, StandardNormal
from immiscible_diffusion.registry import make
from immiscible_diffusion.streams import stream
from sweeps import sweep

pytestmark = pytest.mark.medium

COSTS = ["l2", "dot"]
CONTRACT = importlib.import_module("couplings.test_contract")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def reference(x: Tensor, m: int, cost: str, source: torch.Generator) -> Tensor:
    """Return the b of m explicit noises that scipy assigns to x, (b, d)."""
    noise = torch.randn(m, x.shape[1], generator=source)
    data, other = x.double().numpy(), noise.double().numpy()
    table = cdist(data, other) if cost == "l2" else -data @ other.T
    return noise[torch.from_numpy(linear_sum_assignment(table)[1])]


def repeated(couple: Callable[[torch.Generator], Tensor], times: int, seed: int) -> Tensor:
    """Return the noise of many calls, (times, b, d)."""
    source = generator(seed)
    return torch.stack([couple(source) for _ in range(times)])


def p_value(x: Tensor, noise: Tensor, other: Tensor) -> float:
    """Return the least p of two-sample tests of distances, norms, and parts along x, its mean and a fixed direction.

    The rows of one batch are next to independent; the bounds below leave room for what they are not.
    """
    unit = torch.nn.functional.normalize(x)
    mean = torch.nn.functional.normalize(x.mean(0), dim=0)
    fixed = torch.nn.functional.normalize(randn(x.shape[1], seed=9), dim=0)
    statistics: list[Callable[[Tensor], Tensor]] = [
        lambda n: (x - n).norm(dim=2),
        lambda n: n.norm(dim=2),
        lambda n: (n * unit).sum(2),
        lambda n: n @ mean,
        lambda n: n @ fixed,
        lambda n: (n * unit.roll(1, 0)).sum(2),
    ]
    return min(
        float(ks_2samp(statistic(noise).flatten().numpy(), statistic(other).flatten().numpy()).pvalue)
        for statistic in statistics
    )


DATA: dict[str, Callable[[int, int], Tensor]] = {
    "rows apart": lambda b, d: randn(b, d, seed=50),
    "a strong mean": lambda b, d: 0.3 * randn(b, d, seed=50) + 1,
    "equal rows": lambda b, d: 1.5 * randn(1, d, seed=50).expand(b, d),
    "some rows zero, some equal": lambda b, d: (
        randn(b, d, seed=50)[torch.arange(b) // 2] * (torch.arange(b) % 4 > 0)[:, None]
    ),
    "rows 0.1 to 10": lambda b, d: randn(b, d, seed=50) * torch.logspace(-1, 1, b)[:, None],
    "zeros": torch.zeros,
}
CASES = [(data, *size) for data in DATA for size in ((4, 32, 9), (8, 24, 300), (6, 30, 4))]
CASES += [("rows apart", *size) for size in ((1, 8, 3), (4, 4, 9), (12, 96, 13), (12, 96, 25), (5, 40, 1))]


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize(("data", "b", "m", "d"), sweep(CASES, 12))
def test_the_law_is_that_of_m_explicit_noises(data: str, b: int, m: int, d: int, cost: Any) -> None:
    x, times = DATA[data](b, d), 200
    ours = repeated(lambda source: oversample(x, m, cost=cost, generator=source), times, 2)
    assert p_value(x, ours, repeated(lambda source: reference(x, m, cost, source), times, 3)) > 1e-4


def rest_as_drawn(x: Tensor, noise: Tensor) -> Tensor:
    """Return the noise with its part across the rows of x exchanged for a fresh one, of a length of its own."""
    basis: Tensor = torch.linalg.qr(x.T).Q
    fresh = randn(*noise.shape, seed=5)
    return noise @ basis @ basis.T + fresh - fresh @ basis @ basis.T


BROKEN: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "twice the noises": lambda x, cost: repeated(lambda s: oversample(x, 128, cost=cost, generator=s), 300, 2),
    "half the noises": lambda x, cost: repeated(lambda s: oversample(x, 32, cost=cost, generator=s), 300, 2),
    "independent": lambda x, cost: randn(300, *x.shape, seed=2),
    "another cost": lambda x, cost: repeated(
        lambda s: oversample(x, 64, cost="dot" if cost == "l2" else "l2", generator=s), 500, 2
    ),
    "another row's": lambda x, cost: repeated(lambda s: oversample(x, 64, cost=cost, generator=s), 300, 2).roll(1, 1),
    "rest not rescaled": lambda x, cost: rest_as_drawn(
        x, repeated(lambda s: oversample(x, 64, cost=cost, generator=s), 300, 2)
    ),
}


@cache
def explicit(cost: str) -> Tensor:
    return repeated(lambda source: reference(randn(8, 24), 64, cost, source), 300, 3)


BREAKS = [(law, cost) for law in BROKEN for cost in COSTS if (law, cost) != ("rest not rescaled", "dot")]


@pytest.mark.parametrize(("law", "cost"), sweep(BREAKS, 9))
def test_a_broken_law_fails_the_check_of_the_law(law: str, cost: str) -> None:
    x = randn(8, 24)
    assert p_value(x, BROKEN[law](x, cost), explicit(cost)) < 1e-6


@pytest.mark.parametrize("cost", sweep(COSTS, 9))
def test_rows_that_choose_alone_fail_the_check_of_the_law(cost: Any) -> None:
    x = randn(8, 24)
    alone = repeated(lambda source: nearest(x, 8, cost=cost, generator=source), 300, 2)
    ours = repeated(lambda source: oversample(x, 8, cost=cost, generator=source), 300, 2)
    other = repeated(lambda source: reference(x, 8, cost, source), 300, 3)
    assert p_value(x, alone, other) < 1e-6
    assert p_value(x, ours, other) > 1e-4


def test_a_fresh_rest_keeps_the_law_of_dot() -> None:
    """The control above changes nothing for a cost that is blind to the rest."""
    x = randn(8, 24)
    noise = repeated(lambda source: oversample(x, 64, cost="dot", generator=source), 300, 2)
    assert p_value(x, rest_as_drawn(x, noise), explicit("dot")) > 1e-4


@pytest.mark.parametrize("cost", sweep(COSTS, 9))
@pytest.mark.parametrize("m", sweep([8, 1], 2))
def test_one_row_has_the_law_of_the_nearest_of_m(m: int, cost: Any) -> None:
    x = 2 * randn(1, 40)
    ours = repeated(lambda source: oversample(x, m, cost=cost, generator=source), 800, 2)
    assert p_value(x, ours, nearest(x.expand(4000, 40), m, cost=cost, generator=generator(3))[:, None]) > 1e-4
    assert p_value(x, ours, nearest(x.expand(4000, 40), m + 3, cost=cost, generator=generator(3))[:, None]) < 1e-6


NARROW: dict[str, Callable[[], Tensor]] = {
    "rows apart": lambda: randn(16, 50),
    "rows nearly equal": lambda: randn(1, 50) + 1e-3 * randn(16, 50, seed=1),
    "rows equal to five digits": lambda: randn(1, 50) + 1e-5 * randn(16, 50, seed=1),
    "far from the origin": lambda: randn(16, 50) + 1e3,
    "small": lambda: 1e-12 * randn(16, 50),
    "large": lambda: 1e12 * randn(16, 50),
}


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("data", sweep(NARROW, 9))
def test_as_many_noises_as_rows_are_standard_normal_in_every_direction(data: str, cost: Any) -> None:
    """The weak directions of rows that nearly coincide are where rounding would show."""
    x = NARROW[data]()
    noise = repeated(lambda source: oversample(x, 16, cost=cost, generator=source), 200, 2).flatten(0, 1).double()
    directions = torch.linalg.svd(x.double() - x.double().mean(0)).Vh
    for part in (noise @ directions.T).T:
        assert kstest(part.numpy(), norm.cdf).pvalue > 1e-5
    assert kstest(1.05 * noise.flatten().numpy(), norm.cdf).pvalue < 1e-5


def reduction(x: Tensor, paired: Tensor) -> float:
    """Return by how many per cent the mean distance is less than to fresh noise."""
    fresh = torch.stack([randn(*x.shape, seed=900 + i) for i in range(4)])
    before = (x - fresh).flatten(2).norm(dim=2).mean()
    after = (x - paired).flatten(1).norm(dim=1).mean()
    return float(100 * (1 - after / before))


@pytest.mark.parametrize("cost", COSTS)
def test_the_distance_reduction_is_that_of_explicit_noises(cost: Any) -> None:
    """The mean of ten batches has a standard error of 0.1 per cent."""
    x, m = randn(32, 1024, seed=50), 512
    couples: list[Callable[[torch.Generator], Tensor]] = [
        lambda source: oversample(x, m, cost=cost, generator=source),
        lambda source: reference(x, m, cost, source),
        lambda source: reference(x, 32, cost, source),
    ]
    ours, expected, plain = (
        np.mean([reduction(x, couple(generator(seed))) for seed in range(10)]) for couple in couples
    )
    assert ours == pytest.approx(expected, abs=0.5)
    assert plain < expected - 1


@pytest.mark.slow
@pytest.mark.parametrize(("times", "recorded", "batches"), [(8, 3.34, 60), (64, 3.94, 20)])
def test_the_distance_reduction_on_cifar10_is_that_of_explicit_noises(
    times: int, recorded: float, batches: int, shared_data: Callable[[str], Path]
) -> None:
    """The two differ by 0.055 per cent (standard deviation) from batch to batch."""
    source = Images(path=str(shared_data("cifar10") / "test-00000-of-00001.parquet"), held_out_rows=1, limit=5000)
    images = next(source.batches(source.rows, 0)).raw.float()
    images = (images - images.mean()) / images.std()
    reductions, explicit = [], []
    for step in range(batches):
        x = images[torch.randperm(len(images), generator=stream(0, step, "data"))[:128]]
        reductions.append(reduction(x, Oversampled(times=times)(x, generator=stream(0, step, "noise"))))
        noise = torch.randn(128 * times, *x.shape[1:], generator=stream(0, step, "noise"))
        explicit.append(reduction(x, assign(x, noise)))
    assert np.mean(reductions) == pytest.approx(np.mean(explicit), abs=4 * 0.055 / math.sqrt(batches))
    assert np.mean(reductions) == pytest.approx(recorded, abs=0.2)


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
def test_memory_is_a_few_batches_and_not_m(cost: Any, tmp_path: Path) -> None:
    x = randn(32, 16_384)
    most = 2 * x.nbytes + 5 * 512 * 32 * 4
    assert x.nbytes <= peak_bytes(lambda: oversample(x, 512, cost=cost, generator=generator(2)), tmp_path) < most
    assert peak_bytes(lambda: reference(x, 512, cost, generator(2)), tmp_path) > 5 * most


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("d", [4, 40])
def test_randomness_comes_from_the_generator_alone(d: int, cost: Any) -> None:
    x, state = randn(8, d), torch.get_rng_state()
    noise = oversample(x, 32, cost=cost, generator=generator(2))
    assert torch.equal(noise, oversample(x, 32, cost=cost, generator=generator(2)))
    assert not torch.equal(noise, oversample(x, 32, cost=cost, generator=generator(3)))
    assert torch.equal(state, torch.get_rng_state())
    with torch.random.fork_rng():
        torch.manual_seed(5)
        drawn = oversample(x, 32, cost=cost)
        assert not torch.equal(drawn, oversample(x, 32, cost=cost))
        torch.manual_seed(5)
        assert torch.equal(drawn, oversample(x, 32, cost=cost))


@pytest.mark.parametrize("times", [1, 1.3, 2.5, 8])
def test_the_class_draws_times_b_noises(times: float) -> None:
    x = randn(7, 3, 4)
    expected = oversample(x, round(7 * times), cost="dot", generator=generator(2))
    assert torch.equal(Oversampled(times=times, cost="dot")(x, generator=generator(2)), expected)


def test_one_noise_for_each_datum_has_the_reduction_of_plain_assignment() -> None:
    x = randn(48, 600, seed=50)
    ours, plain, twice = (
        np.mean([reduction(x, couple(x, generator=generator(seed))) for seed in range(20)])
        for couple in (Oversampled(times=1), Assignment(), Oversampled(times=2))
    )
    assert ours == pytest.approx(plain, abs=0.4)  # four standard errors
    assert twice > plain + 0.8
    assert Oversampled(times=1).prior([]) == StandardNormal()


@pytest.mark.parametrize("cost", sweep(COSTS, 2))
@pytest.mark.slow
def test_the_prior_has_the_moments_of_the_coupled_noise(cost: Any) -> None:
    """An error of a variance is 0.01 at 16,000 noises; the part of the excess that is cut adds to it."""
    data = torch.cat([randn(4000, 3) * torch.tensor([2.0, 1.0, 1.0]) + 0.5, 0.2 * randn(4000, 21, seed=1)], 1)
    couple = Oversampled(times=8, cost=cost)
    prior = couple.prior(data.chunk(200))
    assert isinstance(prior, Gaussian)
    fresh = torch.cat([couple(x, generator=generator(i)) for i, x in enumerate(data.chunk(200))])
    fresh = torch.cat([fresh, *(couple(x, generator=generator(1000 + i)) for i, x in enumerate(data.chunk(200)))])
    drawn = prior.sample((40_000, 24), generator(3))
    torch.testing.assert_close(drawn.mean(0), fresh.mean(0), rtol=0, atol=0.06)
    torch.testing.assert_close(drawn.T.cov(), fresh.T.cov(), rtol=0, atol=0.12)
    assert (fresh.T.cov() - torch.eye(24)).abs().max() > 0.3
    assert fresh.mean(0).abs().max() > 0.15
    assert (float(prior.scale) < 0.97) == (cost == "l2")


@pytest.mark.usefixtures("unchecked")
def test_misuse_is_named() -> None:
    bad: list[tuple[Callable[[], object], str]] = [
        (lambda: oversample(randn(4, 3), 3), r"m is 3; it must be a whole number >= 4"),
        (lambda: oversample(randn(4, 3), 8.5), r"m is 8.5; it must be a whole number >= 4"),  # type: ignore[arg-type]
        (lambda: oversample(randn(1, 3), True), r"m is True; it must be a whole number >= 1"),
        (lambda: oversample(randn(4, 3), 8, cost="l1"), r"no cost named 'l1'; there are \['l2', 'dot'\]"),  # type: ignore[arg-type]
        (lambda: oversample(torch.full((2, 3), 1e30), 8), r"rows whose norm is beyond float32; scale the data"),
        (lambda: Oversampled(times=0.5), r"times is 0.5; it must be a number >= 1"),
        (lambda: Oversampled(times=math.nan), r"times is nan"),
        (lambda: Oversampled(times=math.inf), r"times is inf"),
        (lambda: Oversampled(times="8"), r"times is '8'"),  # type: ignore[arg-type]
        (lambda: Oversampled(times=True), r"times is True"),
        (lambda: Oversampled(cost="cosine"), r"no cost named 'cosine'"),  # type: ignore[arg-type]
        (lambda: Oversampled().prior([]), r"matched start of Oversampled needs data; there came none"),
    ]
    for call, message in bad:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("batch", CONTRACT.BATCHES)
@pytest.mark.parametrize("cost", COSTS)
def test_the_contract_holds(batch: str, cost: Any) -> None:
    CONTRACT.honours(Oversampled(cost=cost), CONTRACT.BATCHES[batch]())
    assert make("coupling", "oversampled") == Oversampled()


def test_the_rest_of_the_contract_holds() -> None:
    CONTRACT.test_each_row_follows_its_own_datum("oversampled")
    CONTRACT.test_the_docstring_tells_marginal_and_cost("oversampled")
    CONTRACT.test_the_prior_samples_rows_of_the_data("oversampled")
    for bad in (torch.nan, torch.inf):
        CONTRACT.test_a_value_that_is_not_finite_is_refused("oversampled", bad)
