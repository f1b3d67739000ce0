"""A row that is much longer than the others is paired, and leaves the others what they gain without it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from immiscible_diffusion.couplings import assign_index, greedy_index, sinkhorn_index
from immiscible_diffusion.couplings._cost import _rounded, pairwise
from immiscible_diffusion.couplings.viewed import standardised

B, D = 128, 96


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def data() -> Tensor:
    x = randn(B, D).cumsum(1) / 8 + 0.3
    return x / x.std()


def gain(x: Tensor, noise: Tensor, index: Tensor) -> float:
    """Return what the ordinary rows, from the third on, gain in inner products with the ordinary noises they get."""
    rows = torch.arange(2, B)[index[2:] != 1]
    return float((x[rows] * (noise[index[rows]] - noise[rows])).sum())


def a_row(x: Tensor, noise: Tensor, scale: float) -> None:
    x[0] *= scale


def a_noise(x: Tensor, noise: Tensor, scale: float) -> None:
    noise[1] *= scale


def a_value(x: Tensor, noise: Tensor, scale: float) -> None:
    x[0, 5] = scale


def many(x: Tensor, noise: Tensor, scale: float) -> None:
    x[2::3] *= scale


def all_of_these(x: Tensor, noise: Tensor, scale: float) -> None:
    x[0] *= scale
    x[1, 3] = -(scale**0.5)
    noise[1] *= scale**0.5


CHANGES = [a_row, a_noise, a_value, many, all_of_these]
PRECISE: list[Any] = ["fp32", "fp16", "bf16"]


def kept(
    pair: Callable[[Tensor, Tensor], Tensor], change: Callable[[Tensor, Tensor, float], None], scale: float
) -> float:
    """Return the share of the gain without the change that ordinary rows have with it; unchanged if 1."""
    x, noise = data(), randn(B, D, seed=1)
    before = gain(x, noise, pair(x, noise))
    changed, other = x.clone(), noise.clone()
    change(changed, other, scale)
    return gain(x, noise, pair(changed, other)) / before


@pytest.mark.parametrize("scale", [300.0, 1e5, 1e8])
@pytest.mark.parametrize("precision", PRECISE)
@pytest.mark.parametrize("cost", ["l2", "dot", "l1", "cosine"])
@pytest.mark.parametrize("change", CHANGES[:3], ids=lambda change: change.__name__)
def test_assignment_keeps_what_the_others_gain(change: Any, cost: Any, precision: Any, scale: float) -> None:
    assert kept(lambda x, n: assign_index(x, n, cost=cost, precision=precision), change, scale) > 0.95


@pytest.mark.parametrize("precision", PRECISE)
@pytest.mark.parametrize("cost", ["l2", "dot"])
@pytest.mark.parametrize("change", CHANGES[3:], ids=lambda change: change.__name__)
def test_mixtures_are_paired_in_every_precision_as_in_float32(change: Any, cost: Any, precision: Any) -> None:
    shares = [
        kept(lambda x, n: assign_index(x, n, cost=cost, precision=each), change, 1e6)  # noqa: B023
        for each in ("fp32", precision)
    ]
    assert shares[1] > shares[0] - 0.02 > 0.8


@pytest.mark.parametrize("precision", PRECISE)
@pytest.mark.parametrize("cost", ["l2", "dot"])
def test_greedy_matching_keeps_it_too(cost: Any, precision: Any) -> None:
    assert kept(lambda x, n: greedy_index(x, n, cost=cost, precision=precision), a_row, 1e6) > 0.95


@pytest.mark.parametrize("scale", [300.0, 1e4, 1e8])
def test_epsilon_is_in_units_of_ordinary_rows(scale: float) -> None:
    def pair(x: Tensor, noise: Tensor) -> Tensor:
        index, report = sinkhorn_index(x, noise, generator=torch.Generator().manual_seed(0))
        assert report.converged
        return index

    assert kept(pair, a_row, scale) > 0.93  # pairs are drawn from the plan: .949 with the draws of torch 2.4

    def plain(x: Tensor, noise: Tensor) -> Tensor:
        """Return what the deviation of all costs makes of epsilon: nearly independent noise."""
        cost = (x - x.mean(0)) @ (noise.mean(0) - noise).T
        return sinkhorn_index(x, noise, epsilon=0.05 * float(cost.std() / (cost[1:] - cost[1:].mean(0)).std()))[0]

    assert kept(lambda x, n: plain(x, n) if x[0].norm() > 100 else pair(x, n), a_row, scale) < 0.75


@pytest.mark.parametrize("precision", PRECISE)
def test_greedy_distances_in_low_precision_are_distances(precision: Any) -> None:
    """They held all inner products less those of the means, and a constant of a row changes greedy pairs."""
    x, noise = data() + 4, randn(B, D, seed=1)
    same = greedy_index(x, noise, cost="l2", precision=precision) == greedy_index(x, noise, cost="l2")
    assert float(same.float().mean()) > (0.9 if precision != "bf16" else 0.5)


def test_low_precision_keeps_the_digits_of_every_row() -> None:
    x, noise = data(), randn(B, D, seed=1)
    a_row(x, noise, 1e8)
    exact, scale = x.double() @ noise.double().T, x.norm(dim=1, keepdim=True).double() * noise.norm(dim=1)
    for precision, digits in (("fp16", 2**-9), ("bf16", 2**-6)):
        error = (-pairwise(x, noise, "dot", precision) - exact).abs() / scale  # type: ignore[arg-type]
        assert error.max() < digits
    centred = (x - x.mean(0)).bfloat16()
    lost = ((centred @ noise.bfloat16().T).float() + x.mean(0) @ noise.T - exact).abs() / scale
    assert lost[1:].max() > 1  # control: less the mean of all rows


def test_a_half_rounds_as_fp16_and_has_no_end() -> None:
    x = randn(1000) * torch.logspace(-3, 4, 1000)
    x = x[x.abs() > 1e-4]  # smaller ones have fewer digits in fp16
    assert torch.equal(_rounded(x, "fp16"), x.half().float())
    tiny = x * 2.0**-60
    assert torch.equal(_rounded(tiny, "fp16"), _rounded(x, "fp16") * 2.0**-60)
    assert not torch.equal(tiny.half().float(), _rounded(tiny, "fp16"))
    assert not _rounded(torch.zeros(3), "fp16").any()


def test_standardised_data_keep_what_the_others_gain() -> None:
    assert kept(lambda x, n: assign_index(standardised(x), n), a_row, 1e6) > 0.97
