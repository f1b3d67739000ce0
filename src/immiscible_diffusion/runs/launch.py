"""The runs of an experiment, in worker processes, with progress; the same call again finishes interrupted runs."""

import os
import signal
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from immiscible_diffusion.experiments.config import read_config
from immiscible_diffusion.experiments.experiment import Cell, Experiment
from immiscible_diffusion.processes import News, on_stop_signals, run_tasks
from immiscible_diffusion.runs.prepare import prepare, run_name
from immiscible_diffusion.runs.run import execute
from immiscible_diffusion.runs.trackers import tracked

__all__ = ["handled", "launch", "progress"]


def launch(
    experiment: Experiment,
    cells: Sequence[Cell],
    folder: Path,
    *,
    workers: int,
    device: str,
    console: Console,
    tracker: str = "",
    max_seconds: float = 0.0,
) -> Generator[tuple[Cell, Exception | None], None, None]:
    """Carry out all runs, the first seed of every arm first, and yield each as it ends, with its error if it failed.

    A worker carries out one run after the other, on its share of the machine's cores. A worker that dies fails its run
    alone. Closed or interrupted, the workers save their states and stop.

    Args:
        experiment: what the runs belong to.
        cells: its runs.
        folder: holds one folder a run, ``index.json``, ``pairs.json`` and ``instrument.json``.
        workers: processes at a time.
        device: where to train, ``cpu`` or ``cuda``.
        console: where progress is shown.
        tracker: one of ``trackers.tracker_names()``, which gets the runs' logs too; none if empty.
        max_seconds: the time after which all runs are saved and left; 0 for none.

    Raises:
        ValueError: something that training or evaluating would do is refused: all problems, before the first step.
        KeyboardInterrupt: Ctrl-C or a signal to terminate, after the states were saved.
        TimeoutError: ``max_seconds`` are over, and the states are saved.
    """
    deadline = time.monotonic() + max_seconds
    workers = min(workers, len(cells))
    # Threads beyond the cores that are free hold each other up: OMP_NUM_THREADS says that fewer are.
    threads = max(1, min((os.cpu_count() or 1) // workers, torch.get_num_threads()))
    prepare(experiment, cells, folder, torch.device(device), threads, console)
    cells = sorted(cells, key=lambda cell: cell.seed)
    tasks = [(cell.config.plain(), str(folder / cell.folder), device, tracker) for cell in cells]
    steps = [0] * len(cells)
    with (
        handled(_interrupt),
        progress(console) as bars_shown,
        closing(run_tasks(_work, tasks, workers, threads=threads)) as all_news,
    ):
        whole = bars_shown.add_task("all runs", total=sum(cell.config.train.steps for cell in cells))
        bars: dict[int, Any] = {}
        for i, kind, value in _until_interrupted(all_news, bars_shown.console):
            cell = cells[i]
            if max_seconds and time.monotonic() > deadline:
                raise TimeoutError
            if kind == "yielded":
                if i not in bars:
                    bars[i] = bars_shown.add_task(run_name(cell), total=cell.config.train.steps)
                steps[i] = value
                bars_shown.update(bars[i], completed=value)
                bars_shown.update(whole, completed=sum(steps))
                continue
            steps[i] = cell.config.train.steps
            bars_shown.update(whole, completed=sum(steps))
            if i in bars:
                bars_shown.remove_task(bars.pop(i))
            bars_shown.console.print(f"  {run_name(cell)}: {'failed' if kind == 'raised' else 'done'}")
            yield cell, value if kind == "raised" else None


def progress(console: Console) -> Progress:
    """Return bars of training steps with the time left."""
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def _until_interrupted(all_news: Iterator[News], console: Console) -> Iterator[News]:
    """Yield the progress of the runs; after an interrupt, print which runs are still saving."""
    try:
        yield from all_news
    except KeyboardInterrupt:
        console.print(
            "Stopping: every run ends its step, or the measurement it is making, and is saved. Ctrl-C stops now."
        )
        raise


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


@contextmanager
def handled(handler: Callable[[int, Any], None], interrupts: bool = False) -> Iterator[None]:
    """Handle a request to terminate, or a closed terminal; with ``interrupts`` Ctrl-C too, where only the first is."""
    before = on_stop_signals(handler)
    if interrupts:

        def first(number: int, frame: Any) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one: stop now
            handler(number, frame)

        before[signal.SIGINT] = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _work(plain: dict[str, Any], folder: str, device: str, tracker: str) -> Iterator[int]:
    """Carry out one run, and yield its step."""
    warnings.simplefilter("default")
    with (
        tracked(tracker, Path(folder)) if tracker else nullcontext() as follower,
        closing(execute(read_config(plain), Path(folder), torch.device(device))) as run,
    ):
        for step in run:
            yield step
            if follower is not None and step % 50 == 0:
                follower.send()
