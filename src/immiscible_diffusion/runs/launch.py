"""The runs of an experiment, in worker processes, with progress; the same call again finishes what was cut."""

import itertools
import os
import signal
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from immiscible_diffusion.diagnostics.effect import Pairable, effect
from immiscible_diffusion.diagnostics.idle import idle_reason
from immiscible_diffusion.experiments.config import Config, read_config
from immiscible_diffusion.experiments.experiment import Cell, Experiment
from immiscible_diffusion.files import write_json
from immiscible_diffusion.processes import News, on_stop_signals, run_tasks
from immiscible_diffusion.registry import describe
from immiscible_diffusion.runs.check import check_run
from immiscible_diffusion.runs.checkpoint import newest_step
from immiscible_diffusion.runs.conditions import EncodedCaptions, conditioned, with_prompts
from immiscible_diffusion.runs.folder import is_finished
from immiscible_diffusion.runs.instrument import write_instrument
from immiscible_diffusion.runs.run import execute
from immiscible_diffusion.runs.trackers import tracked
from immiscible_diffusion.types import Coupling, HasPreparation

__all__ = ["launch", "run_name", "saved_steps"]

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

    Raises:
        ValueError: something that training or evaluating would do is refused: all problems, before the first step.
        KeyboardInterrupt: Ctrl-C or a signal to terminate, after the states were saved.
    """
    workers = min(workers, len(cells))
    # Threads beyond the cores that are free hold each other up: OMP_NUM_THREADS says that fewer are.
    threads = max(1, min((os.cpu_count() or 1) // workers, torch.get_num_threads()))
    for cell in cells:
        _adopt(folder, cell)
    _check(cells, folder, torch.device(device), threads)
    write_json(folder / "index.json", _index(experiment, cells))
    couplings = _prepared(cells, torch.device(device), console)
    write_json(folder / "pairs.json", _pairs(cells, couplings))
    with _on_threads(threads):
        write_instrument(cells, folder, torch.device(device))
    for note in _notes(cells):
        console.print(f"Note: {note}", highlight=False)
    cells = sorted(cells, key=lambda cell: cell.seed)
    tasks = [(cell.config.plain(), str(folder / cell.folder), device, tracker) for cell in cells]
    steps = [0] * len(cells)
    with (
        _terminable(),
        _progress(console) as progress,
        closing(run_tasks(_work, tasks, workers, threads=threads)) as all_news,
    ):
        whole = progress.add_task("all runs", total=sum(cell.config.train.steps for cell in cells))
        bars: dict[int, Any] = {}
        for i, kind, value in _until_interrupted(all_news, progress.console):
            cell = cells[i]
            if kind == "yielded":
                if i not in bars:
                    bars[i] = progress.add_task(run_name(cell), total=cell.config.train.steps)
                steps[i] = value
                progress.update(bars[i], completed=value)
                progress.update(whole, completed=sum(steps))
                continue
            steps[i] = cell.config.train.steps
            progress.update(whole, completed=sum(steps))
            if i in bars:
                progress.remove_task(bars.pop(i))
            progress.console.print(f"  {run_name(cell)}: {'failed' if kind == 'raised' else 'done'}")
            yield cell, value if kind == "raised" else None


def run_name(cell: Cell) -> str:
    """Return how messages name a run: its arm and its seed."""
    return f"{cell.arm}, seed {cell.seed}"


def saved_steps(cells: Sequence[Cell], folder: Path) -> list[str]:
    """Return what is on disk of each run that is not finished, as a line of text."""
    lines = []
    for cell in cells:
        step, place = newest_step(folder / cell.folder / "checkpoints"), folder / cell.folder
        if not is_finished(place):
            kept = f"saved at step {step} of {cell.config.train.steps}" if step else "nothing is saved"
            lines.append(f"{run_name(cell)}: {kept}")
    return lines


def _adopt(folder: Path, cell: Cell) -> None:
    """Give a run folder of an earlier version the name that it has in this one."""
    former, place = folder / cell.former_folder, folder / cell.folder
    if former.is_dir() and not place.exists():
        former.rename(place)


def _check(cells: Sequence[Cell], folder: Path, device: torch.device, threads: int) -> None:
    """Check the first unfinished run of every arm on as many threads as it will have.

    Raises:
        ValueError: all that is wrong, each line with the arms that it is true of.
    """
    first = {cell.arm: cell for cell in reversed(cells) if not is_finished(folder / cell.folder)}
    arms_of: dict[str, list[str]] = {}
    with _on_threads(threads):
        for arm, cell in first.items():
            for problem in check_run(cell.config, device).problems:
                arms_of.setdefault(problem, []).append(arm)
    if arms_of:
        lines = [
            problem if len(arms) == len(first) else f"{problem} (in {', '.join(arms)})"
            for problem, arms in arms_of.items()
        ]
        raise ValueError(
            "\n  ".join(["nothing was trained:", *lines]) if lines[1:] else f"nothing was trained: {lines[0]}"
        )


def _until_interrupted(all_news: Iterator[News], console: Console) -> Iterator[News]:
    """Yield the news of the runs; at an interrupt say what is being waited for."""
    try:
        yield from all_news
    except KeyboardInterrupt:
        console.print(
            "Stopping: every run ends its step, or the measurement it is making, and is saved. Ctrl-C stops now."
        )
        raise


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


def _prepared(cells: Sequence[Cell], device: torch.device, console: Console) -> dict[str, Coupling]:
    """Return each arm's coupling, prepared with its data where it must be; what the runs will read is then there."""
    couplings = dict[str, Coupling]()
    for arm, config in sorted({cell.arm: cell.config for cell in reversed(cells)}.items()):
        couplings[arm] = config.coupling
        if not isinstance(config.coupling, HasPreparation):
            continue
        source = conditioned(config.source, with_prompts(config.net, config.source))
        with (
            _preparation(console) as progress,
            closing(config.coupling.prepare(source, config.codec, device)) as preparing,
        ):
            bar = progress.add_task(f"preparing {arm}", total=1.0)
            while True:
                try:
                    progress.update(bar, completed=next(preparing))
                except StopIteration as end:
                    couplings[arm] = end.value
                    progress.remove_task(bar)
                    break
    return couplings


def _pairs(cells: Sequence[Cell], couplings: Mapping[str, Coupling]) -> dict[str, dict[str, float]]:
    """Return the effect of each arm's coupling on 50 batches of its data (4 of texts), on one thread, alone."""
    first = {cell.arm: cell.config for cell in reversed(cells)}
    with _on_threads(1):
        return {arm: effect(couplings[arm], _batches(config)) for arm, config in sorted(first.items())}


@contextmanager
def _on_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _notes(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield what an arm's options cannot do for these data, with the remedy."""
    for arm, config in sorted({cell.arm: cell.config for cell in cells}.items()):
        batches = config.source.batches(config.train.batch, config.train.seed)
        cond = [batch.cond for batch in itertools.islice(batches, _TEXT_BATCHES)]
        if reason := idle_reason(
            config.coupling, config.train.batch, [each for each in cond if each is not None] or None
        ):
            yield f"{arm}: {reason}"
        if config.evaluate.guidance != 1 and describe("net", config.net).get("drop") == 0:
            yield f"{arm}: guidance needs a net that was also trained without its condition: set net.drop, as 0.1"


def _batches(config: Config) -> Iterator[Pairable]:
    source = conditioned(config.source, with_prompts(config.net, config.source))
    count = _TEXT_BATCHES if isinstance(source, EncodedCaptions) else _EFFECT_BATCHES
    for batch in itertools.islice(source.batches(config.train.batch, config.train.seed), count):
        yield config.codec.encode(batch.raw), batch.cond, batch.mask, batch.rows


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


def _preparation(console: Console) -> Progress:
    share, elapsed, left = TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    return Progress(
        TextColumn("{task.description}"), BarColumn(), share, elapsed, TextColumn("left"), left, console=console
    )


@contextmanager
def _terminable() -> Iterator[None]:
    """Treat a request to terminate, or a closed terminal, as an interrupt."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = on_stop_signals(interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
