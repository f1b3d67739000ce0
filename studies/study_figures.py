"""Figures of the papers other than curves, as bytes: how noise is mixed, and a net's predictions from noise."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from immiscible_diffusion.diagnostics.miscibility import leading_plane, paths
from immiscible_diffusion.report.drawing import COLOURS, figure_bytes, pyplot
from studies.denoising import DenoisingResult
from studies.levels import ByLevel
from studies.perturbation import PerturbationResult

__all__ = ["denoising_figure", "dimension_figure", "levels_figure", "miscibility_figure", "perturbation_figure"]

_LEAVES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d", "#8c564b", "#bcbd22", "#7f3c8d"]
"""The palette of the other figures, longer: a colour a cluster or class."""


def miscibility_figure(panels: Sequence[tuple[str, Mapping[str, tuple[Tensor, Tensor, Tensor]]]]) -> bytes:
    """Return the ways of data to their noise as WebP, a row a data set, a column a coupling (arXiv:2406.12303, Fig. 2).

    A line is the path of one datum; squares are data, points are noise, colours are clusters or classes. All are seen
    in the plane in which the data vary most, the same for all couplings. A line is the way that flow matching trains
    on, from datum to noise. Images vary far more than noise in their plane, where it would be one dot: data of more
    than two dimensions are drawn with a deviation of sqrt(2) along either axis, and noise as it is.

    Args:
        panels: the data set's title, and coupling -> (data in model space, their noise, their cluster (b,)).

    Raises:
        ValueError: nothing to draw.
    """
    if not panels or not all(pairs for _, pairs in panels):
        raise ValueError("the picture of miscibility needs a data set and a coupling at least")
    plt = pyplot()
    columns = max(len(pairs) for _, pairs in panels)
    figure, axes = plt.subplots(len(panels), columns, figsize=(3.6 * columns, 3.7 * len(panels)), squeeze=False)
    for row, (title, pairs) in zip(axes, panels, strict=True):
        seen = {name: (*_seen(x, noise), cluster) for name, (x, noise, cluster) in pairs.items()}
        reach = max(float(points.abs().max()) for x, noise, _ in seen.values() for points in (x, noise))
        for axis, (name, (x, noise, cluster)) in zip(row, seen.items(), strict=False):
            _draw_paths(axis, paths(x, noise), cluster)
            axis.set_title(name, fontsize=10)
            axis.set(xlim=(-1.05 * reach, 1.05 * reach), ylim=(-1.05 * reach, 1.05 * reach), xticks=[], yticks=[])
            axis.set_aspect("equal")
        for axis in row[len(pairs) :]:
            axis.set_visible(False)
        row[0].set_ylabel(title, fontsize=10)
    return figure_bytes(figure, "webp")


def dimension_figure(rows: Sequence[Mapping[str, Any]], gains: Sequence[Mapping[str, Any]] = ()) -> bytes:
    """Return what assignment changes by the number of coordinates, as SVG: distances of pairs, quality of samples.

    Args:
        rows: ``data``, ``d``, ``batch`` and ``percent`` of each data set, as ``dimension.nearness`` reads them.
        gains: ``latents``, ``d``, ``sampling_steps``, ``percent``, ``low`` and ``high``, as
            ``dimension.gains_by_dimension`` does; without any there is no second panel.

    Raises:
        ValueError: nothing to draw.
    """
    if not rows:
        raise ValueError("the picture of dimensions needs a record at least: results/ or benchmarks/results/")
    plt = pyplot()
    figure, axes = plt.subplots(1, 2 if gains else 1, figsize=(12 if gains else 7, 3.6), squeeze=False)
    _draw_nearness(axes[0, 0], rows)
    if gains:
        _draw_gains(axes[0, 1], gains)
    return figure_bytes(figure, "svg")


def _draw_nearness(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    for i, row in enumerate(rows):
        axis.plot(row["percent"], i, "o", color=COLOURS[1], zorder=3)
        axis.annotate(f"{row['percent']:.3g} %", (row["percent"], i), (7, -3), textcoords="offset points", fontsize=8)
    names = [f"{row['data']}: {row['d']:,} numbers, batch {row['batch']}" for row in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=8)
    axis.set_title("How much nearer pairs come", fontsize=10)
    axis.set(xscale="log", xlabel="pairs nearer by, %", xlim=(0.4, 28), ylim=(len(rows) - 0.5, -0.5))
    axis.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    axis.xaxis.set_minor_locator(pyplot().matplotlib.ticker.NullLocator())
    axis.grid(alpha=0.3)


def _draw_gains(axis: Any, gains: Sequence[Mapping[str, Any]]) -> None:
    counts = sorted({row["sampling_steps"] for row in gains})
    for i, (count, colour) in enumerate(zip(counts, itertools.cycle(COLOURS), strict=False)):
        for latents, style in ((False, "o-"), (True, "s")):
            line = [row for row in gains if row["sampling_steps"] == count and row["latents"] == latents]
            x = [row["d"] * 1.06 ** (i - (len(counts) - 1) / 2) for row in line]  # beside each other, to be told apart
            middle = [row["percent"] for row in line]
            reach = [[row["percent"] - row["low"] for row in line], [row["high"] - row["percent"] for row in line]]
            label = None if latents else str(count)
            axis.errorbar(x, middle, reach, fmt=style, color=colour, markersize=3.5, linewidth=1.3, label=label)
    if any(row["latents"] for row in gains):
        axis.plot([], [], "s", color="grey", markersize=3.5, label="as latents")
    sizes = sorted({row["d"] for row in gains if not row["latents"]})
    axis.axhline(0, color="black", linewidth=0.7, linestyle=":")
    axis.set_title("How much better samples are (bars: 95 %)", fontsize=10)
    axis.set(xscale="log", xlabel="numbers in an image", ylabel="change of the Fréchet distance, %\n(below 0: better)")
    axis.set_xticks(sizes, [f"{d:,}" for d in sizes])
    axis.xaxis.set_minor_locator(pyplot().matplotlib.ticker.NullLocator())
    axis.legend(title="sampling steps", frameon=False, fontsize=8, title_fontsize=8)
    axis.grid(alpha=0.3)


def denoising_figure(arms: Mapping[str, Sequence[DenoisingResult]], *, images: int = 8) -> bytes:
    """Return what each arm's net makes of noise as WebP (arXiv:2406.12303, Fig. 3).

    On the left the clean images that it predicts from pure noise, and below them the samples of the same noise, of the
    first run; on the right its error by noise level, over runs: mean and one standard deviation.

    Args:
        arms: name -> its runs.
        images: how many of their images are drawn.

    Raises:
        ValueError: no arms, or one without runs.
    """
    if not arms or not all(arms.values()):
        raise ValueError("the figure of denoising needs an arm, and a run of each")
    plt = pyplot()
    figure = plt.figure(figsize=(12, max(4.0, 2.0 * len(arms))))
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    rows = left.subplots(len(arms), 1, squeeze=False)[:, 0]
    for axis, (name, runs) in zip(rows, arms.items(), strict=True):
        both = [
            torch.cat(list(pictures[:images]), dim=2).permute(1, 2, 0)
            for pictures in (runs[0].guesses, runs[0].samples)
        ]
        axis.imshow(np.concatenate([strip.numpy() for strip in both]).squeeze(), cmap="gray", vmin=0, vmax=255)
        axis.set(xticks=[], yticks=[])
        spread = np.mean([run.spread for run in runs])
        axis.set_title(f"{name}: predicted from pure noise, sampled (spread {spread:.3f})", fontsize=9, loc="left")
        for side in axis.spines.values():
            side.set_visible(False)
    panels = right.subplots(2, 1, sharex=True, sharey=True)
    for axis, kind in zip(panels, ("coupled", "independent"), strict=True):
        for colour, (name, runs) in zip(COLOURS, arms.items(), strict=False):
            _draw_errors(axis, runs, kind, name, colour)
        axis.axhline(1, color="black", linewidth=0.7, linestyle=":")
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(plt.matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(plt.matplotlib.ticker.FormatStrFormatter("%g"))
        axis.yaxis.set_minor_formatter(plt.matplotlib.ticker.NullFormatter())
        axis.set_title(
            f"held-out data with {'its own coupling' if kind == 'coupled' else 'independent noise'}", fontsize=9
        )
        axis.set_ylabel("error (1: the mean of the data)", fontsize=8)
        axis.grid(which="both", alpha=0.2)
        axis.tick_params(which="both", labelsize=8)
    panels[-1].set_xlabel("t (1 is pure noise)", fontsize=9)
    panels[0].legend(frameon=False, fontsize=8)
    return figure_bytes(figure, "webp")


def levels_figure(groups: Mapping[str, Mapping[str, Sequence[ByLevel]]]) -> bytes:
    """Return error and loss of consistency training by noise level as WebP, a column a group, a line a coupling.

    Lines are means over runs, bands one standard deviation.

    Args:
        groups: the recipe's name -> the coupling's name -> its runs.

    Raises:
        ValueError: no runs.
    """
    if not groups or not all(runs for arms in groups.values() for runs in arms.values()):
        raise ValueError("the figure of noise levels needs a run of each arm")
    plt = pyplot()
    figure, axes = plt.subplots(
        2, len(groups), figsize=(2.2 + 2.2 * len(groups), 4.6), squeeze=False, sharex=True, sharey="row"
    )
    for column, (title, arms) in zip(axes.T, groups.items(), strict=True):
        column[0].set_title(title, fontsize=10)
        column[-1].set_xlabel("noise level, sigma", fontsize=9)
        for axis, quantity in zip(column, ("error", "loss"), strict=True):
            for colour, (name, runs) in zip(COLOURS, arms.items(), strict=False):
                values = np.array([getattr(run, quantity) for run in runs])
                middle, half = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
                axis.plot(runs[0].sigmas, middle, color=colour, label=name, marker="o", markersize=2.5, linewidth=1.5)
                axis.fill_between(runs[0].sigmas, middle - half, middle + half, color=colour, alpha=0.15)
            axis.set_xscale("log")
            axis.set_xticks([0.1, 1, 10, 80], ["0.1", "1", "10", "80"])
            axis.grid(alpha=0.2)
            axis.tick_params(labelsize=8)
    for axis, text in zip(axes[:, 0], ("error (1: the mean of the data)", "distance to the level below"), strict=True):
        axis.set_ylabel(text, fontsize=9)
    axes[1, 0].set_yscale("log")
    axes[1, 0].set_yticks([0.01, 0.03, 0.1, 0.3], ["0.01", "0.03", "0.1", "0.3"])
    for axis in axes.flat:
        for scaled in (axis.xaxis, axis.yaxis):
            scaled.set_minor_locator(plt.matplotlib.ticker.NullLocator())
    axes[0, 0].legend(frameon=False, fontsize=8)
    return figure_bytes(figure, "webp")


def perturbation_figure(arms: Mapping[str, Sequence[PerturbationResult]]) -> bytes:
    """Return the images of a noise that is changed more and more as WebP, a row an arm, and the change beside them.

    Args:
        arms: name -> its runs; images are those of the first, the change is the mean over runs with its deviation.

    Raises:
        ValueError: no arms, or one without runs.
    """
    if not arms or not all(arms.values()):
        raise ValueError("the figure of perturbed noise needs an arm, and a run of each")
    plt = pyplot()
    figure = plt.figure(figsize=(11, max(3.2, 1.0 * len(arms) + 0.6)))
    left, right = figure.subfigures(1, 2, width_ratios=(1.2, 1))
    for axis, (name, runs) in zip(left.subplots(len(arms), 1, squeeze=False)[:, 0], arms.items(), strict=True):
        axis.imshow(torch.cat(list(runs[0].images), dim=2).permute(1, 2, 0).numpy().squeeze(), cmap="gray")
        weights = [0.0, *runs[0].weights]
        side = runs[0].images.shape[-1]
        axis.set_xticks([(i + 0.5) * side for i in range(len(weights))], [f"{w:g}" for w in weights], fontsize=8)
        axis.set_yticks([])
        axis.set_title(name, fontsize=9, loc="left")
    axis = right.subplots()
    for colour, (name, runs) in zip(itertools.cycle(COLOURS), arms.items(), strict=False):
        values = np.array([run.change for run in runs])
        half = values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
        axis.errorbar(runs[0].weights, values.mean(0), half, color=colour, label=name, marker="o", markersize=3)
    axis.set(xlabel="weight of the added noise", ylabel="change of the image (1: another image)")
    axis.grid(alpha=0.2)
    axis.legend(frameon=False, fontsize=8)
    return figure_bytes(figure, "webp")


def _draw_errors(axis: Any, runs: Sequence[DenoisingResult], kind: str, name: str, colour: str) -> None:
    values = np.array([getattr(run, kind) for run in runs])
    middle, half = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
    axis.plot(runs[0].times, middle, color=colour, label=name, marker="o", markersize=2.5, linewidth=1.5)
    axis.fill_between(runs[0].times, np.maximum(middle - half, middle / 10), middle + half, color=colour, alpha=0.15)


def _draw_paths(axis: Any, ways: Tensor, cluster: Tensor) -> None:
    for i in range(ways.shape[1]):
        colour = _LEAVES[int(cluster[i]) % len(_LEAVES)]
        way = ways[:, i].numpy()
        axis.plot(way[:, 0], way[:, 1], color=colour, linewidth=0.5, alpha=0.45)
        axis.plot(*way[0], "s", color=colour, markersize=3)
        axis.plot(*way[-1], "o", color=colour, markersize=2.2, alpha=0.8)


def _seen(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return data and noise in the plane in which the data vary most, (b, 2) each; see ``miscibility_figure``."""
    mean, plane = leading_plane(x)
    data = (x.flatten(1).float().cpu() - mean) @ plane.T
    scale = 2**0.5 / data.std(0) if mean.numel() > 2 else 1.0
    return data * scale, noise.flatten(1).float().cpu() @ plane.T
