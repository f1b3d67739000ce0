"""Small tensor functions for all parts of the package."""

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from immiscible_diffusion.checks import NotFiniteError, check_batch
from immiscible_diffusion.types import Float, UInt8

__all__ = ["as_bytes", "batch_rows", "expand", "full_precision", "normal", "normal_like", "not_finite"]

P = ParamSpec("P")
R = TypeVar("R")


def as_bytes(values: Float[Tensor, "n *dims"]) -> UInt8[Tensor, "n *dims"]:
    """Return pixel values rounded and clipped to 0..255, (n, *dims).

    Raises:
        NotFiniteError: NaN or infinity, which would become black or white.

    >>> as_bytes(torch.tensor([-3.0, 0.6, 300.0])).tolist()
    [0, 1, 255]
    """
    if bad := not_finite(values):
        raise NotFiniteError(f"{bad} of {len(values)} images hold NaN or infinity; there is no picture of them")
    return values.round().clamp(0, 255).to(torch.uint8)


def not_finite(x: Float[Tensor, "n *dims"]) -> int:
    """Return how many rows hold NaN or infinity."""
    return int((~x.isfinite()).reshape(len(x), -1).any(1).sum()) if len(x) else 0


def batch_rows(x: Tensor, name: str = "x") -> Tensor:
    """Return a batch as rows, (b, d).

    Raises:
        ValueError: x is not a floating tensor of shape (b, ...) with at least one row and one coordinate.
    """
    check_batch(x, name)
    return x.reshape(x.shape[0], -1)


def expand(values: Float[Tensor, " b"], x: Float[Tensor, "b *dims"]) -> Tensor:
    """Return one value per row in a shape that broadcasts over x, (b, 1, ...)."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


def full_precision(function: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """Return the function with autocast switched off on the device of its first tensor."""

    @functools.wraps(function)
    def called(x: Tensor, /, *args: P.args, **options: P.kwargs) -> R:
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *args, **options)

    return called


def normal(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Return standard normal float32 values of this shape, drawn on the generator's device."""
    if generator is None:  # said apart: torch.compile traces no generator argument, not even None
        return torch.randn(shape, device=device, dtype=torch.float32)
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32).to(device)


def normal_like(x: Float[Tensor, "b *dims"], generator: torch.Generator | None) -> Float[Tensor, "b *dims"]:
    """Return standard normal noise with the shape, dtype and device of x, (b, *dims)."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if generator is None:
        return torch.randn(x.shape, device=x.device, dtype=dtype).to(x.dtype)
    return torch.randn(x.shape, generator=generator, device=generator.device, dtype=dtype).to(x.device, x.dtype)
