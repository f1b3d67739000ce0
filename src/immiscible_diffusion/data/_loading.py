"""Decode rows ahead through torch's ``DataLoader``, in an order that does not depend on the number of workers."""

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from immiscible_diffusion.data._decode import Decoder, Pixels, UnreadableError
from immiscible_diffusion.data._memory import free_bytes
from immiscible_diffusion.processes import end_with_the_parent, process_context, without_interrupts

__all__ = ["AHEAD", "CHUNK", "DecodedBatch", "chunks", "decoded", "loaded"]

AHEAD = 3
"""Batches that are being decoded or wait to be taken: bounds both the memory and the work lost at the end."""
CHUNK = 256
"""Rows that are decoded at a time where no batch says how many."""


class DecodedBatch(NamedTuple):
    """A batch: its rows, (b,), their pixels, (b, 3, size, size), and position -> reason of those that are black."""

    rows: Tensor
    pixels: Tensor
    bad: dict[int, str]


@dataclass(frozen=True)
class _Parts:
    """A data set in the sense of torch: several row numbers -> their pixels, and of each the reason why it is black."""

    decoder: Decoder

    def __getitem__(self, rows: list[int]) -> tuple[Pixels, list[str]]:
        pixels = np.zeros((len(rows), 3, self.decoder.size, self.decoder.size), np.uint8)
        reasons = [""] * len(rows)
        for i, row in enumerate(rows):
            try:
                pixels[i] = self.decoder(row)
            except UnreadableError as error:
                reasons[i] = str(error)
        return pixels, reasons


def decoded(decoder: Decoder, batches: Iterator[Tensor], workers: int) -> Generator[DecodedBatch, None, None]:
    """Yield the pixels of each batch of rows, in order.

    Each batch is divided among the workers, in rising order of its rows, for neighbours lie together on disk;
    ``AHEAD`` batches are in work at a time. Workers start by ``process_context``. They end with the generator, be it
    exhausted, closed or left by an exception, and within seconds of this process. An interrupt reaches this process
    alone.

    Args:
        decoder: takes a row to its pixels.
        batches: rows, (b,) each.
        workers: how many processes; 0 decodes in this one.

    Raises:
        RuntimeError: a worker died.
    """
    upcoming: deque[tuple[Tensor, Tensor]] = deque()
    count = max(workers, 1)

    def jobs() -> Iterator[list[int]]:
        for rows in batches:
            order = rows.argsort(stable=True)
            upcoming.append((rows, order))
            yield from (part.tolist() for part in rows[order].tensor_split(count))

    loader = DataLoader(
        cast("Dataset[tuple[Pixels, list[str]]]", _Parts(decoder)),
        batch_size=None,
        sampler=jobs(),
        num_workers=workers,
        multiprocessing_context=process_context() if workers else None,
        prefetch_factor=AHEAD if workers else None,
        worker_init_fn=end_with_the_parent,
        collate_fn=tuple,  # leaves arrays as they are: they come through a pipe and need no shared memory
        generator=torch.Generator(),  # else it draws a seed from the global one
    )
    with without_interrupts() if workers else nullcontext():
        made = iter(loader)
    try:
        while parts := list(islice(made, count)):
            rows, order = upcoming.popleft()
            pixels = torch.empty((len(rows), 3, decoder.size, decoder.size), dtype=torch.uint8)
            pixels[order] = torch.from_numpy(np.concatenate([part for part, _ in parts]))
            reasons = zip(order.tolist(), chain.from_iterable(reasons for _, reasons in parts), strict=True)
            yield DecodedBatch(rows, pixels, dict(sorted((i, reason) for i, reason in reasons if reason)))
        return
    except Exception as error:
        if not workers:
            raise
        if not (isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")):
            raise error.with_traceback(None) from None  # torch's frames hold the workers, alive
        death = str(error).splitlines()[0].rstrip(". ")
    finally:
        del made  # ends the workers
    raise RuntimeError(
        f"{death}: it ran out of memory, or was ended, or the program that started it lacks the guard "
        'if __name__ == "__main__":'
    )


def loaded(decoder: Decoder, count: int, workers: int, *, strict: bool) -> tuple[Tensor, dict[int, str]]:
    """Return the pixels of rows 0 .. count, and row -> reason of the bad ones; a strict call ends with the first.

    Raises:
        ValueError: the pixels do not fit into the memory that is free.
    """
    check_fits(count, count * 3 * decoder.size**2)
    pixels = torch.empty((count, 3, decoder.size, decoder.size), dtype=torch.uint8)
    bad: dict[int, str] = {}
    with closing(decoded(decoder, iter(chunks(torch.arange(count))), workers)) as made:
        for part in made:
            first = int(part.rows[0])
            # Memory is taken where it is written: another run that loads at the same time took some meanwhile.
            check_fits(count, pixels[first:].numel())
            pixels[first : first + len(part.rows)] = part.pixels
            bad |= {first + i: reason for i, reason in part.bad.items()}
            if strict and bad:
                break
    return pixels, bad


def check_fits(count: int, needed: int) -> None:
    """Raise ValueError if ``needed`` more bytes, of ``count`` images, do not fit into the memory that is free."""
    free = free_bytes()
    if free is not None and needed > 0.9 * free:
        raise ValueError(
            f"{count} decoded images need {needed / 2**30:.1f} GiB more and {free / 2**30:.1f} GiB of memory are free: "
            "set source.memory = false"
        )


def chunks(rows: Tensor) -> list[Tensor]:
    """Return the rows in pieces of a size that is worth sharing out."""
    return [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
