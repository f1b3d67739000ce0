"""The runs of an experiment one after the other, each in several processes that train it together."""

import math
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from rich.console import Console

from immiscible_diffusion.experiments.experiment import Cell, Experiment
from immiscible_diffusion.runs.launch import handled, progress
from immiscible_diffusion.runs.prepare import prepare, run_name
from immiscible_diffusion.runs.run import execute
from immiscible_diffusion.runs.team import Team
from immiscible_diffusion.runs.trackers import tracked

__all__ = ["launch_together"]


def launch_together(
    experiment: Experiment,
    cells: Sequence[Cell],
    folder: Path,
    *,
    team: Team,
    console: Console,
    tracker: str = "",
    max_seconds: float = 0.0,
) -> Generator[tuple[Cell, Exception | None], None, None]:
    """Train all runs one after the other, each in all processes of the team, and yield them as ``launch`` does.

    A signal to terminate in any process, or the end of ``max_seconds``, ends the step and saves the run.

    Args:
        experiment: the experiment of the runs.
        cells: the runs.
        folder: as in ``launch``.
        team: the processes, all of which call this.
        console: where the first one shows progress.
        tracker: as in ``launch``.
        max_seconds: as in ``launch``.

    Raises:
        ValueError: as ``launch``.
        KeyboardInterrupt: a request to terminate; the state is saved.
        TimeoutError: ``max_seconds`` are over; the state is saved.
    """
    device, threads = team.device, torch.get_num_threads()
    team.once(lambda: prepare(experiment, cells, folder, device, threads, console))
    deadline = time.monotonic() + max_seconds if max_seconds else math.inf
    stopped = threading.Event()

    def wants_to_stop() -> bool:
        return stopped.is_set() or time.monotonic() > deadline

    with handled(lambda *_: stopped.set(), interrupts=True), progress(console) as bars:
        for cell in sorted(cells, key=lambda cell: cell.seed):
            place, total = folder / cell.folder, cell.config.train.steps
            error: Exception | None = None
            bar, step = bars.add_task(run_name(cell), total=total), 0
            try:
                with tracked(tracker, place) if tracker and team.first else nullcontext() as follower:
                    for step in execute(cell.config, place, device, team, wants_to_stop):
                        bars.update(bar, completed=step)
                        if follower is not None and step % 50 == 0:
                            follower.send()
            except (ArithmeticError, ValueError, OSError, MemoryError) as problem:
                error = problem
            bars.remove_task(bar)
            if error is None and step < total:
                raise TimeoutError if team.once(lambda: time.monotonic() > deadline) else KeyboardInterrupt
            bars.console.print(f"  {run_name(cell)}: {'failed' if error else 'done'}")
            yield cell, error
