"""What comes before the first step of an experiment's runs: all checks, and what describes the runs in their folder."""

import glob
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from immiscible_diffusion.diagnostics.effect import Pairable, effect
from immiscible_diffusion.diagnostics.idle import idle_reason
from immiscible_diffusion.experiments.config import Config, as_stored, with_defaults
from immiscible_diffusion.experiments.experiment import Cell, Experiment
from immiscible_diffusion.files import read_json, write_json
from immiscible_diffusion.registry import describe
from immiscible_diffusion.runs.check import check_run
from immiscible_diffusion.runs.checkpoint import newest_step
from immiscible_diffusion.runs.conditions import EncodedCaptions, conditioned, with_prompts
from immiscible_diffusion.runs.folder import CONFIG, is_finished
from immiscible_diffusion.runs.instrument import write_instrument
from immiscible_diffusion.runs.records import but_evaluate
from immiscible_diffusion.types import Coupling, HasPreparation

__all__ = ["prepare", "run_name", "saved_steps"]

_EFFECT_BATCHES, _TEXT_BATCHES = 50, 4


def prepare(
    experiment: Experiment, cells: Sequence[Cell], folder: Path, device: torch.device, threads: int, console: Console
) -> None:
    """Check all runs, write their descriptions, and warn of options that have no effect.

    Raises:
        ValueError: all that is wrong.
    """
    for cell in cells:
        _adopt(folder, cell)
    _check(cells, folder, device, threads)
    write_json(folder / "index.json", _index(experiment, cells))
    couplings = _prepared(cells, device, console)
    write_json(folder / "pairs.json", _pairs(cells, couplings))
    with _on_threads(threads):
        write_instrument(cells, folder, device)
    for note in _notes(cells):
        console.print(f"Note: {note}", highlight=False)


def run_name(cell: Cell) -> str:
    """Return how messages name a run: its arm and its seed."""
    return f"{cell.arm}, seed {cell.seed}"


def saved_steps(cells: Sequence[Cell], folder: Path) -> list[str]:
    """Return a line of text for each unfinished run: the step that is saved on disk."""
    lines = []
    for cell in cells:
        step, place = newest_step(folder / cell.folder / "checkpoints"), folder / cell.folder
        if not is_finished(place):
            kept = f"saved at step {step} of {cell.config.train.steps}" if step else "nothing is saved"
            lines.append(f"{run_name(cell)}: {kept}")
    return lines


def _adopt(folder: Path, cell: Cell) -> None:
    """Give the folder of a run that an earlier version began the name and the configuration that it has in this one.

    The name has a hash of all options in it, and options come. Only folders of the same arm and seed are looked at.
    """
    place, plain = folder / cell.folder, as_stored(cell.config)
    former = sorted(folder.glob(f"{glob.escape(place.name.rpartition('-')[0])}-*/config.json"))
    for path in [place / "config.json"] if place.exists() else former:
        try:
            before = read_json(path, CONFIG)
        except (OSError, ValueError):  # not written yet, or damaged: reading the records says so
            continue
        if but_evaluate(now := with_defaults(before)) == but_evaluate(plain):
            if path.parent != place:
                path.parent.rename(place)
            if now != before:
                write_json(place / "config.json", now)
            return


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
    """Return each arm's coupling; one that needs preparation is prepared, and the runs will read its stored result."""
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


def _preparation(console: Console) -> Progress:
    share, elapsed, left = TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    return Progress(
        TextColumn("{task.description}"), BarColumn(), share, elapsed, TextColumn("left"), left, console=console
    )


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
    """Yield a note for each option of an arm that has no effect on these data, with the remedy."""
    for arm, config in sorted({cell.arm: cell.config for cell in cells}.items()):
        batches = config.source.batches(config.train.batch, config.train.seed)
        cond = [batch.cond for batch in itertools.islice(batches, _TEXT_BATCHES)]
        if reason := idle_reason(
            config.coupling, config.train.batch, [condition for condition in cond if condition is not None] or None
        ):
            yield f"{arm}: {reason}"
        if config.evaluate.guidance != 1 and describe("net", config.net).get("drop") == 0:
            yield f"{arm}: guidance needs a net that was also trained without its condition: set net.drop, as 0.1"


def _batches(config: Config) -> Iterator[Pairable]:
    source = conditioned(config.source, with_prompts(config.net, config.source))
    count = _TEXT_BATCHES if isinstance(source, EncodedCaptions) else _EFFECT_BATCHES
    for batch in itertools.islice(source.batches(config.train.batch, config.train.seed), count):
        yield config.codec.encode(batch.raw), batch.cond, batch.mask, batch.rows
