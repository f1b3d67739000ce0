"""The order in which a source shows its rows."""

from collections.abc import Iterator

import torch
from torch import Tensor

from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Int

__all__ = ["orders"]


def orders(rows: int, size: int, seed: int, start: int) -> Iterator[Int[Tensor, " b"]]:
    """Yield the row numbers of batch ``start``, ``start + 1``, ... for ever, each (size,).

    Every epoch is a permutation of its own, a function of (seed, epoch); an incomplete last batch is left out.

    Raises:
        ValueError: a batch is empty or larger than the data.
    """
    if not 1 <= size <= rows:
        raise ValueError(f"batch is {size}; these data have {rows} training rows")
    per_epoch = rows // size
    epoch, i = divmod(start, per_epoch)
    while True:
        order = torch.randperm(rows, generator=stream(seed, epoch, "data"))
        for j in range(i, per_epoch):
            yield order[j * size : (j + 1) * size]
        epoch, i = epoch + 1, 0
