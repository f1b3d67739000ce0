"""The entropic plan against plain iterations in float64, and its permutations against what may be drawn from it."""

import importlib
import math
import warnings
from collections import Counter
from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp
from scipy.stats import chisquare
from torch import Tensor

from immiscible_diffusion.couplings import assign_index
from immiscible_diffusion.couplings.sinkhorn import Convergence, Sinkhorn, _cost, _draw, _potentials, sinkhorn_index
from immiscible_diffusion.registry import make
from immiscible_diffusion.streams import stream
from sweeps import sweep

pytestmark = pytest.mark.medium

CONTRACT = importlib.import_module("couplings.test_contract")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def costs(x: Tensor, noise: Tensor) -> Any:
    """Return the negative inner products in float64, of standard deviation 1 once rows and columns have mean 0."""
    product = -x.double().numpy() @ noise.double().numpy().T
    centred = product - product.mean(0) - product.mean(1, keepdims=True) + product.mean()
    return centred / centred.std()


def plan(cost: Any, epsilon: float, iterations: int = 20_000) -> Any:
    """Return the entropic plan by plain iterations in logarithms."""
    f, g = np.zeros((len(cost), 1)), np.zeros(len(cost))
    for _ in range(iterations):
        before = f
        g = -epsilon * logsumexp((f - cost) / epsilon, axis=0)
        f = -epsilon * logsumexp((g - cost) / epsilon, axis=1, keepdims=True)
        if np.abs(f - before).max() < 1e-9:
            break
    return np.exp((f + g - cost) / epsilon)


def fitted(x: Tensor, noise: Tensor, epsilon: float, tolerance: float = 1e-5) -> Any:
    cost = _cost(x, noise)
    f, g, *_ = _potentials(cost, epsilon, 20_000, tolerance)
    return ((f.unsqueeze(1) + g - cost) / epsilon).double().exp().numpy()


@pytest.mark.parametrize("epsilon", [5.0, 0.5, 0.1])
@pytest.mark.parametrize(("b", "d"), [(2, 3), (9, 1), (24, 5), (24, 400)])
def test_the_plan_is_that_of_plain_iterations(b: int, d: int, epsilon: float) -> None:
    """The columns miss their sums by 1e-5 on average; a float32 exponent of up to 100 is good to 1e-5."""
    x, noise = 3 * randn(b, d) + 1, randn(b, d, seed=1)
    expected = plan(costs(x, noise), epsilon)
    np.testing.assert_allclose(expected.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(fitted(x, noise, epsilon), expected, atol=1e-3)
    if b > 2:
        assert np.abs(fitted(x, noise, 1.3 * epsilon) - expected).max() > 5e-3
        assert np.abs(fitted(x, noise, epsilon, 0.5) - expected).max() > 2e-3 or epsilon >= 0.5


def sequential(table: Any) -> dict[tuple[int, ...], float]:
    """Return the probability of each permutation when pairs are drawn in proportion to the plan among those left."""
    chances: dict[tuple[int, ...], float] = {}

    def walk(taken: dict[int, int], probability: float) -> None:
        left = [
            (i, j) for i in range(len(table)) for j in range(len(table)) if i not in taken and j not in taken.values()
        ]
        if not left:
            order = tuple(taken[i] for i in range(len(table)))
            chances[order] = chances.get(order, 0.0) + probability
        whole = sum(table[pair] for pair in left)
        for i, j in left:
            walk({**taken, i: j}, probability * table[i, j] / whole)

    walk({}, 1.0)
    return chances


@pytest.mark.parametrize("epsilon", sweep([1.0, 0.5, 100.0], 3))
@pytest.mark.slow
def test_permutations_are_drawn_in_proportion_to_the_plan(epsilon: float) -> None:
    cost, draws, source = costs(randn(3, 4, seed=5), randn(3, 4, seed=6)), 2000, generator()
    negative_log = -torch.from_numpy(plan(cost, epsilon)).log().float()
    drawn = Counter(tuple(_draw(negative_log, source).tolist()) for _ in range(draws))
    orders = list(permutations(range(3)))
    seen = [drawn[order] for order in orders]
    law, other = (sequential(plan(cost, eps)) for eps in (epsilon, 1.5 * epsilon if epsilon < 2 else 0.5))
    assert chisquare(seen, [draws * law[order] for order in orders]).pvalue > 1e-4
    assert chisquare(seen, [draws * other[order] for order in orders]).pvalue < 1e-4


@pytest.mark.slow
def test_two_rows_follow_the_closed_form() -> None:
    """The centred costs are 1 and -1, so that the cheaper permutation has odds of exp(2 / epsilon)."""
    x, noise, source = torch.tensor([[1.0], [-1.0]]), torch.tensor([[2.0], [0.5]]), generator()
    kept = [int(sinkhorn_index(x, noise, epsilon=2.0, generator=source)[0][0] == 0) for _ in range(600)]
    expected = 1 / (1 + math.exp(-1))
    assert np.mean(kept) == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 600))


def share(x: Tensor, noise: Tensor, index: Tensor) -> float:
    """Return what a pairing saves of what the exact assignment saves."""
    table = costs(x, noise)
    return float(table[np.arange(len(x)), index.numpy()].sum() / table[linear_sum_assignment(table)].sum())


@pytest.mark.parametrize("d", sweep([2, 30, 600], 3))
def test_epsilon_leads_from_exact_assignment_to_independent_noise(d: int) -> None:
    x, noise = randn(64, d), randn(64, d, seed=1)
    source = generator()
    saved = [
        float(np.mean([share(x, noise, sinkhorn_index(x, noise, epsilon=e, generator=source)[0]) for _ in range(20)]))
        for e in (0.001, 0.05, 0.3, 1.0, 1000.0)
    ]
    assert saved == sorted(saved, reverse=True)
    assert saved[0] > 0.99
    assert saved[1] > 0.9
    assert 0.1 < saved[3] < 0.7
    assert abs(saved[4]) < 0.05  # twenty times 64 pairs


@pytest.mark.parametrize("b", range(1, 7))
def test_small_batches_get_the_optimum_of_brute_force(b: int) -> None:
    x, noise = randn(b, 3, seed=b), randn(b, 3, seed=b + 10)
    product = -(x @ noise.T)
    totals = {order: float(product[range(b), order].sum()) for order in permutations(range(b))}
    index, report = sinkhorn_index(x, noise, epsilon=0.002, iterations=20_000, generator=generator())
    assert totals[tuple(index.tolist())] == pytest.approx(min(totals.values()), abs=1e-5)
    assert report.converged
    assert report.gap < 0.01


CASES: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "equal rows": lambda: (randn(1, 6).expand(30, 6), randn(30, 6, seed=1)),
    "equal noise": lambda: (randn(30, 6), randn(1, 6, seed=1).expand(30, 6)),
    "zeros": lambda: (torch.zeros(30, 6), torch.zeros(30, 6)),
    "duplicates": lambda: (randn(30, 6)[torch.arange(30) // 3], randn(30, 6, seed=1)[torch.arange(30) // 5]),
    "one coordinate": lambda: (randn(30, 1), randn(30, 1, seed=1)),
    "one row": lambda: (randn(1, 6), randn(1, 6, seed=1)),
    "an outlier": lambda: (randn(30, 6) * (1 + 1e4 * (torch.arange(30) == 3))[:, None], randn(30, 6, seed=1)),
    "rows 1e-3 to 1e3": lambda: (randn(30, 6) * torch.logspace(-3, 3, 30)[:, None], randn(30, 6, seed=1)),
    "large": lambda: (1e15 * randn(30, 6), randn(30, 6, seed=1)),
    "small": lambda: (1e-15 * randn(30, 6), randn(30, 6, seed=1)),
}


@pytest.mark.parametrize("epsilon", [1e-4, 0.05, 100.0])
@pytest.mark.parametrize("iterations", [1, 1000])
@pytest.mark.parametrize("case", CASES)
def test_it_is_always_a_permutation(case: str, iterations: int, epsilon: float) -> None:
    x, noise = CASES[case]()
    index, report = sinkhorn_index(x, noise, epsilon=epsilon, iterations=iterations, generator=generator())
    assert torch.equal(index.sort().values, torch.arange(len(x)))
    assert report.iterations <= iterations
    assert math.isfinite(report.marginal_error)
    assert -1e-5 < report.gap < 3


@pytest.mark.parametrize("case", sweep(["equal rows", "zeros"], 2))
@pytest.mark.slow
def test_rows_that_are_equal_take_any_noise(case: str) -> None:
    """Their costs differ by rounding alone, which must not be blown up to one standard deviation."""
    x, noise = CASES[case]()
    source = generator()
    drawn = torch.stack([sinkhorn_index(x, noise, epsilon=0.01, generator=source)[0] for _ in range(150)])
    assert chisquare(torch.bincount(drawn[:, 0], minlength=30).numpy()).pvalue > 1e-4
    apart = torch.stack([sinkhorn_index(randn(30, 6), noise, generator=source)[0] for _ in range(150)])
    assert case == "zeros" or chisquare(torch.bincount(apart[:, 0], minlength=30).numpy()).pvalue < 1e-4


@pytest.mark.parametrize("epsilon", [0.02, 0.3])
def test_constants_and_scales_of_data_and_noise_change_nothing(epsilon: float) -> None:
    """A power of two scales float32 exactly; a constant leaves rounding, which this draw does not feel."""
    x, noise = randn(40, 6), randn(40, 6, seed=1)
    index, _ = sinkhorn_index(x, noise, epsilon=epsilon, generator=generator())
    for data, other in ((1024 * x, noise), (x / 4096, noise), (x, 8 * noise), (x + 3, noise), (x, noise - 2)):
        assert torch.equal(sinkhorn_index(data, other, epsilon=epsilon, generator=generator())[0], index)
    assert not torch.equal(sinkhorn_index(x * torch.arange(6), noise, generator=generator())[0], index)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("iterations", [1, 10, 35, 5000])
def test_the_report_is_true(iterations: int, epsilon: float) -> None:
    x, noise = randn(50, 8), randn(50, 8, seed=1)
    index, report = sinkhorn_index(x, noise, epsilon=epsilon, iterations=iterations, generator=generator())
    cost = _cost(x, noise)
    f, g, used, _, arrived = _potentials(cost, epsilon, iterations, 0.01)
    assert report.iterations == used <= iterations
    if arrived:
        table = ((f.unsqueeze(1) + g - cost) / epsilon).double().exp()
        torch.testing.assert_close(table.sum(1), torch.ones(50).double(), atol=1e-4, rtol=0)
        assert report.marginal_error == pytest.approx(float((table.sum(0) - 1).abs().mean()), abs=1e-4)
    assert report.converged == (arrived and report.marginal_error <= 0.01)
    assert report.converged or iterations < 5000
    assert not report.converged or iterations > 35 or epsilon > 0.01
    lost = 1 - share(x, noise, index)
    assert lost - 1e-5 <= report.gap
    assert report.gap <= lost + 0.6 * epsilon or not report.converged  # what the dual bound misses


def test_it_warns_once_for_a_call_that_does_not_converge() -> None:
    x, couple = randn(60, 8), Sinkhorn(epsilon=0.005, iterations=3)
    message = r"sinkhorn did not converge: .* after 3 iterations; raise iterations, epsilon or tolerance"
    with pytest.warns(UserWarning, match=message):
        couple(x, generator=generator())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(5):
            couple(x, generator=generator())
    assert len(caught) == 1
    Sinkhorn(epsilon=0.005)(x, generator=generator())  # a warning is an error here


def test_the_coupling_permutes_the_noise_of_its_generator() -> None:
    x, source = randn(30, 2, 3).double(), stream(0, 0, "noise")
    noise = torch.randn(30, 2, 3, generator=source, dtype=torch.float64)
    index, report = sinkhorn_index(x, noise, epsilon=0.1, generator=source)
    paired = Sinkhorn(epsilon=0.1)(x, generator=stream(0, 0, "noise"))
    assert isinstance(report, Convergence)
    assert torch.equal(paired, noise[index])
    assert not torch.equal(paired, noise)


def test_randomness_comes_from_the_generator_alone() -> None:
    x, noise, state = randn(30, 6), randn(30, 6, seed=1), torch.get_rng_state()
    index = sinkhorn_index(x, noise, epsilon=1.0, generator=generator(2))[0]
    assert torch.equal(index, sinkhorn_index(x, noise, epsilon=1.0, generator=generator(2))[0])
    assert not torch.equal(index, sinkhorn_index(x, noise, epsilon=1.0, generator=generator(3))[0])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("epsilon", [1e-7, 1e-5, 1e6, 1e30])
def test_the_ends_of_the_range_are_assignment_and_independent_noise(epsilon: float) -> None:
    x, noise = randn(60, 40).cumsum(1) / 4, randn(60, 40, seed=1)
    draws = [
        sinkhorn_index(x, noise, epsilon=epsilon, generator=generator(i))[0] for i in range(40 if epsilon > 1 else 1)
    ]
    best = float((x * (noise[assign_index(x, noise, cost="dot")] - noise.mean(0))).sum())
    share = float((x * (noise[torch.stack(draws)] - noise.mean(0))).sum((1, 2)).mean()) / best
    assert share == pytest.approx(float(epsilon < 1), abs=0.03 if epsilon < 1 else 0.1)


@pytest.mark.parametrize("epsilon", [1e-300, 1e-45, 9e-8, 2e30, 1e300])
def test_epsilon_beyond_float32_is_refused_with_the_range(epsilon: float) -> None:
    for make_it in (
        lambda: Sinkhorn(epsilon=epsilon),
        lambda: sinkhorn_index(randn(4, 2), randn(4, 2), epsilon=epsilon),
    ):
        with pytest.raises(ValueError, match=r"epsilon is .*; it must be a number >= 1e-07 and <= 1e\+30"):
            make_it()


@pytest.mark.usefixtures("unchecked")
def test_misuse_is_named() -> None:
    x, noise = randn(5, 3), randn(5, 3, seed=1)
    nan, infinite = x.clone(), noise.clone()
    nan[2, 1], infinite[1, 0] = torch.nan, -torch.inf
    bad: list[tuple[Callable[[], object], str]] = [
        (lambda: sinkhorn_index(nan, noise), r"x holds NaN or infinity, first in row 2"),
        (lambda: sinkhorn_index(x, infinite), r"noise holds NaN or infinity, first in row 1"),
        (lambda: sinkhorn_index(1e30 * x, noise), r"inner products are beyond float32; scale the data"),
        (lambda: sinkhorn_index(x, noise[:4]), r"5 rows of x need at least as many noise rows; there are 4"),
        (lambda: sinkhorn_index(x[:4], noise), r"as many noise rows as rows of x; there are 5 for 4"),
        (lambda: sinkhorn_index(x, noise, epsilon=0), r"epsilon is 0; it must be a number >= 1e-07 and <= 1e\+30"),
        (lambda: Sinkhorn(epsilon=-1.0), r"epsilon is -1.0"),
        (lambda: Sinkhorn(epsilon=math.nan), r"epsilon is nan"),
        (lambda: Sinkhorn(epsilon=math.inf), r"epsilon is inf"),
        (lambda: Sinkhorn(tolerance=0.0), r"tolerance is 0.0; it must be a number > 0"),
        (lambda: Sinkhorn(tolerance="a"), r"tolerance is 'a'"),  # type: ignore[arg-type]
        (lambda: Sinkhorn(iterations=0), r"iterations is 0; it must be a whole number >= 1"),
        (lambda: Sinkhorn(iterations=2.5), r"iterations is 2.5"),  # type: ignore[arg-type]
    ]
    for call, message in bad:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("batch", CONTRACT.BATCHES)
def test_the_contract_holds(batch: str) -> None:
    CONTRACT.honours(Sinkhorn(), CONTRACT.BATCHES[batch]())
    assert make("coupling", "sinkhorn") == Sinkhorn()


def test_the_rest_of_the_contract_holds() -> None:
    CONTRACT.test_each_row_follows_its_own_datum("sinkhorn")
    CONTRACT.test_the_docstring_tells_marginal_and_cost("sinkhorn")
    CONTRACT.test_the_prior_samples_rows_of_the_data("sinkhorn")
    for bad in (torch.nan, torch.inf):
        CONTRACT.test_a_value_that_is_not_finite_is_refused("sinkhorn", bad)
