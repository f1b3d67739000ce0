"""The command that answers what pairing buys: training to reach what another arm reached, in steps and in seconds."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from immiscible_diffusion.cli.options import out
from immiscible_diffusion.files import write_bytes
from immiscible_diffusion.report.compare import Comparison, Reach, Target
from immiscible_diffusion.report.compare import compare as compare_arms
from immiscible_diffusion.report.figures import NAMES, bounds_text, compare_figure
from immiscible_diffusion.report.read_runs import Arm, read_arms
from immiscible_diffusion.report.speedup import Effort
from immiscible_diffusion.report.uncertainty import Interval

__all__ = ["compare", "comparison_tables"]

_FORMATS = ["png", "svg"]


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or experiments' folders.")],
    metric: Annotated[str | None, typer.Option(help="What is compared; by default the runs' first metric.")] = None,
    reference: Annotated[str | None, typer.Option(help="The arm to be reached; by default the first.")] = None,
    table: Annotated[Path | None, typer.Option("--csv", help="Write every ratio, by seed too, to this file.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the curves into this .png or .svg file.")] = None,
) -> None:
    """Compare runs: the training that each arm needs to reach what another reached, in steps and in seconds."""
    if figure is not None and figure.suffix.removeprefix(".") not in _FORMATS:
        raise ValueError(f"--figure {figure}: no format {figure.suffix!r}; there are {_FORMATS}")
    arms, left_out = read_arms(folders)
    first = _arm(arms, reference)
    found = compare_arms(first, arms, metric or _first_metric(first))
    for each in comparison_tables(found):
        out.print(each)
        out.print()
    for note in [*left_out, *found.notes]:
        out.print(f"Note: {escape(note)}", highlight=False)
    if table is not None:
        write_bytes(table, _csv(found))
        out.print(f"Numbers: {escape(str(table))}", soft_wrap=True)
    if figure is not None:
        write_bytes(figure, compare_figure(found, first, arms, "png" if figure.suffix == ".png" else "svg"))
        out.print(f"Figure: {escape(str(figure))}", soft_wrap=True)


def comparison_tables(found: Comparison) -> list[Table]:
    """Return a comparison as tables for a terminal of 100 columns: ways to two targets, ends, costs."""
    return [*(_reach_table(found, target) for target in ("final", "best")), _final_table(found), _cost_table(found)]


def _reach_table(found: Comparison, target: Target) -> Table:
    name = NAMES.get(found.metric, found.metric)
    title = f"Training that B needs to reach the {target} {name} of A = {found.reference}"
    table = _table(title, ["B", "in", "A", "B", "reached", "A / B", "95 % (t)", "95 % (boot.)"])
    shown = None
    for reach in (each for each in found.reaches if each.target == target):
        if reach.sampling_steps != shown:
            shown = reach.sampling_steps
            table.add_section()
            table.add_row(f"[bold]{shown} sampling steps: A {_number(reach.value)}[/bold]")
        for unit, effort in (("steps", reach.steps), ("s", reach.seconds)):
            label = escape(reach.label) if unit == "steps" else ""
            if effort is None:
                table.add_row(label, unit, *["-"] * 6)
            else:
                table.add_row(label, unit, *_effort_cells(reach, effort))
    return table


def _effort_cells(reach: Reach, effort: Effort) -> Iterator[str]:
    yield bounds_text(effort.reference)
    yield bounds_text(effort.arm)
    yield f"{reach.count}/{len(reach.pairs)}"
    yield f"{bounds_text(effort.ratio)}x"
    if effort.ratio[0] != effort.ratio[1]:
        yield "not reached" if reach.count < len(reach.pairs) else "first eval."
        yield ""
    else:
        yield "one seed" if effort.t is None else _interval(effort.t)
        yield "-" if effort.bootstrap is None else _interval(effort.bootstrap)


def _final_table(found: Comparison) -> Table:
    title = f"Last {NAMES.get(found.metric, found.metric)} of A = {found.reference} and of B"
    table = _table(title, ["B", "B's last", "B - A", "95 % (t)", "p (t)", "p (perm.)", "seeds"])
    shown = None
    for each in found.finals:
        if each.sampling_steps != shown:
            shown = each.sampling_steps
            table.add_section()
            table.add_row(f"[bold]{shown} sampling steps: A {_spread(each.reference)}[/bold]")
        first, second = (len({pair[side] for pair in each.pairs}) for side in (0, 1))
        table.add_row(
            escape(each.label),
            _spread(each.arm),
            f"{'+' if each.difference > 0 else ''}{_number(each.difference)}",
            "-" if each.t is None else _interval(each.t),
            "-" if each.p_t is None else f"{each.p_t:.2g}",
            f"{each.p_permutation:.2g}",
            f"{first} pairs" if len(each.pairs) == first else f"{first}, {second}",
        )
    return table


def _cost_table(found: Comparison) -> Table:
    table = _table("What a training step takes", ["arm", "runs", "ms a step", "coupling", "share"])
    for cost in found.costs:
        share = f"{100 * cost.coupling_ms / cost.step_ms:.1f} %" if cost.step_ms else "-"
        table.add_row(
            escape(cost.label), str(cost.runs), _number(cost.step_ms), f"{_number(cost.coupling_ms)} ms", share
        )
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=escape(title), title_justify="left", box=None, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        if i == 0:
            table.add_column(column, overflow="fold", max_width=34)
        else:
            table.add_column(column, justify="right", no_wrap=True)
    return table


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def _interval(bounds: Interval) -> str:
    return f"{_number(bounds[0])} to {_number(bounds[1])}"


def _spread(values: tuple[float, float]) -> str:
    return f"{_number(values[0])} ± {_number(values[1])}"


def _arm(arms: Sequence[Arm], name: str | None) -> Arm:
    found = [arm for arm in arms if name in (None, arm.name)]
    if not found:
        raise ValueError(f"no arm named {name!r}; there are {[arm.name for arm in arms]}")
    return found[0]


def _first_metric(arm: Arm) -> str:
    chosen = json.loads(arm.config["evaluate.metrics"])
    return str(chosen[0]["use"]).rpartition(":")[2].lower()


def _csv(found: Comparison) -> bytes:
    rows, text = found.rows(), io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
