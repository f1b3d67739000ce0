"""Figures of a summary or a comparison, as bytes."""

import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any, Literal

import numpy as np

from immiscible_diffusion.report.compare import Comparison
from immiscible_diffusion.report.read_runs import Arm, Measured
from immiscible_diffusion.report.speedup import mean_bounds
from immiscible_diffusion.report.summary import Summary, counted
from immiscible_diffusion.report.uncertainty import spread

NAMES = {"frechet": "Fréchet", "frechet-pooled_pixels": "Fréchet pixel", "kernel-pooled_pixels": "kernel pixel"}
"""How metrics are written for people."""

__all__ = ["NAMES", "bounds_text", "compare_figure", "curves_figure", "ends_figure", "inspect_figure", "samples_figure"]

_COLOURS = ["#4d4d4d", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]
"""Grey for the reference, then the colour-blind safe palette of Okabe and Ito."""


def curves_figure(summary: Summary, metric: str) -> bytes:
    """Return distance against training steps as PNG, a panel for each number of sampling steps and group of arms."""
    panels = [(group, count) for group in summary.groups for count in summary.sampling_steps]
    columns = len(summary.sampling_steps) if len(summary.groups) > 1 else min(2, len(panels))
    rows = -(-len(panels) // columns)
    plt = _pyplot()
    figure, axes = plt.subplots(rows, columns, figsize=(5.2 * columns, 3.5 * rows), squeeze=False, sharex="row")
    colours, handles = _colours(summary), dict[str, Any]()
    lowest = min(value for m in summary.measured for curve in m.curves[metric].values() for _, value in curve)
    for axis, (group, count) in zip(axes.flat, panels, strict=False):
        for label in summary.labels:
            measured = summary.find(label, count)
            if measured is not None and summary.group(measured.arm) == group:
                name, style = _short(summary, measured), "--" if "," in label else "-"
                handles[name] = _draw(axis, measured.curves[metric], label, colours[measured.arm], style)
                if summary.reference(measured.arm) == label:
                    final, _ = spread(measured.final(metric).values())
                    axis.axhline(final, color=_COLOURS[0], linewidth=0.8, linestyle=":")
        axis.set_title(counted(count) + (f", {group}" if group else ""), fontsize=11)
        if lowest > 0:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(plt.matplotlib.ticker.FormatStrFormatter("%g"))
            axis.yaxis.set_minor_formatter(plt.matplotlib.ticker.FormatStrFormatter("%g"))
        axis.tick_params(which="both", labelsize=8)
        axis.grid(which="both", alpha=0.2)
    for axis in axes[-1]:
        axis.set_xlabel("training steps")
    for axis in axes[:, 0]:
        axis.set_ylabel(f"{NAMES.get(metric, metric)} distance to held-out data")
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    columns = min(len(handles), 4)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return _png(figure)


def ends_figure(summary: Summary, metric: str) -> bytes:
    """Return final distances as PNG: a row an arm, mean and one standard deviation over seeds, a panel as in curves.

    The dotted line is independent noise; hollow marks are the plain start.
    """
    panels = [(group, count) for group in summary.groups for count in summary.sampling_steps]
    columns = len(summary.sampling_steps)
    rows, plt = -(-len(panels) // columns), _pyplot()
    arms = len(summary.labels) // len(summary.groups)
    shape = (4.2 * columns, (0.26 * arms + 0.9) * rows)
    figure, axes = plt.subplots(rows, columns, figsize=shape, squeeze=False, sharey="row")
    colours = _colours(summary)
    for axis, (group, count) in zip(axes.flat, panels, strict=True):
        names = list[str]()
        for label in summary.labels:
            measured = summary.find(label, count)
            if measured is not None and summary.group(measured.arm) == group:
                middle, half = spread(measured.final(metric).values())
                hollow = {"markerfacecolor": "white"} if "," in label else {}
                axis.errorbar(middle, len(names), xerr=half, color=colours[measured.arm], fmt="o", capsize=3, **hollow)
                names.append(_short(summary, measured))
                if summary.reference(measured.arm) == label:
                    axis.axvline(middle, color=_COLOURS[0], linewidth=0.8, linestyle=":")
        axis.set_yticks(range(len(names)), names, fontsize=9)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_title(counted(count) + (f", {group}" if group else ""), fontsize=10)
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(axis="x", alpha=0.2)
    for axis in axes[-1]:
        axis.set_xlabel(f"{NAMES.get(metric, metric)} distance to held-out data")
    return _png(figure)


def samples_figure(summary: Summary, seed: int) -> bytes:
    """Return the arms' sample grids under the same initial noise as PNG: a row an arm, a column a number of steps."""
    from PIL import Image

    folders = {run["arm"]: run["folder"] for run in summary.index["runs"] if run["seed"] == seed}
    arms = list(dict.fromkeys((m.arm, m.start, m.label) for m in summary.measured))
    steps = summary.sampling_steps
    plt = _pyplot()
    figure, axes = plt.subplots(
        len(arms), len(steps), figsize=(2.5 * len(steps), 2.45 * len(arms) + 0.2), squeeze=False
    )
    for axis, count in zip(axes[0], steps, strict=True):
        axis.set_title(counted(count), fontsize=10)
    for row, (arm, start, label) in zip(axes, arms, strict=True):
        for axis, count in zip(row, steps, strict=True):
            path = summary.folder / folders.get(arm, "") / "samples" / f"steps-{count}-{start}.png"
            axis.set_xticks([])
            axis.set_yticks([])
            if path.is_file():
                with Image.open(path) as grid:
                    axis.imshow(np.asarray(grid), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        row[0].set_ylabel(label, fontsize=10)
    return _png(figure)


def inspect_figure(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return couplings side by side as PNG: what they gain against what they cost, and the law of their noise."""
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    for i, row in enumerate(rows):
        colour, marker = _COLOURS[i % len(_COLOURS)], "osD^v<>"[i // len(_COLOURS) % 7]
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
    return _png(figure)


def compare_figure(
    rows: Sequence[Comparison], reference: Arm, arms: Sequence[Arm], form: Literal["png", "svg"]
) -> bytes:
    """Return every arm's curve as PNG or SVG, a panel for each number of sampling steps, with its way to the target.

    Lines are means over seeds, bands one standard deviation. Both axes are logarithmic, so that equal ratios of
    training steps are equal lengths. The dotted line is the reference's final value, the marks on it are the mean steps
    at which all seeds of an arm had reached it, and the numbers are how much sooner that was than the reference's own.
    """
    plt = _pyplot()
    metric, panels = rows[0].metric, sorted({row.arm.sampling_steps for row in rows})
    columns = min(2, len(panels))
    shape = -(-len(panels) // columns), columns
    figure, axes = plt.subplots(*shape, figsize=(5.2 * columns, 3.7 * shape[0] + 0.3), squeeze=False)
    ordered = [reference, *(arm for arm in arms if arm is not reference)]
    colours = {arm.name: _COLOURS[i % len(_COLOURS)] for i, arm in enumerate(ordered)}
    for axis, count in zip(axes.flat, panels, strict=False):
        lowest = math.inf
        for arm in ordered:
            for measured in arm.measured:
                if measured.sampling_steps == count and metric in measured.curves:
                    curves, style = measured.curves[metric], "-" if measured.start == "matched" else "--"
                    _draw(axis, curves, measured.label, colours[arm.name], style)
                    lowest = min(lowest, *(value for curve in curves.values() for _, value in curve))
        axis.set_title(counted(count), fontsize=11)
        axis.set_xscale("log")
        axis.set_yscale("log" if lowest > 0 else "symlog")
        for each, subs in ((axis.xaxis, (1, 2, 5)), (axis.yaxis, (1, 1.5, 2, 3, 5, 7))):
            if each.get_scale() == "log":
                each.set_major_locator(plt.matplotlib.ticker.LogLocator(subs=subs))
            each.set_major_formatter(plt.matplotlib.ticker.FormatStrFormatter("%g"))
            each.set_minor_formatter(plt.matplotlib.ticker.NullFormatter())
        axis.tick_params(which="both", labelsize=8)
        axis.grid(which="both", alpha=0.2)
        for line, row in enumerate(row for row in rows if row.arm.sampling_steps == count):
            axis.axhline(row.target(), color=_COLOURS[0], linewidth=0.8, linestyle=":")
            _mark(axis, row, colours[row.arm.arm], line)
    for axis in list(axes.flat)[max(0, len(panels) - columns) : len(panels)]:
        axis.set_xlabel("training steps")
    for axis in axes[:, 0]:
        axis.set_ylabel(NAMES.get(metric, metric))
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False, fontsize=9)
    return _bytes(figure, form)


def bounds_text(bounds: tuple[float, float]) -> str:
    """Return a number of which bounds are known: as it is where they are equal, else with the sign of what it is.

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
    found, target = row.speedup(), row.target()
    high = mean_bounds(found.arm)[1]
    if math.isfinite(high):
        axis.plot([high], [target], marker="v", color=colour, markersize=6, zorder=3)
        bottom, top = axis.get_ylim()
        axis.vlines(high, bottom, target, color=colour, linewidth=0.8, linestyle=":")
        axis.set_ylim(bottom, top)
    text = f"{row.arm.label}: {bounds_text(found.bounds)} x"
    if found.arrived < len(row.pairs):
        text += f" ({found.arrived} of {len(row.pairs)} reached it)"
    axis.text(0.98, 0.97 - 0.06 * line, text, transform=axis.transAxes, ha="right", va="top", fontsize=8, color=colour)


def _short(summary: Summary, measured: Measured) -> str:
    """Return an arm's label within its group: that of its coupling."""
    point = next(run.get("point", {}) for run in summary.index["runs"] if run["arm"] == measured.arm)
    name = str(point.get("coupling", measured.arm)) if summary.group(measured.arm) else measured.arm
    return name if measured.start == "matched" else f"{name}, plain start"


def _draw(axis: Any, by_seed: Any, label: str, colour: str, style: str) -> Any:
    curves = list(by_seed.values())
    shared = sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))
    values = np.array([[dict(curve)[step] for step in shared] for curve in curves])
    middle, half = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(shared))
    axis.fill_between(
        shared, np.maximum(middle - half, middle / 10), middle + half, color=colour, alpha=0.15, linewidth=0
    )
    return axis.plot(shared, middle, style, color=colour, label=label, linewidth=1.6, marker="o", markersize=2.5)[0]


def _colours(summary: Summary) -> dict[str, str]:
    """Return a colour for each arm: grey for independent noise, the same for one coupling in every group."""
    points = {run["arm"]: run.get("point", {}).get("coupling", run["arm"]) for run in summary.index["runs"]}
    arms = list(dict.fromkeys(measured.arm for measured in summary.measured))
    couplings = sorted(dict.fromkeys(points[arm] for arm in arms), key=lambda name: name != "independent")
    return {arm: _COLOURS[couplings.index(points[arm]) % len(_COLOURS)] for arm in arms}


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'immiscible-diffusion[report]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import matplotlib.ticker

    plt.rcParams.update({"figure.constrained_layout.use": True, "axes.spines.top": False, "axes.spines.right": False})
    return plt


def _png(figure: Any) -> bytes:
    return _bytes(figure, "png")


def _bytes(figure: Any, form: Literal["png", "svg"]) -> bytes:
    """Return a figure's file; the same figure gives the same bytes, so nothing in it names a date."""
    buffer = BytesIO()
    plt = _pyplot()
    with plt.rc_context({"svg.hashsalt": "immiscible"}):
        figure.savefig(buffer, format=form, dpi=130, metadata={"Software": None} if form == "png" else {"Date": None})
    plt.close(figure)
    return buffer.getvalue()
