"""How every benchmark times and records: warm calls, repeated, their median and quartiles, each row written at once."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from immiscible_diffusion.files import write_json

__all__ = ["now", "quartiles", "recorded", "repeated", "spread_ms"]


def now(device: torch.device | str = "cpu") -> float:
    """Return the clock in seconds, once the device has finished all that was launched on it."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def repeated(
    call: Callable[[], object],
    *,
    device: torch.device | str = "cpu",
    seconds: float = 1.0,
    least: int = 3,
    most: int = 15,
    slow: float = 8.0,
) -> tuple[float, list[float]]:
    """Return the seconds of a first call, which warms up, and the seconds of each later call.

    Args:
        call: what is timed.
        device: whose work a call waits for.
        seconds: calls are repeated until they took this long together,
        least: but at least so often,
        most: and at most so often.
        slow: from a first call of so many seconds on, one repetition is enough.
    """

    def timed() -> float:
        begun = now(device)
        call()
        return now(device) - begun

    first, spent = timed(), list[float]()
    enough = 1 if first > slow else least
    while len(spent) < enough or (sum(spent) < seconds and len(spent) < most):
        spent.append(timed())
    return first, spent


def quartiles(values: Sequence[float]) -> list[float]:
    """Return the lower and the upper quartile.

    >>> quartiles([4.0, 1.0, 2.0, 3.0, 5.0])
    [2.0, 4.0]
    """
    return [float(value) for value in np.quantile(values, [0.25, 0.75])]


def spread_ms(seconds: Sequence[float]) -> dict[str, Any]:
    """Return the median, quartiles, least and greatest of repeated times, in milliseconds, and how many there are.

    >>> spread_ms([0.002, 0.001, 0.003])["median_ms"]
    2.0
    """
    spent = [1000 * value for value in seconds]
    return {
        "median_ms": median(spent),
        "quartiles_ms": quartiles(spent),
        "min_ms": min(spent),
        "max_ms": max(spent),
        "repeats": len(spent),
    }


def recorded(
    rows: Iterator[dict[str, Any]], show: Callable[[dict[str, Any]], None], path: Path | None, about: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the rows of a benchmark; each is shown and written before the next is measured.

    Args:
        rows: measures one row for each that is drawn from it.
        show: prints a row.
        path: a JSON file of ``about`` and the rows, or None for no file.
        about: what holds for all rows, such as the environment.
    """
    done = list[dict[str, Any]]()
    for row in rows:
        done.append(row)
        show(row)
        if path is not None:
            write_json(path, {**about, "rows": done})
    return done
