"""What commands share: where they print, and the options that mean the same in each."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from immiscible_diffusion.experiments.values import parse_override
from immiscible_diffusion.registry import make

__all__ = [
    "Device",
    "Folder",
    "Name",
    "Out",
    "Scale",
    "Sets",
    "Workers",
    "checked_device",
    "choice",
    "err",
    "new_app",
    "out",
    "progress",
    "refused",
    "run_app",
    "runs_at_a_time",
]

out = Console()
err = Console(stderr=True)

Name = Annotated[str, typer.Argument(help="An experiment's name (see `immiscible list`) or the path of its TOML file.")]
Folder = Annotated[Path, typer.Argument(help="A run folder, such as runs/demo/assignment-seed0-1a2b3c4d.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one value: --set train.steps=1000. May be repeated.", metavar="KEY=VALUE"),
]
Scale = Annotated[str | None, typer.Option(help="One of the experiment's scales, such as smoke.")]
Out = Annotated[Path, typer.Option("--out", help="Where run folders are written.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Runs at a time; by default one a core, or one on a GPU.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; by default cuda where there is one.")]


def checked_device(device: str | None) -> str:
    """Return the device to compute on: the chosen one if this machine has it; without a choice, CUDA if there is one.

    Raises:
        ValueError: an unknown device, or no CUDA.
    """
    import torch  # here, so that --help does not load it

    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"no device named {device!r}; there are ['cpu', 'cuda']")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("this machine has no CUDA device that PyTorch can use; leave out --device")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def runs_at_a_time(workers: int | None, device: str) -> int:
    """Return how many runs are carried out at a time: as many as asked for, else one a core, or one on a GPU."""
    return workers or (1 if device == "cuda" else os.cpu_count() or 1)


def choice(kind: str, text: str) -> Any:
    """Return the object that a name or a TOML table describes.

    Raises:
        ValueError: an unknown name or option, or a value that the object refuses.
    """
    return make(kind, parse_override(f"{kind}={text}")[1])


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Show a bar while a block runs; yield the function that moves it, to ``completed`` of ``total``."""
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield partial(bar.update, task)


def new_app(name: str, about: str) -> typer.Typer:
    """Return a command line without commands; errors are left to ``run_app``."""
    return typer.Typer(
        name=name, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=about
    )


def run_app(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code: 2 for a mistake of the user's, 1 for a run that failed."""
    name = app.info.name or ""
    try:
        app(args=list(arguments), prog_name=name)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except (ValueError, ImportError) as error:
        return refused(name, str(error))
    except (OSError, ArithmeticError) as error:
        return refused(name, str(error), code=1)
    except (RuntimeError, MemoryError) as error:  # torch's: no memory for what was asked, or no such size
        return refused(name, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", code=1)
    return 0


def refused(name: str, line: str, *, code: int = 2) -> int:
    """Print one line about a mistake under the name of the command line, and return the exit code."""
    err.print(f"{name}: {escape(line)}", soft_wrap=True, highlight=False)
    return code
