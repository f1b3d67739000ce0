"""Figures of a summary, as PNG bytes."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np

from immiscible_diffusion.analysis.summary import Summary, spread

NAMES = {"frechet": "Fréchet"}
"""How metrics are written for people."""

__all__ = ["NAMES", "curves_figure", "inspect_figure", "samples_figure"]

_COLOURS = ["#4d4d4d", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]
"""Grey for the reference, then the colour-blind safe palette of Okabe and Ito."""


def curves_figure(summary: Summary, metric: str) -> bytes:
    """Return distance against training steps as PNG, one panel for each number of sampling steps."""
    steps = summary.sampling_steps
    columns = min(2, len(steps))
    rows = -(-len(steps) // columns)
    plt = _pyplot()
    figure, axes = plt.subplots(rows, columns, figsize=(5.2 * columns, 3.5 * rows), squeeze=False, sharex=True)
    colours = _colours(summary)
    for axis, count in zip(axes.flat, steps, strict=False):
        for label in summary.labels:
            measured = summary.find(label, count)
            if measured is not None:
                _draw(axis, measured.curves[metric], label, colours[measured.arm], "--" if "," in label else "-")
        reference = summary.find("independent", count)
        if reference is not None:
            final, _ = spread(list(reference.final(metric).values()))
            axis.axhline(final, color=_COLOURS[0], linewidth=0.8, linestyle=":")
        axis.set_title(f"{count} sampling steps", fontsize=11)
        axis.set_yscale("log" if metric == "frechet" else "symlog")
        axis.yaxis.set_major_formatter(plt.matplotlib.ticker.FormatStrFormatter("%g"))
        axis.yaxis.set_minor_formatter(plt.matplotlib.ticker.FormatStrFormatter("%g"))
        axis.tick_params(which="both", labelsize=8)
        axis.grid(which="both", alpha=0.2)
    for axis in axes[-1]:
        axis.set_xlabel("training steps")
    for axis in axes[:, 0]:
        axis.set_ylabel(f"{NAMES.get(metric, metric)} distance to held-out data")
    for axis in list(axes.flat)[len(steps) :]:
        axis.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
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
        axis.set_title(f"{count} sampling steps", fontsize=10)
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


def _draw(axis: Any, by_seed: Any, label: str, colour: str, style: str) -> None:
    curves = list(by_seed.values())
    shared = sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))
    values = np.array([[dict(curve)[step] for step in shared] for curve in curves])
    middle, half = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(shared))
    axis.plot(shared, middle, style, color=colour, label=label, linewidth=1.6, marker="o", markersize=2.5)
    axis.fill_between(
        shared, np.maximum(middle - half, middle / 10), middle + half, color=colour, alpha=0.15, linewidth=0
    )


def _colours(summary: Summary) -> dict[str, str]:
    arms = list(dict.fromkeys(measured.arm for measured in summary.measured))
    ordered = sorted(arms, key=lambda arm: arm != "independent")
    return {arm: _COLOURS[i % len(_COLOURS)] for i, arm in enumerate(ordered)}


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
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    _pyplot().close(figure)
    return buffer.getvalue()
