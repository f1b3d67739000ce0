"""The command ``python -m benchmarks``."""

import sys

import typer

from benchmarks.commands import couplings, gpu, gpu_pack, images, papers, precision, step
from immiscible_diffusion.cli.options import run_app

app = typer.Typer(
    name="benchmarks",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Timings against the strongest public alternatives, recorded as they are measured.",
)
for command in (couplings, papers, step, images, precision, gpu, gpu_pack):
    app.command()(command)

if __name__ == "__main__":
    sys.exit(run_app(app, sys.argv[1:]))
