"""Independent noise: the baseline, ``torch.randn_like`` as a coupling."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.registry import register
from immiscible_diffusion.tensors import batch_rows, normal_like
from immiscible_diffusion.types import Float, Prior

__all__ = ["Independent"]


@register("coupling")
@dataclass(frozen=True)
class Independent:
    """Draw each row's noise by itself, as every diffusion model does without a coupling.

    Marginal: standard normal.
    Cost: b d normals.

    >>> Independent()(torch.zeros(4, 2)).shape
    torch.Size([4, 2])
    """

    def __call__(
        self,
        x: Float[Tensor, "b *dims"],
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        index: Tensor | None = None,
        step: int = 0,
    ) -> Float[Tensor, "b *dims"]:
        """Return standard normal noise like x, (b, *dims)."""
        batch_rows(x)
        return normal_like(x, generator)

    def prior(self, data: Iterable[Tensor]) -> Prior:
        """Return the standard normal."""
        return StandardNormal()
