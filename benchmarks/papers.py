"""The tables of both papers that need no training: distance reduction and pairing time by batch size."""

from collections.abc import Callable, Iterator
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import now, spread_ms
from immiscible_diffusion.couplings import assign, nearest

__all__ = ["SCALES", "bench_papers", "papers_line", "papers_table"]

_BATCHES = (128, 256, 512, 1024)
_REDUCTION = {128: 1.93, 256: 2.16, 512: 2.32, 1024: 2.44}
_MILLISECONDS = {
    "assignment": {128: 5.4, 256: 6.7, 512: 8.8, 1024: 22.8},
    "nearest of 8": {128: 0.2, 256: 0.2, 512: 0.3, 1024: 0.7},
}
"""arXiv:2406.12303, Table 2 (an A6000), and arXiv:2505.18521, Table 2 (the same times for assignment, on an A5000)."""

SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "unit variance": lambda x: (x - x.mean()) / x.std(),
    "[-1, 1]": lambda x: x / 127.5 - 1,
}
"""Data as stored, 0..255, to model space. Table 2 is that of unit variance; the text of the paper does not say."""

_PAIRINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "assignment": assign,
    "nearest of 8": lambda x, noise: nearest(x, 8),
}


def bench_papers(batch: Callable[[int, int], Tensor], *, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield one row for every scale of the data, pairing and batch size.

    Args:
        batch: returns batch number i of size b as stored, (b, d), 0..255.
        repeats: batches a row; the mean distance reduction and its standard error are over these.
    """
    for scale, into in SCALES.items():
        for pairing, pair in _PAIRINGS.items():
            for b in _BATCHES:
                torch.manual_seed(0)
                reductions, spent = [], []
                for i in range(repeats):
                    x = into(batch(b, i).float())
                    noise = torch.randn_like(x)
                    begun = now()
                    paired = pair(x, noise)
                    spent.append(now() - begun)
                    before, after = (torch.linalg.vector_norm(x - n, dim=1).mean() for n in (noise, paired))
                    reductions.append(float(100 * (1 - after / before)))
                known = scale == "unit variance" and pairing == "assignment"
                yield {
                    "scale": scale,
                    "pairing": pairing,
                    "b": b,
                    "batches": repeats,
                    "distance_reduction_percent": mean(reductions),
                    "standard_error": stdev(reductions) / repeats**0.5,
                    "published_percent": _REDUCTION[b] if known else None,
                    **spread_ms(spent),
                    "published_ms": _MILLISECONDS[pairing][b],
                }


def papers_line(row: dict[str, Any]) -> str:
    """Return one measured row for the terminal."""
    published = "" if row["published_percent"] is None else f" (published {row['published_percent']})"
    return (
        f"{row['scale']:<14} {row['pairing']:<13} {row['b']:>5}  distance -{row['distance_reduction_percent']:.3f} %"
        f" +- {row['standard_error']:.3f}{published}  {row['median_ms']:.2f} ms (published {row['published_ms']})"
    )


def papers_table(rows: list[dict[str, Any]]) -> str:
    """Return recorded rows as a Markdown table, published figures beside measured ones."""
    lines = [
        "| data | pairing | batch | distance reduction, % | published | ms | published ms, on a GPU |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        measured = f"{row['distance_reduction_percent']:.2f} ± {row['standard_error']:.2f}"
        published = "not given" if row["published_percent"] is None else f"{row['published_percent']:.2f}"
        times = f"{row['median_ms']:.1f} | {row['published_ms']}"
        lines.append(f"| {row['scale']} | {row['pairing']} | {row['b']} | {measured} | {published} | {times} |")
    return "\n".join(lines)
