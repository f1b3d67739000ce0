"""The order in which a source shows its rows."""

from collections.abc import Iterator

import torch
from torch import Tensor

from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Int

__all__ = ["flipped_orders", "orders"]


def orders(rows: int, size: int, seed: int, start: int, why: str = "") -> Iterator[Int[Tensor, " b"]]:
    """Yield the row numbers of batch ``start``, ``start + 1``, ... for ever, each (size,).

    Every epoch is a permutation of its own, a function of (seed, epoch); an incomplete last batch is left out.

    Args:
        rows: training rows.
        size: rows of a batch.
        seed: names the orders.
        start: the first batch's number.
        why: what to say of too few rows: where the others are, and which options say so.

    Raises:
        ValueError: a batch is empty or larger than the data.
    """
    return (order for order, _ in flipped_orders(rows, size, seed, start, why))


def flipped_orders(
    rows: int, size: int, seed: int, start: int, why: str = ""
) -> Iterator[tuple[Int[Tensor, " b"], Tensor]]:
    """Yield the row numbers of ``orders`` and which of them are to be mirrored, (size,) each, for ever.

    A row is mirrored in half of the epochs: a function of (seed, epoch, row), whatever the batch size.

    Raises:
        ValueError: a batch is empty or larger than the data.

    >>> order, flip = next(flipped_orders(6, 3, seed=0, start=1))
    >>> len(order), flip.dtype
    (3, torch.bool)
    """
    if not 1 <= size <= rows:
        reason = f", for {why}" if why else ""
        raise ValueError(
            f"batch is {size}; these data have {rows} training rows{reason}: set train.batch within 1 .. {rows}"
        )
    per_epoch = rows // size
    epoch, i = divmod(start, per_epoch)
    while True:
        generator = stream(seed, epoch, "data")
        order = torch.randperm(rows, generator=generator)
        flip = torch.randint(0, 2, (rows,), generator=generator).bool()
        for j in range(i, per_epoch):
            part = order[j * size : (j + 1) * size]
            yield part, flip[part]
        epoch, i = epoch + 1, 0
