"""Semidiscrete transport against its closed form on a line, linear programmes, and the law within a cell."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import kstest, norm, truncnorm
from torch import Tensor

from immiscible_diffusion.couplings import semidiscrete
from immiscible_diffusion.couplings.semidiscrete import Semidiscrete, assign_data, fit_dual, unevenness
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Coupling, HasMemory
from sweeps import sweep

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
    """512,000 noises left errors of 0.005 to 0.017 over six seeds, seen; the data backwards, the control, 2.3."""
    dual = fit_dual(LINE, steps=2000, generator=generator(0))
    torch.testing.assert_close(dual, exact_dual(), rtol=0, atol=0.04)
    assert (fit_dual(LINE, steps=10, generator=generator(0)) - exact_dual()).abs().max() > 0.05
    assert (fit_dual(LINE.flip(0), steps=2000, generator=generator(0)) - exact_dual()).abs().max() > 0.5


def test_each_noise_on_a_line_goes_to_the_cell_that_it_lies_in() -> None:
    noise = randn(500, 1)
    expected = torch.bucketize(noise[:, 0], torch.tensor(EDGES[1:-1], dtype=torch.float32))
    assert torch.equal(assign_data(noise, LINE, exact_dual()), expected)
    assert not torch.equal(assign_data(noise, LINE, torch.zeros(6)), expected)


@pytest.mark.parametrize("chunk", [1, 7, 40, 1000])
def test_chunks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    noise, data, dual = randn(50, 2, 3), randn(40, 2, 3, seed=1), randn(40, seed=2)
    monkeypatch.setattr(semidiscrete, "_CHUNK", chunk)
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


def test_the_map_costs_what_the_linear_programme_does() -> None:
    """The dual bounds the programme from above, whatever the potentials; fitted ones come within 0.3 per cent, seen."""
    product, best = programme()
    dual = fit_dual(DATA, generator=generator(1))
    assert best < bound(product, dual) < 1.005 * best
    reached = product[torch.arange(1024), assign_data(NOISE, DATA, dual)].mean()
    assert float(reached) == pytest.approx(best, rel=0.005)
    assert bound(product, torch.zeros(32)) > 1.1 * best
    assert bound(product, fit_dual(DATA, steps=10, generator=generator(1))) > 1.01 * best
    assert bound(product, dual.roll(1)) > 1.01 * best


def test_the_cells_even_out_as_the_fit_goes_on() -> None:
    data = randn(300, 16)
    found = [unevenness(data, torch.zeros(300), draws=6000, generator=generator(2))]
    for steps in (20, 100, 1000):
        dual = fit_dual(data, steps=steps, generator=generator(1))
        found.append(unevenness(data, dual, draws=6000, generator=generator(2)))
    assert found == sorted(found, reverse=True)
    assert found[0] > 1 > 0.2 > found[2]
    assert found[3] < 0.05


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


def served(couple: Semidiscrete, epochs: int) -> Tensor:
    """Return the noise of every row of the line for each epoch, (epochs, 6)."""
    found = []
    for i in range(epochs):
        order = torch.randperm(6, generator=generator(i))
        noise = torch.empty(6)
        for rows in (order[:4], order[4:]):
            noise[rows] = couple(LINE[rows], None, stream(i, len(rows), "noise"), index=rows)[:, 0]
        found.append(noise)
    return torch.stack(found)


def p_cell(noise: Tensor, k: int) -> float:
    return float(kstest(noise.numpy(), truncnorm(EDGES[k], EDGES[k + 1]).cdf).pvalue)


@pytest.mark.parametrize("keep", sweep([8, 1], 2))
def test_a_datum_gets_a_fresh_draw_from_its_cell(keep: int) -> None:
    noise = served(Semidiscrete(LINE, exact_dual(), keep=keep), 400)
    for k in range(6):
        assert p_cell(noise[:, k], k) > 1e-4
        assert len(set(noise[:, k].tolist())) == 400
        assert p_cell(noise[:, (k + 1) % 6], k) < 1e-4
    assert kstest(noise.flatten().numpy(), norm.cdf).pvalue > 1e-4
    product = (noise[1:] - noise.mean(0)) * (noise[:-1] - noise.mean(0)) / noise.var(0)
    assert product.mean(0).abs().max() < 5 / 400**0.5


def test_a_row_that_comes_twice_gets_two_noises() -> None:
    rows = torch.tensor([3, 1, 3, 3, 0])
    noise = Semidiscrete(LINE, exact_dual())(LINE[rows], None, generator(0), index=rows)
    assert len(set(noise[:, 0].tolist())) == 5
    assert torch.equal(assign_data(noise, LINE, exact_dual()), rows)


def test_a_saved_run_goes_on_as_it_would_have() -> None:
    couple = Semidiscrete(LINE, exact_dual())
    resumed, forgot = Semidiscrete(LINE, torch.zeros(6)), Semidiscrete(LINE, exact_dual())
    assert couple.memory() == {}
    rows = torch.arange(6)
    couple(LINE, None, generator(0), index=rows)
    kept = {name: tensor.clone() for name, tensor in couple.memory().items()}
    resumed.remember(kept)
    for i in (1, 2, 3):
        expected = couple(LINE, None, generator(i), index=rows)
        assert torch.equal(resumed(LINE, None, generator(i), index=rows), expected)
        assert not torch.equal(forgot(LINE, None, generator(i), index=rows), expected)
    resumed.remember({})
    assert resumed.memory() == {}
    resumed(LINE[[0, 5]], None, generator(0), index=torch.tensor([0, 5]))
    assert torch.equal(resumed.memory()["dual"], torch.zeros(6))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_noise_is_like_x_and_falls_on_it(dtype: torch.dtype) -> None:
    data = randn(20, 3, 4, 4)
    dual = fit_dual(data, steps=200, generator=generator(0))
    rows = torch.tensor([19, 0, 7], dtype=torch.int32)
    x = data[rows].to(dtype).requires_grad_()
    noise = Semidiscrete(data, dual)(x, None, generator(1), index=rows)
    assert (noise.shape, noise.dtype, noise.requires_grad) == (x.shape, dtype, False)
    assert torch.equal(assign_data(noise, data, dual), rows.long())
    assert dtype != torch.float64 or not torch.equal(noise, noise.float().double())


def test_it_is_nearer_than_the_assignment_of_a_small_batch() -> None:
    """A batch of four has little to choose from; the cell of a datum does not know of batches."""
    data, rows = randn(200, 6), torch.arange(200)
    couple = Semidiscrete(data, fit_dual(data, generator=generator(0)))
    noise = couple(data, None, generator(1), index=rows)
    single = torch.cat([couple(data[i : i + 1], None, generator(i), index=rows[i : i + 1]) for i in range(200)])
    fresh = randn(200, 6, seed=2)
    small = torch.empty_like(fresh)
    for i in range(0, 200, 4):
        product = (data[i : i + 4] @ fresh[i : i + 4].T).double()
        small[i : i + 4] = fresh[i : i + 4][linear_sum_assignment(product, maximize=True)[1]]
    gains = [float(torch.linalg.vecdot(data, each).mean()) for each in (noise, single, small)]
    assert min(gains[:2]) > 1.5 * gains[2]


def test_it_is_a_coupling_that_remembers_and_starts_from_the_standard_normal() -> None:
    couple = Semidiscrete(LINE, exact_dual())
    assert isinstance(couple, Coupling)
    assert isinstance(couple, HasMemory)
    assert couple.prior([LINE]) == StandardNormal()


FAR = torch.cat([LINE, torch.tensor([[0.05]])])
HIDDEN = torch.cat([exact_dual(), torch.tensor([-9.0])])
X, ROWS, NAN = LINE[:2], torch.arange(2), torch.full((2, 1), math.nan)


def couple_on_line() -> Semidiscrete:
    return Semidiscrete(LINE, exact_dual(), keep=2)


FAILURES: dict[str, tuple[Callable[[], object], str]] = {
    "no index": (lambda: couple_on_line()(X), r"pass their numbers as index"),
    "index shape": (
        lambda: couple_on_line()(X, index=torch.arange(3)),
        r"index has dtype torch.int64 and shape \(3,\)",
    ),
    "index dtype": (lambda: couple_on_line()(X, index=ROWS.float()), r"index has dtype torch.float32"),
    "no such row": (lambda: couple_on_line()(X, index=ROWS + 5), r"rows \(1,\), 5..6, are not all among the 6 of data"),
    "negative row": (lambda: couple_on_line()(X, index=ROWS - 1), r"-1..0, are not all among"),
    "row shape": (lambda: couple_on_line()(randn(2, 3), index=ROWS), r"rows \(3,\), 0..1, .* the 6 of data, \(1,\)"),
    "too often": (lambda: couple_on_line()(LINE[:3], index=torch.zeros(3).long()), r"3 times in a batch; keep is 2"),
    "nan": (lambda: couple_on_line()(NAN, index=ROWS), r"x holds NaN or infinity, first in row 0"),
    "empty cell": (
        lambda: Semidiscrete(FAR, HIDDEN)(FAR, None, generator(0), index=torch.arange(7)),
        r"no noise fell on row 6 in \d+ draws; fit the potentials with more steps",
    ),
    "potentials": (lambda: Semidiscrete(LINE, torch.zeros(5)), r"6 rows of data on cpu need as many potentials there"),
    "keep": (lambda: Semidiscrete(LINE, torch.zeros(6), keep=0), r"keep is 0;"),
    "data": (lambda: Semidiscrete(NAN, torch.zeros(2)), r"data holds NaN or infinity, first in row 0"),
    "memory": (lambda: couple_on_line().remember({"seeds": ROWS}), r"this coupling remembers {'dual': \(6,\), 'seeds'"),
    "fit data": (lambda: fit_dual(NAN), r"data holds NaN or infinity"),
    "fit steps": (lambda: fit_dual(LINE, steps=0), r"steps is 0; it must be a whole number >= 1"),
    "fit rate": (lambda: fit_dual(LINE, rate=math.nan), r"rate is nan; it must be a number > 0"),
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


def test_it_is_not_registered() -> None:
    """It needs a data set, so that ``make`` cannot build it from a file; the contract tests do not see it."""
    from immiscible_diffusion.registry import names

    assert "semidiscrete" not in names("coupling")
