"""Greedy matching against a walk through the sorted list of all pairs."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from immiscible_diffusion.couplings import assign_index, greedy
from immiscible_diffusion.couplings.greedy import Greedy, greedy_index, match
from immiscible_diffusion.registry import make
from immiscible_diffusion.streams import stream

COSTS = ["l2", "dot", "l1", "cosine"]
CONTRACT = importlib.import_module("couplings.test_contract")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def walk(table: Any) -> list[int]:
    """Return the column of each row: the pairs in the order of (cost, row, column), each taken if both are free."""
    rows, columns = table.shape
    index = [-1] * rows
    for pair in np.argsort(table, axis=None, kind="stable").tolist():
        row, column = divmod(pair, columns)
        if index[row] < 0 and column not in index:
            index[row] = column
    return index


def costs(x: Tensor, noise: Tensor, cost: str) -> Any:
    data, other = (rows.flatten(1).double().numpy() for rows in (x, noise))
    metric: Any = {"l2": "euclidean", "l1": "cityblock", "cosine": "cosine"}
    return -data @ other.T if cost == "dot" else cdist(data, other, metric[cost])


def blocking_pairs(table: Any, index: Tensor) -> int:
    """Count the pairs that would both be cheaper off together; a free column takes anyone."""
    own = table[np.arange(len(table)), index.numpy()]
    held = np.full(table.shape[1], np.inf)
    held[index.numpy()] = own
    return int(((table < own[:, None] - 1e-5) & (table < held - 1e-5)).sum())  # 1e-5: the costs are in float32


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize(("b", "m", "d"), [(1, 1, 3), (1, 9, 3), (7, 7, 1), (40, 40, 5), (64, 64, 300), (30, 75, 12)])
def test_it_is_the_walk_through_the_sorted_pairs(b: int, m: int, d: int, cost: Any) -> None:
    x, noise = 2 * randn(b, d) + 0.3, randn(m, d, seed=1)
    table = costs(x, noise, cost)
    index = greedy_index(x, noise, cost=cost)
    if cost == "cosine" and d == 1:  # costs of 0 and 2 alone, parted by rounding
        assert len(set(index.tolist())) == b
    else:
        assert index.tolist() == walk(table)
    assert blocking_pairs(table, index) == 0


@pytest.mark.parametrize("cost", COSTS)
def test_other_matchings_fail_the_check_of_stability(cost: Any) -> None:
    x, noise = 2 * randn(40, 5), randn(40, 5, seed=1)
    table = costs(x, noise, cost)
    first: list[int] = []
    for row in table.copy():
        row[first] = np.inf
        first.append(int(row.argmin()))
    for index in (torch.arange(40), assign_index(x, noise, cost=cost), torch.tensor(first)):
        assert index.tolist() != walk(table)
        assert blocking_pairs(table, index) > 0


TIES: dict[str, Callable[[], Tensor]] = {
    "all equal": lambda: torch.zeros(20, 20),
    "all equal, more columns": lambda: torch.ones(12, 30),
    "equal rows": lambda: randn(1, 25).expand(25, 25),
    "equal columns": lambda: randn(25, 1).expand(25, 25),
    "two values": lambda: (randn(30, 30) > 0).float(),
    "few values": lambda: randn(60, 60).round(),
    "few values, more columns": lambda: (2 * randn(20, 50)).round(),
    "one cell": lambda: torch.zeros(1, 1),
    "a hub": lambda: randn(30, 30) - 5 * (torch.arange(30) == 7),
    "negative and huge": lambda: 1e30 * randn(30, 30),
}


@pytest.mark.parametrize("table", TIES)
def test_ties_go_to_the_lower_row_and_then_to_the_lower_column(table: str) -> None:
    cost = TIES[table]().contiguous()
    expected = walk(cost.numpy())
    assert match(cost.clone()).tolist() == expected
    flipped = (cost.shape[1] - 1 - match(cost.flip(1))).tolist()  # the higher column
    assert (flipped == expected) == (table in ("equal rows", "one cell", "a hub", "negative and huge"))


@pytest.mark.parametrize("table", TIES)
def test_matching_in_order_is_matching_round_by_round(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cost, orders = TIES[table]().contiguous(), list[int]()
    in_order = greedy._match_in_order

    def counted(part: Tensor) -> Tensor:
        orders.append(len(part))
        return in_order(part)

    monkeypatch.setattr(greedy, "_match_in_order", counted)
    expected = match(cost.clone())
    assert orders == []
    for rounds in (1, 2):
        monkeypatch.setattr(greedy, "_ROUNDS", rounds)
        monkeypatch.setattr(greedy, "_SLOW", -1.0)
        assert torch.equal(match(cost.clone()), expected)
    assert torch.equal(in_order(cost.clone()), expected)
    assert table == "one cell" or orders != []


def test_equal_rows_take_seconds_and_not_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of a single pair go on for a while only; ordinary data never get there."""
    looks: list[int] = []
    first_least = greedy._first_least

    def counted(table: Tensor, dim: int) -> Any:
        looks.append(len(table))
        return first_least(table, dim)

    monkeypatch.setattr(greedy, "_first_least", counted)
    rows = randn(1, 600).expand(600, 600).clone()
    assert match(rows.clone()).tolist() == rows[0].argsort(stable=True).tolist()
    assert len(looks) == 2 * 16
    looks.clear()
    x, noise = randn(600, 48).cumsum(1) / 4, randn(600, 48, seed=1)
    monkeypatch.setattr(greedy, "_match_in_order", lambda table: pytest.fail("ordinary distances were sorted"))
    greedy_index(x, noise, cost="l2")
    assert len(looks) > 2 * 16


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_table_that_is_not_finite_is_named(bad: float) -> None:
    table = randn(4, 6)
    table[1, 2] = bad
    with pytest.raises(ValueError, match="the cost holds NaN or infinity"):
        match(table)


def test_equal_rows_and_equal_noise_still_give_a_permutation() -> None:
    x, noise = randn(1, 6).expand(50, 6), randn(50, 6, seed=1)
    order = greedy_index(x, noise, cost="l2")
    assert order.tolist() == (noise - x).norm(dim=1).argsort(stable=True).tolist()
    assert torch.equal(greedy_index(x, noise[:1].expand(50, 6), cost="l2"), torch.arange(50))
    assert torch.equal(greedy_index(torch.zeros(50, 6), torch.zeros(50, 6)), torch.arange(50))


@pytest.mark.parametrize(("cost", "least"), [("l2", 0.85), ("dot", 0.94)])
def test_it_keeps_most_of_what_exact_assignment_saves(cost: Any, least: float) -> None:
    x, noise = randn(256, 512), randn(256, 512, seed=1)
    before = torch.cdist(x, noise).mean()
    exact, greedy, none = (
        float(before - (x - noise[index]).norm(dim=1).mean())
        for index in (assign_index(x, noise), greedy_index(x, noise, cost=cost), torch.arange(256))
    )
    assert least * exact < greedy < exact
    assert none < 0.2 * exact


@pytest.mark.parametrize("cost", ["l2", "l1"])
@pytest.mark.parametrize("m", [40, 60])
def test_rows_of_any_length_compete_by_their_true_distance(m: int, cost: Any) -> None:
    """A constant left out of a row or a column, which changes no assignment, changes this matching."""
    x, noise = randn(40, 6) * torch.logspace(-1, 1, 40)[:, None], randn(m, 6, seed=1)
    table = costs(x, noise, cost)
    assert greedy_index(x, noise, cost=cost).tolist() == walk(table)
    assert walk(table - np.abs(x.numpy()).sum(1, keepdims=True)) != walk(table)
    assert walk(table - np.abs(noise.numpy()).sum(1)) != walk(table)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_low_precision_saves_next_to_as_much(precision: Any) -> None:
    x, noise = randn(256, 512), randn(256, 512, seed=1)
    table = torch.cdist(x, noise)
    low, full = (
        table.mean() - table[torch.arange(256), greedy_index(x, noise, precision=number_format)].mean()
        for number_format in (precision, "fp32")
    )
    assert float(low / full) == pytest.approx(1, abs=0.02)


def test_the_coupling_permutes_the_noise_of_its_generator() -> None:
    x = randn(30, 2, 3).double()
    noise = torch.randn(30, 2, 3, generator=stream(0, 0, "noise"), dtype=torch.float64)
    for cost in COSTS:
        options: Any = {"cost": cost}
        paired = Greedy(**options)(x, generator=stream(0, 0, "noise"))
        assert torch.equal(paired, noise[greedy_index(x, noise, **options)])
        assert torch.equal(paired.flatten(1).sort(0).values, noise.flatten(1).sort(0).values)
        assert not torch.equal(paired, noise)


@pytest.mark.usefixtures("unchecked")
def test_misuse_is_named() -> None:
    x, noise = randn(5, 3), randn(5, 3, seed=1)
    nan, infinite = x.clone(), noise.clone()
    nan[2, 1], infinite[1, 0] = torch.nan, -torch.inf
    bad: list[tuple[Callable[[], object], str]] = [
        (lambda: greedy_index(nan, noise), r"x holds NaN or infinity, first in row 2"),
        (lambda: greedy_index(x, infinite), r"noise holds NaN or infinity, first in row 1"),
        (lambda: greedy_index(1e30 * x, noise, cost="l2"), r"whose cost is beyond float32; scale the data"),
        (lambda: greedy_index(x, noise[:4]), r"5 rows of x need at least as many noise rows; there are 4"),
        (lambda: greedy_index(x, randn(5, 4)), r"x rows have shape \(3,\), noise rows \(4,\)"),
        (lambda: greedy_index(x, noise, cost="l3"), r"no cost named 'l3'"),  # type: ignore[arg-type]
        (lambda: greedy_index(x, noise, precision="fp8"), r"no precision named 'fp8'"),  # type: ignore[arg-type]
        (lambda: Greedy(cost="l3"), r"no cost named 'l3'"),  # type: ignore[arg-type]
        (lambda: Greedy(precision="fp64"), r"no precision named 'fp64'"),  # type: ignore[arg-type]
    ]
    for call, message in bad:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("batch", CONTRACT.BATCHES)
@pytest.mark.parametrize("cost", COSTS)
def test_the_contract_holds(batch: str, cost: Any) -> None:
    CONTRACT.honours(Greedy(cost=cost), CONTRACT.BATCHES[batch]())
    assert make("coupling", "greedy") == Greedy()


def test_the_rest_of_the_contract_holds() -> None:
    CONTRACT.test_each_row_follows_its_own_datum("greedy")
    CONTRACT.test_the_docstring_tells_marginal_and_cost("greedy")
    CONTRACT.test_the_prior_samples_rows_of_the_data("greedy")
    for bad in (torch.nan, torch.inf):
        CONTRACT.test_a_value_that_is_not_finite_is_refused("greedy", bad)
