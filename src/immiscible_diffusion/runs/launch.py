"""All runs of an experiment, in worker processes, with progress; the same call again finishes what was cut."""

import itertools
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from queue import Empty
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from immiscible_diffusion.diagnostics.effect import effect
from immiscible_diffusion.experiments.config import Config, read_config
from immiscible_diffusion.experiments.experiment import Cell, Experiment
from immiscible_diffusion.files import write_json
from immiscible_diffusion.runs.conditions import Captioned, conditioned, with_prompts
from immiscible_diffusion.runs.run import execute
from immiscible_diffusion.runs.trackers import tracked

__all__ = ["launch"]

_news: Any = None
_stop: Any = None
_EFFECT_BATCHES, _TEXT_BATCHES = 50, 4


def launch(
    experiment: Experiment,
    cells: Sequence[Cell],
    folder: Path,
    *,
    workers: int,
    device: str,
    console: Console,
    tracker: str = "",
) -> list[str]:
    """Carry out all runs and return a line for each that failed.

    Each worker computes on its share of the machine's cores. Interrupted, the workers save their states and stop.

    Args:
        experiment: what the runs belong to.
        cells: its runs.
        folder: holds one folder a run, ``index.json`` and ``pairs.json``.
        workers: processes at a time.
        device: where to train, ``cpu`` or ``cuda``.
        console: where progress is shown.
        tracker: what else is told of the runs, one of ``trackers.tracker_names()``; nothing if empty.

    Raises:
        KeyboardInterrupt: after the states were saved.
    """
    write_json(folder / "index.json", _index(experiment, cells))
    write_json(folder / "pairs.json", _pairs(cells))
    workers = min(workers, len(cells))
    context = multiprocessing.get_context("spawn")
    news, stop = context.Queue(), context.Event()
    # Threads beyond the cores that are free hold each other up: OMP_NUM_THREADS says that fewer are.
    threads = max(1, min((os.cpu_count() or 1) // workers, torch.get_num_threads()))
    pool = ProcessPoolExecutor(workers, context, _enter, (news, stop, threads))
    with _terminable(), pool, _progress(console) as progress:
        futures = {
            pool.submit(_work, i, cell.config.plain(), str(folder / cell.folder), device, tracker): cell
            for i, cell in enumerate(cells)
        }
        try:
            _follow(futures, cells, news, progress)
        except KeyboardInterrupt:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [f"{_name(cell)}: {future.exception()}" for future, cell in futures.items() if future.exception()]


def _index(experiment: Experiment, cells: Sequence[Cell]) -> dict[str, Any]:
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "source": experiment.source,
        "question": experiment.question,
        "runs": [
            {"arm": cell.arm, "seed": cell.seed, "folder": cell.folder, "point": dict(cell.point)} for cell in cells
        ],
    }


def _pairs(cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """Return the effect of each arm's coupling on 50 batches of its data (4 of texts), on one thread, alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    first = {cell.arm: cell.config for cell in reversed(cells)}
    try:
        return {arm: effect(config.coupling, _batches(config)) for arm, config in sorted(first.items())}
    finally:
        torch.set_num_threads(before)


def _batches(config: Config) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    source = conditioned(config.source, with_prompts(config.net, config.source))
    count = _TEXT_BATCHES if isinstance(source, Captioned) else _EFFECT_BATCHES
    for batch in itertools.islice(source.batches(config.train.batch, config.train.seed), count):
        yield config.codec.encode(batch.raw), batch.cond


def _follow(futures: dict[Future[None], Cell], cells: Sequence[Cell], news: Any, progress: Progress) -> None:
    """Show the workers' progress until every future has ended."""
    total = sum(cell.config.train.steps for cell in cells)
    whole = progress.add_task("all runs", total=total)
    bars: dict[int, Any] = {}
    steps = [0] * len(cells)
    running, ended = list(futures), set[Future[None]]()
    while len(ended) < len(futures):
        try:
            i, step = news.get(timeout=0.3)
            if running[i] not in ended:  # news may come after the end
                steps[i] = step
                if i not in bars:
                    bars[i] = progress.add_task(_name(cells[i]), total=cells[i].config.train.steps)
                progress.update(bars[i], completed=step)
        except Empty:
            pass
        for j, future in enumerate(running):
            if future.done() and future not in ended:
                ended.add(future)
                steps[j] = cells[j].config.train.steps
                if j in bars:
                    progress.remove_task(bars[j])
                progress.console.print(f"  {_name(cells[j])}: {'failed' if future.exception() else 'done'}")
        progress.update(whole, completed=sum(steps))


def _name(cell: Cell) -> str:
    return f"{cell.arm}, seed {cell.seed}"


def _progress(console: Console) -> Progress:
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


@contextmanager
def _terminable() -> Iterator[None]:
    """Treat a request to terminate as an interrupt."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _enter(news: Any, stop: Any, threads: int) -> None:
    """Prepare a worker process; an interrupt reaches it through ``stop``, between two steps."""
    global _news, _stop
    _news, _stop = news, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    warnings.simplefilter("default")


def _work(i: int, plain: dict[str, Any], folder: str, device: str, tracker: str) -> None:
    """Carry out one run, telling its step at most five times a second."""
    parent, told = os.getppid(), 0.0
    if _stop.is_set():
        return
    with tracked(tracker, Path(folder)) if tracker else nullcontext() as follower:
        run = execute(read_config(plain), Path(folder), torch.device(device))
        for step in run:
            if _stop.is_set() or os.getppid() != parent:
                run.close()  # type: ignore[attr-defined]
                return
            if time.monotonic() - told > 0.2:
                told = time.monotonic()
                _news.put((i, step))
            if follower is not None and step % 50 == 0:
                follower.send()
