"""Padded rows: every coupling pairs by the real places alone, and padding keeps noise that knows nothing."""

from collections.abc import Callable
from itertools import permutations
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from immiscible_diffusion.couplings import (
    Assignment,
    Flipped,
    Independent,
    Joint,
    Mixed,
    Rotated,
    Viewed,
    Warmup,
    Windowed,
    assign,
    assign_conditional,
    assign_index,
    greedy_index,
    nearest,
    oversample,
    sinkhorn_index,
)
from immiscible_diffusion.couplings.viewed import standardised
from immiscible_diffusion.registry import make
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Coupling
from pairing import PAIRING
from sweeps import sweep

COSTS = ["l2", "dot", "l1", "cosine"]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ending(b: int, horizon: int) -> Tensor:
    """Return the mask of rows that end after 1, 2, 3 ... places, (b, horizon, 1)."""
    return (torch.arange(horizon) <= torch.arange(b)[:, None] % horizon).unsqueeze(2)


def padded(x: Tensor, mask: Tensor, value: float = 0.0) -> Tensor:
    return torch.where(mask, x, value)


def plain_costs(x: Tensor, noise: Tensor, mask: Tensor, cost: str) -> Tensor:
    """Return the cost of every pair over the real places of its datum, in float64, pair by pair."""
    mask = mask.expand_as(x)
    table = torch.zeros(len(x), len(noise), dtype=torch.float64)
    for i in range(len(x)):
        for j in range(len(noise)):
            one, other = x[i][mask[i]].double(), noise[j][mask[i]].double()
            table[i, j] = {
                "l2": (one - other).norm(),
                "l1": (one - other).abs().sum(),
                "dot": -one @ other,
                "cosine": -one @ other / (one.norm() * other.norm()).clamp(min=1e-30),
            }[cost]
    return table


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "(b, h, 1)": lambda x: ending(len(x), x.shape[1]),
    "(b, h, a)": lambda x: randn(*x.shape, seed=9) > -0.4,
    "(b, 1, a)": lambda x: randn(len(x), 1, x.shape[2], seed=9) > -0.4,
    "a row of padding": lambda x: (torch.arange(len(x)) > 0).reshape(-1, 1, 1),
}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_brute_force_over_real_places_finds_nothing_cheaper(shape: str, cost: Any, precision: Any) -> None:
    for b, m in [(1, 4), (2, 2), (4, 5), (5, 5)]:
        x, noise = 2 * randn(b, 4, 2, seed=b) + 1, randn(m, 4, 2, seed=b + 10)
        mask = SHAPES[shape](x)
        table = plain_costs(x, noise, mask, cost)
        totals = {order: float(table[range(b), order].sum()) for order in permutations(range(m), b)}
        chosen = tuple(assign_index(padded(x, mask, 7.0), noise, cost=cost, precision=precision, mask=mask).tolist())
        scale = max(totals.values()) - min(totals.values())
        slack = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2}[precision]
        assert totals[chosen] <= min(totals.values()) + slack * scale + 1e-6


@pytest.mark.parametrize("cost", COSTS)
def test_the_controls_of_the_brute_force_pay_more(cost: Any) -> None:
    """Pairing by all places, or with the padding's noise in the distance, is dearer over the real ones."""
    x, noise = 2 * randn(64, 8, 2) + 1, randn(64, 8, 2, seed=1)
    mask = ending(64, 8)
    table = plain_costs(x, noise, mask, cost)
    best, *others = (
        float(table[range(64), index].sum())
        for index in (
            assign_index(x, noise, cost=cost, mask=mask),
            assign_index(padded(x, mask, 5.0), noise, cost=cost),
            assign_index(padded(x, mask), noise, cost=cost),
        )
    )
    assert best < others[0] - 1
    assert cost == "dot" or best < others[1] - 0.1  # inner products with zeros are exact


INDEX: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    **{f"assign by {cost}": lambda x, n, m, c=cost: assign_index(x, n, cost=c, mask=m) for cost in COSTS},  # type: ignore[misc]
    **{f"greedy by {cost}": lambda x, n, m, c=cost: greedy_index(x, n, cost=c, mask=m) for cost in COSTS},  # type: ignore[misc]
    "within classes": lambda x, n, m: assign_index(x, n, labels=torch.arange(len(x)) % 3, mask=m),
    "by conditions": lambda x, n, m: assign_conditional(x, n, randn(len(x), 4, seed=3), ratio=0.3, cost="l2", mask=m),
    "sinkhorn": lambda x, n, m: sinkhorn_index(x, n, generator=torch.Generator().manual_seed(0), mask=m)[0],
}


@pytest.mark.parametrize("name", INDEX)
def test_padding_has_no_influence_on_the_pairs(name: str) -> None:
    x, noise, mask = randn(40, 8, 2), randn(40, 8, 2, seed=1), ending(40, 8)
    index = INDEX[name](padded(x, mask), noise, mask)
    for value in (5.0, torch.nan):
        assert torch.equal(INDEX[name](padded(x, mask, value), noise, mask), index)
    assert sorted(index.tolist()) == list(range(40))
    every = torch.ones_like(mask)
    assert not torch.equal(INDEX[name](padded(x, mask, 5.0), noise, every), index)  # control: without a mask it has
    assert torch.equal(INDEX[name](x, noise, every), INDEX[name](x, noise, None))  # type: ignore[arg-type]


@pytest.mark.parametrize("cost", COSTS)
def test_greedy_matching_is_that_of_a_plain_loop(cost: Any) -> None:
    x, noise = 2 * randn(12, 4, 2), randn(15, 4, 2, seed=1)
    mask = ending(12, 4)
    table, expected = plain_costs(x, noise, mask, cost), torch.full((12,), -1)
    for _ in range(12):
        i, j = divmod(int(table.argmin()), 15)
        expected[i], table[i], table[:, j] = j, torch.inf, torch.inf
    index = greedy_index(padded(x, mask, 3.0), noise, cost=cost, mask=mask)
    if cost in ("l2", "l1"):
        assert torch.equal(index, expected)
    else:  # equal up to the constants of a datum, on which greedy matching depends
        assert float((index == expected).float().mean()) > 0.5


def real_square(x: Tensor, noise: Tensor, mask: Tensor) -> float:
    return float(padded(x - noise, mask).square().sum((1, 2)).mean())


def test_the_mask_brings_noise_nearer_where_data_are_real() -> None:
    """Rows of 16 places that end early, as padded sets do: nearest with a mask, farthest with fives for zeros."""
    x, noise, mask = randn(128, 16, 4).cumsum(1) / 2, randn(128, 16, 4, seed=1), ending(128, 16)
    cases: list[tuple[Literal["l2", "dot"], float, Tensor | None]] = [
        ("l2", 0.0, mask),
        ("l2", 0.0, None),
        ("dot", 0.0, None),
        ("l2", 5.0, None),
    ]
    distances = [
        real_square(x, assign(padded(x, mask, value), noise, cost=cost, mask=given), mask)
        for cost, value, given in cases
    ]
    masked, zeros, zeros_dot, fives = distances
    independent = real_square(x, noise, mask)
    assert masked < zeros < fives < independent
    assert masked < zeros_dot
    assert (independent - fives) < 0.8 * (independent - masked)


NAMES = PAIRING


def couple(name: str, x: Tensor, mask: Tensor | None, step: int = 0) -> Tensor:
    coupling = make("coupling", name)
    assert isinstance(coupling, Coupling)
    masked = {} if mask is None else {"mask": mask}
    cond = torch.arange(len(x)) % 2
    return coupling(x, cond=cond, generator=stream(0, step, "noise"), index=torch.arange(len(x)), step=step, **masked)


@pytest.mark.medium
@pytest.mark.parametrize("name", NAMES)
def test_every_coupling_takes_a_mask_and_ignores_the_padding(name: str) -> None:
    x, mask = randn(24, 6, 2), ending(24, 6)
    noise = couple(name, padded(x, mask), mask)
    assert (noise.shape, noise.dtype) == (x.shape, x.dtype)
    assert noise.isfinite().all()
    for value in (5.0, torch.nan):
        assert torch.equal(couple(name, padded(x, mask, value), mask), noise)
    with pytest.raises(ValueError, match=r"mask is a torch.bool tensor \(24, 6\) on cpu; for x \(24, 6, 2\)"):
        couple(name, x, mask.squeeze(2))
    with pytest.raises(ValueError, match=r"mask is a torch.float32 tensor"):
        couple(name, x, mask.float())


@pytest.mark.medium
@pytest.mark.parametrize("name", sweep(sorted({*NAMES} - {"flipped"}), 4))
def test_padding_keeps_standard_normal_noise_that_knows_nothing(name: str) -> None:
    """All data are large and alike at the last place, which a quarter of the rows have: they choose first.

    What is left to the others would lie on the other side; the control shows it.
    """
    x = 3 * torch.ones(32, 4, 1) + randn(32, 4, 1)
    mask = ending(32, 4)
    rest = torch.cat([couple(name, x, mask, step)[~mask] for step in range(60)])
    error = len(rest) ** -0.5
    assert abs(float(rest.mean())) < 4 * error
    assert abs(float(rest.var()) - 1) < 6 * error
    left, kept = [], []
    for step in range(60):
        noise = randn(32, 4, 1, seed=step)
        left.append(noise[assign_index(x, noise, mask=mask)][~mask])  # a permutation and no more
        kept.append(torch.equal(assign(x, noise, mask=mask)[~mask], noise[~mask]))
    assert all(kept)
    assert float(torch.cat(left).mean()) < -10 * error


@pytest.mark.medium
@pytest.mark.parametrize("name", NAMES)
def test_a_mask_of_true_pairs_as_none(name: str) -> None:
    x = randn(24, 6, 2)
    every = torch.ones(24, 6, 1, dtype=torch.bool)
    if name == "nearest":  # its rows' numbers of coordinates go another way
        torch.testing.assert_close(couple(name, x, every), couple(name, x, None))
    else:
        assert torch.equal(couple(name, x, every), couple(name, x, None))


@pytest.mark.parametrize("cost", COSTS)
def test_nearest_of_k_has_the_distribution_of_explicit_candidates(cost: Any) -> None:
    """Moments of the kept noise at real places, and of the rest, against drawing all k and looking."""
    k, n, mask = 6, 4000, torch.tensor([True, True, True, False, False]).reshape(1, 5, 1)
    x = torch.tensor([1.5, -0.5, 1.0, 9.0, 9.0]).reshape(1, 5, 1).expand(n, -1, -1)
    kept = nearest(x, k, cost=cost, generator=torch.Generator().manual_seed(0), mask=mask.expand(n, -1, -1)).squeeze(2)
    candidates = randn(n, k, 5, seed=1)
    place, real = x[0, :3, 0], candidates[:, :, :3]
    table = {
        "l2": (real - place).norm(dim=2),
        "l1": (real - place).abs().sum(2),
        "dot": -(real @ place),
        "cosine": -(real @ place) / real.norm(dim=2),
    }[cost]
    explicit = candidates[torch.arange(n), table.argmin(1)]
    for moment in (lambda rows: rows, torch.square, lambda rows: rows * rows.roll(1, 1)):
        first, second = moment(kept), moment(explicit)
        error = (first.var(0) / n + second.var(0) / n).sqrt()
        assert ((first.mean(0) - second.mean(0)).abs() < 4.5 * error).all()
    assert float(explicit[:, 0].mean()) > 0.3  # control: the choice shows in these moments


@pytest.mark.parametrize("real", [0, 1, 2])
@pytest.mark.parametrize("cost", COSTS)
def test_nearest_of_k_with_few_real_places_or_a_row_of_zeros(cost: Any, real: int) -> None:
    mask = (torch.arange(3) < real).reshape(1, 3, 1).expand(3000, -1, -1)
    for x in (torch.zeros(3000, 3, 1), torch.full((3000, 3, 1), 2.0)):
        noise = nearest(x, 8, cost=cost, generator=torch.Generator().manual_seed(0), mask=mask)
        assert noise.isfinite().all()
        rest = noise[~mask]
        assert len(rest) == 0 or abs(float(rest.mean())) < 0.06
        assert len(rest) == 0 or abs(float(rest.var()) - 1) < 0.1
        if real and x.any():
            assert float(noise[mask].mean()) > 0.5


@pytest.mark.parametrize("cost", ["l2", "dot"])
@pytest.mark.parametrize("d", [3, 40])
def test_oversampling_pairs_by_the_real_places(cost: Any, d: int) -> None:
    """Rows of 4 x 40 are built from their span by inner products, and from whole candidates by distance."""
    mask, near, far = ending(8, 4), [], []
    for seed in range(60):
        x = 2 * randn(8, 4, d, seed=seed) / d**0.5
        noise = [
            oversample(padded(x, mask, value), 64, cost=cost, generator=stream(0, seed, "noise"), mask=mask)
            for value in (0.0, 5.0)
        ]
        assert torch.equal(*noise)
        explicit = assign(x, randn(64, 4, d, seed=seed + 1000), cost=cost, mask=mask)
        near.append((padded(x, mask) * noise[0]).sum() / 8)
        far.append((padded(x, mask) * explicit).sum() / 8)
    first, second = torch.stack(near), torch.stack(far)
    error = float((first.var() / 60 + second.var() / 60).sqrt())
    assert abs(float(first.mean() - second.mean())) < 4 * error
    assert float(second.mean()) > 20 * error


def test_wrappers_hand_the_mask_on() -> None:
    masks: list[Tensor | None] = []

    class Keeping(Assignment):
        def pair(self, x: Tensor, rows: Any) -> Tensor:
            masks.append(rows.mask)
            return super().pair(x, rows)

    x, mask = randn(8, 4, 2), ending(8, 4)
    wrappers = Flipped(Keeping()), Rotated(Keeping()), Warmup(Keeping(), steps=0), Mixed(Keeping(), start=1.0, end=1.0)
    for wrapper in (*wrappers, Windowed(Keeping())):
        wrapper(x, generator=stream(0, 0, "noise"), mask=mask)
    assert [given is mask for given in masks] == [True] * 5


def test_standardised_data_leave_the_padding_out() -> None:
    x, mask = 3 * randn(50, 4, 2) + 7, ending(50, 4)
    view = standardised(padded(x, mask, 1e6), mask)
    assert not view[~mask.expand_as(view)].any()
    for place in range(4):
        rows = view[mask[:, place, 0], place]
        torch.testing.assert_close(rows.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(rows.square().mean(0), torch.ones(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(standardised(x, torch.ones_like(mask)), standardised(x))


def test_views_of_whole_images_refuse_a_mask() -> None:
    images, corner = randn(4, 3, 8, 8), torch.ones(4, 1, 8, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match="pooled images, whose cells take no mask; choose view = 'standardised'"):
        Viewed("pooled", size=2)(images, mask=corner)
    assert Independent()(images, mask=corner).shape == images.shape
    assert Joint()(images, step=0, mask=corner).shape == images.shape
