"""Images as pixels."""

import math
from dataclasses import dataclass

from torch import Tensor

from immiscible_diffusion.registry import register
from immiscible_diffusion.tensors import as_bytes
from immiscible_diffusion.types import Float, UInt8

__all__ = ["Pixels"]


@register("codec")
@dataclass(frozen=True)
class Pixels:
    """Model space is (raw - mean) / std. The default gives [-1, 1].

    The scale matters to a coupling: a smaller ``std`` sets images further apart from each other than the noise is
    wide (the image scaling of arXiv:2505.18521), and the distance reduction changes with it.

    Args:
        mean: the raw value that becomes 0.
        std: how many raw units become 1; positive.

    Raises:
        ValueError: std is not positive.

    >>> import torch
    >>> Pixels().encode(torch.tensor([[0, 255]], dtype=torch.uint8)).tolist()
    [[-1.0, 1.0]]
    """

    mean: float = 127.5
    std: float = 127.5

    def __post_init__(self) -> None:
        if not 0 < self.std < math.inf or not math.isfinite(self.mean):
            raise ValueError(f"mean is {self.mean} and std {self.std}; both must be finite, and std positive")

    @property
    def limits(self) -> tuple[float, float]:
        """Where black and white lie in model space."""
        return -self.mean / self.std, (255 - self.mean) / self.std

    def encode(self, raw: UInt8[Tensor, "b *dims"]) -> Float[Tensor, "b *dims"]:
        """Return images in model space, (b, c, h, w), float32."""
        return (raw.float() - self.mean) / self.std

    def decode(self, x: Float[Tensor, "b *dims"]) -> UInt8[Tensor, "b *dims"]:
        """Return images as stored, (b, c, h, w), rounded and clipped to 0..255.

        Raises:
            NotFiniteError: an image holds NaN or infinity.
        """
        return as_bytes(x.float() * self.std + self.mean)
