"""Features without a network: pixels averaged over a grid, or the data's own numbers."""

from dataclasses import dataclass

from torch import Tensor, nn

from immiscible_diffusion.registry import register
from immiscible_diffusion.types import Float, UInt8

__all__ = ["PooledPixels", "Values"]


@register("features")
@dataclass(frozen=True)
class PooledPixels:
    """Pixels averaged over a grid: features of any image set without a network. Distances in it are not FID.

    Args:
        size: rows and columns of the grid.
    """

    size: int = 8

    def __call__(self, raw: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """Return the grid's averages, (n, c size size), in [0, 1]."""
        pooled = nn.functional.adaptive_avg_pool2d(raw.float() / 255, self.size)
        return pooled.flatten(1)

    @property
    def fingerprint(self) -> str:
        """A text that is equal where the features are."""
        return f"pooled_pixels/{self.size}"


@register("features")
@dataclass(frozen=True)
class Values:
    """The data's own numbers, for vectors such as actions. Distances in them are not FID."""

    def __call__(self, raw: Float[Tensor, "n *dims"]) -> Float[Tensor, "n f"]:
        """Return the rows flattened, (n, f), float32."""
        return raw.float().flatten(1)

    @property
    def fingerprint(self) -> str:
        """A text that is equal where the features are."""
        return "values"
