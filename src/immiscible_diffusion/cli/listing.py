"""The command that lists what there is, from files and names alone: it loads no torch."""

import math

from rich.table import Table

from immiscible_diffusion.cli.options import out
from immiscible_diffusion.experiments.values import built_in, presets, read_values
from immiscible_diffusion.registry import KINDS, names

__all__ = ["list_experiments"]


def list_experiments() -> None:
    """List the experiments, and the names that an experiment file may use."""
    table = Table(title="Experiments", title_justify="left")
    table.add_column("name")
    table.add_column("runs", justify="right")
    table.add_column("title")
    for name in built_in():
        values = read_values(name)
        table.add_row(name, str(math.prod(map(len, values["grid"].values()))), values["title"])
    out.print(table)
    table = Table(title="Names for experiment files", title_justify="left")
    table.add_column("key")
    table.add_column("choices")
    for kind in KINDS:
        table.add_row(kind, ", ".join(names(kind)))
    table.add_row("preset", ", ".join(presets()))
    out.print(table)
