"""Potentials of semidiscrete transport against their closed form on a line and linear programmes."""

import math
from collections.abc import Callable
from itertools import islice, pairwise

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import norm
from sklearn.datasets import load_digits
from torch import Tensor

from immiscible_diffusion.couplings import _potentials
from immiscible_diffusion.couplings._potentials import Potentials, ascend, assign_data, fit_dual, unevenness

pytestmark = pytest.mark.medium


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


LINE = torch.tensor([[-2.0], [-1.5], [0.0], [0.1], [0.7], [4.0]])
EDGES = norm.ppf([i / 6 for i in range(7)])


def exact_dual() -> Tensor:
    """Return the potentials of points on a line: neighbours tie where a sixth of the noise, each, is below.

    g_k + b x_k = g_{k+1} + b x_{k+1} at the edge b between them.
    """
    steps = [-EDGES[k + 1] * float(LINE[k + 1] - LINE[k]) for k in range(5)]
    dual = torch.tensor([0.0, *steps], dtype=torch.float64).cumsum(0)
    return (dual - dual.mean()).float()


def test_potentials_on_a_line_are_those_of_the_closed_form() -> None:
    """18,000 noises left an error of 0.07, seen; the data backwards, the control, 2.3."""
    dual = fit_dual(LINE, noises=3000)
    torch.testing.assert_close(dual, exact_dual(), rtol=0, atol=0.08)
    assert (fit_dual(LINE, noises=10) - exact_dual()).abs().max() > 0.15
    assert (fit_dual(LINE.flip(0), noises=3000) - exact_dual()).abs().max() > 0.5


def test_each_noise_on_a_line_goes_to_the_cell_that_it_lies_in() -> None:
    noise = randn(500, 1)
    expected = torch.bucketize(noise[:, 0], torch.tensor(EDGES[1:-1], dtype=torch.float32))
    assert torch.equal(assign_data(noise, LINE, exact_dual()), expected)
    assert not torch.equal(assign_data(noise, LINE, torch.zeros(6)), expected)


@pytest.mark.parametrize("chunk", [1, 7, 40, 1000])
def test_chunks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    noise, data, dual = randn(50, 2, 3), randn(40, 2, 3, seed=1), randn(40, seed=2)
    monkeypatch.setattr(_potentials, "_CHUNK", chunk)
    expected = (dual + noise.flatten(1) @ data.flatten(1).T).argmax(1)
    assert torch.equal(assign_data(noise, data, dual), expected)


def test_a_constant_added_to_the_data_moves_no_cell() -> None:
    noise, data, dual = randn(50, 3), randn(40, 3, seed=1), randn(40, seed=2)
    assert torch.equal(assign_data(noise, data + 2, dual), assign_data(noise, data, dual))


DATA, NOISE = 1.5 * randn(32, 8), randn(1024, 8, seed=5)


def programme() -> tuple[Tensor, float]:
    """Return all inner products, (m, n), and the greatest mean of them when every datum takes m / n noises.

    The linear programme with uniform marginals is an assignment of noises to copies of the data.
    """
    product = NOISE.double() @ DATA.double().T
    copies = product.repeat_interleave(32, 1)
    rows, columns = linear_sum_assignment(copies, maximize=True)
    return product, float(copies[rows, columns].mean())


def bound(product: Tensor, dual: Tensor) -> float:
    """Return the dual's value, which no pairing with uniform marginals exceeds."""
    return float((product + dual).max(1).values.mean() - dual.mean())


@pytest.mark.slow
def test_the_map_costs_what_the_linear_programme_does() -> None:
    """The dual bounds the programme from above, whatever the potentials; fitted ones come within 0.3 per cent, seen."""
    product, best = programme()
    dual = fit_dual(DATA, noises=2000, seed=1)
    assert best < bound(product, dual) < 1.005 * best
    reached = product[torch.arange(1024), assign_data(NOISE, DATA, dual)].mean()
    assert float(reached) == pytest.approx(best, rel=0.005)
    assert bound(product, torch.zeros(32)) > 1.1 * best
    assert bound(product, fit_dual(DATA, noises=1, seed=1)) > 1.005 * best  # the start of the fit is not enough
    assert bound(product, dual.roll(1)) > 1.01 * best


def test_the_cells_even_out_as_the_fit_goes_on() -> None:
    data = randn(300, 16)
    uneven = [unevenness(data, torch.zeros(300), draws=6000, generator=generator(2))]
    for noises in (1, 10, 60):
        dual = fit_dual(data, noises=noises, seed=1)
        uneven.append(unevenness(data, dual, draws=6000, generator=generator(2)))
    assert uneven == sorted(uneven, reverse=True)
    assert uneven[0] > 1 > 0.2 > uneven[2]
    assert uneven[3] < 0.05


def test_unevenness_is_unbiased() -> None:
    """Masses on the line are known without potentials; the plain estimate, not corrected for its bias, is too high."""
    edges = [-math.inf, *[0.0] * 5, math.inf]  # without potentials the two ends take all
    masses = [norm.cdf(b) - norm.cdf(a) for a, b in pairwise(edges)]
    exact = 6 * sum(mass**2 for mass in masses) - 1
    assert exact == pytest.approx(2)
    assert unevenness(LINE, torch.zeros(6), draws=4000, generator=generator(0)) == pytest.approx(2, abs=0.02)
    few = [unevenness(LINE, exact_dual(), draws=20, generator=generator(i)) for i in range(400)]
    assert sum(few) / 400 == pytest.approx(0, abs=5 * math.sqrt(12) / 20 / 20)
    with_bias = 5 / 20
    assert with_bias > 5 * math.sqrt(12) / 20 / 20


def test_a_fit_that_goes_on_is_one_that_was_never_cut() -> None:
    data = randn(100, 5)
    whole = list(islice(ascend(data, seed=3), 13))
    resumed = next(islice(ascend(data, whole[4], seed=3), 8, None))
    assert resumed.steps == whole[12].steps == 12
    assert torch.equal(resumed.dual, whole[12].dual)
    assert not torch.equal(next(islice(ascend(data, Potentials(whole[4].dual, 0), seed=3), 8, None)).dual, resumed.dual)
    assert not torch.equal(next(islice(ascend(data, seed=4), 12, None)).dual, resumed.dual)


def test_the_unevenness_falls_as_one_over_the_noises() -> None:
    """Between half of 1 / (h + 8), the least that so many noises a datum can tell, and twice that, at any scale."""
    data = randn(400, 24)
    for scale in (0.3, 30.0):
        uneven = {
            h: unevenness(scale * data, fit_dual(scale * data, noises=h), draws=20_000, generator=generator(2))
            for h in (5, 40, 160)
        }
        assert uneven[5] < 2 / 13
        assert 0.5 / 48 < uneven[40] < 2 / 48
        assert uneven[160] < 0.4 * uneven[40]


def test_the_quadratic_start_is_worth_noises() -> None:
    """Images and skewed data; the controls are no potentials and those of other data."""
    digits = load_digits().data / 8 - 1
    for data in (torch.tensor(digits[:900]).float(), randn(900, 30).exp(), randn(900, 30).exp() + 100):
        start = next(ascend(data)).dual
        left, without, mixed = (
            unevenness(data, dual, draws=9000, generator=generator(3)) for dual in (start, 0 * start, start.roll(1))
        )
        assert left < 0.35 < 1 < min(without, mixed)
        assert abs(float(start.mean())) < 1e-4 * float(start.std())


@pytest.mark.parametrize("data", [torch.zeros(5, 2), torch.ones(40, 3), torch.eye(3), randn(1, 4)])
def test_a_start_exists_for_equal_and_for_few_rows(data: Tensor) -> None:
    states = list(islice(ascend(data), 3))
    assert all(bool(state.dual.isfinite().all()) for state in states)


NAN = torch.full((2, 1), math.nan)
FAILURES: dict[str, tuple[Callable[[], object], str]] = {
    "fit data": (lambda: fit_dual(NAN), r"data holds NaN or infinity"),
    "noises": (lambda: fit_dual(LINE, noises=0), r"noises is 0; it must be a number > 0"),
    "draws": (lambda: unevenness(LINE, exact_dual(), draws=1), r"draws is 1"),
    "shapes": (lambda: assign_data(randn(2, 3), LINE, exact_dual()), r"do not fit: there came \[\(2, 3\), \(6, 1\)"),
    "noise": (lambda: assign_data(NAN, LINE, exact_dual()), r"noise holds NaN or infinity, first in row 0"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("failure", FAILURES)
def test_misuse_is_named(failure: str) -> None:
    call, message = FAILURES[failure]
    with pytest.raises(ValueError, match=message):
        call()
