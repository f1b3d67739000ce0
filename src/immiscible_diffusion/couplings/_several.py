"""Several tensors that belong to the same rows, such as latents of video and audio, paired by one index."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_batch, check_integers, check_mask

__all__ = ["Masks", "as_one", "classes", "pair_as_one", "split"]

Masks = Tensor | Sequence[Tensor | None] | None
"""A mask, or one (or None) for each of several tensors."""


def as_one(xs: Sequence[Tensor], masks: Masks, name: str = "x") -> tuple[Tensor, Tensor | None]:
    """Return several tensors as one of rows, (b, d), with its mask: coordinates side by side, in their common dtype.

    Raises:
        ValueError: no tensors; no floating batches, or of different numbers of rows; masks that do not fit them.
    """
    for i, x in enumerate(xs):
        check_batch(x, f"{name}[{i}]")
    if len({(len(x), x.device) for x in xs}) != 1:
        came = [(tuple(x.shape), str(x.device)) for x in xs]
        raise ValueError(f"{name} has tensors {came}; there must be at least one, with equal rows on one device")
    dtype = reduce(torch.promote_types, (x.dtype for x in xs))
    joined = torch.cat([x.reshape(len(x), -1).to(dtype) for x in xs], 1)
    if masks is None:
        return joined, None
    if isinstance(masks, Tensor) or len(masks) != len(xs):
        count = "one tensor" if isinstance(masks, Tensor) else f"{len(masks)} entries"
        raise ValueError(f"mask has {count}; {name} is {len(xs)} tensors, each of which needs a mask or None")
    parts = []
    for x, mask in zip(xs, masks, strict=True):
        check_mask(x, mask)
        full = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.expand_as(x)
        parts.append(full.reshape(len(x), -1))
    return joined, torch.cat(parts, 1)


def pair_as_one(
    x: Tensor | Sequence[Tensor], noise: Tensor | Sequence[Tensor], mask: Masks
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return data, noise and mask as one tensor each.

    Raises:
        ValueError: one is several tensors and the other is not, or they are not alike.
    """
    if isinstance(x, Sequence) != isinstance(noise, Sequence):
        kinds = ["several tensors" if isinstance(argument, Sequence) else "one tensor" for argument in (x, noise)]
        raise ValueError(f"x is {kinds[0]} and noise {kinds[1]}; each tensor needs noise of its shape")
    if not isinstance(x, Sequence) or not isinstance(noise, Sequence):
        return x, noise, mask  # type: ignore[return-value]  # check_mask refuses several masks
    (joined, joined_mask), (other, _) = as_one(x, mask), as_one(noise, None, "noise")
    shapes = [[tuple(tensor.shape[1:]) for tensor in several] for several in (x, noise)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"x has tensors of rows {shapes[0]} and noise of {shapes[1]}; each needs noise of its shape")
    return joined, other, joined_mask


def split(rows: Tensor, xs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return rows (b, d) cut into the shapes and dtypes of these tensors."""
    parts = torch.split(rows, [x[0].numel() for x in xs], 1)
    return tuple(part.reshape(x.shape).to(x.dtype) for part, x in zip(parts, xs, strict=True))


def classes(x: Tensor, labels: Tensor | Sequence[Tensor]) -> Tensor:
    """Return one label for each row of x, (b,); of several labels a row, one for each combination.

    Raises:
        ValueError: labels that do not hold an integer for each row.

    >>> classes(torch.ones(3, 2), (torch.tensor([0, 0, 1]), torch.tensor([5, 5, 5]))).tolist()
    [0, 0, 1]
    """
    several = labels if isinstance(labels, Sequence) else (labels,)
    for column in several:
        if not isinstance(column, Tensor):
            raise ValueError(
                f"labels hold a {type(column).__name__}; labels must be a tensor with an integer a row, ({len(x)},), "
                f"such as torch.tensor(labels), or a tuple of such tensors"
            )
        check_integers(x, labels=column)
    if isinstance(labels, Tensor):
        return labels
    combined: Tensor = torch.unique(torch.stack(list(several), 1), dim=0, return_inverse=True)[1]
    return combined
