"""Assignment on a view of data and noise: their low frequencies, or standardised data."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_choice, check_finite, check_whole
from immiscible_diffusion.couplings._cost import Cost, Precision, check_costs, check_rows, ordinary, real_part
from immiscible_diffusion.couplings._drop_in import DropIn, Rows
from immiscible_diffusion.couplings.assignment import pair_index
from immiscible_diffusion.registry import register
from immiscible_diffusion.tensors import batch_rows, normal_like
from immiscible_diffusion.types import Float

__all__ = ["View", "Viewed", "pooled", "standardised"]

View = Literal["standardised", "pooled"]


@torch.no_grad()
def pooled(
    x: Float[Tensor, "b *dims"], noise: Float[Tensor, "b *dims"], *, size: int = 8
) -> tuple[Float[Tensor, "b *pooled"], Float[Tensor, "b *pooled"]]:
    """Return data and noise averaged over the cells of a size x size grid, each (b, ..., size, size).

    The cells are as in ``adaptive_avg_pool2d``. The noise's averages are scaled back to unit variance, so the two
    keep the proportion that they have in full. An axis of ``size`` or fewer stays as it is.

    Args:
        x: images (b, c, h, w) or video (b, c, t, h, w); the last two axes are pooled.
        noise: standard normal, of the same shape.
        size: cells along each axis.

    Raises:
        ValueError: no images, shapes that differ, or ``size`` below 1.

    >>> seen, low = pooled(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8), size=2)
    >>> seen.flatten().tolist(), low.flatten().tolist()
    ([1.0, 1.0, 1.0, 1.0], [4.0, 4.0, 4.0, 4.0])
    """
    check_whole(size=size)
    check_rows(x, noise)
    if x.ndim not in (4, 5):
        raise ValueError(
            f"x has shape {tuple(x.shape)}; pooled views need images (b, c, h, w) or video (b, c, t, h, w)"
        )
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, noise = x.to(dtype), noise.to(dtype)
    for axis in (-1, -2):
        cells = _cells(x.shape[axis], size).to(x)
        count = cells.sum(1, keepdim=True)
        x, noise = (
            torch.movedim(torch.movedim(tensor, axis, -1) @ weight.T, -1, axis)
            for tensor, weight in ((x, cells / count), (noise, cells / count.sqrt()))
        )
    return x, noise


def _cells(length: int, size: int) -> Tensor:
    """Return which places of an axis each cell holds, (cells, length)."""
    many = min(size, length)
    begin, end = torch.arange(many) * length // many, -(-(torch.arange(many) + 1) * length // many)
    place = torch.arange(length)
    return (place >= begin.unsqueeze(1)) & (place < end.unsqueeze(1))


@torch.no_grad()
def standardised(x: Float[Tensor, "b *dims"], mask: Tensor | None = None) -> Float[Tensor, "b *dims"]:
    """Return data with mean 0 and variance 1 over the batch, (b, *dims), float32 or float64.

    With a mask they are so over its real places, and 0 elsewhere. Rows more than 8 times as long as the median row do
    not count in mean and variance.

    Per channel for images and video, else per coordinate. A standard deviation below 1e-6 counts as 1e-6, as in
    Immiscible Diffusion Policy (arXiv:2610.09369).

    >>> standardised(torch.tensor([[1.0], [3.0]])).tolist()
    [[-1.0], [1.0]]
    """
    x = real_part(x.to(torch.float64 if x.dtype == torch.float64 else torch.float32), mask)
    kept = ordinary(batch_rows(x))
    most = x if bool(kept.all()) else x[kept]
    axes = [axis for axis in range(x.ndim) if x.ndim >= 4 and axis != 1] or [0]
    if mask is None:
        deviation, mean = torch.std_mean(most, axes, correction=0, keepdim=True)
        return (x - mean) / deviation.clamp(min=1e-6)
    real = mask.expand_as(x)[kept]
    count = real.sum(axes, keepdim=True).clamp(min=1)
    mean = most.sum(axes, keepdim=True) / count
    deviation = (real_part(most - mean, real).square().sum(axes, keepdim=True) / count).sqrt()
    return real_part((x - mean) / deviation.clamp(min=1e-6), mask)


@register("coupling")
@dataclass(frozen=True)
class Viewed(DropIn):
    """Pair by exact assignment on a view of data and noise, and return the noise in full.

    ``pooled`` aligns low frequencies: on large latents, where nearness falls as 1 / sqrt(d), it spends the batch's
    choice on the few coordinates that carry an image's layout. ``standardised`` lets every coordinate of the data count
    the same, as actions of robots are paired (Immiscible Diffusion Policy, arXiv:2610.09369).

    Marginal: standard normal, exactly: a permutation keeps the batch's noise.
    Cost: as assignment in the coordinates of the view; for ``standardised``, memory of twice x.

    Args:
        view: which view the cost compares.
        size: cells along each axis of ``pooled``.
        cost: see ``assign``.
        precision: see ``assign``.

    Raises:
        ValueError: an unknown view, cost or precision, or ``size`` below 1.

    >>> Viewed("pooled", size=2)(torch.randn(8, 3, 16, 16)).shape
    torch.Size([8, 3, 16, 16])
    """

    permutes: ClassVar[bool] = True

    view: View = "standardised"
    size: int = 8
    cost: Cost = "l2"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        check_choice("view", self.view, View)
        check_costs(self.cost, self.precision)
        check_whole(size=self.size)

    def pair(self, x: Float[Tensor, "b *dims"], rows: Rows) -> Float[Tensor, "b *dims"]:
        """Return as many noises as data, assigned by their view, (b, *dims).

        Raises:
            ValueError: as ``assign``; ``pooled`` without images or video, or with a mask.
        """
        check_finite(x=x)
        noise, mask = normal_like(x, rows.generator), rows.mask
        if self.view == "standardised":
            views = standardised(x, mask), noise
        elif mask is None:
            views = pooled(x, noise, size=self.size)
        else:
            raise ValueError("viewed pairs pooled images, whose cells take no mask; choose view = 'standardised'")
        return noise[pair_index(*views, cost=self.cost, precision=self.precision, mask=mask)]
