"""Commands about policies: carry them out in their task."""

from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from immiscible_diffusion.cli.options import err, out
from immiscible_diffusion.experiments.config import read_config
from immiscible_diffusion.export.model import load_export
from immiscible_diffusion.files import read_index, read_json, write_json
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.report.page import text_table
from immiscible_diffusion.runs.folder import CONFIG, is_finished
from immiscible_diffusion.runs.rollout import by_arm
from immiscible_diffusion.runs.rollout import rollout as carry_out
from immiscible_diffusion.sample import Start

__all__ = ["rollout"]

_SHARES = "success", "touched", "minority"


def rollout(
    folder: Annotated[Path, typer.Argument(help="An experiment's folder, such as runs/diffusion-policy.")],
    steps: Annotated[list[int] | None, typer.Option(min=1, help="Sampling steps; may be repeated.")] = None,
    episodes: Annotated[int, typer.Option(min=1, help="How many each policy is tried on.")] = 200,
    seed: Annotated[int, typer.Option(help="Names the episodes; equal for all policies.")] = 0,
) -> None:
    """Carry out the finished policies of an experiment, and keep the shares of success in FOLDER/rollout.json."""
    index = read_index(folder)
    runs = [run for run in index["runs"] if is_finished(folder / run["folder"])]
    if not runs:
        raise ValueError(f"{folder} holds no finished run; run `immiscible train {index['experiment']}` first")
    lines: list[dict[str, Any]] = []
    for run in track(runs, "carrying out", console=err, transient=True):
        plain = read_json(folder / run["folder"] / "config.json", CONFIG)
        config = read_config(plain)  # imports modules of the user's own
        trained = load_export(folder / run["folder"] / "export")
        starts: list[Start] = ["matched"] if isinstance(trained.prior, StandardNormal) else ["matched", "normal"]
        for count in steps or config.evaluate.steps:
            for start in starts:
                outcome = carry_out(trained, config, episodes=episodes, steps=count, seed=seed, start=start)
                about = {"arm": run["arm"], "seed": run["seed"], "sampling_steps": count, "start": start}
                lines.append(about | outcome)
    write_json(folder / "rollout.json", {"seed": seed, "lines": lines})
    out.print(_table(lines))
    out.print(f"Lines: {escape(str(folder / 'rollout.json'))}", soft_wrap=True)


def _table(lines: list[dict[str, Any]]) -> Table:
    rows = [
        [arm, start, str(count), str(len(runs)), *(_cell([run[share] for run in runs.values()]) for share in _SHARES)]
        for (arm, start, count), runs in by_arm(lines).items()
    ]
    title = "Share of episodes, mean over runs and their standard deviation"
    table = text_table(title, ["coupling", "start", "sampling", "runs", *_SHARES], rows, left=2)
    table.caption = "minority: of the successes, those on the rarer of the demonstrations' ways"
    return table


def _cell(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
