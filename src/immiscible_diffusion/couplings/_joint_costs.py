"""Costs of data and seeded noise that are equal bit for bit for any split of the rows into batches.

A product of floating-point matrices is not: its last bits change with the shape of the matrices. Here data and noise
are first rounded to whole numbers so small that every sum of their products is exact, in whatever order it is taken.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from immiscible_diffusion.couplings._cost import Cost, masked_sums
from immiscible_diffusion.couplings._seeded_noise import normal_rows, row_seeds
from immiscible_diffusion.tensors import batch_rows, full_precision
from immiscible_diffusion.types import Float

__all__ = ["Wire", "cost_rows"]

Wire = Literal["fp16", "fp32"]

_TERMS = 4096
"""Coordinates whose products are summed exactly; longer rows are cut into parts, which are added in order."""
_LONGEST = {"fp16": 2**11.5, "fp32": 2.0**26}
"""No part of a row is longer, so that by Cauchy and Schwarz every partial sum of a product is at most 2^23 or 2^52.
It is whole, hence exact in the float32 or float64 in which it is summed; one bit is left for rounding the rows."""
_LARGEST = {"fp16": 2.0**11, "fp32": 2.0**26}
"""No number is larger: those up to 2^11 are exact in TF32, in which a GPU may multiply float32 matrices."""
_REACH = 7.0
"""No value of ``normal_rows`` is larger."""
_FAR = 1e9
"""Data this long are paired by distance as their directions say."""
_ELEMENTS = 1 << 20
"""Noise values that are held at a time while the costs are computed."""


@full_precision
def cost_rows(
    x: Float[Tensor, "b *dims"],
    seed: int,
    step: int,
    n: int,
    cost: Cost,
    precision: Wire,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the cost of every row with every noise of a step, (b, n), and the unit of each row, (b,), float64.

    Constants of a row and of a noise are left out: they change no assignment of square problems. A row is a function
    of its datum alone: each operation is exact, a maximum, or done value by value. With a mask, costs count a row's
    real places alone; x must be 0 elsewhere.
    """
    dims, x = x.shape[1:], batch_rows(x)
    over_mask = None if mask is None else _Masked(mask, dims)
    costs_with, unit = _sums(x, over_mask) if cost == "l1" else _products(x, cost, precision, over_mask)
    dtype = torch.float32 if precision == "fp16" else torch.float64
    costs = torch.empty(len(x), n, dtype=dtype, device=x.device)
    many = max(1, _ELEMENTS // x.shape[1])
    for j in range(0, n, many):
        seeds = row_seeds(seed, step, torch.arange(j, min(j + many, n), device=x.device))
        costs[:, j : j + many] = costs_with(normal_rows(seeds, x.shape[1]))
    low, high = costs.amin(1, keepdim=True), costs.amax(1, keepdim=True)
    costs.sub_(low).div_((high - low).clamp(min=torch.finfo(dtype).tiny))
    sent = costs.mul_(65535).round_().sub_(32768).to(torch.int16) if precision == "fp16" else costs.float()
    return sent, (unit * (high - low).squeeze(1).double()).clamp(max=1e300)


@dataclass(frozen=True)
class _Masked:
    """Sums over the real places of rows, or over the others; exact, as float64 sums of whole numbers."""

    mask: Tensor
    dims: tuple[int, ...]

    def lengths(self, other: Tensor) -> Tensor:
        """Return the length of each noise (m, d) at each row's real places, (b, m), in the dtype of the noise."""
        return masked_sums(other.double().square().reshape(-1, *self.dims), self.mask).sqrt().to(other.dtype)

    def padding(self, other: Tensor) -> Tensor:
        """Return the sum of each noise's absolute values, (m, d), at each row's padding, (b, m)."""
        return masked_sums(other.abs().reshape(-1, *self.dims), ~self.mask)


def _sums(x: Tensor, masked: _Masked | None) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return what maps noise (m, d) to costs (b, m) by L1, and the unit of each row, (b,).

    Beyond the noise's reach a coordinate of x adds a constant to its row, so x is cut there; the sums are then at most
    2^52 and exact.
    """
    fraction = 2.0 ** min(32, 48 - math.ceil(math.log2(x.shape[1])))
    whole = (x.double().clamp(-_REACH, _REACH) * fraction).round_()
    length = whole.abs().sum(1, keepdim=True)

    def costs_with(noise: Tensor) -> Tensor:
        other = (noise.double() * fraction).round_()
        left_out = other.abs().sum(1) if masked is None else masked.padding(other)
        return (torch.cdist(whole, other, p=1) - length - left_out) / fraction

    return costs_with, torch.ones_like(length.squeeze(1))


def _products(
    x: Tensor, cost: Cost, precision: Wire, masked: _Masked | None
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return what maps noise (m, d) to costs (b, m), and the unit of each row, (b,).

    The distance is |x - n| - |x| - |n| in units of |x|, a quotient that keeps its digits whatever the length of x. With
    a mask |n| differs from row to row: the distance is |x - n| - |x| in units of one.
    """
    whole, unit = _whole(x, precision)
    fraction = min(_LONGEST[precision] / (math.sqrt(min(x.shape[1], _TERMS)) + 8), _LARGEST[precision] / _REACH)
    length, tiny = _length(whole), torch.finfo(whole.dtype).tiny
    reach = (length.double() * unit).clamp(max=_FAR)
    r = reach.to(whole.dtype).unsqueeze(1)

    def costs_with(noise: Tensor) -> Tensor:
        other = noise.to(whole.dtype).mul_(fraction).round_()
        other_length = _length(other) if masked is None else masked.lengths(other)
        parts = zip(torch.split(whole, _TERMS, 1), torch.split(other, _TERMS, 1), strict=True)
        product: Any = sum(a @ b.T for a, b in parts)
        if cost == "dot":
            return -product  # type: ignore[no-any-return]
        cosine = product / other_length.clamp(min=1) / length.clamp(min=1).unsqueeze(1)
        if cost == "cosine":
            return -cosine  # type: ignore[no-any-return]
        s = other_length / fraction
        apart = (r.square() + s.square() - 2 * (r * s * cosine)).clamp_(min=0).sqrt_()
        if masked is not None:
            return s * (s - 2 * (r * cosine)) / (apart + r).clamp_(min=tiny)  # type: ignore[no-any-return]
        return -2 * (s * (1 + cosine)) / (apart + r + s).clamp_(min=tiny)  # type: ignore[no-any-return]

    one = torch.ones_like(unit)
    return costs_with, {"dot": unit, "cosine": one, "l2": reach if masked is None else one}[cost]


def _whole(x: Tensor, precision: Wire) -> tuple[Tensor, Tensor]:
    """Return each row as whole numbers, (b, d), and what one of them stands for, (b,), float64."""
    x = x if x.dtype == torch.float64 else x.float()
    peak = torch.linalg.vector_norm(x, torch.inf, dim=1)
    x = x / torch.where(peak > 0, peak, 1).unsqueeze(1)
    coarse = torch.split((x * 64).round_(), _TERMS, 1)  # squares of 2^12 at most, whose sums are exact
    longest = torch.stack([torch.linalg.vecdot(part, part) for part in coarse]).amax(0).double().sqrt()
    bound = (longest + math.sqrt(min(x.shape[1], _TERMS)) / 2) / 64  # rounding shortened it by at most this much
    scale = (_LONGEST[precision] / bound).clamp(max=_LARGEST[precision])
    dtype = torch.float32 if precision == "fp16" else torch.float64
    return (x.to(dtype) * scale.to(dtype).unsqueeze(1)).round_(), peak.double() / scale


def _length(whole: Tensor) -> Tensor:
    """Return the length of each row of whole numbers, (b,)."""
    squares: Any = sum(torch.linalg.vecdot(part, part) for part in torch.split(whole, _TERMS, 1))
    return squares.sqrt()  # type: ignore[no-any-return]
