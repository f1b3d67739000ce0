"""What every metric needs of its features: two sets of rows that fit, and sums over their pairs in bounded memory."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Estimate", "comparable", "pair_sum"]

_BLOCK = 2048
"""Rows and columns of the largest block of pairs held at once: 32 MiB in float64."""


class Estimate(NamedTuple):
    """A value averaged over parts of the data, and the parts' standard deviation (0 for one part)."""

    mean: float
    sd: float


def comparable(real: Tensor, generated: Tensor, least: int = 2) -> tuple[Tensor, Tensor]:
    """Return two sets of features, each (rows, f), on the real ones' device where that has float64, else on the CPU.

    Raises:
        ValueError: fewer than ``least`` rows, features of different length, or a value that is not finite.
    """
    fits = real.ndim == generated.ndim == 2 and real.shape[1] == generated.shape[1]
    if not fits or min(len(real), len(generated)) < least:
        came = f"{tuple(real.shape)} and {tuple(generated.shape)}"
        raise ValueError(f"features must be (n, f) and (m, f), n and m >= {least}; there came {came}")
    if not bool(torch.isfinite(real).all()) or not bool(torch.isfinite(generated).all()):
        raise ValueError("features hold values that are not finite; the network or its images are at fault")
    device = real.device if real.device.type in ("cpu", "cuda") else torch.device("cpu")
    return real.to(device), generated.to(device)


def pair_sum(x: Tensor, y: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the sum of a kernel over all pairs of rows of (n, f) and (m, f), a float64 scalar, block by block."""
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for rows in torch.split(x, _BLOCK):
        for columns in torch.split(y, _BLOCK):
            total += kernel(rows.double(), columns.double()).sum()
    return total
