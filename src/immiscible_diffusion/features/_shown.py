"""A line of progress for work that is done once, such as fitting the features."""

import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["shown"]

T = TypeVar("T")


def shown(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yield the items, with a line of progress where a person looks on: not in workers, pipes and log files."""
    if multiprocessing.parent_process() is not None or not sys.stderr.isatty():
        yield from items
        return
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        yield from items
        return
    yield from track(items, label, total=total, console=Console(stderr=True), transient=True)
