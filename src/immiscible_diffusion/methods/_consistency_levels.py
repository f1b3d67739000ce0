"""How finely consistency training cuts the path of noise, and which of the levels it trains."""

import math
from typing import Literal

import torch
from torch import Tensor

from immiscible_diffusion.types import Float

__all__ = ["Draw", "Growth", "chances", "level_count"]

Growth = Literal["root", "doubling"]
Draw = Literal["uniform", "lognormal"]


def level_count(progress: float, *, growth: Growth, first: int, last: int) -> int:
    """Return N, the number of noise levels at this share of training in [0, 1].

    ``root``: ceil(sqrt(p ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 (Song et al., arXiv:2303.01469, App. C).
    ``doubling``: min(s0 2^floor(p (log2 floor(s1 / s0) + 1)), s1) + 1 (Song and Dhariwal, arXiv:2310.14189, Table 1).

    Departs: the paper rounds the length of a doubling down to whole steps; here a doubling is a share of training.

    >>> [level_count(p, growth="root", first=2, last=150) for p in (0.0, 0.5, 1.0)]
    [2, 107, 151]
    >>> [level_count(p, growth="doubling", first=10, last=1280) for p in (0.0, 0.13, 0.99)]
    [11, 21, 1281]
    """
    if growth == "root":
        return max(math.ceil(math.sqrt(progress * ((last + 1) ** 2 - first**2) + first**2) - 1), 1) + 1
    stages = math.log2(last // first) + 1
    return int(min(first * 2 ** math.floor(progress * stages), last)) + 1


def chances(
    sigmas: Float[Tensor, " n"], draw: Draw, p_mean: float = -1.1, p_std: float = 2.0
) -> Float[Tensor, " gaps"]:
    """Return the chance of each pair of adjacent levels, (n - 1,), float64.

    ``lognormal`` is a normal distribution of ln(sigma) between them; its defaults are in arXiv:2310.14189, Table 1.

    Args:
        sigmas: rising noise levels.
        draw: the distribution.
        p_mean: mean of ln(sigma) where it is ``lognormal``.
        p_std: its standard deviation.
    """
    if draw == "uniform":
        gaps = len(sigmas) - 1
        return torch.full((gaps,), 1 / gaps, dtype=torch.float64)
    below = torch.erf((sigmas.double().log() - p_mean) / (math.sqrt(2) * p_std))
    return below.diff() / (below[-1] - below[0])
