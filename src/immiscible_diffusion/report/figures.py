"""Figures of a record, of a comparison and of couplings, as the bytes of a file."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from immiscible_diffusion.report.compare import Comparison
from immiscible_diffusion.report.drawing import COLOURS, figure_bytes, pyplot
from immiscible_diffusion.report.measures import metric_label, metric_name
from immiscible_diffusion.report.read_runs import Arm
from immiscible_diffusion.report.sentences import counted, measured_once
from immiscible_diffusion.report.speedup import mean_bounds
from immiscible_diffusion.report.uncertainty import spread

__all__ = ["bounds_text", "compare_figure", "distance_figure", "inspect_figure"]

Line = tuple[str, Mapping[Any, Sequence[Sequence[float]]], str, str]
"""One line of a panel: label, seed -> [(training step, value), ...], colour, line style."""


def distance_figure(numbers: Mapping[str, Any]) -> bytes:
    """Return a record's first metric as SVG, a panel for each group of arms and number of sampling steps.

    Curves: mean over seeds against training steps, with a band of one standard deviation; the dotted line is the final
    value of independent noise. Sampling steps that were measured once, at the end of training, have no curve. An
    experiment without curves has a row an arm instead: mean and one standard deviation; hollow marks are the plain
    start.

    Args:
        numbers: a record with curves, ``summary.json`` of format 2.
    """
    metric = numbers["metrics"][0]
    rows = [row for row in numbers["curves"] if row["metric"] == metric]
    groups, counts = (list(dict.fromkeys(row[key] for row in rows)) for key in ("group", "sampling_steps"))
    once = measured_once(rows)
    panels = {
        counted(count) + (f", {group}" if group else ""): same
        for group in groups
        for count in sorted(counts)
        if (same := [row for row in rows if (row["group"], row["sampling_steps"]) == (group, count)])
        and (once or not measured_once(same))
    }
    counts = sorted({row["sampling_steps"] for same in panels.values() for row in same})
    columns = len(counts) if len(groups) > 1 or once else min(2 if len(counts) == 4 else 3, len(counts))
    references = {row["reference"] for row in numbers["finals"] if "reference" in row}
    label = metric_label(next(iter(numbers["configurations"].values())), metric)
    colours, names = _colours(numbers), _names(numbers)
    if once:
        return _ends(panels, columns, label, colours, names, references)
    lines = {
        title: [_line(names[row["label"]], row, colours[row["arm"]]) for row in same] for title, same in panels.items()
    }
    figure, axes = _curve_panels(lines, columns, label)
    for axis, same in zip(axes.values(), panels.values(), strict=True):
        for row in same:
            if row["label"] in references:
                axis.axhline(_final(row)[0], color=COLOURS[0], linewidth=0.8, linestyle=":")
    return figure_bytes(figure, "svg")


def _ends(
    panels: Mapping[str, Sequence[Mapping[str, Any]]],
    columns: int,
    label: str,
    colours: Mapping[str, str],
    names: Mapping[str, str],
    references: set[str],
) -> bytes:
    rows, arms = -(-len(panels) // columns), max(len(same) for same in panels.values())
    shape = (1.3 + 3.4 * columns, (0.26 * arms + 0.9) * rows)
    figure, axes = pyplot().subplots(rows, columns, figsize=shape, squeeze=False, sharey="row")
    for axis, (title, same) in zip(axes.flat, panels.items(), strict=False):
        for i, row in enumerate(same):
            middle, half = _final(row)
            hollow = {"markerfacecolor": "white"} if row["start"] != "matched" else {}
            axis.errorbar(middle, i, xerr=half, color=colours[row["arm"]], fmt="o", linewidth=1.8, **hollow)
            if row["label"] in references:
                axis.axvline(middle, color=COLOURS[0], linewidth=0.8, linestyle=":")
        axis.set_yticks(range(len(same)), [names[row["label"]] for row in same], fontsize=9)
        axis.set_ylim(len(same) - 0.5, -0.5)
        axis.set_title(title, fontsize=10)
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(axis="x", alpha=0.2)
    for axis in axes[-1]:
        axis.set_xlabel(label, fontsize=9)
    return figure_bytes(figure, "svg")


def inspect_figure(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return couplings side by side as PNG: what they gain against what they cost, and the variance of their noise."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    for i, row in enumerate(rows):
        colour, marker = COLOURS[i % len(COLOURS)], "osD^v<>"[i // len(COLOURS) % 7]
        left.plot(
            row["milliseconds"], row["distance_reduction_percent"], marker, color=colour, label=row["coupling"], ms=8
        )
        right.plot(range(1, len(row["principal_variance"]) + 1), row["principal_variance"], color=colour, linewidth=1.4)
    left.set_xscale("log")
    left.set_xlabel("milliseconds a batch")
    left.set_ylabel("distance reduction, %")
    right.axhline(1, color="black", linewidth=0.7, linestyle=":")
    right.set_xlabel("principal direction of the data")
    right.set_ylabel("variance of the noise (1: standard normal)")
    for axis in (left, right):
        axis.grid(alpha=0.2)
    figure.legend(loc="outside lower center", ncols=min(len(rows), 5), frameon=False, fontsize=9)
    return figure_bytes(figure, "png")


def compare_figure(
    rows: Sequence[Comparison], reference: Arm, arms: Sequence[Arm], form: Literal["png", "svg"]
) -> bytes:
    """Return every arm's curve as PNG or SVG, a panel for each number of sampling steps, with its way to the target.

    Lines are means over seeds, bands one standard deviation. The dotted line is the reference's final value, the marks
    on it are the mean steps at which all seeds of an arm had reached it, and the numbers are the ratio of the
    reference's steps to the arm's.
    """
    metric, counts = rows[0].metric, sorted({row.arm.sampling_steps for row in rows})
    ordered = [reference, *(arm for arm in arms if arm is not reference)]
    colours = {arm.name: COLOURS[i % len(COLOURS)] for i, arm in enumerate(ordered)}
    panels: dict[str, list[Line]] = {
        counted(count): [
            (measured.label, measured.curves[metric], colours[arm.name], "-" if measured.start == "matched" else "--")
            for arm in ordered
            for measured in arm.measured
            if measured.sampling_steps == count and metric in measured.curves
        ]
        for count in counts
    }
    figure, axes = _curve_panels(panels, min(2, len(panels)), metric_name(metric))
    for count, axis in zip(counts, axes.values(), strict=True):
        for i, row in enumerate(row for row in rows if row.arm.sampling_steps == count):
            axis.axhline(row.target(), color=COLOURS[0], linewidth=0.8, linestyle=":")
            _mark(axis, row, colours[row.arm.arm], i)
    return figure_bytes(figure, form)


def bounds_text(bounds: tuple[float, float]) -> str:
    """Format a bounded number: the value, `>= low`, `<= high` or `low-high`.

    >>> [bounds_text(each) for each in ((2.0, 2.0), (250.0, math.inf), (0.0, 0.85), (4.0, 6.0), (0.0, math.inf))]
    ['2.00', '≥ 250', '≤ 0.850', '4.00-6.00', '?']
    """
    low, high = (f"{value:.0f}" if value >= 100 else f"{value:#.3g}" for value in bounds)
    if bounds[0] == bounds[1]:
        return low
    if math.isinf(bounds[1]):
        return f"≥ {low}" if bounds[0] > 0 else "?"
    return f"≤ {high}" if bounds[0] == 0 else f"{low}-{high}"


def _mark(axis: Any, row: Comparison, colour: str, line: int) -> None:
    """Draw where an arm was at the target, if all its seeds were, and write its ratio as one line of the panel."""
    gain, target = row.speedup(), row.target()
    high = mean_bounds(gain.arm)[1]
    if math.isfinite(high):
        axis.plot([high], [target], marker="v", color=colour, markersize=6, zorder=3)
        bottom, top = axis.get_ylim()
        axis.vlines(high, bottom, target, color=colour, linewidth=0.8, linestyle=":")
        axis.set_ylim(bottom, top)
    text = f"{row.arm.label}: {bounds_text(gain.bounds)} x"
    if gain.arrived < len(row.pairs):
        text += f" ({gain.arrived} of {len(row.pairs)} reached it)"
    axis.text(0.98, 0.97 - 0.06 * line, text, transform=axis.transAxes, ha="right", va="top", fontsize=8, color=colour)


def _curve_panels(panels: Mapping[str, Sequence[Line]], columns: int, label: str) -> tuple[Any, dict[str, Any]]:
    """Return a figure of curves over training steps, and its axes by title; equal ratios of steps are equal lengths."""
    plt = pyplot()
    rows = -(-len(panels) // columns)
    shape = (min(5.2, 13 / columns) * columns, 3.4 * rows + 0.3)
    figure, axes = plt.subplots(rows, columns, figsize=shape, squeeze=False)
    handles = dict[str, Any]()
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=False):
        for name, curves, colour, style in lines:
            handles[name] = _draw(axis, curves, name, colour, style)
        values = [value for _, curves, _, _ in lines for curve in curves.values() for _, value in curve]
        axis.set_title(title, fontsize=11)
        for scaled, positive in ((axis.xaxis, True), (axis.yaxis, min(values, default=1) > 0)):
            if positive:
                _log_scale(scaled)
        steps = sorted({step for _, curves, _, _ in lines for curve in curves.values() for step, _ in curve})
        axis.set_xticks([*(tick for tick in axis.get_xticks() if steps[0] <= tick < steps[-1] / 1.3), steps[-1]])
        axis.tick_params(which="both", labelsize=8)
        axis.grid(alpha=0.2)
        axis.set_xlabel("training steps" if axis in list(axes.flat)[max(0, len(panels) - columns) :] else "")
    for axis in axes[:, 0]:
        axis.set_ylabel(label, fontsize=9)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    columns = min(len(handles), 4)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure, dict(zip(panels, axes.flat, strict=False))


def _log_scale(scaled: Any) -> None:
    """Make an axis logarithmic, with about five round numbers on it."""
    ticker = pyplot().matplotlib.ticker
    scaled._set_axes_scale("log")
    low, high = scaled.get_view_interval()
    wide = ticker.LogLocator(subs=(1, 2, 5) if high / low > 15 else (1, 1.5, 2, 3, 5, 7))
    scaled.set_major_locator(wide if high / low > 4 else ticker.MaxNLocator(5, steps=(1, 2, 5, 10)))
    scaled.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:g}")
    scaled.set_minor_locator(ticker.NullLocator())


def _draw(axis: Any, by_seed: Mapping[Any, Any], label: str, colour: str, style: str) -> Any:
    curves = list(by_seed.values())
    shared = sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))
    values = np.array([[dict(curve)[step] for step in shared] for curve in curves])
    middle, half = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(shared))
    axis.fill_between(
        shared, np.maximum(middle - half, middle / 10), middle + half, color=colour, alpha=0.15, linewidth=0
    )
    return axis.plot(shared, middle, style, color=colour, label=label, linewidth=1.6, marker="o", markersize=2.5)[0]


def _line(name: str, row: Mapping[str, Any], colour: str) -> Line:
    return name, row["by_seed"], colour, "-" if row["start"] == "matched" else "--"


def _final(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return mean and standard deviation of the last values over seeds."""
    return spread([curve[-1][1] for curve in row["by_seed"].values()])


def _names(numbers: Mapping[str, Any]) -> dict[str, str]:
    """Return each label as it stands within its group: by its coupling, where the panel's title names the rest."""
    points = {run["arm"]: run.get("point", {}) for run in numbers["runs"]}
    rows = {row["label"]: row for row in numbers["curves"]}
    return {
        label: str(points[row["arm"]].get("coupling", row["arm"])) + ", plain start" * (row["start"] != "matched")
        if row["group"]
        else label
        for label, row in rows.items()
    }


def _colours(numbers: Mapping[str, Any]) -> dict[str, str]:
    """Return a colour for each arm: grey for independent noise, the same for one coupling in every group."""
    couplings = {run["arm"]: str(run.get("point", {}).get("coupling", run["arm"])) for run in numbers["runs"]}
    ordered = sorted(dict.fromkeys(couplings.values()), key=lambda name: name != "independent")
    return {arm: COLOURS[ordered.index(name) % len(COLOURS)] for arm, name in couplings.items()}
