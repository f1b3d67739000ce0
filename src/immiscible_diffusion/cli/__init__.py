"""The command line: every command is a few calls of the library, and every mistake gets one line."""

from collections.abc import Sequence
from importlib import import_module

import typer

from immiscible_diffusion.cli.options import new_app, refused, run_app

__all__ = ["COMMANDS", "command_line", "run"]

COMMANDS = {
    "list": ("listing:list_experiments", "List the experiments, and the names that an experiment file may use."),
    "demo": (
        "training:demo",
        "Train three couplings on real digits from the same seeds, and show what they change (a few minutes).",
    ),
    "show": (
        "training:show",
        "Show an experiment: what it asks, its runs, and the resolved configuration of the first.",
    ),
    "train": (
        "training:train",
        "Carry out every run of an experiment; the same command again goes on with what was cut.",
    ),
    "sample": (
        "models:sample",
        "Generate images from a finished run: PNG files, one grid and an .npz; the same command again goes on.",
    ),
    "evaluate": (
        "models:evaluate",
        "Measure a finished run against held-out data, and keep the numbers in RUN/evaluated.json.",
    ),
    "compare": (
        "comparing:compare",
        "Compare runs: the training that each arm needs to reach what another reached, in steps and in seconds.",
    ),
    "report": (
        "studies:report",
        "Write report.html, summary.json and figures from the runs in a folder, and print the main table.",
    ),
    "inspect": (
        "studies:inspect",
        "Measure couplings on your own data: what they gain, what they cost, what they do to the noise.",
    ),
    "encode": (
        "encoding:encode",
        "Encode a data set once, so that training reads latents; an interrupted run goes on where it was.",
    ),
    "rollout": (
        "policies:rollout",
        "Carry out the finished policies of an experiment, and keep the shares of success in FOLDER/rollout.json.",
    ),
}
"""Name -> the function, as module:function of this folder, and its first line, so that ``--help`` imports neither."""

_MOVED = {
    "bench": "benchmarks are commands of the repository: python -m benchmarks --help",
    "papers": "the papers' tables are a command of the repository: python -m studies papers",
    "draw": "the papers' figures are a command of the repository: python -m studies draw",
    "rerun": "a rerun of recorded results is a command of the repository: python -m studies rerun",
    "report": "a report is of one folder: immiscible report runs/demo; all recorded results: python -m studies pages",
    "show": "name an experiment: immiscible show demo; all of them: immiscible list",
}
"""What to do instead of a command that moved, and of the two that took no argument."""


_ABOUT = "Train diffusion and flow-matching models with noise that is paired with the data, and see what it changes."


def command_line(name: str) -> typer.Typer:
    """Return the command line in which the command of this name works and the others only have their help."""
    app = new_app("immiscible", _ABOUT)
    for command, (place, summary) in COMMANDS.items():
        if command == name:
            module, _, function = place.partition(":")
            app.command(command)(getattr(import_module(f"immiscible_diffusion.cli.{module}"), function))
        else:
            app.command(command, help=summary)(lambda: None)
    return app


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code: 2 for a mistake of the user's, 1 for a run that failed."""
    name = arguments[0] if arguments else ""
    if name in _MOVED and (name not in COMMANDS or list(arguments) in ([name], [name, "--check"])):
        return refused("immiscible", _MOVED[name])
    return run_app(command_line(name), arguments)
