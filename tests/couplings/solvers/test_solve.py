"""The assignment solver: exact on the host, within its gap on the device, and the choice between the two."""

import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from immiscible_diffusion.couplings.greedy import match
from immiscible_diffusion.couplings.solvers import solve as solve_module
from immiscible_diffusion.couplings.solvers.auction import auction
from immiscible_diffusion.couplings.solvers.solve import solve


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def excess(cost: Tensor, index: Tensor) -> tuple[float, float]:
    """Return what a pairing costs above the optimum, and what the optimum gains over a random one, in float64."""
    assert index.dtype == torch.int64
    assert len(set(index.tolist())) == len(index) == len(cost)
    table = cost.double().cpu().numpy()
    rows, columns = linear_sum_assignment(table)
    least = table[rows, columns].sum()
    return table[np.arange(len(table)), index.cpu().numpy()].sum() - least, table.mean(1).sum() - least


def on_the_device(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Have every square problem solved as a GPU would solve it; return the answers that come."""
    answers: list[Any] = []

    def recorded(cost: Tensor, **options: Any) -> Any:
        answers.append(auction(cost, **options))
        return answers[-1]

    monkeypatch.setattr(solve_module, "_stays", lambda cost: cost.shape[0] == cost.shape[1])
    monkeypatch.setattr(solve_module, "auction", recorded)
    return answers


@pytest.mark.parametrize(("b", "m"), [(1, 1), (1, 5), (2, 2), (7, 7), (7, 30), (60, 60), (60, 61), (200, 200)])
def test_the_host_is_exact(b: int, m: int) -> None:
    for seed in range(5):
        cost = randn(b, m, seed=seed)
        assert excess(cost, solve(cost))[0] <= 1e-6 * b
        assert torch.equal(solve(cost), solve(cost, gap=0))
    if b > 2:
        assert excess(cost, torch.arange(b))[0] > 1e-6 * b


@pytest.mark.parametrize(("scale", "offset"), [(1e-30, 0.0), (1e37, 0.0), (3e37, 2.0), (1.0, 1e6)])
def test_the_host_is_exact_at_every_scale(scale: float, offset: float) -> None:
    """Sums of a column of 64 such costs leave float32."""
    cost = scale * (randn(64, 64) + offset)
    assert excess(cost / scale, solve(cost))[0] <= 1e-5 * (1 + offset)
    assert excess(cost / scale, torch.arange(64))[0] > 10


def within(cost: Tensor, index: Tensor, ordinary: slice) -> float:
    """Return what ordinary rows pay above the best that is left to them, as a share of what that gains."""
    columns = index[ordinary].sort().values
    above, gain = excess(cost[ordinary][:, columns], torch.searchsorted(columns, index[ordinary]))
    return above / gain


@pytest.mark.parametrize("scale", [1e5, 1e8, 1e20])
@pytest.mark.parametrize("far", ["row", "column", "both"])
def test_far_rows_and_columns_leave_the_others_their_digits(far: str, scale: float) -> None:
    cost, rows = randn(60, 60), slice(1, None)
    if far != "column":
        cost[0] *= scale
    if far != "row":
        cost[:, 1] *= scale**0.5
    assert within(cost, solve(cost), rows) < 1e-6
    plain = cost - cost.mean(0)
    plain -= plain.amin(1, keepdim=True)
    if far == "row" and scale > 1e9:  # control: the mean of all rows takes every digit
        assert within(cost, torch.from_numpy(linear_sum_assignment(plain.numpy())[1]), rows) > 0.1


@pytest.mark.slow
def test_a_far_row_among_many_leaves_the_others_their_digits() -> None:
    """Sparse pairs are proven to within a share of the largest cost, which would be this row's alone."""
    cost = randn(1600, 1600)
    cost[0] *= 1e8
    assert within(cost, solve(cost), slice(1, None)) < 1e-6


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "kind", ["torch.int64 tensor", "torch.bool tensor", "torch.complex64 tensor", "ndarray", "list"]
)
def test_a_cost_of_another_kind_is_named(kind: str) -> None:
    costs = {f"{kind} tensor": torch.eye(2).to(kind) for kind in (torch.int64, torch.bool, torch.complex64)}
    cost: Any = {**costs, "ndarray": np.eye(2), "list": [[1.0]]}[kind]
    for function in (solve, match):
        with pytest.raises(ValueError, match=f"cost is a {kind}; it must be a floating-point tensor"):
            function(cost)
    assert solve(torch.eye(2)).tolist() == match(torch.eye(2)).tolist() == [1, 0]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 2), (4,)])
def test_an_empty_or_tall_cost_is_named(shape: tuple[int, ...]) -> None:
    message = re.escape(f"cost has shape {shape}; it must be (b, m) with 1 <= b <= m")
    for function in (solve, match):
        with pytest.raises(ValueError, match=message):
            function(torch.zeros(shape))


@pytest.mark.parametrize("gap", [1e-2, 1e-6])
def test_the_device_is_within_its_gap(gap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = on_the_device(monkeypatch)
    for b in (2, 30, 120):
        cost = randn(b, b)
        above, gain = excess(cost, solve(cost, gap=gap))
        assert above <= gap * gain
    assert len(answers) == 3
    assert all(met for _, _, met in answers)


def test_a_gap_of_nothing_and_rectangles_go_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = on_the_device(monkeypatch)
    solve(randn(20, 20), gap=0)
    solve(randn(20, 30))
    assert answers == []
    solve(randn(20, 20))
    assert len(answers) == 1


def test_the_host_solves_what_an_auction_could_not_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = randn(100, 100)
    monkeypatch.setattr(solve_module, "_stays", lambda cost: True)
    monkeypatch.setattr(solve_module, "auction", lambda cost, gap: auction(cost, gap=gap, steps=5))
    with pytest.warns(UserWarning, match=r"an auction of 100 rows missed the gap of 1e-06; the host solved"):
        index = solve(cost)
    assert excess(cost, index)[0] <= 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        missed = auction(cost, steps=5)[0]
    assert excess(cost, missed)[0] > 1


@pytest.mark.usefixtures("unchecked")
def test_only_large_square_problems_of_a_gpu_stay_there() -> None:
    def stays(b: int, m: int, *, cuda: bool = True, far: float = 1.0) -> bool:
        cost = torch.arange(float(m)).expand(b, -1)
        if far > 1:
            cost = torch.cat([far * cost[:1], cost[1:]])
        stand_in: Any = type("Stub", (torch.Tensor,), {"is_cuda": cuda})
        return solve_module._stays(cost.as_subclass(stand_in))

    assert stays(4096, 4096)
    assert stays(16384, 16384)
    assert not stays(4095, 4095)
    assert not stays(16385, 16385)
    assert not stays(4096, 5000)
    assert not stays(4096, 4096, cuda=False)
    assert stays(4096, 4096, far=1e3)
    assert not stays(4096, 4096, far=1e5)  # the gap is a share of all that is gained, and this row gains most of it


@pytest.mark.parametrize("device", ["host", "device"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_cost_that_is_not_finite_is_named(bad: float, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "device":
        on_the_device(monkeypatch)
    for m in (4, 6):
        cost = randn(4, m)
        cost[1, 2] = bad
        with pytest.raises(ValueError, match="assignment cost holds NaN or infinity"):
            solve(cost)


def test_scipy_solves_what_lapx_returns_as_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = randn(20, 20)
    monkeypatch.setattr("lap.lapjvr", lambda *a, **k: (np.arange(20), np.zeros(20, dtype=np.int64)))
    with pytest.warns(UserWarning, match="lapx returned no assignment; scipy solved this batch"):
        index = solve(cost)
    assert excess(cost, index)[0] == 0


@pytest.mark.gpu
@pytest.mark.parametrize("b", [100, 4096])
def test_a_gpu_answers_on_the_gpu(b: int) -> None:
    cost = randn(b, b).cuda()
    index = solve(cost)
    assert index.is_cuda
    above, gain = excess(cost, index)
    assert above <= 1e-6 * gain + 1e-6 * b
