"""The command ``python -m benchmarks``."""

import sys

from benchmarks.commands import (
    chaos,
    couplings,
    dimension,
    gpu,
    gpu_pack,
    images,
    joint,
    loops,
    papers,
    precision,
    scripts,
    semidiscrete,
    small_features,
    step,
)
from immiscible_diffusion.cli.options import new_app, run_app

app = new_app("benchmarks", "Timings against the strongest public alternatives, recorded as they are measured.")
COMMANDS = (
    chaos,
    couplings,
    dimension,
    papers,
    step,
    images,
    joint,
    loops,
    small_features,
    semidiscrete,
    scripts,
    precision,
    gpu,
    gpu_pack,
)
for command in COMMANDS:
    app.command()(command)

if __name__ == "__main__":
    sys.exit(run_app(app, sys.argv[1:]))
