"""Decoding ahead in worker processes, in an order that does not depend on their number."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from immiscible_diffusion.data._decode import Decoder, fill

__all__ = ["AHEAD", "CHUNK", "Decoded", "chunks", "decoded", "loaded"]

AHEAD = 3
"""Batches that are being decoded or wait to be taken: bounds both the memory and the work lost at the end."""
CHUNK = 256
"""Rows that are decoded at a time where no batch says how many."""
_PATIENCE = 2.0
"""Seconds that a worker has to finish the image in hand before it is ended."""


class Decoded(NamedTuple):
    """A batch: its rows, (b,), their pixels, (b, 3, size, size), and position -> reason of those that are black."""

    rows: Tensor
    pixels: Tensor
    bad: dict[int, str]


def decoded(decoder: Decoder, batches: Iterator[Tensor], workers: int) -> Generator[Decoded, None, None]:
    """Yield the pixels of each batch of rows, in order; batches are no larger than the first.

    With workers each batch is divided among them, and ``AHEAD`` batches are in hand at a time. The workers are new
    processes (spawned, so that they share nothing by accident); they end with the generator, whether it is exhausted,
    closed or left by an exception, and on their own if this process dies. An interrupt reaches this process alone.

    Args:
        decoder: takes a row to its pixels.
        batches: rows, (b,) each.
        workers: how many processes; 0 decodes here.

    Raises:
        RuntimeError: a worker died.
    """
    if workers == 0:
        for rows in batches:
            pixels = torch.empty((len(rows), 3, decoder.size, decoder.size), dtype=torch.uint8)
            yield Decoded(rows, pixels, fill(decoder, rows.tolist(), pixels))
        return
    first = next(batches, None)
    if first is None:
        return
    with _Pool(decoder, len(first), workers) as pool:
        pending: deque[tuple[int, Tensor]] = deque()
        upcoming: Tensor | None = first
        free = list(range(AHEAD))
        while True:
            while free and upcoming is not None:
                slot = free.pop()
                pool.ask(slot, upcoming)
                pending.append((slot, upcoming))
                upcoming = next(batches, None)
            if not pending:
                return
            slot, rows = pending.popleft()
            made = pool.take(slot, rows)
            free.append(slot)
            yield made


def loaded(decoder: Decoder, count: int, workers: int, *, strict: bool) -> tuple[Tensor, dict[int, str]]:
    """Return the pixels of rows 0 .. count, and row -> reason of the bad ones; a strict call ends with the first.

    Raises:
        ValueError: the pixels do not fit into this machine's memory.
    """
    needed, there = count * 3 * decoder.size**2, _physical_bytes()
    if needed > 0.9 * there:
        raise ValueError(
            f"{count} decoded images need {needed / 2**30:.1f} GiB and this machine has {there / 2**30:.1f} GiB: "
            "set source.memory = false"
        )
    pixels = torch.empty((count, 3, decoder.size, decoder.size), dtype=torch.uint8)
    bad: dict[int, str] = {}
    with closing(decoded(decoder, iter(chunks(torch.arange(count))), workers)) as made:
        for part in made:
            first = int(part.rows[0])
            pixels[first : first + len(part.rows)] = part.pixels
            bad |= {first + i: reason for i, reason in part.bad.items()}
            if strict and bad:
                break
    return pixels, bad


def chunks(rows: Tensor) -> list[Tensor]:
    """Return the rows in pieces of a size that is worth sharing out."""
    return [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]


def _physical_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class _Pool:
    """Worker processes and the memory that they share with this one: ``AHEAD`` slots of one batch each."""

    def __init__(self, decoder: Decoder, batch: int, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        shape = (AHEAD, batch, 3, decoder.size, decoder.size)
        # Anonymous shared memory: the system frees it when the last process ends, however that ends.
        pixels = context.RawArray("B", int(np.prod(shape)))
        numbers = context.RawArray("q", AHEAD * batch)
        self._pixels = torch.frombuffer(pixels, dtype=torch.uint8).view(shape)
        self._numbers = torch.frombuffer(numbers, dtype=torch.int64).view(AHEAD, batch)
        self._processes: list[BaseProcess] = []
        self._ends: list[Connection[Any, Any]] = []
        try:
            with _interrupts_held():
                for _ in range(workers):
                    mine, its = context.Pipe()
                    process = context.Process(target=_work, args=(its, decoder, shape, pixels, numbers), daemon=True)
                    self._ends.append(mine)
                    process.start()
                    self._processes.append(process)
                    its.close()  # so that its end is seen here
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def ask(self, slot: int, rows: Tensor) -> None:
        """Have a batch decoded into a slot; each worker takes a range of row numbers, for neighbours lie together."""
        order = rows.argsort()
        self._numbers[slot, : len(rows)] = rows[order]
        for k, end in enumerate(self._ends):
            try:
                end.send((slot, *self._range(k, len(rows))))
            except OSError as error:
                raise self._death(k) from error

    def take(self, slot: int, rows: Tensor) -> Decoded:
        """Return a batch when every worker has done its part, in the order of ``rows``."""
        bad: dict[int, str] = {}
        for k, end in enumerate(self._ends):
            try:
                found = end.recv()
            except (EOFError, OSError) as error:
                raise self._death(k) from error
            if isinstance(found, str):
                raise RuntimeError(f"decoding worker {k} failed: {found}")
            bad |= {self._range(k, len(rows))[0] + i: reason for i, reason in found.items()}
        order = rows.argsort()
        pixels = torch.empty_like(self._pixels[slot, : len(rows)])
        pixels[order] = self._pixels[slot, : len(rows)]
        return Decoded(rows, pixels, dict(sorted((int(order[i]), reason) for i, reason in bad.items())))

    def close(self) -> None:
        """End the workers: they leave when their pipe closes."""
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()

    def _range(self, k: int, count: int) -> tuple[int, int]:
        return k * count // len(self._ends), (k + 1) * count // len(self._ends)

    def _death(self, k: int) -> RuntimeError:
        self._processes[k].join(_PATIENCE)
        return RuntimeError(
            f"decoding worker {k} ended with exit code {self._processes[k].exitcode}: it ran out of memory, "
            'or was ended, or the program that started it lacks the guard if __name__ == "__main__":'
        )


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let what is started here never see an interrupt, not even before its first line."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(end: "Connection[Any, Any]", decoder: Decoder, shape: tuple[int, ...], pixels: Any, numbers: Any) -> None:
    """Decode what is asked for until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    slots = torch.frombuffer(pixels, dtype=torch.uint8).view(shape)
    rows = torch.frombuffer(numbers, dtype=torch.int64).view(shape[:2])
    torch.set_num_threads(1)
    while True:
        try:
            slot, begin, stop = end.recv()
        except (EOFError, OSError):
            return
        try:
            found: dict[int, str] | str = fill(decoder, rows[slot, begin:stop].tolist(), slots[slot, begin:stop])
        except Exception as error:  # told where it can be acted on
            found = f"{type(error).__name__}: {error}"
        try:
            end.send(found)
        except OSError:
            return
