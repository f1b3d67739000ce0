"""The command line: every command is a few calls of the library, and every mistake gets one line."""

import ast
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import typer

from immiscible_diffusion.cli.options import new_app, refused, run_app

__all__ = ["COMMANDS", "command_line", "run"]

COMMANDS = {
    "list": "listing:list_experiments",
    "demo": "training:demo",
    "init": "own_data:init",
    "show": "training:show",
    "train": "training:train",
    "sample": "models:sample",
    "evaluate": "models:evaluate",
    "compare": "comparing:compare",
    "report": "studies:report",
    "inspect": "studies:inspect",
    "encode": "encoding:encode",
    "rollout": "policies:rollout",
    "run": "scripts:run_script",
    "status": "watching:status",
}
"""Name -> module:function of this folder. The function's docstring is the command's help."""

_RUNS_OTHERS = {"run"}
"""Commands whose options end at their first argument: what follows it belongs to another program."""

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
    for command, place in COMMANDS.items():
        module, _, function = place.partition(":")
        if command == name:
            settings = {"allow_interspersed_args": command not in _RUNS_OTHERS}
            app.command(command, context_settings=settings)(
                getattr(import_module(f"immiscible_diffusion.cli.{module}"), function)
            )
        else:
            app.command(command, help=_summary(module, function))(lambda: None)
    return app


def _summary(module: str, function: str) -> str:
    """Return the first line of a command's docstring, read from its file: to import it is slow."""
    source = (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")
    (command,) = (
        node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == function
    )
    return (ast.get_docstring(command) or "").partition("\n")[0]


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code: 2 for a mistake of the user's, 1 for a run that failed."""
    name = arguments[0] if arguments else ""
    if name in _MOVED and (name not in COMMANDS or list(arguments) in ([name], [name, "--check"])):
        return refused("immiscible", _MOVED[name])
    return run_app(command_line(name), arguments)
