"""The cost of pairing a datum with a noise."""

from typing import Literal

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_batch, check_choice
from immiscible_diffusion.tensors import batch_rows, full_precision
from immiscible_diffusion.types import Float

__all__ = ["Cost", "Precision", "check_costs", "check_rows", "pairwise"]

Cost = Literal["l2", "dot", "l1", "cosine"]
Precision = Literal["fp32", "fp16", "bf16"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_CACHED = 2**19
"""Floats that nearly fill a core's L2 cache."""
_SAFE_NORM = 128.0
"""Rows scaled to at most this norm have inner products of at most 16,384, a quarter of fp16's range."""


def check_costs(cost: Cost, precision: Precision) -> None:
    """Raise ValueError for an unknown cost or precision."""
    check_choice("cost", cost, Cost)
    check_choice("precision", precision, Precision)


def check_rows(x: Tensor, noise: Tensor) -> None:
    """Raise ValueError unless data (b, *dims) and noise (m, *dims) can be paired, m >= b."""
    check_batch(x)
    check_batch(noise, "noise")
    if x.shape[1:] != noise.shape[1:]:
        raise ValueError(f"x rows have shape {tuple(x.shape[1:])}, noise rows {tuple(noise.shape[1:])}")
    if len(noise) < len(x):
        raise ValueError(f"{len(x)} rows of x need at least as many noise rows; there are {len(noise)}")
    if x.device != noise.device:
        raise ValueError(f"x is on {x.device} and noise on {noise.device}; move one of them")


def pairwise(
    x: Float[Tensor, "b *dims"], noise: Float[Tensor, "m *dims"], cost: Cost, precision: Precision
) -> Float[Tensor, "b m"]:
    """Return the cost of every datum with every noise, less a constant per datum, (b, m), in float32.

    A constant per row of an assignment problem changes no solution, nor one per column of a square problem. Leaving
    out |x_i|, or |n_j| where that is longer, keeps the digits of |x_i - n_j| where the data are far from the noise. One
    matrix product serves ``dot``, ``cosine`` and ``l2``; memory is b (m + d). The broadcast differences of the official
    code take b m d.
    """
    x, noise = batch_rows(x).float(), batch_rows(noise).float()
    if cost == "l1":
        # Beyond the noise's range a coordinate of x adds a constant to its whole row.
        reach = noise.abs().max()
        x = torch.maximum(torch.minimum(x, reach), -reach)
        if precision != "fp32":  # a common factor keeps fp16 from overflowing and changes no assignment
            scale = torch.maximum(x.abs().max(), noise.abs().max()).clamp(min=torch.finfo(torch.float32).tiny)
            x, noise = ((rows / scale).to(_DTYPES[precision]).float() for rows in (x, noise))
        return torch.cdist(x, noise, p=1)
    if cost == "cosine":
        x, noise = (torch.nn.functional.normalize(rows, eps=1e-30) for rows in (x, noise))
    square = len(x) == len(noise)
    product = _inner(x, noise, precision, constants=cost == "l2" or not square)
    if cost != "l2":
        return product.neg_()
    norm, other = torch.linalg.vector_norm(x, dim=1, keepdim=True), torch.linalg.vector_norm(noise, dim=1)
    # There a constant per noise changes nothing either.
    per_noise = square and bool(norm.mean() < other.mean())
    for rows in _blocks(len(x), product):
        _distance(product[rows], norm[rows], other, per_noise=per_noise)
    return product


def _distance(product: Tensor, norm: Tensor, other: Tensor, *, per_noise: bool) -> None:
    """Turn inner products into distances less the norm of the datum or, if ``per_noise``, of the noise, in place."""
    change = product.mul_(-2)
    distance = (change + norm.square()).add_(other.square()).clamp_(min=0).sqrt_()
    kept, left_out = (norm, other) if per_noise else (other, norm)
    change.add_(kept.square()).div_(distance.add_(left_out).clamp_(min=torch.finfo(torch.float32).tiny))


def _blocks(count: int, like: Tensor) -> list[slice]:
    """Split rows into blocks. On a CPU a block fits in the L2 cache."""
    size = max(1, _CACHED // max(like.shape[1], 1)) if like.device.type == "cpu" else count
    return [slice(start, start + size) for start in range(0, count, size)]


@full_precision
def _inner(x: Tensor, noise: Tensor, precision: Precision, *, constants: bool) -> Tensor:
    """Return all inner products, (b, m), in float32; low precision sees centred, scaled rows alone.

    Without ``constants`` a term of each datum and of each noise is left out, which changes no square assignment.
    Autocast does not change the precision.
    """
    if precision == "fp32":
        return x @ noise.T
    x_mean, noise_mean = x.mean(0), noise.mean(0)
    low_x, x_scale = _low(x, x_mean, precision)
    low_noise, noise_scale = _low(noise, noise_mean, precision)
    product = (low_x @ low_noise.T).float().mul_(x_scale * noise_scale)
    if constants:
        per_datum, per_noise = (x @ noise_mean - x_mean @ noise_mean).unsqueeze(1), noise @ x_mean
        for rows in _blocks(len(x), product):
            product[rows].add_(per_datum[rows]).add_(per_noise)
    return product


def _low(rows: Tensor, mean: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """Return centred rows in low precision, none longer than the safe norm, and the factor that undoes the scaling."""
    if precision == "bf16":  # its range is float32's
        scale = torch.ones((), device=rows.device)
    else:
        longest = torch.linalg.vector_norm(rows, dim=1).max() + torch.linalg.vector_norm(mean)
        scale = torch.where(longest > 0, longest / _SAFE_NORM, torch.ones_like(longest))
    low = torch.empty_like(rows, dtype=_DTYPES[precision])
    for part in _blocks(len(rows), rows):
        low[part] = (rows[part] - mean).div_(scale)
    return low, scale
