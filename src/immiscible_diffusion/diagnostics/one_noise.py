"""A check for any training loop: do x_t and the target hold the same noise?"""

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_alike, check_number
from immiscible_diffusion.tensors import batch_rows
from immiscible_diffusion.types import Float

__all__ = ["one_noise"]

_TINY = torch.finfo(torch.float64).tiny
_FLOAT32 = torch.empty(0, dtype=torch.float32)
"""Data in float64 may come from float32."""


def one_noise(
    x: Float[Tensor, "b *dims"], x_t: Float[Tensor, "b *dims"], target: Float[Tensor, "b *dims"], *, tol: float = 0.02
) -> None:
    """Raise ValueError unless x_t and the target hold the same noise in every row; no schedule is needed.

    With one noise n, x_t = a x + s n and target = p x + q n, whatever the coefficients, so that each row of x_t lies in
    the span of x and target. Put it behind the loop's target, for the first step. It fits eps, v and velocity targets,
    and any scale of x_t. Of a target that is the data alone, as with x0 prediction, it says nothing: there is no second
    noise. Input perturbation puts a second noise into x_t on purpose, which raises too: try such a loop without it.

    Args:
        x: data as the noise was added to them.
        x_t: noisy data.
        target: what the loss compares the net's output with.
        tol: the largest share of a row's length that may lie outside the span, where the target is not nearly data
            alone. Rounding leaves 1e-7 in float32 and .003 in bf16; other noise leaves the share that it has in x_t.

    Raises:
        ValueError: rows of x_t that do not fit the target, with their share; shapes that differ.

    >>> x, noise, t = torch.randn(8, 3), torch.randn(8, 3), torch.rand(8, 1)
    >>> one_noise(x, (1 - t) * x + t * noise, noise - x)
    >>> one_noise(x, (1 - t) * x + t * torch.randn(8, 3), noise - x)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: x_t holds other noise than target in ...
    """
    check_number(tol=tol, above=0, below=1)
    for other in (x_t, target):
        check_alike(x, other)
    named = (x, "x"), (x_t, "x_t"), (target, "target")
    data, noisy, aim = (batch_rows(tensor.detach(), name).cpu().double() for tensor, name in named)
    data = _unit(data)
    across = _without(aim, data)  # of the target, what is not data: the smaller, the coarser its rounded direction
    outside = _without(_without(noisy, data), _unit(across))
    share = _length(outside) / _length(noisy).clamp(min=_TINY)
    rounding = max(torch.finfo(tensor.dtype).eps for tensor in (x, x_t, target, _FLOAT32)) / 2
    coarse = torch.where(_length(across) > 0, rounding * _length(aim) / _length(across), torch.inf)
    wrong = ~(share <= tol + coarse)
    if bool(wrong.any()):
        raise ValueError(
            f"x_t holds other noise than target in {int(wrong.sum())} of {len(x)} rows: of their length, "
            f"{float(share[wrong].median()):.2g} lies outside the span of x and target (median; up to {tol:g} is "
            f"rounding). Draw the noise once, noise = couple(x), before x_t and the target, and make both from it"
        )


def _length(rows: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return length


def _unit(rows: Tensor) -> Tensor:
    """Return rows of length 1; rows of zeros stay."""
    return rows / _length(rows).clamp(min=_TINY).unsqueeze(1)


def _without(rows: Tensor, unit: Tensor) -> Tensor:
    """Return rows less their part along directions of length 1 or 0, (b, d)."""
    along: Tensor = torch.linalg.vecdot(rows, unit)
    return rows - along.unsqueeze(1) * unit
