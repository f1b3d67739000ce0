"""The command ``python -m studies``."""

import sys
from collections.abc import Sequence

from immiscible_diffusion.cli.options import new_app, run_app
from studies.commands import pages, papers, rerun
from studies.draw import draw
from studies.packaging import licences, public_names

app = new_app("studies", "The papers' tables and figures, and the pages over all recorded results of this repository.")
for command in (papers, pages, draw, rerun, public_names, licences):
    app.command()(command)


def run(arguments: Sequence[str]) -> int:
    """Run a command of this repository's studies and return its exit code."""
    return run_app(app, arguments)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
