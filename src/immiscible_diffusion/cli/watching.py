"""The command that shows where runs stand."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.table import Table

from immiscible_diffusion.cli.options import out
from immiscible_diffusion.runs.status import Status, statuses

__all__ = ["status"]

_EVERY = 2.0
"""Seconds between two looks."""


def status(
    folder: Annotated[Path, typer.Argument(help="The folder of runs, an experiment's folder, or one run's.")] = Path(
        "runs"
    ),
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds, until Ctrl-C.")] = False,
) -> None:
    """Show where runs stand: step, loss, images a second, time left, last measurement and checkpoint."""
    if not watch:
        out.print(_table(folder))
        return
    with suppress(KeyboardInterrupt), Live(_table(folder), console=out, auto_refresh=False) as live:
        while True:
            time.sleep(_EVERY)
            live.update(_table(folder), refresh=True)


def _table(folder: Path) -> Table:
    table = Table()
    for column in ("run", "state", "step", "loss", "images/s", "left", "last measurement", "checkpoint"):
        table.add_column(column, justify="left" if column in ("run", "state", "last measurement") else "right")
    for run in statuses(folder):
        table.add_row(*_row(run))
    return table


def _row(run: Status) -> list[str]:
    return [
        run.name,
        run.state,
        f"{run.step} of {run.steps}",
        "" if run.loss is None else f"{run.loss:.4g}",
        "" if run.images_per_second is None else f"{run.images_per_second:.0f}",
        "" if run.seconds_left is None else _time(run.seconds_left),
        run.measured,
        str(run.checkpoint or ""),
    ]


def _time(seconds: float) -> str:
    """Return a duration in hours, minutes and seconds.

    >>> _time(3725.4)
    '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
