"""The command line: every command is a few calls of the library, and every mistake gets one line."""

from collections.abc import Sequence

import typer

from immiscible_diffusion.cli.comparing import compare
from immiscible_diffusion.cli.encoding import encode
from immiscible_diffusion.cli.models import evaluate, sample
from immiscible_diffusion.cli.options import run_app
from immiscible_diffusion.cli.policies import rollout
from immiscible_diffusion.cli.studies import inspect, report
from immiscible_diffusion.cli.training import demo, list_experiments, show, train

__all__ = ["app", "run"]

app = typer.Typer(
    name="immiscible",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train diffusion and flow-matching models with noise that is paired with the data, and see what it changes.",
)
app.command("list")(list_experiments)
for command in (
    demo,
    show,
    train,
    sample,
    evaluate,
    compare,
    report,
    inspect,
    encode,
    rollout,
):
    app.command()(command)


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code: 2 for a mistake of the user's, 1 for a run that failed."""
    return run_app(app, arguments)
