"""Vectors between bounds, such as a robot's actions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.registry import register
from immiscible_diffusion.types import Float

__all__ = ["Bounds"]


@register("codec")
@dataclass(frozen=True)
class Bounds:
    """Model space is [-1, 1] between two bounds in each of the last dimension's coordinates.

    Args:
        low: what becomes -1, one number a coordinate, or one for all.
        high: what becomes 1, above ``low``.

    Raises:
        ValueError: lengths differ, or a bound is not above the other.

    >>> Bounds((0.0, 0.0), (512.0, 256.0)).encode(torch.tensor([[[512.0, 128.0]]])).tolist()
    [[[1.0, 0.0]]]
    """

    low: tuple[float, ...] = (-1.0,)
    high: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high) or not all(a < b for a, b in zip(self.low, self.high, strict=True)):
            raise ValueError(f"bounds are {self.low} and {self.high}; each low must be below its high")

    def encode(self, raw: Float[Tensor, "b *dims"]) -> Float[Tensor, "b *dims"]:
        """Return vectors in model space, (b, ..., c), float32.

        Raises:
            ValueError: the last dimension has another number of coordinates than the bounds.
        """
        low, high = self._bounds(raw)
        return 2 * (raw.float() - low) / (high - low) - 1

    def decode(self, x: Float[Tensor, "b *dims"]) -> Float[Tensor, "b *dims"]:
        """Return vectors as stored, (b, ..., c), float32, clipped to the bounds.

        Raises:
            ValueError: the last dimension has another number of coordinates than the bounds.
        """
        low, high = self._bounds(x)
        return ((x.float() + 1) / 2 * (high - low) + low).clamp(min=low, max=high)

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.low) not in (1, like.shape[-1]):
            raise ValueError(f"there are bounds for {len(self.low)} coordinates; the data have {like.shape[-1]}")
        return like.new_tensor(self.low, dtype=torch.float32), like.new_tensor(self.high, dtype=torch.float32)
