"""The auction against scipy in float64: its permutation, the truth of its bound, and how near the two are."""

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from immiscible_diffusion.couplings._cost import pairwise
from immiscible_diffusion.couplings.solvers import auction as auction_module
from immiscible_diffusion.couplings.solvers.auction import auction

pytestmark = pytest.mark.medium


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(b: int, below: int, seed: int = 0) -> Tensor:
    return torch.randint(0, below, (b, b), generator=torch.Generator().manual_seed(seed)).float()


def excess(cost: Tensor, index: Tensor) -> tuple[float, float]:
    """Return what a pairing costs above the optimum, and what the optimum gains over a random one, in float64."""
    assert torch.equal(index.sort().values.cpu(), torch.arange(len(cost)))
    table = cost.double().cpu().numpy()
    least = table[linear_sum_assignment(table)].sum()
    total = table[np.arange(len(table)), index.cpu().numpy()].sum()
    return total - least, table.sum() / len(table) - least


def holds(cost: Tensor, answer: tuple[Tensor, Tensor, bool], gap: float) -> bool:
    """Whether an answer is certified: its cost is within its bound, and its bound within what was asked."""
    index, bound, met = answer
    above, gain = excess(cost, index)
    rounding = 1e-9 * float(cost.abs().sum()) / len(cost)
    return met and above <= float(bound) + rounding / 1e3 and float(bound) <= gap * gain + rounding


@pytest.mark.parametrize("gap", [1e-2, 1e-6])
@pytest.mark.parametrize("b", [1, 2, 3, 8, 33, 150])
def test_the_bound_is_true_and_as_asked_on_random_costs(b: int, gap: float) -> None:
    costs: tuple[Any, ...] = ("l2", "dot", "l1", "cosine")
    for seed, name in enumerate(costs):
        cost = pairwise(3 * randn(b, 7, seed=seed), randn(b, 7, seed=seed + 10), name, "fp32")
        assert holds(cost, auction(cost, gap=gap), gap)


CASES: dict[str, Callable[[int], Tensor]] = {
    "zeros": lambda b: torch.zeros(b, b),
    "one value": lambda b: torch.full((b, b), -7.3),
    "rank one": lambda b: randn(b, 1) + randn(b, 1, seed=1).T,
    "equal rows": lambda b: randn(1, b).expand(b, b),
    "equal columns": lambda b: randn(b, 1).expand(b, b),
    "duplicates": lambda b: randn(b, b)[torch.arange(b) // 3][:, torch.arange(b) // 2],
    "two values": lambda b: whole(b, 2),
    "ten values": lambda b: whole(b, 10),
    "whole numbers": lambda b: whole(b, 10**6),
    "identity is best": lambda b: 1 - torch.eye(b),
    "scale 1e30": lambda b: 1e30 * randn(b, b),
    "scale 1e-30": lambda b: 1e-30 * randn(b, b),
    "denormal": lambda b: 1e-42 * randn(b, b),
    "offset 1e6": lambda b: randn(b, b) + 1e6,
    "offset of rows": lambda b: randn(b, b) + 1e4 * randn(b, 1, seed=1),
    "rows 1e-6 to 1e6": lambda b: randn(b, b) * torch.logspace(-6, 6, b)[:, None],
    "columns 1e-6 to 1e6": lambda b: randn(b, b) * torch.logspace(-6, 6, b),
    "log-normal": lambda b: (10 * randn(b, b)).exp(),
    "points on a line": lambda b: torch.cdist(randn(b, 1), randn(b, 1, seed=1)),
    "products of ranks": lambda b: -torch.outer(torch.arange(1.0, b + 1), torch.arange(1.0, b + 1)),
    "float64": lambda b: randn(b, b).double() + 1e-9 * randn(b, b, seed=1).double(),
    "not contiguous": lambda b: randn(b, 2 * b)[:, ::2].T,
}


@pytest.mark.parametrize("b", [3, 64])
@pytest.mark.parametrize("case", CASES)
def test_the_bound_is_true_on_degenerate_and_extreme_costs(case: str, b: int) -> None:
    cost = CASES[case](b)
    before = cost.clone()
    assert holds(cost, auction(cost), 1e-6)
    assert torch.equal(cost, before)


@pytest.mark.parametrize("b", [2, 7, 40, 90])
@pytest.mark.parametrize("below", [2, 5, 100])
def test_whole_costs_are_solved_exactly_once_the_bound_is_below_one(b: int, below: int) -> None:
    cost = whole(b, below, seed=b)
    gain = excess(cost, torch.arange(b))[1]
    index, bound, met = auction(cost, gap=0.9 / gain)
    assert met
    assert float(bound) < 1
    assert excess(cost, index)[0] == 0


def test_a_wide_gap_is_used_and_a_narrow_one_is_kept() -> None:
    """A bound far below what was asked would say that the gap does nothing."""
    cost = pairwise(randn(256, 16), randn(256, 16, seed=1), "l2", "fp32")
    for gap in (3e-2, 1e-3, 1e-5):
        index, bound, _ = auction(cost, gap=gap)
        above, gain = excess(cost, index)
        assert 0.02 * gap < float(bound) / gain <= gap
        assert above <= float(bound)


def test_an_auction_whose_eps_does_not_fall_is_not_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    """It pairs every row well enough to look right; the bound tells that it is not, and a smaller bound were false."""
    cost = pairwise(randn(128, 16), randn(128, 16, seed=1), "l2", "fp32")
    assert holds(cost, auction(cost, gap=1e-4), 1e-4)
    honest = auction_module._phase
    for eps in (0.5, 0.1):
        monkeypatch.setattr(auction_module, "_phase", lambda *a, eps=eps: honest(a[0], a[1], a[2], eps, 0, a[5]))
        index, bound, met = auction(cost, gap=1e-4, steps=60)
        assert not met
        assert not holds(cost, (index, bound, met), 1e-4)
        above, gain = excess(cost, index)
        assert 1e-4 * gain < above <= float(bound)
        assert not holds(cost, (index, 1e-4 * gain + 0 * bound, True), 1e-4)


def test_bounds_of_other_prices_or_pairings_are_true_too() -> None:
    """Whatever the prices and the pairing, weak duality holds; it is what the certificate rests on."""
    cost = randn(50, 50)
    random = cost.double().sum() / 50
    for seed in range(20):
        index, price = torch.randperm(50, generator=torch.Generator().manual_seed(seed)), randn(50, seed=seed).double()
        bound, met, gain = auction_module._certify(cost, index, price, random, 1e-3)
        above, best = excess(cost, index)
        assert above <= float(bound)
        assert best <= gain
        assert not met


def test_the_bound_allows_for_the_rounding_of_its_own_sums() -> None:
    """Against fractions, which round nothing. Large offsets that cancel leave little but rounding."""
    short = 0
    for seed in range(20):
        cost = randn(20, 20, seed=seed).double().exp() + 1e6 * randn(20, 1, seed=seed + 50).double().exp()
        price = 1e4 * randn(20, seed=seed + 99).double().exp()
        index = (cost + price).argmin(1)
        bound = auction_module._certify(cost, index, price, cost.double().sum() / 20, 1e-3)[0]
        table = [[Fraction(value) for value in row] for row in cost.double().tolist()]
        paid = [Fraction(value) for value in price.tolist()]
        least = sum(min(c + p for c, p in zip(row, paid, strict=True)) for row in table)
        exact = sum(row[j] for row, j in zip(table, index.tolist(), strict=True)) - least + sum(paid)
        assert exact <= Fraction(float(bound))
        total = cost.gather(1, index[:, None]).double().sum()
        short += Fraction(float(total - ((cost + price).amin(1).sum() - price.sum()))) < exact
    assert short > 3


def test_an_answer_that_is_not_certified_fails_the_check() -> None:
    cost = pairwise(randn(64, 16), randn(64, 16, seed=1), "l2", "fp32")
    index, bound, met = auction(cost, gap=1e-3)
    assert holds(cost, (index, bound, met), 1e-3)
    assert not holds(cost, (index.roll(1), bound, met), 1e-3)
    assert not holds(cost, (index, 1e5 * bound, met), 1e-3)


def test_an_auction_out_of_steps_is_still_a_permutation_and_says_so() -> None:
    cost = randn(100, 100)
    for steps in (0, 1, 5, 20):
        index, bound, met = auction(cost, steps=steps)
        above, gain = excess(cost, index)
        assert not met
        assert 0 < above <= float(bound)
        assert float(bound) > 1e-6 * gain
    assert auction(cost)[2]


def test_few_steps_are_needed_because_both_sides_bid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of these six problems: 1,381 steps in all. Without changes of side 2,638, without paths many thousands."""
    taken = []

    def counted(*arguments: Any, of: Any) -> Any:
        answer = of(*arguments)
        taken.append(arguments[-1] - answer[-1])
        return answer

    for name in ("_phase", "_augment"):
        monkeypatch.setattr(auction_module, name, partial(counted, of=getattr(auction_module, name)))
    for d in (3, 4):
        for seed in range(3):
            cost = pairwise(randn(512, d, seed=seed), randn(512, d, seed=seed + 100), "l2", "fp32")
            assert auction(cost, steps=10**6)[2]
    assert 500 < sum(taken) < 1900


def test_equal_problems_have_equal_answers_whatever_the_memory_layout() -> None:
    cost = whole(60, 4)
    index, bound, _ = auction(cost)
    for other in (cost.clone(), cost.T.contiguous().T):
        again, same, _ = auction(other)
        assert torch.equal(index, again)
        assert torch.equal(bound, same)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_cost_that_is_not_finite_is_named(bad: float) -> None:
    cost = randn(5, 5)
    cost[2, 3] = bad
    with pytest.raises(ValueError, match="assignment cost holds NaN or infinity"):
        auction(cost)


def test_misuse_is_named() -> None:
    with pytest.raises(ValueError, match=r"an auction needs a square cost; there came \(2, 3\)"):
        auction(randn(2, 3))
    for gap in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"gap is {gap}; it must be a positive number"):
            auction(randn(2, 2), gap=gap)


@pytest.mark.gpu
@pytest.mark.parametrize("b", [1, 2, 100, 1024, 4096])
def test_the_device_solves_it_to_the_bound(b: int) -> None:
    cost = pairwise(randn(b, 64), randn(b, 64, seed=1), "l2", "fp32")
    index, bound, met = auction(cost.cuda())
    assert index.is_cuda
    assert bound.is_cuda
    assert holds(cost, (index.cpu(), bound.cpu(), met), 1e-6)
    assert torch.equal(index, auction(cost.cuda())[0])


@pytest.mark.gpu
def test_a_round_does_not_wait_for_the_device() -> None:
    cost = randn(256, 256).cuda()
    price, owner = cost.new_zeros(256).double(), torch.full((256,), -1, device="cuda")
    free = torch.arange(256, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            price, owner, free = auction_module._round(cost, price, owner, free, 0.1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (owner >= 0).sum() == (free < 0).sum() > 100
