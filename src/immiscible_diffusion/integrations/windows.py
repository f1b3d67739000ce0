"""One pairing for several batches: for loops that accumulate gradients, also those pinned to a batch of one."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_batch, check_lengths, check_whole
from immiscible_diffusion.couplings import couple as assignment
from immiscible_diffusion.types import Coupling

__all__ = ["windows"]

T = TypeVar("T")


def windows(
    loader: Iterable[T],
    n: int,
    *,
    encode: Callable[[T], Tensor],
    cond: Callable[[T], Tensor] | None = None,
    couple: Coupling = assignment,
) -> Iterator[tuple[T, Tensor, Tensor]]:
    """Yield each batch of a loader with its data and their noise, (batch, x, noise), paired over n batches at once.

    The larger the pool, the nearer the noise: with n the number of batches between two steps of the optimiser, one
    assignment serves the whole accumulation window. Batches of rows of different shapes, as buckets of resolutions
    give, pair with batches of their shape.

    Args:
        loader: batches, of any kind.
        n: batches in a window; the last window may have fewer.
        encode: what turns a batch into data in model space, (b, *dims), such as the VAE's latents; called once a batch,
            without gradients.
        cond: what takes the condition of each row from a batch, such as its labels (b,), for a coupling that asks for
            it, such as ``Assignment(per_class=True)``.
        couple: pairs the joined batches.

    Memory: the n batches, their data and noise.

    Raises:
        ValueError: n below 1, data that are no floating batch, or an error of the coupling.

    >>> loader = [torch.randn(1, 3, 8, 8) for _ in range(8)]  # a batch of one row has nothing to pair with
    >>> for batch, x, noise in windows(loader, 4, encode=lambda batch: 2 * batch):
    ...     x_t = 0.5 * x + 0.5 * noise
    """
    check_whole(n=n)
    batches = iter(loader)
    while window := list(islice(batches, n)):
        with torch.no_grad():
            xs = [encode(batch) for batch in window]
            conds = [None if cond is None else cond(batch) for batch in window]
            for x, condition in zip(xs, conds, strict=True):
                check_batch(x, "what encode returns")
                check_lengths(x, cond=condition)
            noises = _paired(xs, conds, couple)
        yield from zip(window, xs, noises, strict=True)


def _paired(xs: list[Tensor], conds: list[Tensor | None], couple: Coupling) -> list[Tensor]:
    """Return the noise of each batch, paired over all batches with rows of its shape, dtype and device."""
    alike: dict[Any, list[int]] = {}
    for i, x in enumerate(xs):
        alike.setdefault((x.shape[1:], x.dtype, x.device), []).append(i)
    noises = list(xs)
    for numbers in alike.values():
        known = [condition for i in numbers if (condition := conds[i]) is not None]
        noise = couple(torch.cat([xs[i] for i in numbers]), cond=torch.cat(known) if known else None)
        for i, part in zip(numbers, torch.split(noise, [len(xs[i]) for i in numbers]), strict=True):
            noises[i] = part
    return noises
