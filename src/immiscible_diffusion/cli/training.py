"""Commands about experiments: show them, carry them out."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from immiscible_diffusion.cli.options import (
    Device,
    Name,
    Out,
    Scale,
    Sets,
    Workers,
    checked_device,
    err,
    out,
    runs_at_a_time,
)
from immiscible_diffusion.cli.own_data import Minutes, planned
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


def demo(
    images: Annotated[
        str | None, typer.Option(help="Your own images: a folder, a zip archive, a parquet file or a hub name.")
    ] = None,
    latents: Annotated[str | None, typer.Option(help="Or a folder that `immiscible encode` wrote.")] = None,
    minutes: Minutes = 10.0,
    out_folder: Out = Path("runs"),
    scale: Scale = None,
    sets: Sets = None,
    workers: Workers = None,
    device: Device = None,
) -> None:
    """Train with and without pairing from the same seeds, on digits or on your own images, and compare the results.

    On digits three couplings are trained (a few minutes). With --images or --latents, size, net, batch, held-out images
    and features are chosen for what is there, and said; independent noise is trained against assignment. The report is
    written after every seed. Without --scale, runs on digits are shorter than in `immiscible train demo`.
    """
    pyplot()  # a report that cannot be drawn is refused before the training
    if images is None and latents is None:
        folder = _train("demo", out_folder, scale or "quick", sets, workers, device, reports=True)
    else:
        if images is not None and latents is not None:
            raise ValueError("--images and --latents name two data sets: give one of them")
        if scale is not None:
            raise ValueError("--scale is for the demo on digits: with your own data give --minutes, or --set KEY=VALUE")
        place = checked_device(device)
        file = planned(
            images if images is not None else str(latents),
            latents=images is None,
            out_folder=out_folder,
            sets=sets,
            minutes=minutes,
            workers=workers,
            device=place,
        )
        folder = _train(str(file), out_folder, None, sets, workers, place, reports=True)
    print_report(folder)


def show(
    name: Name,
    scale: Scale = None,
    sets: Sets = None,
) -> None:
    """Show an experiment: its question, its runs, and the resolved configuration of the first run."""
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
    """Train every run of an experiment; the same command again continues runs that were interrupted.

    Under `accelerate launch -m immiscible_diffusion` or `torchrun -m immiscible_diffusion` all processes train each run
    together.
    """
    folder = _train(name, out_folder, scale, sets, workers, device, tracker, reused, max_seconds=max_seconds)
    out.print(f"Runs are in {escape(str(folder))}; make the report with: immiscible report {escape(str(folder))}")


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
        how = (
            f"{min(runs_at_a_time(workers, device), len(cells))} at a time"
            if team.alone
            else f"{team.share.world} processes"
        )
        out.print(f"{escape(experiment.title)}: {len(cells)} runs on {device}, {how}")
        if reused and team.first:
            copied = reuse(cells, folder, reused)
            out.print(f"Copied {len(copied)} finished runs: {', '.join(copied) or 'none is the same'}")
        options: dict[str, Any] = {"console": out, "tracker": tracker, "max_seconds": max_seconds}
        if team.alone:
            options |= {"workers": runs_at_a_time(workers, device), "device": device}
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
