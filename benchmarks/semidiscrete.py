"""What semidiscrete pairs cost: the fit by noises a datum, and two ways to pair with its cells."""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.couplings import Cells
from immiscible_diffusion.couplings._potentials import ascend, noises_a_step, unevenness

__all__ = ["bench_semidiscrete", "searches_of_keeping", "semidiscrete_line"]

Row = dict[str, Any]
_REPEATS = 20
_DRAW = 8192


def bench_semidiscrete(data: Tensor, *, noises: Sequence[float], batch: int = 128, epochs: int = 10) -> Iterator[Row]:
    """Yield the fit after so many noises a datum; then the searches for each pair, of both ways to pair.

    Seconds are those of this process on the processor, so that other work on the machine counts for less. A search
    compares one noise with all data. ``noise first`` takes the datum that a noise falls on: one search a pair.
    ``noise kept`` goes through the data in epochs, keeps up to 8 noises for each datum, and searches on where a batch
    needs more; its searches are counted on cells of exactly equal mass.

    Args:
        data: the data set in model space, (n, *dims).
        noises: noises a datum after which the fit is measured, rising.
        batch: pairs a step.
        epochs: of the kept noise.
    """
    n, start, spent = len(data), time.process_time(), 0.0
    due = [math.ceil(count * n / noises_a_step(n)) for count in noises]
    dual = data.new_zeros(n)
    for state in ascend(data):
        if state.steps in due:
            spent += time.process_time() - start
            dual = state.dual
            left = unevenness(data, dual, draws=max(n, 1000), generator=torch.Generator().manual_seed(1))
            yield {"what": "fit", "noises": state.steps * noises_a_step(n) / n, "seconds": spent, "unevenness": left}
            start = time.process_time()
        if state.steps >= due[-1]:
            break
    cells, start = Cells(data, dual), time.process_time()
    for i in range(_REPEATS):
        cells.choose(batch, torch.Generator().manual_seed(i))
    taken = 1000 * (time.process_time() - start) / _REPEATS
    yield {"what": "noise first", "searches": 1.0, "milliseconds": taken}
    for epoch, searches in enumerate(searches_of_keeping(n, batch, epochs), 1):
        yield {"what": "noise kept", "epoch": epoch, "searches": searches, "milliseconds": taken * searches}


def searches_of_keeping(n: int, batch: int, epochs: int, keep: int = 8) -> Iterator[float]:
    """Yield the searches for each pair from the start to the end of every epoch, where noise is kept for every row."""
    generator = torch.Generator().manual_seed(0)
    kept, drawn, paired = torch.zeros(n, dtype=torch.long), 0, 0
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(n, generator=generator), batch):
            while bool((kept[rows] < 1).any()):
                fallen = torch.randint(0, n, (min(_DRAW, n),), generator=generator)
                kept = (kept + torch.bincount(fallen, minlength=n)).clamp(max=keep)
                drawn += len(fallen)
            kept[rows] -= 1
            paired += len(rows)
        yield drawn / paired


def semidiscrete_line(row: Row) -> str:
    """Return a row as a line of text."""
    if row["what"] == "fit":
        return f"fit: {row['noises']:g} noises a datum, {row['seconds']:.1f} s, unevenness {row['unevenness']:.3f}"
    until = f" to epoch {row['epoch']}" if "epoch" in row else ""
    return f"{row['what']}{until}: {row['searches']:.2f} searches a pair, {row['milliseconds']:.1f} ms a batch"
