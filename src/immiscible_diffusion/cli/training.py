"""Commands about experiments: show them, carry them out."""

import os
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from immiscible_diffusion.cli.options import Device, Name, Out, Scale, Sets, Workers, checked_device, err, out
from immiscible_diffusion.cli.studies import print_report
from immiscible_diffusion.experiments.experiment import Cell, Experiment, read_experiment
from immiscible_diffusion.experiments.values import parse_override
from immiscible_diffusion.report.drawing import pyplot
from immiscible_diffusion.runs.launch import launch, run_name, saved_steps
from immiscible_diffusion.runs.reuse import reuse
from immiscible_diffusion.runs.trackers import tracker_names

__all__ = ["demo", "show", "train"]


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
    reused: Annotated[
        list[Path] | None,
        typer.Option(
            "--reuse",
            help="A folder of finished runs, such as runs/demo: those that are the same are copied. May be repeated.",
        ),
    ] = None,
) -> None:
    """Carry out every run of an experiment; the same command again goes on with what was cut."""
    folder = _train(name, out_folder, scale, sets, workers, device, tracker, reused)
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
) -> Path:
    """Carry out an experiment and return its folder; with ``reports``, write its report after every seed but the last.

    Raises:
        ArithmeticError: a run failed.
    """
    experiment, cells = _cells(name, scale, sets)
    if tracker and tracker not in tracker_names():
        raise ValueError(f"--tracker {tracker!r}: accelerate has {tracker_names()}")
    folder, device = out_folder / experiment.name, checked_device(device)
    count = workers or (1 if device == "cuda" else os.cpu_count() or 1)
    out.print(f"{escape(experiment.title)}: {len(cells)} runs on {device}, {min(count, len(cells))} at a time")
    if reused:
        copied = reuse(cells, folder, reused)
        out.print(f"Copied {len(copied)} finished runs: {', '.join(copied) or 'none is the same'}")
    failed, left = [], list(cells)
    try:
        with closing(
            launch(experiment, cells, folder, workers=count, device=device, console=out, tracker=tracker)
        ) as runs:
            for cell, error in runs:
                left.remove(cell)
                failed += [f"{run_name(cell)}: {error}"] if error else []
                if reports and left and not error and all(other.seed != cell.seed for other in left):
                    print_report(folder)
                    out.print(f"Still to come: {'; '.join(run_name(other) for other in left)}")
    except KeyboardInterrupt:
        on_disk = "\n  ".join(
            ["Interrupted; the same command goes on from what is saved:", *saved_steps(cells, folder)]
        )
        err.print(escape(on_disk), highlight=False)
        raise typer.Exit(130) from None
    if failed:
        raise ArithmeticError("\n  ".join(["some runs failed; the same command tries them again", *failed]))
    return folder
