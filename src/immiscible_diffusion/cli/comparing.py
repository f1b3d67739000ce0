"""The command that answers what pairing buys: training to reach what another arm reached, in steps and in seconds."""

import csv
import io
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from immiscible_diffusion.cli.options import out
from immiscible_diffusion.files import write_bytes
from immiscible_diffusion.report.compare import Comparison, flat_rows, notes
from immiscible_diffusion.report.compare import compare as compare_arms
from immiscible_diffusion.report.figures import bounds_text, compare_figure
from immiscible_diffusion.report.measures import metric_name
from immiscible_diffusion.report.read_runs import Arm, read_arms
from immiscible_diffusion.report.speedup import Speedup, Target, mean_bounds
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
    rows = compare_arms(first, arms, metric or _first_metric(first))
    for printed in comparison_tables(rows, arms):
        out.print(printed)
        out.print()
    for note in [*left_out, *notes(first, arms)]:
        out.print(f"Note: {escape(note)}", highlight=False)
    if table is not None:
        write_bytes(table, _csv(rows))
        out.print(f"Numbers: {escape(str(table))}", soft_wrap=True)
    if figure is not None:
        write_bytes(figure, compare_figure(rows, first, arms, "png" if figure.suffix == ".png" else "svg"))
        out.print(f"Figure: {escape(str(figure))}", soft_wrap=True)


def comparison_tables(rows: Sequence[Comparison], arms: Sequence[Arm]) -> list[Table]:
    """Return comparisons as tables for a terminal of 100 columns: training to two targets, final values, costs."""
    return [_target_table(rows, "final"), _target_table(rows, "best"), _final_table(rows), _cost_table(arms)]


def _target_table(rows: Sequence[Comparison], target: Target) -> Table:
    title = f"Training that B needs to reach the {target} {metric_name(rows[0].metric)} of A = {rows[0].reference.arm}"
    table = _table(title, ["B", "in", "A", "B", "reached", "A / B", "95 % (t)", "95 % (boot.)"])
    for row in _with_heads(table, rows, lambda first: _number(first.target(target))):
        table.add_row(escape(row.arm.label), "steps", *_speedup_cells(row.speedup(target)))
        seconds = row.seconds(target)
        table.add_row("", "s", *(["-"] * 6 if seconds is None else _speedup_cells(seconds)))
    return table


def _speedup_cells(gain: Speedup) -> Iterator[str]:
    yield bounds_text(mean_bounds(gain.reference))
    yield bounds_text(mean_bounds(gain.arm))
    yield f"{gain.arrived}/{len(gain.arm)}"
    yield f"{bounds_text(gain.bounds)}x"
    yield "one seed" if gain.interval is None and gain.ratio is not None else _interval(gain.interval)
    if gain.ratio is None:
        yield "not reached" if gain.arrived < len(gain.arm) else "first eval."
    else:
        yield _interval(gain.bootstrap)


def _final_table(rows: Sequence[Comparison]) -> Table:
    title = f"Last {metric_name(rows[0].metric)} of A = {rows[0].reference.arm} and of B"
    table = _table(title, ["B", "B's last", "B - A", "95 % (t)", "p (t)", "p (perm.)", "seeds"])
    for row in _with_heads(table, rows, lambda first: _spread(first.difference.reference)):
        last = row.difference
        seeds, arm_seeds = (len(set(side)) for side in zip(*row.pairs, strict=True))
        table.add_row(
            escape(row.arm.label),
            _spread(last.arm),
            f"{'+' if last.mean > 0 else ''}{_number(last.mean)}",
            _interval(last.interval),
            *("-" if p is None else f"{p:.2g}" for p in (last.p_t, last.p_permutation)),
            f"{seeds} pairs" if len(row.pairs) == seeds else f"{seeds}, {arm_seeds}",
        )
    return table


def _with_heads(table: Table, rows: Sequence[Comparison], value: Callable[[Comparison], str]) -> Iterator[Comparison]:
    """Yield comparisons, with a section and a line about A in the table before each number of sampling steps."""
    for count, same in itertools.groupby(rows, key=lambda row: row.arm.sampling_steps):
        first, *others = same
        table.add_section()
        table.add_row(f"[bold]{count} sampling steps: A {value(first)}[/bold]")
        yield from (first, *others)


def _cost_table(arms: Sequence[Arm]) -> Table:
    table = _table("What a training step takes", ["arm", "runs", "ms a step", "coupling", "share"])
    for arm in arms:
        if arm.pace is not None:
            step, percent = arm.pace.step_ms, arm.pace.coupling_percent
            coupling = f"{_number(step * percent / 100)} ms"
            table.add_row(escape(arm.name), str(len(arm.runs)), _number(step), coupling, f"{percent:.1f} %")
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


def _interval(bounds: Interval | None) -> str:
    """Return an interval as text; one that has a single end names it."""
    if bounds is None:
        return "-"
    low, high = (_number(bound) for bound in bounds)
    return f"from {low}" if math.isinf(bounds[1]) else f"to {high}" if bounds[0] == 0 else f"{low} to {high}"


def _spread(values: tuple[float, float]) -> str:
    return f"{_number(values[0])} ± {_number(values[1])}"


def _arm(arms: Sequence[Arm], name: str | None) -> Arm:
    chosen = [arm for arm in arms if name in (None, arm.name)]
    if not chosen:
        raise ValueError(f"no arm named {name!r}; there are {[arm.name for arm in arms]}")
    return chosen[0]


def _first_metric(arm: Arm) -> str:
    first = next((metric for measured in arm.measured for metric in measured.curves), None)
    if first is None:
        raise ValueError(f"{arm.name} holds no evaluation; name a run that was evaluated")
    return first


def _csv(comparisons: Sequence[Comparison]) -> bytes:
    rows, text = list(flat_rows(comparisons)), io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
