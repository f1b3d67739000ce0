"""Time the couplings against the strongest public ways to do the same, in one process, and record what was seen."""

import math
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from immiscible_diffusion.couplings import assign, nearest
from immiscible_diffusion.couplings.oversampled import oversample
from immiscible_diffusion.data import Images

__all__ = ["Contender", "bench", "bench_data", "bench_line", "bench_sizes", "bench_table", "contenders"]

Pair = Callable[[Tensor, Tensor], Tensor]
_SIZES = [
    *("64x3072", "128x3072", "256x3072", "512x3072", "1024x3072", "2048x3072", "4096x3072", "8192x3072"),
    *("256x64", "1024x64", "256x4096", "1024x4096", "256x16384", "1024x16384", "64x262144", "256x262144"),
]
_SECONDS = 4.0
"""Roughly how long one contender is repeated at one size."""
_SLOW = 8.0
"""Seconds from which on a call is repeated once only, and its memory is not traced."""


@dataclass(frozen=True)
class Contender:
    """One way to pair (b, d) data with noise: ``pair(x, noise) -> paired noise``; those that draw ignore the noise.

    Args:
        task: what it does; contenders of one task are compared.
        name: who it is.
        ours: whether it is this library's.
        pair: the call that is timed.
        largest: the most elements, b^2 d or b k d, that it can hold or finish; larger sizes are left out.
        size: how many elements it holds at (b, d).
    """

    task: str
    name: str
    ours: bool
    pair: Pair
    largest: float = math.inf
    size: Callable[[int, int], float] = lambda b, d: 0.0


def contenders(k: int, times: int) -> list[Contender]:
    """Return every contender that this environment can run.

    ``official`` is the papers' code as its description has it: broadcast fp16 differences, then scipy. Packages that
    are not installed (POT, torchcfm) are left out.
    """

    def gathered(index: Callable[[Tensor, Tensor], Any]) -> Pair:
        return lambda x, noise: noise[torch.as_tensor(index(x, noise))]

    def explicit(x: Tensor, k: int) -> Tensor:
        noise = torch.randn(len(x), k, x.shape[1])
        best = (x.unsqueeze(1) - noise).norm(dim=2).argmin(1)
        return noise[torch.arange(len(x)), best]

    def official(x: Tensor, noise: Tensor) -> Any:
        difference = x.half().unsqueeze(1) * 0.1 - noise.half().unsqueeze(0) * 0.1
        return linear_sum_assignment(torch.linalg.vector_norm(difference, dim=2).float().numpy())[1]

    def lapjv(x: Tensor, noise: Tensor) -> Any:
        import lap

        return lap.lapjv(torch.cdist(x, noise).double().numpy(), return_cost=False)[0]

    def candidates(x: Tensor, noise: Tensor) -> Tensor:
        drawn = torch.randn(times * len(x), x.shape[1])
        return drawn[linear_sum_assignment(torch.cdist(x, drawn).numpy())[1]]

    cubed, draws = (lambda b, d: float(b) ** 3), (lambda b, d: float(b) * k * d)
    found = [
        Contender("assignment", "this library, fp32", True, lambda x, n: assign(x, n)),
        Contender("assignment", "this library, bf16", True, lambda x, n: assign(x, n, precision="bf16")),
        Contender(
            "assignment", "this library, dot, bf16", True, lambda x, n: assign(x, n, cost="dot", precision="bf16")
        ),
        Contender(
            "assignment",
            "torch.cdist + scipy (denoising-diffusion-pytorch)",
            False,
            gathered(lambda x, n: linear_sum_assignment(torch.cdist(x, n).numpy())[1]),
            4097.0**3,
            cubed,
        ),
        Contender("assignment", "torch.cdist + lapx lapjv", False, gathered(lapjv)),
        Contender("assignment", "official", False, gathered(official), 3e8, lambda b, d: float(b) * b * d),
        Contender(f"nearest of {k}", "this library, l2", True, lambda x, n: nearest(x, k)),
        Contender(f"nearest of {k}", "this library, dot", True, lambda x, n: nearest(x, k, cost="dot")),
        Contender(f"nearest of {k}", "reference", False, lambda x, n: explicit(x, k), 1e9, draws),
        Contender(f"assignment among {times} b", "this library", True, lambda x, n: oversample(x, times * len(x))),
        Contender(
            f"assignment among {times} b",
            "explicit candidates + scipy",
            False,
            candidates,
            1.1e9,
            lambda b, d: float(b) * times * max(d, b),
        ),
    ]
    with suppress(ImportError):
        import ot

        def emd(x: Tensor, noise: Tensor) -> Any:
            plan = ot.emd(ot.unif(len(x)), ot.unif(len(x)), ot.dist(x.numpy(), noise.numpy()))
            return plan.argmax(1)

        def ot_sinkhorn(x: Tensor, noise: Tensor) -> Any:
            cost = ot.dist(x.numpy(), noise.numpy())
            plan = ot.sinkhorn(ot.unif(len(x)), ot.unif(len(x)), cost, 0.05 * cost.std(), method="sinkhorn_log")
            return plan.argmax(1)

        found.append(Contender("assignment", "POT emd", False, gathered(emd)))
        found.append(Contender("approximate", "POT sinkhorn_log", False, gathered(ot_sinkhorn), 1025.0**3, cubed))
    with suppress(ImportError):
        from torchcfm.optimal_transport import OTPlanSampler

        sampler = OTPlanSampler(method="exact")
        found.append(
            Contender("assignment", "torchcfm exact", False, gathered(lambda x, n: sampler.get_map(x, n).argmax(1)))
        )
    with suppress(ImportError):
        import jax
        import ott.geometry.pointcloud
        import ott.solvers.linear

        def ott_sinkhorn(x: Tensor, noise: Tensor) -> Any:
            points = ott.geometry.pointcloud.PointCloud(x.numpy(), noise.numpy(), epsilon=0.05, relative_epsilon="std")
            out = jax.jit(ott.solvers.linear.solve)(points)
            return np.asarray(out.matrix.argmax(1))

        found.append(Contender("approximate", "ott-jax sinkhorn", False, gathered(ott_sinkhorn), 1025.0**3, cubed))
    return found


def bench(
    sizes: list[tuple[int, int]], data: Callable[[int, int], Tensor], *, k: int = 64, times: int = 16
) -> Iterator[dict[str, Any]]:
    """Yield one measured row for every contender and size.

    Args:
        sizes: (b, d) pairs.
        data: returns unit-variance data, (b, d).
        k: candidates of ``nearest``.
        times: candidates of oversampling, a multiple of b.
    """
    for b, d in sizes:
        torch.manual_seed(0)
        x, noise = data(b, d), torch.randn(b, d)
        for contender in contenders(k, times):
            row = {"task": contender.task, "name": contender.name, "ours": contender.ours, "b": b, "d": d}
            if contender.size(b, d) > contender.largest:
                yield {**row, "left_out": "too large or too slow at this size"}
            else:
                yield {**row, **_measured(contender.pair, x, noise)}


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
