"""The cost of pairing a datum with a noise."""

from typing import Literal

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_batch, check_choice, check_finite, check_mask
from immiscible_diffusion.tensors import batch_rows, full_precision
from immiscible_diffusion.types import Float

__all__ = [
    "Cost",
    "Precision",
    "bounded",
    "check_costs",
    "check_rows",
    "masked_sums",
    "ordinary",
    "pairwise",
    "real_part",
    "total_norm",
]

Cost = Literal["l2", "dot", "l1", "cosine"]
Precision = Literal["fp32", "fp16", "bf16"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_CACHED = 2**19
"""Floats that nearly fill a core's L2 cache."""
_SAFE_NORM = 128.0
"""Rows scaled to this norm have inner products of at most 16,384, a quarter of fp16's range."""
_FAR = 8
"""Rows that are so many times as long as the median row do not count in the means and deviations of a batch. One that
is 8 times as long raises the deviation among 256 by a tenth; one that is 1,000 times as long, 60 times."""
_LARGE = 1e15
"""Above it, the square of a norm comes near the end of float32."""
_LONG = 1e9
"""Data this many times as long as the noise are paired by direction, to the last digit of float32."""
_HALF_DIGITS = 11
"""Binary digits of an fp16 number."""


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


def ordinary(rows: Float[Tensor, "b d"]) -> Tensor:
    """Return which rows are not much longer than most, (b,)."""
    norm = torch.linalg.vector_norm(rows, dim=1)
    some = norm[norm > 0]
    far: Tensor = norm <= _FAR * some.median() if len(some) else norm == 0
    return far


def real_part(x: Float[Tensor, "b *dims"], mask: Tensor | None) -> Float[Tensor, "b *dims"]:
    """Return x with zeros at its padding, (b, *dims).

    Raises:
        ValueError: the mask does not fit x.
    """
    check_mask(x, mask)
    return x if mask is None else torch.where(mask, x, 0)


@full_precision
def masked_sums(values: Float[Tensor, "m *dims"], mask: Tensor) -> Float[Tensor, "b m"]:
    """Return the sum of each row of values over the real places of each datum's mask, (b, m).

    Along axes where the mask has length 1 the values are summed first: O(b m) times the mask's other places.
    """
    axes = [axis for axis in range(1, mask.ndim) if mask.shape[axis] == 1 < values.shape[axis]]
    if axes:
        values = values.sum(axes, keepdim=True)
    return mask.flatten(1).to(values.dtype) @ values.flatten(1).T


def pairwise(
    x: Float[Tensor, "b *dims"],
    noise: Float[Tensor, "m *dims"],
    cost: Cost,
    precision: Precision,
    mask: Tensor | None = None,
) -> Float[Tensor, "b m"]:
    """Return the cost of every datum with every noise, less a constant per datum, (b, m), in float32.

    A constant per row of an assignment problem changes no solution, nor one per column of a square problem. Leaving
    out |x_i|, or |n_j| where that is longer, keeps the digits of |x_i - n_j| where the data are far from the noise. One
    matrix product serves ``dot``, ``cosine`` and ``l2``; memory is b (m + d). The broadcast differences of the official
    code take b m d. With a mask, True where a datum is real, its costs count these places alone, of the noise too; x
    must be 0 elsewhere (``real_part``).
    """
    other = noise.float()
    x, noise = batch_rows(x).float(), batch_rows(noise).float()
    if cost == "l1":
        return _absolute(x, other, precision, mask)
    if cost == "cosine":
        x, noise = (torch.nn.functional.normalize(rows, eps=1e-30) for rows in (x, noise))
        other = noise.reshape(other.shape)
    product = _inner(x, noise, precision)
    if cost == "dot":
        return product.neg_()
    length = torch.linalg.vector_norm(noise, dim=1) if mask is None else masked_sums(other.square(), mask).sqrt_()
    if cost == "cosine":
        return (product if mask is None else product.div_(length.clamp_(min=1e-30))).neg_()
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    # There a constant per noise changes nothing either.
    per_noise = mask is None and len(x) == len(noise) and bool(norm.mean() < length.mean())
    for rows in _blocks(len(x), product):
        _distance(product[rows], norm[rows], length if mask is None else length[rows], per_noise=per_noise)
    return product


def _absolute(x: Tensor, other: Tensor, precision: Precision, mask: Tensor | None) -> Tensor:
    """Return the sums of absolute differences over the real places, (b, m), of rows (b, d) and noise (m, *dims)."""
    noise = other.flatten(1)
    # Beyond the noise's range a coordinate of x adds a constant to its whole row.
    reach = noise.abs().max()
    x = torch.maximum(torch.minimum(x, reach), -reach)
    if precision != "fp32":  # a common factor changes no assignment
        scale = torch.maximum(x.abs().max(), noise.abs().max()).clamp(min=torch.finfo(torch.float32).tiny)
        x, noise = (_rounded(rows / scale, precision) for rows in (x, noise))
    apart = torch.cdist(x, noise, p=1)
    return apart if mask is None else apart.sub_(masked_sums(noise.abs().reshape(other.shape), ~mask))


def _rounded(rows: Tensor, precision: Precision) -> Tensor:
    """Return float32 numbers with the digits of a lower precision and float32's range."""
    if precision == "bf16":
        return rows.bfloat16().float()
    mantissa, exponent = torch.frexp(rows)
    rounded: Tensor = (mantissa * 2**_HALF_DIGITS).round_() * torch.exp2((exponent - _HALF_DIGITS).to(rows))
    return rounded


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
def _inner(x: Tensor, noise: Tensor, precision: Precision) -> Tensor:
    """Return all inner products, (b, m), in float32. Autocast does not change the precision.

    Low precision sees x_i - s_i c and n_j - t_j e, each with a scale of its own. So neither a part that all rows share
    nor one row that is much longer than the others costs digits. The rest of the product has rank two.
    """
    if precision == "fp32":
        return x @ noise.T
    low_x, x_scale, share, common = _low(x, precision)
    low_noise, noise_scale, other_share, other_common = _low(noise, precision)
    product = (low_x @ low_noise.T).float().mul_(x_scale.unsqueeze(1)).mul_(noise_scale)
    along = x @ other_common - share * (common @ other_common)
    return product.addmm_(torch.stack([share, along], 1), torch.stack([noise @ common, other_share]))


def _low(rows: Tensor, precision: Precision) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rows in low precision less their share of a common vector, (b, d), and what undoes that.

    This is their scales, (b,), their shares, (b,), and the common vector, (d,): the mean of the unit rows, to which
    long and short rows contribute alike.
    """
    common = torch.nn.functional.normalize(rows, eps=1e-30).mean(0)
    share = rows @ common / common.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
    low, scale = torch.empty_like(rows, dtype=_DTYPES[precision]), torch.ones_like(share)
    for part in _blocks(len(rows), rows):
        rest = torch.addcmul(rows[part], share[part].unsqueeze(1), common, value=-1)
        if precision == "fp16":  # the range of bf16 is float32's
            norm = torch.linalg.vector_norm(rest, dim=1)
            scale[part] = torch.where(norm > 0, norm / _SAFE_NORM, 1)
        low[part] = rest.div_(scale[part].unsqueeze(1))
    return low, scale, share, common


def bounded(x: Tensor, noise: Tensor, cost: Cost, norm: float) -> tuple[Tensor, Tensor]:
    """Return rows whose squares stay within float32 and that pair alike, or raise ValueError if one is not finite.

    Scaling is harmless: ``dot`` and ``cosine`` allow a separate factor for data and noise, ``l2`` and ``l1`` a common
    one. By ``l2``, a datum much longer than the noise is paired by its direction.
    """
    if norm < _LARGE and total_norm(x) < _LARGE:
        return x, noise
    check_finite(x=x, noise=noise)
    unit = float(noise.abs().max()) or 1.0
    if cost in ("dot", "cosine"):
        return x / (float(x.abs().max()) or 1.0), noise / unit
    rows = batch_rows(x) / unit
    if cost == "l1":
        return rows.clamp(-1, 1).reshape(x.shape), noise / unit  # see pairwise
    reach = rows.abs().amax(1, keepdim=True).clamp(min=1)
    return (rows * (_LONG / reach).clamp(max=1)).reshape(x.shape), noise / unit


def total_norm(rows: Tensor) -> float:
    """Return the norm of all rows together; NaN or infinity if a value is. Ten times as fast as a maximum."""
    return float(torch.linalg.vector_norm(rows, dtype=torch.promote_types(rows.dtype, torch.float32)))
