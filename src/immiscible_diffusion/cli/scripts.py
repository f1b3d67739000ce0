"""The command that runs somebody's training script with its noise paired with the data."""

import sys
import types
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from immiscible_diffusion.cli.options import err, out
from immiscible_diffusion.scripts.prepare import PreparedScript, prepare, read_script

__all__ = ["run_script"]


def run_script(
    script: Annotated[Path, typer.Argument(help="A training script; it is not modified.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Arguments of the script.", show_default=False)] = None,
    coupling: Annotated[
        str, typer.Option(help='A name or a table: \'{use="nearest", k=16, cost="dot"}\'.')
    ] = "assignment",
    at: Annotated[
        list[str] | None,
        typer.Option(metavar="LINE", help="Line of the draw, or FILE:LINE of a module; may be repeated."),
    ] = None,
    dry: Annotated[bool, typer.Option("--dry", help="Only print what would change.")] = False,
) -> None:
    """Run an unmodified training script with its noise draw replaced; options stand before SCRIPT.

    The call that draws the training noise is found in the script's syntax tree. Where none or several may be it, their
    lines are named and nothing runs. Under launchers: accelerate launch -m immiscible_diffusion run SCRIPT, or
    torchrun -m immiscible_diffusion run SCRIPT.
    """
    if "--dry" in (arguments or []) and "--dry" not in read_script(script):
        raise ValueError(f"--dry stands after the script, which has no such option: immiscible run --dry {script}")
    prepared = prepare(script, at or [])
    if dry:
        out.print(escape(prepared.diff()), highlight=False, soft_wrap=True, end="")
        for line in prepared.left:
            out.print(escape(line), highlight=False, soft_wrap=True)
        return
    raise SystemExit(_run(prepared, coupling, [str(script), *(arguments or [])]))


def _run(prepared: PreparedScript, coupling: str, argv: list[str]) -> int:
    """Execute a script and return its exit code; an exception of it is shown as Python shows it."""
    from immiscible_diffusion.scripts.start import first_process, paired_noise  # here: --dry loads no torch
    from immiscible_diffusion.scripts.start import run_script as execute

    def say(line: str) -> None:
        if first_process():
            err.print(f"immiscible: {escape(line)}", highlight=False, soft_wrap=True)

    noise = paired_noise(coupling, prepared, say)
    say(f"replaced lines\n{prepared.diff()}".rstrip())
    try:
        execute(prepared, coupling, noise, argv)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            sys.stderr.write(stop.code + "\n")
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:  # shown as Python would, with the frames from the script on
        shown = error.with_traceback(_from_script(error, prepared.script))
        sys.excepthook(type(shown), shown, shown.__traceback__)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    finally:
        noise.close()
    if noise.drawn == 0:
        say(f"the script ended, and {', '.join(prepared.places)} drew no noise")
    return 0


def _from_script(error: BaseException, script: Path) -> types.TracebackType | None:
    """Return an exception's traceback without the frames that lead to the script."""
    path, trace = str(script.resolve()), error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != path:
        trace = trace.tb_next
    return trace or error.__traceback__
