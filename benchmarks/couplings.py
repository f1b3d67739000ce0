"""Time the couplings against the strongest public way to do the same, in one process, and record the figures.

python benchmarks/couplings.py --out benchmarks/results/couplings.json
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from immiscible_diffusion import assign, nearest
from immiscible_diffusion.files import write_json
from immiscible_diffusion.runs import environment


def timed(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Return median, least and greatest milliseconds of a call, after one to warm up."""
    call()
    spent = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        spent.append(1000 * (time.perf_counter() - begun))
    return {"median_ms": median(spent), "min_ms": min(spent), "max_ms": max(spent), "repeats": repeats}


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the most memory that a call held at once beyond what there was, from the allocator's own events."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def reference_nearest(x: Tensor, k: int) -> Tensor:
    """Draw k noises for every row and keep the nearest: the papers' algorithm as it is written."""
    noise = torch.randn(len(x), k, x.shape[1])
    best = (x.unsqueeze(1) - noise).norm(dim=2).argmin(1)
    return noise[torch.arange(len(x)), best]


def reference_assign(x: Tensor, noise: Tensor) -> Tensor:
    """``torch.cdist`` and scipy: what most loops use."""
    return noise[torch.from_numpy(linear_sum_assignment(torch.cdist(x, noise).numpy())[1])]


def distance(x: Tensor, noise: Tensor) -> float:
    return float((x - noise).norm(dim=1).mean())


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []

    for b, d, k in [(256, 3072, 4), (256, 3072, 64), (1024, 3072, 16)]:
        x = torch.randn(b, d)
        ours, theirs = timed(lambda x=x, k=k: nearest(x, k), 15), timed(lambda x=x, k=k: reference_nearest(x, k), 5)  # type: ignore[misc]
        memory = peak_bytes(lambda x=x, k=k: nearest(x, k)) / (x.numel() * 4)  # type: ignore[misc]
        explicit = peak_bytes(lambda x=x, k=k: reference_nearest(x, k)) / (x.numel() * 4)  # type: ignore[misc]
        rows.append(
            {
                "coupling": f"nearest, k = {k}",
                "b": b,
                "d": d,
                "ours": {**ours, "peak_batches": memory, "distance": distance(x, nearest(x, k))},
                "reference": {**theirs, "peak_batches": explicit, "distance": distance(x, reference_nearest(x, k))},
            }
        )
    for b, d in [(128, 3072), (256, 3072), (512, 3072), (1024, 3072), (2048, 3072)]:
        x, noise = torch.randn(b, d), torch.randn(b, d)
        repeats = 15 if b <= 512 else 5
        ours = timed(lambda x=x, noise=noise: assign(x, noise), repeats)  # type: ignore[misc]
        theirs = timed(lambda x=x, noise=noise: reference_assign(x, noise), repeats)  # type: ignore[misc]
        rows.append(
            {
                "coupling": "assignment",
                "b": b,
                "d": d,
                "ours": {**ours, "distance": distance(x, assign(x, noise))},
                "reference": {**theirs, "distance": distance(x, reference_assign(x, noise))},
            }
        )

    for row in rows:
        row["times_faster"] = row["reference"]["median_ms"] / row["ours"]["median_ms"]
        print(
            f"{row['coupling']:<16} b {row['b']:>5} d {row['d']:>6}  ours {row['ours']['median_ms']:9.2f} ms  "
            f"reference {row['reference']['median_ms']:9.2f} ms  {row['times_faster']:7.1f} x  "
            f"distance {row['ours']['distance']:.3f} / {row['reference']['distance']:.3f}"
        )
    if asked.out:
        write_json(asked.out, {"command": " ".join(sys.argv), "environment": environment(), "rows": rows})


if __name__ == "__main__":
    main()
