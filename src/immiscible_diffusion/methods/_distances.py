"""Distances between two predictions, row by row, of which the methods' losses consist."""

import math
from typing import Literal

import torch
from torch import Tensor

from immiscible_diffusion.methods._lpips import lpips
from immiscible_diffusion.types import Float

__all__ = ["Distance", "distance"]

Distance = Literal["l2", "l1", "pseudo_huber", "lpips"]

_HUBER = 0.00054
"""c / sqrt(d) of the pseudo-Huber distance (Song and Dhariwal, arXiv:2310.14189, Table 1)."""


def distance(
    kind: Distance,
    first: Float[Tensor, "b *dims"],
    second: Float[Tensor, "b *dims"],
    weights: str = "",
    mask: Tensor | None = None,
) -> Float[Tensor, " b"]:
    """Return the distance of each row of one batch to the other's, (b,), in float32 at least.

    Args:
        kind: ``l2`` the mean squared difference; ``l1`` the mean absolute; ``pseudo_huber``
            sqrt(|difference|^2 + c^2) - c with c = 0.00054 sqrt(d) (arXiv:2310.14189), computed without the
            cancellation near zero; ``lpips`` the perceptual distance of images in [-1, 1].
        first: a batch.
        second: another of the same shape.
        weights: for ``lpips``, the file of its network.
        mask: True at the places that count, in a shape that broadcasts over the batch; a row without any is at 0.

    Raises:
        ValueError: a mask with ``lpips``.

    >>> distance("l2", torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]])).tolist()
    [2.0]
    """
    precise = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    if kind == "lpips":
        if mask is not None:
            raise ValueError("distance 'lpips' compares whole images and takes no mask; choose 'l2' or 'pseudo_huber'")
        return lpips(first.to(precise), second.to(precise), weights)
    error = (first.to(precise) - second.to(precise)).reshape(len(first), -1)
    if mask is not None:
        return _masked_distance(kind, error, mask.expand_as(first).reshape(error.shape))
    if kind == "l1":
        return error.abs().mean(1)
    if kind == "l2":
        return error.square().mean(1)
    c, whole = _HUBER * math.sqrt(error.shape[1]), error.square().sum(1)
    return whole / ((whole + c**2).sqrt() + c)


def _masked_distance(kind: Distance, error: Tensor, mask: Tensor) -> Tensor:
    """Return the distance of each row over the places of its mask, (b,), from differences and mask (b, d)."""
    count, error = mask.sum(1).clamp(min=1), torch.where(mask, error, 0)
    if kind == "l1":
        return error.abs().sum(1) / count
    whole = error.square().sum(1)
    if kind == "l2":
        return whole / count
    c = _HUBER * count.to(whole).sqrt()
    return whole / ((whole + c**2).sqrt() + c)
