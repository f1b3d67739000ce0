"""Large assignments through their promising pairs: scipy's optimum in float64, or no answer."""

import lap
import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from immiscible_diffusion.couplings.solvers import sparse
from immiscible_diffusion.couplings.solvers.solve import solve
from immiscible_diffusion.couplings.solvers.sparse import solve_sparse


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def total(cost: Tensor, columns: object) -> float:
    return float(cost.double().numpy()[np.arange(len(cost)), np.asarray(columns)].sum())


def structured(b: int, seed: int) -> Tensor:
    """Return inner products of images' kind: a few strong directions and many weak ones, uneven lengths."""
    spectrum = 10 * torch.arange(1, 201).float().rsqrt()
    data = randn(b, 200, seed=seed) * spectrum * (0.5 + torch.rand(b, 1, generator=torch.Generator().manual_seed(seed)))
    return -(data @ randn(b, 200, seed=seed + 1).T)


COSTS = {
    "images by dot": structured(700, 0),
    "images by distance": torch.cdist(randn(700, 64), randn(700, 64, seed=1)),
    "uniform": torch.rand(700, 700, generator=torch.Generator().manual_seed(0)),
    "whole numbers": torch.randint(0, 50, (700, 700), generator=torch.Generator().manual_seed(0)).float(),
    "a large constant": structured(700, 2) + 1e4,
    "small": 1e-20 * structured(700, 4),
    "columns and rows far apart": structured(700, 6) + 1e3 * randn(700, 1, seed=7) + 1e3 * randn(1, 700, seed=8),
}


@pytest.mark.parametrize("name", COSTS)
def test_the_answer_is_scipys_optimum(name: str) -> None:
    cost = COSTS[name]
    columns = solve_sparse(cost)
    assert columns is not None
    assert np.array_equal(np.sort(columns), np.arange(700))
    best = total(cost, linear_sum_assignment(cost.double().numpy())[1])
    assert 0 <= total(cost, columns) - best + 1e-9 * abs(best) <= 1e-6 * 700 * float(cost.abs().max())


@pytest.mark.parametrize(
    "cost",
    [torch.ones(600, 600), randn(1, 600).expand(600, 600).contiguous(), torch.cdist(randn(600, 1), randn(600, 1))],
    ids=["constant", "equal rows", "a line"],
)
def test_other_problems_are_left_to_the_dense_solver_and_solved(cost: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = solve_sparse(cost)
    best = total(cost, linear_sum_assignment(cost.double().numpy())[1])
    assert columns is None or total(cost, columns) == pytest.approx(best, rel=1e-6)
    monkeypatch.setattr("immiscible_diffusion.couplings.solvers.solve._SPARSE_ROWS", 0)
    assert total(cost, solve(cost)) == pytest.approx(best, rel=1e-6)


def test_missing_pairs_are_found_and_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 9 pairs a row the first solution is not the optimum: only the look through all pairs tells."""
    monkeypatch.setattr(sparse, "_PAIRS", 9)
    cost = structured(1024, 0)
    best = total(cost, linear_sum_assignment(cost.double().numpy())[1])
    index = solve_sparse(cost)
    assert index is not None
    assert total(cost, index) == pytest.approx(best, rel=1e-9)
    monkeypatch.setattr(sparse, "_missing", lambda *args: np.empty(0, np.int64))
    unproven = solve_sparse(cost)
    assert unproven is not None
    assert total(cost, unproven) > best + 1e-6 * abs(best)


def test_a_sparse_solution_that_is_no_optimum_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows that exchange their columns make a negative circle among the potentials."""
    right = lap.lapmod

    def wrong(*args: object, **options: object) -> object:
        x, y = right(*args, **options)
        costs, starts, columns = (np.asarray(arg) for arg in args[1:4])
        pairs = {(i, columns[e]): e for i in range(len(x)) for e in range(starts[i], starts[i + 1])}
        swaps = ((i, j) for i in range(len(x)) for j in range(i) if (i, x[j]) in pairs and (j, x[i]) in pairs)
        i, j = next(swaps)
        x[[i, j]] = x[[j, i]]
        assert costs[pairs[i, x[i]]] >= 0
        return x, y

    cost = structured(600, 0)
    assert solve_sparse(cost) is not None
    monkeypatch.setattr(lap, "lapmod", wrong)
    assert solve_sparse(cost) is None


def test_large_problems_take_this_way(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = structured(1536, 0)
    seen = []
    monkeypatch.setattr("lap.lapjvr", lambda *args, **options: seen.append(1))
    columns = solve(cost)
    assert not seen
    assert total(cost, columns) == pytest.approx(total(cost, linear_sum_assignment(cost.numpy())[1]), rel=1e-7)
