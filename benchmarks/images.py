"""Time the reading of images against torch's own loader and a plain loop, over the same files in one process."""

import itertools
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from io import BytesIO
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from immiscible_diffusion.data import Images
from immiscible_diffusion.processes import process_context

__all__ = ["bench_images"]

Pass = Callable[[], Iterator[object]]
"""Starts a fresh pass over the data; it yields batches for ever, or at least as many as are timed."""


def bench_images(
    path: str,
    size: int,
    *,
    batch: int = 64,
    batches: int = 20,
    repeats: int = 5,
    workers: Sequence[int] = (0, 1, 2),
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return images per second of every way to read the data, with their spread, as plain values for JSON.

    Each way is started ``repeats`` times, and the ways take turns, so that a slow spell of the machine falls on all
    of them. The first batch of a pass is not counted, but reported as ``first_batch_seconds``: it holds the start of
    the workers, and for data in memory the decoding of all of them (the first pass alone). All ways shuffle; ours and
    torch's loader deliver uint8 batches, the plain loop decodes image after image.

    Args:
        path: what ``Images`` reads.
        size: height and width of the images in pixels.
        batch: images a batch.
        batches: how many batches a pass are timed.
        repeats: passes for each way.
        workers: numbers of worker processes to try.
        options: further options of ``Images``.

    Raises:
        ValueError: numbers below 1; unreadable data, or too few for a batch.
    """
    if min(batch, batches, repeats, size) < 1 or not workers or min(workers) < 0:
        raise ValueError(f"{size=}, {batch=}, {batches=} and {repeats=} must be >= 1, and {workers=} some numbers >= 0")
    source = Images(**{"path": path, "size": size, "held_out_rows": 1, "memory": False, **(options or {})})
    if source.rows < batch:
        raise ValueError(f"{path} has {source.rows} training images, fewer than a batch of {batch}")
    ways = _ways(source, batch, batches, workers)
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name, _ in ways}
    for _ in range(repeats):
        for name, start in ways:
            seen[name].append(_timed(start, batches, batch))
    rows = []
    for name, timings in seen.items():
        rates = sorted(rate for _, rate in timings)
        rows.append(
            {
                "name": name,
                "images_per_second": median(rates),
                "slowest": rates[0],
                "fastest": rates[-1],
                "first_batch_seconds": [first for first, _ in timings],
            }
        )
    return {
        "images": source.rows,
        "size": size,
        "batch": batch,
        "batches": batches,
        "repeats": repeats,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "pillow", "numpy")},
        "rows": rows,
    }


def _ways(source: Images, batch: int, batches: int, workers: Sequence[int]) -> list[tuple[str, Pass]]:
    """Return each way's name and how to start a pass of it."""
    seeds = itertools.count()

    def ours(chosen: Images) -> Iterator[object]:
        return chosen.batches(batch, next(seeds))

    kept = replace(source, memory=True, workers=0)
    return [
        *((f"Images, {n} workers", partial(ours, replace(source, workers=n))) for n in workers),
        ("Images, in memory", partial(ours, kept)),
        *((f"torch DataLoader, {n} workers", partial(_torch, source, batch, batches, n)) for n in workers),
        ("plain Pillow", partial(_pillow, source, batch)),
    ]


def _timed(start: Pass, batches: int, batch: int) -> tuple[float, float]:
    """Return the seconds to the first batch, and the images per second of those after it."""
    begun = time.perf_counter()
    made = start()
    next(made)
    first = time.perf_counter()
    for _ in range(batches):
        next(made)
    ended = time.perf_counter()
    if isinstance(made, Generator):
        made.close()
    return first - begun, batches * batch / (ended - first)


@dataclass(frozen=True)
class _Files:
    """The same images as a torch data set: one at a time, decoded by Pillow as most training programs do."""

    source: Images

    def __len__(self) -> int:
        return self.source.rows

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return torch.from_numpy(_picture(self.source, row)).permute(2, 0, 1), row


def _picture(source: Images, row: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    from PIL import Image, ImageOps

    with Image.open(BytesIO(source.encoded(row))) as opened:
        picture = opened.convert("RGB")
    if source.crop:
        left, top = (picture.width - source.crop) // 2, (picture.height - source.crop) // 2
        picture = picture.crop((left, top, left + source.crop, top + source.crop))
    return np.array(ImageOps.fit(picture, (source.size, source.size), Image.Resampling[source.resize.upper()]))


def _torch(source: Images, batch: int, batches: int, workers: int) -> Iterator[object]:
    files = cast("Dataset[tuple[Tensor, int]]", _Files(source))
    draws = torch.Generator().manual_seed(0)
    ahead = 2 * max(workers, 1)  # so that it is not spared the work ahead at the end
    sampler = RandomSampler(_Files(source), num_samples=batch * (1 + batches + ahead), generator=draws)
    context = process_context() if workers else None
    yield from DataLoader(
        files, batch, sampler=sampler, num_workers=workers, multiprocessing_context=context, generator=draws
    )


def _pillow(source: Images, batch: int) -> Iterator[object]:
    draws = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(source.rows, generator=draws).tolist()
        for first in range(0, len(order) - batch + 1, batch):
            yield [_picture(source, row) for row in order[first : first + batch]]
