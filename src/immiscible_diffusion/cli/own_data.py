"""An experiment on images or latents of one's own: chosen, shown, and written as a file."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from immiscible_diffusion.cli.options import Device, Sets, Workers, checked_device, out, runs_at_a_time
from immiscible_diffusion.experiments.values import parse_override, read_values
from immiscible_diffusion.files import write_bytes
from immiscible_diffusion.runs.look import absolute, experiment_name
from immiscible_diffusion.runs.plan import Plan, plan

__all__ = ["Minutes", "init", "planned"]

Minutes = Annotated[float, typer.Option(min=0.1, help="About how long training on your own data may take.")]


def init(
    path: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Images: a folder, a zip archive, a parquet file or a hub name.")
    ],
    latents: Annotated[bool, typer.Option("--latents", help="FOLDER holds latents of `immiscible encode`.")] = False,
    file: Annotated[
        Path | None, typer.Option("--out", help="The file to write; by default named after the folder, here.")
    ] = None,
    minutes: Minutes = 10.0,
    sets: Sets = None,
    workers: Workers = None,
    device: Device = None,
) -> None:
    """Write an experiment on your own images as a file to edit, and print the commands that run it."""
    to = file or Path(f"{experiment_name(path, latents)}.toml")
    if to.exists():
        raise ValueError(f"{to} is there already: remove it, or name another file with --out")
    if any(text.startswith("grid.") for text in sets or []):
        raise ValueError("--set grid. says what is compared: leave it out, and edit [grid] in the file that is written")
    _write(to, path, latents, sets, minutes, workers, checked_device(device))
    out.print(f"Written: {escape(str(to))}. Edit it, run it, and make the report:", soft_wrap=True)
    for command in (f"immiscible train {to}", f"immiscible report runs/{to.stem}"):
        out.print(f"  {escape(command)}", soft_wrap=True, highlight=False)


def planned(
    path: str,
    *,
    latents: bool,
    out_folder: Path,
    sets: list[str] | None,
    minutes: float,
    workers: int | None,
    device: str,
) -> Path:
    """Return the experiment file on these data; if there is none yet, choose the options, print them and write it.

    The file lies in the folder of the experiment's runs: the same command again goes on with it.

    Raises:
        ValueError: the data cannot be read or are too few, or the folder holds an experiment on other data.
    """
    name = experiment_name(path, latents)
    to = out_folder / name / f"{name}.toml"
    if to.exists():
        source = read_values(str(to))["base"]["source"]
        if source["path"] != absolute(path):
            raise ValueError(f"{to} is an experiment on {source['path']}: name another folder for these runs (--out)")
        out.print(
            f"Going on with {escape(str(to))} as it is; to choose anew, with other --minutes, remove its folder.",
            soft_wrap=True,
        )
    else:
        _write(to, path, latents, sets, minutes, workers, device)
        out.print(
            f"To change any of it, give --set KEY=VALUE, or edit {escape(str(to))} and give this command again.\n",
            soft_wrap=True,
        )
    return to


def _write(
    to: Path, path: str, latents: bool, sets: list[str] | None, minutes: float, workers: int | None, device: str
) -> None:
    out.print(f"Looking at {escape(path)}, and timing a few steps ...", soft_wrap=True)
    chosen = plan(
        path,
        latents=latents,
        overrides=[parse_override(text) for text in sets or []],
        minutes=minutes,
        workers=runs_at_a_time(workers, device),
        device=device,
    )
    write_bytes(to, chosen.text.encode())
    out.print(_table(chosen))
    out.print(chosen.estimate, soft_wrap=True, highlight=False)


def _table(chosen: Plan) -> Table:
    """Return the options that were chosen for these data, each with the reason."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("option", "value", "why"):
        table.add_column(column, overflow="fold")
    for choice in chosen.choices:
        if choice.why:
            value = choice.value.get("use", choice.value) if isinstance(choice.value, dict) else choice.value
            table.add_row(choice.key, escape(str(value)), escape(choice.why))
    return table
