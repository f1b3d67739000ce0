"""Time the couplings against the strongest public ways to do the same, in one process, and record what was seen."""

import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import Pair, contenders
from immiscible_diffusion.couplings import assign
from immiscible_diffusion.data import Images

__all__ = ["SHOWN", "bench", "bench_data", "bench_line", "bench_page", "bench_sizes", "bench_table"]

_SIZES = [
    *("64x3072", "128x3072", "256x3072", "512x3072", "1024x3072", "2048x3072", "4096x3072", "8192x3072"),
    *("256x64", "1024x64", "256x4096", "1024x4096", "256x16384", "1024x16384", "64x262144", "256x262144"),
]
SHOWN = [(256, 3072), (1024, 3072), (4096, 3072), (1024, 16384)]
"""The sizes that the README shows."""
_SECONDS = 1.0
"""Roughly how long one contender is repeated at one size."""
_SLOW = 8.0
"""Seconds from which on a call is repeated once only, and its memory is not traced."""


def bench(
    sizes: list[tuple[int, int]], data: Callable[[int, int], Tensor], *, k: int = 64, times: int = 16
) -> Iterator[dict[str, Any]]:
    """Yield one measured row for every contender and size.

    The optimality gap is the share of the optimum's distance reduction that a pairing of the same noise misses; the
    optimum is this library's ``assign``, which tests compare with scipy's in float64.

    Args:
        sizes: (b, d) pairs.
        data: returns unit-variance data, (b, d).
        k: candidates of ``nearest``.
        times: candidates of oversampling, a multiple of b.
    """
    for b, d in sizes:
        torch.manual_seed(0)
        x, noise = data(b, d), torch.randn(b, d)
        plain = _distance(x, noise)
        best = 1 - _distance(x, assign(x, noise)) / plain
        for contender in contenders(k, times):
            row = {"task": contender.task, "name": contender.name, "ours": contender.ours, "b": b, "d": d}
            if contender.size(b, d) > contender.largest:
                yield {**row, "left_out": "too large or too slow at this size"}
            else:
                measured = _measured(contender.pair, x, noise)
                if contender.task in ("assignment", "approximate"):
                    reached = measured["distance_reduction_percent"] / 100
                    measured["optimality_gap_percent"] = 100 * (1 - reached / best)
                yield {**row, **measured}


def _measured(pair: Pair, x: Tensor, noise: Tensor) -> dict[str, Any]:
    """Return time, memory and effect of one contender, warm: the first call is not counted."""

    def timed() -> tuple[float, Tensor]:
        begun = time.perf_counter()
        paired = pair(x, noise)
        return time.perf_counter() - begun, paired

    first, paired = timed()
    spent: list[float] = []
    enough = 1 if first > _SLOW else 3
    while len(spent) < enough or (sum(spent) < _SECONDS and len(spent) < 15):
        spent.append(timed()[0])
    return {
        "median_ms": 1000 * median(spent),
        "min_ms": 1000 * min(spent),
        "max_ms": 1000 * max(spent),
        "repeats": len(spent),
        "peak_mib": peak_mib(lambda: pair(x, noise)) if first < _SLOW else None,
        "distance_reduction_percent": 100 * (1 - _distance(x, paired) / _distance(x, noise)),
    }


def peak_mib(call: Callable[[], object]) -> float:
    """Return the most memory a call held beyond what there was, in MiB: torch's and numpy's own allocations."""
    tracemalloc.start()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    _, numpy_peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return (most + numpy_peak) / 2**20


def structured(b: int, d: int) -> Tensor:
    """Return unit-variance data whose leading directions hold most of the variance, as images do, (b, d)."""
    factors = min(64, d)
    weight = torch.arange(1, factors + 1) ** -1.0
    x = (torch.randn(b, factors) * weight) @ torch.randn(factors, d) + 0.3 * torch.randn(b, d)
    return (x - x.mean()) / x.std()


def _distance(x: Tensor, noise: Tensor) -> float:
    return float(torch.linalg.vector_norm(x - noise, dim=1).mean())


def bench_sizes(texts: Sequence[str] | None) -> list[tuple[int, int]]:
    """Return (b, d) pairs from texts such as ``256x3072``, or the standard sizes.

    Raises:
        ValueError: a text of another form.

    >>> bench_sizes(["256x3072"])
    [(256, 3072)]
    """
    sizes = []
    for text in texts or _SIZES:
        b, _, d = text.partition("x")
        if not (b.isdigit() and d.isdigit() and int(b) and int(d)):
            raise ValueError(f"size {text!r}: write it as 256x3072, batch and coordinates")
        sizes.append((int(b), int(d)))
    return sizes


def bench_data(images: str) -> Callable[[int, int], Tensor]:
    """Return a function that gives (b, d) unit-variance data: real images for d = 3072 where there are any."""
    if not images:
        return structured
    source = Images(images, size=32, held_out_rows=1)

    def data(b: int, d: int) -> Tensor:
        if d != 3072:
            return structured(b, d)
        x = next(source.batches(b, 0)).raw.float()
        return ((x - x.mean()) / x.std()).flatten(1)

    return data


def bench_line(row: dict[str, Any]) -> str:
    """Return one measured row for the terminal."""
    head = f"{row['task']:<22} {row['name']:<50} {row['b']:>5} x {row['d']:<7}"
    if "left_out" in row:
        return f"{head} {row['left_out']}"
    spread = f"{row['median_ms']:10.2f} ms ({row['min_ms']:.2f} to {row['max_ms']:.2f}, {row['repeats']} times)"
    return f"{head} {spread}  distance {-row['distance_reduction_percent']:+.3f} %"


def bench_page(page: str, rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown page with the table of these rows, at the sizes shown, between its two markers.

    Raises:
        ValueError: the page has no markers.
    """
    before, mark, rest = page.partition("<!-- table -->\n")
    _, end, after = rest.partition("<!-- end of table")
    if not mark or not end:
        raise ValueError("the page has no '<!-- table -->' and '<!-- end of table' markers")
    return f"{before}{mark}{bench_table(rows, SHOWN)}\n{end}{after}"


def bench_table(rows: Sequence[dict[str, Any]], sizes: Sequence[tuple[int, int]]) -> str:
    """Return recorded rows as a Markdown table: milliseconds of every contender, a column for each size."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = ["| | " + " | ".join(f"{b} x {d:,}" for b, d in sizes) + " |", "|---|" + "---|" * len(sizes)]
    for task in tasks:
        names = list(dict.fromkeys(row["name"] for row in rows if row["task"] == task))
        lines.append(f"| **{task}** |" + " |" * len(sizes))
        for name in names:
            cells = []
            for b, d in sizes:
                found = [row for row in rows if (row["task"], row["name"], row["b"], row["d"]) == (task, name, b, d)]
                cells.append(_cell(found[0]) if found else "")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    if "left_out" in row:
        return "-"
    value = row["median_ms"]
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
