"""Time the couplings against the strongest public alternatives, in one process, and record the times."""

import math
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import Pair, contenders
from benchmarks.measuring import repeated, spread_ms
from immiscible_diffusion.couplings import assign
from immiscible_diffusion.data import Images

__all__ = ["SHOWN", "bench", "bench_data", "bench_line", "bench_page", "bench_sizes", "bench_table"]

_SIZES = [
    *("64x3072", "128x3072", "256x3072", "512x3072", "1024x3072", "2048x3072", "4096x3072", "8192x3072"),
    *("256x64", "1024x64", "256x4096", "1024x4096", "256x16384", "1024x16384", "64x262144", "256x262144"),
]
SHOWN = [(256, 3072), (1024, 3072), (4096, 3072), (1024, 16384)]
"""The sizes that docs/speed.md shows."""
_GPU_ROOM = 13
"""How many times what fits into a CPU's memory and patience fits into a GPU's."""
_SLOW = 8.0
"""Seconds from which on a call is repeated once only, and its memory is not traced."""


def bench(
    sizes: Sequence[tuple[int, int]],
    data: Callable[[int, int], Tensor],
    *,
    k: int = 64,
    times: int = 16,
    device: str = "cpu",
    solvers: bool = False,
    seconds: float = 1.0,
    left: Callable[[], float] = lambda: math.inf,
    known: Callable[[dict[str, Any]], bool] = lambda row: False,
) -> Iterator[dict[str, Any]]:
    """Yield one measured row for every contender and size.

    The optimality gap is the share of the optimum's distance reduction that a pairing of the same noise misses; the
    optimum is this library's ``assign``, which tests compare with scipy's in float64.

    Args:
        sizes: (b, d) pairs.
        data: returns unit-variance data, (b, d).
        k: candidates of ``nearest``.
        times: candidates of oversampling, a multiple of b.
        device: where data and noise are.
        solvers: whether the two solvers that ``assign`` chooses from on a GPU are contenders too.
        seconds: roughly how long one contender is repeated at one size.
        left: returns the seconds that remain; a size of a contender that would take longer is left out.
        known: whether a row of this task, name, b and d need not be measured.
    """
    cuda = torch.device(device).type == "cuda"
    latest = dict[str, tuple[float, int, int]]()
    for b, d in sizes:
        torch.manual_seed(0)
        with torch.device(device):
            x, noise = data(b, d).to(device), torch.randn(b, d)
        plain, best = _distance(x, noise), math.nan
        for contender in contenders(k, times, solvers=solvers):
            row = {"task": contender.task, "name": contender.name, "ours": contender.ours, "b": b, "d": d}
            if known(row):
                continue
            wait = _predicted(latest.get(contender.name), b, d)
            if contender.size(b, d) > contender.largest * (_GPU_ROOM if cuda else 1):
                yield {**row, "left_out": "too large or too slow at this size"}
            elif 3 * wait > left():
                yield {**row, "left_out": "no time is left for it", "would_take": wait}
            else:
                try:
                    measured = _measured(contender.pair, x, noise, seconds)
                except (RuntimeError, MemoryError) as error:  # such as a device out of memory
                    if not cuda:
                        raise
                    torch.cuda.empty_cache()
                    yield {**row, "left_out": str(error).splitlines()[0][:200]}
                    continue
                latest[contender.name] = measured["median_ms"] / 1000, b, d
                if contender.task in ("assignment", "approximate"):
                    if not math.isfinite(best):
                        best = 1 - _distance(x, assign(x, noise)) / plain
                    reached = measured["distance_reduction_percent"] / 100
                    measured["optimality_gap_percent"] = 100 * (1 - reached / best)
                yield {**row, **measured}


def _predicted(latest: tuple[float, int, int] | None, b: int, d: int) -> float:
    """Return an upper guess of the seconds of a call from those at an earlier size: b^3 and d at worst."""
    if latest is None:
        return 0.0
    spent, b_then, d_then = latest
    return spent * max(1, b / b_then) ** 3 * max(1, d / d_then)


def _measured(pair: Pair, x: Tensor, noise: Tensor, seconds: float) -> dict[str, Any]:
    """Return time, memory and effect of one contender, warm: the first call is not counted."""
    paired = pair(x, noise)
    first, spent = repeated(lambda: pair(x, noise), device=x.device, seconds=seconds, slow=_SLOW)
    return {
        **spread_ms(spent),
        "peak_mib": peak_mib(lambda: pair(x, noise), x.device) if first < _SLOW else None,
        "distance_reduction_percent": 100 * (1 - _distance(x, paired) / _distance(x, noise)),
    }


def peak_mib(call: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Return the most memory a call held beyond what there was, in MiB: on a GPU its own, else torch's and numpy's."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with _profiled():  # the first profiler of a process imports its modules, which are no memory of the call
        pass
    tracemalloc.start()
    with _profiled() as profile:
        call()
    _, numpy_peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return (most + numpy_peak) / 2**20


def _profiled() -> torch.profiler.profile:
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)


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
                matching = [row for row in rows if (row["task"], row["name"], row["b"], row["d"]) == (task, name, b, d)]
                cells.append(_cell(matching[0]) if matching else "")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    if "left_out" in row:
        return "-"
    value = row["median_ms"]
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
