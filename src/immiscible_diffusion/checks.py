"""Checks of arguments. Each error says which value came and which values are possible."""

import math
from numbers import Integral, Real
from typing import get_args

import torch
from torch import Tensor

__all__ = [
    "NotFiniteError",
    "check_alike",
    "check_batch",
    "check_choice",
    "check_cost",
    "check_finite",
    "check_generator",
    "check_integers",
    "check_lengths",
    "check_mask",
    "check_number",
    "check_whole",
]


class NotFiniteError(ArithmeticError):
    """Training or sampling gave NaN or infinity; the training state is the one after the last good step."""


def check_choice(what: str, value: object, allowed: object) -> None:
    """Raise ValueError unless a value is one of the names that a ``Literal`` allows.

    >>> from typing import Literal
    >>> check_choice("cost", "l3", Literal["l1", "l2"])
    Traceback (most recent call last):
    ValueError: no cost named 'l3'; there are ['l1', 'l2']
    """
    if value not in get_args(allowed):
        raise ValueError(f"no {what} named {value!r}; there are {list(get_args(allowed))}")


def check_whole(*, at_least: int = 1, **values: object) -> None:
    """Raise ValueError unless every named value is a whole number of at least ``at_least``; a bool is none.

    >>> check_whole(k=0)
    Traceback (most recent call last):
    ValueError: k is 0; it must be a whole number >= 1
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
            raise ValueError(f"{name} is {value!r}; it must be a whole number >= {at_least}")


def check_number(
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    whole: bool = False,
    **values: object,
) -> None:
    """Raise ValueError unless every named value is a finite number within the bounds; a bool is none.

    With ``whole`` it must also have no fraction; unlike ``check_whole``, 8.0 will do.

    >>> check_number(ratio=1.5, at_least=0, at_most=1)
    Traceback (most recent call last):
    ValueError: ratio is 1.5; it must be a number >= 0 and <= 1
    """
    for name, value in values.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float | Real)
            or not math.isfinite(number := float(value))
            or (whole and number != int(number))
            or (at_least is not None and number < at_least)
            or (above is not None and number <= above)
            or (at_most is not None and number > at_most)
            or (below is not None and number >= below)
        ):
            bounds = {">=": at_least, ">": above, "<=": at_most, "<": below}
            span = " and ".join(f"{sign} {bound}" for sign, bound in bounds.items() if bound is not None)
            kind = "whole number" if whole else "number"
            raise ValueError(f"{name} is {value!r}; it must be a {kind + ' ' + span if span else 'finite ' + kind}")


def check_batch(x: object, name: str = "x") -> None:
    """Raise ValueError unless x is a floating-point tensor (b, ...) with at least one row and one coordinate."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = f"{x.dtype} tensor" if isinstance(x, Tensor) else type(x).__name__
        hint = ": scale it to model space, such as x / 127.5 - 1" if kind.startswith("torch.uint8") else ""
        raise ValueError(f"{name} is a {kind}; it must be a floating-point tensor of shape (b, ...){hint}")
    if x.ndim == 0 or x.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be (b, ...) with at least one element")


def check_cost(cost: object, name: str) -> None:
    """Raise ValueError unless a cost is a floating-point tensor (b, m) with 1 <= b <= m."""
    if not isinstance(cost, Tensor) or not cost.is_floating_point():
        kind = f"{cost.dtype} tensor" if isinstance(cost, Tensor) else type(cost).__name__
        raise ValueError(f"{name} is a {kind}; it must be a floating-point tensor (b, m)")
    if cost.ndim != 2 or not 1 <= cost.shape[0] <= cost.shape[1]:
        raise ValueError(f"{name} has shape {tuple(cost.shape)}; it must be (b, m) with 1 <= b <= m")


def check_lengths(x: Tensor, **tensors: Tensor | None) -> None:
    """Raise ValueError unless every named value is None, or a tensor with an entry for each row of x, (b, ...)."""
    for name, tensor in tensors.items():
        _check_tensor(name, tensor)
        if tensor is not None and (tensor.ndim == 0 or len(tensor) != len(x)):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must have an entry a row, ({len(x)}, ...)")


def _check_tensor(name: str, value: object) -> None:
    if value is not None and not isinstance(value, Tensor):
        raise ValueError(
            f"{name} is a {type(value).__name__}; it must be one tensor with an entry a row, or None: of several "
            "conditions pass the one that pairs shall respect"
        )


def check_integers(x: Tensor, **tensors: Tensor | None) -> None:
    """Raise ValueError unless every named tensor that is not None holds one integer for each row of x, (b,)."""
    for name, tensor in tensors.items():
        _check_tensor(name, tensor)
        if tensor is not None and (tensor.shape != (len(x),) or tensor.is_floating_point() or tensor.is_complex()):
            came = f"dtype {tensor.dtype} and shape {tuple(tensor.shape)}"
            raise ValueError(f"{name} has {came}; it must hold an integer a row, ({len(x)},)")


def check_mask(x: Tensor, mask: object) -> None:
    """Raise ValueError unless a mask of x is None, or bool and of a shape that broadcasts over x, (b, ...).

    >>> check_mask(torch.ones(4, 16, 2), torch.ones(4, 16, dtype=torch.bool))
    Traceback (most recent call last):
    ValueError: mask is a torch.bool tensor (4, 16) on cpu; for x (4, 16, 2) on cpu it must be bool, True where data \
are real, with as many axes and rows as x, each further axis as long as x's or 1: write mask.reshape(4, 16, 1)
    """
    if mask is None:
        return
    if isinstance(mask, Tensor):
        fits = mask.ndim == x.ndim and mask.shape[:1] == x.shape[:1] and mask.dtype == torch.bool
        if fits and mask.device == x.device and all(a in (1, b) for a, b in zip(mask.shape, x.shape, strict=True)):
            return
    came = f"{mask.dtype} tensor {tuple(mask.shape)} on {mask.device}" if isinstance(mask, Tensor) else repr(mask)
    raise ValueError(
        f"mask is a {came}; for x {tuple(x.shape)} on {x.device} it must be bool, True where data are real, "
        f"with as many axes and rows as x, each further axis as long as x's or 1{_mask_hint(x, mask)}"
    )


def _mask_hint(x: Tensor, mask: object) -> str:
    """Return how a mask with the first axes of x alone, such as (b, tokens), or of numbers is written."""
    if not isinstance(mask, Tensor) or mask.shape != x.shape[: mask.ndim]:
        return ""
    return f": write mask{'' if mask.dtype == torch.bool else '.bool()'}" + (
        f".reshape({', '.join(map(str, [*mask.shape, *[1] * (x.ndim - mask.ndim)]))})" if mask.ndim < x.ndim else ""
    )


def check_generator(generator: object) -> None:
    """Raise ValueError unless a generator is None or a ``torch.Generator``.

    >>> check_generator(0)
    Traceback (most recent call last):
    ValueError: generator is 0; it must be one torch.Generator, such as torch.Generator().manual_seed(0), or None
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator is {generator!r}; it must be one torch.Generator, such as torch.Generator().manual_seed(0), or "
            f"None"
        )


def check_alike(x: Tensor, noise: Tensor) -> None:
    """Raise ValueError unless data and noise have one shape."""
    if x.shape != noise.shape:
        raise ValueError(f"x has shape {tuple(x.shape)} and noise {tuple(noise.shape)}; they must be equal")


def check_finite(**tensors: Tensor) -> None:
    """Raise ValueError if a named tensor holds NaN or infinity, with its first such row."""
    for name, tensor in tensors.items():
        bad = ~tensor.isfinite().flatten(1 if tensor.ndim > 1 else 0)
        if bool(bad.any()):
            row = int(bad.reshape(len(tensor), -1).any(1).nonzero()[0])
            raise ValueError(f"{name} holds NaN or infinity, first in row {row}")
