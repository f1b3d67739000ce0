"""The distribution of the nearest of k noises, in the two numbers that decide which is nearest.

A standard normal noise is n = a u + r v, with u = x / |x|, a ~ N(0, 1), v uniform on the unit sphere orthogonal to u
and r^2 ~ chi^2(d - 1), all independent. A choice by (a, r) alone leaves v as it was, so that the kept noise has the
mean E[a] u and the second moment E[a^2] u u^T + E[r^2] / (d - 1) (I - u u^T).
"""

import functools
import math
from collections.abc import Iterable

import numpy as np
import torch
from scipy.special import betaincinv, log_ndtr
from torch import Tensor

from immiscible_diffusion.couplings._cost import Cost
from immiscible_diffusion.priors import Gaussian
from immiscible_diffusion.tensors import batch_rows

__all__ = ["kept_moments", "kept_prior", "max_normal_moments"]

_POINTS = 1 << 16
"""Points of a quadrature. E[a] is then off by 1e-4 where k = 8, and by 1e-3 at worst up to k = 10,000."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_REACH = 9.0
"""How far the quadrature looks from the mode, in a and r; the maximum of 10^9 normals is 6."""
_PER_OCTAVE = 8
"""Norms of the data at which the moments are computed, between which they are interpolated, to about 1e-3."""
_OCTAVES = 10
"""Beyond sqrt(d) times 2^-10 or 2^10 the norm makes no difference of 1e-3."""
_EXACT = 4096
"""Coordinates up to which the whole second moment is summed, in d^2 float64 numbers; beyond, its leading part."""
_RANK = 256
"""How many directions the leading part has."""

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def max_normal_moments(k: float) -> tuple[float, float]:
    """Return E[a] and E[a^2] of the maximum a of k standard normals; k may be any real number >= 1.

    >>> [round(moment, 3) for moment in max_normal_moments(8)]
    [1.424, 2.4]
    """
    a = np.linspace(-12.0, 15.0, 27_001)
    log_density = math.log(k) - 0.5 * a**2 - 0.5 * math.log(2 * math.pi) + (k - 1) * log_ndtr(a)
    weight = np.exp(log_density) * (a[1] - a[0])
    return float((a * weight).sum()), float((a**2 * weight).sum())


@functools.lru_cache(4096)
def kept_moments(norm: float, d: int, k: float, cost: Cost) -> tuple[float, float, float]:
    """Return E[a], E[a^2] and E[r^2] of the best of k noises for a datum of this norm in d dimensions.

    By distance, points of a golden lattice over (a, r) are sorted by (a - |x|)^2 + r^2. The best of k noises lies at a
    point with the chance that all are as far or farther, less the chance that all are farther. A second and a third
    lattice cover only where it may lie.

    >>> [round(moment, 1) for moment in kept_moments(55.4, 3072, 8, "l2")]
    [1.2, 1.9, 3006.7]
    """
    if cost == "dot":
        return *max_normal_moments(k), float(d - 1)
    if cost == "cosine":
        return _of_cosine(d, k)
    mode, i = math.sqrt(max(d - 2, 0)), np.arange(_POINTS)
    place = np.stack([i * _GOLDEN % 1, (i + 0.5) / _POINTS])
    low, high = np.array([[-_REACH, max(0.0, mode - _REACH)], [_REACH, mode + _REACH]])
    for _ in range(3):
        a, r = low[:, None] + (high - low)[:, None] * place
        weight = _density(a, r, d) * ((high - low).prod() if d > 1 else high[0] - low[0]) / _POINTS
        r = r if d > 1 else 0 * r
        order = np.argsort(a**2 - 2 * a * norm + r**2)
        a, r, nearer = a[order], r[order], np.minimum(weight[order].cumsum(), 1 - 1e-16)
        farther = np.concatenate([[1.0], np.exp(k * np.log1p(-nearer))])
        chance = farther[:-1] - farther[1:]
        likely, margin = int((farther > 1e-12).sum()), 3 * (high - low) / math.sqrt(_POINTS)
        where = np.stack([a[:likely], r[:likely]])
        low, high = np.maximum(low, where.min(1) - margin), np.minimum(high, where.max(1) + margin)
    chance /= chance.sum()
    return float(a @ chance), float(a**2 @ chance), float(r**2 @ chance)


def _of_cosine(d: int, k: float) -> tuple[float, float, float]:
    """Return the moments of a and r for the largest of k cosines, which is independent of the noise's length.

    (1 - cosine) / 2 is distributed as Beta((d - 1) / 2, (d - 1) / 2); the sum is over normal quantiles of the maximum.
    """
    first, second = 1 - 2 ** (1 - k), 1.0
    if d > 1:
        z = np.linspace(-8.0, 8.0, 801)
        chance = np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum()
        cosine = 1 - 2 * betaincinv((d - 1) / 2, (d - 1) / 2, -np.expm1(log_ndtr(z) / k))
        first, second = float(cosine @ chance), float(cosine**2 @ chance)
    length = math.sqrt(2) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
    return length * first, d * second, d * (1 - second)


def _density(a: Floats, r: Floats, d: int) -> Floats:
    """Return the density of a standard normal a and, for d > 1, of a chi r with d - 1 degrees of freedom."""
    log = -(a**2 + math.log(2 * math.pi)) / 2
    if d > 1:
        log += (d - 2) * np.log(r) - r**2 / 2 - ((d - 3) / 2 * math.log(2) + math.lgamma((d - 1) / 2))
    return np.exp(log)


def kept_prior(data: Iterable[Tensor], k: float, cost: Cost) -> Gaussian:
    """Return the Gaussian with the moments of the noise that nearest of k gives to data.

    Up to 4,096 coordinates they are exact but for the quadrature. Beyond, 256 directions are followed from batch to
    batch, in memory of O(256 d); what the others have above the rest is spread evenly over them.

    Args:
        data: batches in model space, (b, *dims), read once.
        k: how many noises compete.
        cost: by which they do; not ``l1``, which does not depend on (a, r) alone.

    Raises:
        ValueError: no data.
    """
    count, across, above = 0, 0.0, 0.0
    first = second = torch.zeros((), dtype=torch.float32)
    for x in data:
        rows = batch_rows(x).double().cpu()
        norm, d = torch.linalg.vector_norm(rows, dim=1), rows.shape[1]
        unit = rows / torch.where(norm > 0, norm, 1).unsqueeze(1)
        c, q, s = _moments(norm, d, k, cost)
        more = (q - s).unsqueeze(1)
        second = second + unit.T @ (more * unit) if d <= _EXACT else _leading(second, more.abs().sqrt() * unit)
        first, across, above = first + c @ unit, across + float(s.sum()), above + float(more.sum())
        count += len(rows)
    if count == 0:
        raise ValueError("the matched start of nearest needs data; there came none")
    mean, scale = first / count, across / count
    if len(mean) <= _EXACT:
        return Gaussian.from_moments(mean, second / count - torch.outer(mean, mean), scale=scale)
    return _low_rank(mean, second.double() / math.sqrt(count), above / count, scale)


def _moments(norm: Tensor, d: int, k: float, cost: Cost) -> tuple[Tensor, Tensor, Tensor]:
    """Return E[a], E[a^2] and E[r^2] / (d - 1) for data of each norm, (b,).

    Where the norm is zero, so is the first, and the others are equal: |n|^2 is shared by all directions alike.
    """
    if cost == "l2":
        octave = (norm.clamp(min=1e-300) / math.sqrt(d)).log2().clamp(-_OCTAVES, _OCTAVES) * _PER_OCTAVE
        low = octave.floor().clamp(max=_OCTAVES * _PER_OCTAVE - 1)
        steps = torch.stack([low, low + 1]).long()
        nodes = {step: math.sqrt(d) * 2 ** (step / _PER_OCTAVE) for step in set(steps.flatten().tolist())}
        known = {step: kept_moments(node, d, k, cost) for step, node in nodes.items()}
        left, right = (torch.tensor([known[step] for step in row], dtype=torch.float64) for row in steps.tolist())
        moments = torch.lerp(left, right, (octave - low).unsqueeze(1))
    else:
        moments = torch.tensor(kept_moments(1.0, d, k, cost), dtype=torch.float64).expand(len(norm), 3)
    c, q, rest = moments.T
    s = rest / (d - 1) if d > 1 else q
    of_zero = sum(kept_moments(0.0, d, k, cost)[1:]) / d if cost == "l2" else 1.0
    some = norm > 0
    return torch.where(some, c, 0), torch.where(some, q, of_zero), torch.where(some, s, of_zero)


def _leading(kept: Tensor, rows: Tensor) -> Tensor:
    """Return the leading part of kept and further rows, (<= r, d), in float32: rows with nearly the same product."""
    both = torch.cat([kept, rows.float()]) if kept.ndim else rows.float()
    if len(both) <= _RANK:
        return both
    vectors = torch.linalg.eigh((both @ both.T).double()).eigenvectors[:, -_RANK:]
    leading: Tensor = vectors.T.float() @ both
    return leading


def _low_rank(mean: Tensor, rows: Tensor, total: float, scale: float) -> Gaussian:
    """Return the Gaussian of covariance scale I + E - mean mean^T, E having the leading part rows^T rows.

    ``total`` is the trace of E, whose sign the product has. What it lacks of it is spread over the other directions.
    """
    every = torch.cat([rows, mean.unsqueeze(0)])
    values, vectors = torch.linalg.eigh(every @ every.T)
    kept = values > 1e-10 * values[-1]
    part = vectors[:, kept] * values[kept].sqrt()
    basis = (vectors[:, kept].T @ every) / values[kept].sqrt().unsqueeze(1)
    sign = math.copysign(1.0, total)
    missing = (total - sign * float(rows.square().sum())) / (len(mean) - len(basis))
    signs = torch.full((len(every), 1), sign, dtype=torch.float64)
    signs[-1] = -1
    excess = part.T @ (signs * part) - missing * torch.eye(len(basis), dtype=torch.float64)
    small = Gaussian.from_moments(basis @ mean, excess, scale=scale + missing)
    return Gaussian(mean.float(), small.directions @ basis.float(), small.variances, small.scale)
