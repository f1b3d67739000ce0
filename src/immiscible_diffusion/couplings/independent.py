"""Independent noise: the baseline, ``torch.randn_like`` as a coupling."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from immiscible_diffusion.couplings._drop_in import DropIn, Rows
from immiscible_diffusion.registry import register
from immiscible_diffusion.tensors import normal_like
from immiscible_diffusion.types import Float

__all__ = ["Independent"]


@register("coupling")
@dataclass(frozen=True)
class Independent(DropIn):
    """Draw each row's noise independently of the data, as diffusion models do without a coupling.

    Marginal: standard normal.
    Cost: b d normals.

    >>> import torch
    >>> Independent()(torch.zeros(4, 2)).shape
    torch.Size([4, 2])
    """

    by_class: ClassVar[bool] = True
    row_by_row: ClassVar[bool] = True

    def pair(self, x: Float[Tensor, "b *dims"], rows: Rows) -> Float[Tensor, "b *dims"]:
        """Return standard normal noise, (b, *dims)."""
        return normal_like(x, rows.generator)
