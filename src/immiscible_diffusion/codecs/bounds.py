"""Vectors between bounds, such as a robot's actions."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from immiscible_diffusion.registry import register
from immiscible_diffusion.types import Float

__all__ = ["Bounds"]

_SHARE = 1e-6
"""Of a bound's size: a smaller range is none, and values may lie this far outside. Float32 resolves a tenth of it."""

_LARGEST = torch.finfo(torch.float32).max / 4
"""The largest bound: encoding takes twice the range."""


class _Range(NamedTuple):
    """Of each coordinate, (c,): the bounds, how far outside values may lie, and whether the coordinate is constant."""

    low: Tensor
    high: Tensor
    slack: Tensor
    constant: Tensor


@register("codec")
@dataclass(frozen=True)
class Bounds:
    """Model space is [-1, 1] between two bounds in each of the last dimension's coordinates.

    A coordinate whose bounds are equal, or differ by less than 1e-6 of their size, is constant: it becomes 0, and is
    decoded as ``low``.

    Args:
        low: what becomes -1, one number a coordinate, or one for all.
        high: what becomes 1, at least ``low``.

    Raises:
        ValueError: lengths differ, a bound or twice a range is not finite in float32, or a low is above its high.

    >>> Bounds((0.0, 0.0, 5.0), (512.0, 256.0, 5.0)).encode(torch.tensor([[[512.0, 128.0, 5.0]]])).tolist()
    [[[1.0, 0.0, 0.0]]]
    """

    low: tuple[float, ...] = (-1.0,)
    high: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        finite = all(abs(bound) <= _LARGEST for bound in (*self.low, *self.high))
        if (
            len(self.low) != len(self.high)
            or not finite
            or any(a > b for a, b in zip(self.low, self.high, strict=True))
        ):
            raise ValueError(
                f"codec.low is {self.low} and codec.high {self.high}; they need as many finite numbers, each low at "
                f"most its high, none beyond {_LARGEST:.1g} in size"
            )

    @property
    def limits(self) -> tuple[float, float]:
        """The bounds in model space."""
        return -1.0, 1.0

    def encode(self, raw: Float[Tensor, "b *dims"]) -> Float[Tensor, "b *dims"]:
        """Return vectors in model space, (b, ..., c), float32.

        Raises:
            ValueError: the last dimension has another number of coordinates than the bounds, or a value lies outside
                them: it would come back from ``decode`` as another.
        """
        span, raw = self._range(raw), raw.float()
        inside = (raw >= span.low - span.slack) & (raw <= span.high + span.slack)
        if not bool(inside.all()):
            raise ValueError(self._outside(raw, inside))
        width = torch.where(span.constant, 1, span.high - span.low)
        return torch.where(span.constant, 0, 2 * (raw - span.low) / width - 1)

    def decode(self, x: Float[Tensor, "b *dims"]) -> Float[Tensor, "b *dims"]:
        """Return vectors as stored, (b, ..., c), float32, clipped to the bounds.

        Raises:
            ValueError: the last dimension has another number of coordinates than the bounds.
        """
        span = self._range(x)
        raw = ((x.float() + 1) / 2 * (span.high - span.low) + span.low).clamp(min=span.low, max=span.high)
        return torch.where(span.constant, span.low, raw)

    def _range(self, like: Tensor) -> _Range:
        if len(self.low) not in (1, like.shape[-1]):
            raise ValueError(f"there are bounds for {len(self.low)} coordinates; the data have {like.shape[-1]}")
        low, high = (like.new_tensor(bound, dtype=torch.float32) for bound in (self.low, self.high))
        slack = _SHARE * torch.maximum(low.abs(), high.abs())
        return _Range(low, high, slack, high - low <= slack)

    def _outside(self, raw: Tensor, inside: Tensor) -> str:
        """Return a message about values outside the bounds: their number, and the range of the first coordinate."""
        columns, good = raw.reshape(-1, raw.shape[-1]), inside.reshape(-1, raw.shape[-1])
        i = int((~good).any(0).nonzero()[0])
        low, high = (bound[i if len(bound) > 1 else 0] for bound in (self.low, self.high))
        seen = columns[:, i]
        return (
            f"{int((~good).sum())} of {good.numel()} values of a batch lie outside the bounds, first of coordinate "
            f"{i}, which runs from {float(seen.min()):g} to {float(seen.max()):g}: codec.low is {low:g} and codec.high "
            f"{high:g}; set them to the data's range"
        )
