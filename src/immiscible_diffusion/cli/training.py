"""Commands about experiments: show them, carry them out."""

import os
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from immiscible_diffusion.cli.options import Device, Name, Out, Scale, Sets, Workers, checked_device, err, out
from immiscible_diffusion.cli.studies import print_report
from immiscible_diffusion.experiments.experiment import Cell, Experiment, read_experiment
from immiscible_diffusion.experiments.values import parse_override
from immiscible_diffusion.report.drawing import pyplot
from immiscible_diffusion.runs.launch import launch
from immiscible_diffusion.runs.prepare import run_name, saved_steps
from immiscible_diffusion.runs.reuse import reuse
from immiscible_diffusion.runs.team import started_team
from immiscible_diffusion.runs.together import launch_together
from immiscible_diffusion.runs.trackers import tracker_names

__all__ = ["demo", "show", "train"]

_TRY_AGAIN = 75
"""The exit code of a command that has more to do (EX_TEMPFAIL of sysexits.h), as a queue's script may ask for."""


def demo(out_folder: Out = Path("runs"), scale: Scale = None, sets: Sets = None, workers: Workers = None) -> None:
    """Train three couplings on real digits from the same seeds, and show what they change (a few minutes).

    The report is written after every seed. Without --scale, runs are shorter than those of `immiscible train demo`.
    """
    pyplot()  # a report that cannot be drawn is refused before the training
    _train("demo", out_folder, scale or "quick", sets, workers, None, reports=True)
    print_report(out_folder / "demo")


def show(
    name: Name,
    scale: Scale = None,
    sets: Sets = None,
) -> None:
    """Show an experiment: what it asks, its runs, and the resolved configuration of the first."""
    experiment, cells = _cells(name, scale, sets)
    out.print(f"[bold]{escape(experiment.title)}[/bold]\n{escape(experiment.source)}\n{escape(experiment.question)}\n")
    for cell in cells:
        out.print(f"  {cell.folder}", highlight=False)
    out.print(f"\nConfiguration of {cells[0].folder}:")
    out.print_json(data=cells[0].config.plain())


def train(
    name: Name,
    out_folder: Out = Path("runs"),
    scale: Scale = None,
    sets: Sets = None,
    workers: Workers = None,
    device: Device = None,
    tracker: Annotated[
        str, typer.Option(help="Also tell a tracker of accelerate's, such as tensorboard, wandb or mlflow.")
    ] = "",
    max_seconds: Annotated[
        float, typer.Option(min=0, help="Save all runs and stop after this time, with exit code 75; 0 for never.")
    ] = 0.0,
    reused: Annotated[
        list[Path] | None,
        typer.Option(
            "--reuse",
            help="A folder of finished runs, such as runs/demo: those that are the same are copied. May be repeated.",
        ),
    ] = None,
) -> None:
    """Carry out every run of an experiment; the same command again goes on with what was cut.

    Under `accelerate launch -m immiscible_diffusion` or `torchrun -m immiscible_diffusion` all processes train each run
    together.
    """
    folder = _train(name, out_folder, scale, sets, workers, device, tracker, reused, max_seconds=max_seconds)
    out.print(f"Runs are in {escape(str(folder))}; make the report with: immiscible report {escape(str(folder))}")


def _count(workers: int | None, device: str) -> int:
    """Return how many runs are carried out at a time."""
    return workers or (1 if device == "cuda" else os.cpu_count() or 1)


def _cells(name: str, scale: str | None, sets: list[str] | None) -> tuple[Experiment, list[Cell]]:
    experiment = read_experiment(name)
    return experiment, experiment.cells(scale, [parse_override(text) for text in sets or []])


def _train(
    name: str,
    out_folder: Path,
    scale: str | None,
    sets: list[str] | None,
    workers: int | None,
    device: str | None,
    tracker: str = "",
    reused: list[Path] | None = None,
    reports: bool = False,
    max_seconds: float = 0.0,
) -> Path:
    """Carry out an experiment and return its folder; with ``reports``, write its report after every seed but the last.

    Raises:
        ArithmeticError: a run failed.
    """
    experiment, cells = _cells(name, scale, sets)
    if tracker and tracker not in tracker_names():
        raise ValueError(f"--tracker {tracker!r}: accelerate has {tracker_names()}")
    folder, device = out_folder / experiment.name, checked_device(device)
    failed, left = [], list(cells)
    with started_team(device) as team:
        if not team.first:
            out.quiet = True
        how = f"{min(_count(workers, device), len(cells))} at a time" if team.alone else f"{team.share.world} processes"
        out.print(f"{escape(experiment.title)}: {len(cells)} runs on {device}, {how}")
        if reused and team.first:
            copied = reuse(cells, folder, reused)
            out.print(f"Copied {len(copied)} finished runs: {', '.join(copied) or 'none is the same'}")
        options: dict[str, Any] = {"console": out, "tracker": tracker, "max_seconds": max_seconds}
        if team.alone:
            options |= {"workers": _count(workers, device), "device": device}
        start = launch if team.alone else partial(launch_together, team=team)
        try:
            with closing(start(experiment, cells, folder, **options)) as runs:
                for cell, error in runs:
                    left.remove(cell)
                    failed += [f"{run_name(cell)}: {error}"] if error else []
                    if reports and left and not error and all(other.seed != cell.seed for other in left):
                        print_report(folder)
                        out.print(f"Still to come: {'; '.join(run_name(other) for other in left)}")
        except (KeyboardInterrupt, TimeoutError) as stop:
            why = "Interrupted" if isinstance(stop, KeyboardInterrupt) else f"{max_seconds:g} seconds are over"
            if team.first:
                lines = [f"{why}; the same command goes on from what is saved:", *saved_steps(cells, folder)]
                err.print(escape("\n  ".join(lines)), highlight=False)
            raise typer.Exit(130 if isinstance(stop, KeyboardInterrupt) else _TRY_AGAIN) from None
    if failed:
        raise ArithmeticError("\n  ".join(["some runs failed; the same command tries them again", *failed]))
    return folder
