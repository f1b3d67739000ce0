"""The ways in which published FID code brings images to a network's size; they move the value by whole points.

Parmar et al., arXiv:2104.11222, compare them.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from immiscible_diffusion.tensors import as_bytes
from immiscible_diffusion.types import Float, UInt8

__all__ = ["Resize", "reduced", "resized"]

Resize = Literal["pytorch_fid", "clean_fid", "tensorflow"]

_ROWS = 250
"""Images reduced at a time: in floating point they need four times the memory."""


def resized(raw: UInt8[Tensor, "n c h w"], size: int, how: Resize) -> Float[Tensor, "n c size size"]:
    """Return images at another size, (n, c, size, size), float32 in 0..255.

    Args:
        raw: images.
        size: height and width of the result in pixels.
        how: ``pytorch_fid``: bilinear between pixel centres, no smoothing before shrinking; what pytorch-fid and
            clean-fid's ``legacy_pytorch`` do. ``clean_fid``: Pillow's bicubic in floating point, channel by channel,
            smoothed when shrinking, clipped to 0..255. ``tensorflow``: bilinear between pixel corners, the resize of
            the original graph, of torch-fidelity and of clean-fid's ``legacy_tensorflow``; it shifts images by part
            of a pixel.
    """
    x = raw.float()
    if how == "pytorch_fid":
        return nn.functional.interpolate(x, (size, size), mode="bilinear", align_corners=False)
    if how == "clean_fid":
        big = nn.functional.interpolate(x, (size, size), mode="bicubic", align_corners=False, antialias=True)
        return big.clamp(0, 255)
    rows = _corner_weights(x.shape[2], size, x)
    columns = _corner_weights(x.shape[3], size, x)
    return rows @ x @ columns.T


def reduced(images: Tensor, side: int) -> Tensor:
    """Return square images reduced to this side, (n, c, side, side), uint8, as Pillow's bicubic filter does.

    Where ``side`` is 0, or their own, they are returned as they are.

    >>> reduced(torch.full((1, 3, 8, 8), 200, dtype=torch.uint8), 4).unique().tolist()
    [200]
    """
    if side in (0, images.shape[-1]):
        return images
    return torch.cat([as_bytes(resized(part, side, "clean_fid")) for part in torch.split(images, _ROWS)])


def _corner_weights(old: int, new: int, like: Tensor) -> Tensor:
    """Return the matrix that reads pixel i at the place i * old / new, (new, old)."""
    place = torch.arange(new, dtype=torch.float64) * (old / new)
    lower = place.floor().long().clamp(max=old - 1)
    upper = (lower + 1).clamp(max=old - 1)
    part = place - lower
    weights = torch.zeros(new, old, dtype=torch.float64)
    at = torch.arange(new)
    weights.index_put_((at, lower), 1 - part, accumulate=True)
    weights.index_put_((at, upper), part, accumulate=True)
    return weights.to(like)
