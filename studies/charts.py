"""Curves as inline SVG, made of recorded numbers alone; colours come from the page's style sheet."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from statistics import mean, stdev
from typing import Any

__all__ = ["chart", "dots"]

_WIDTH, _HEIGHT = 340, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 18, 10, 34
_ROW = 17


def chart(rows: Sequence[Mapping[str, Any]], classes: Mapping[str, str], title: str) -> str:
    """Return one panel: distance against training steps, a line (mean over seeds) and a band (one sd) for each row.

    Args:
        rows: recorded curves of one metric, number of sampling steps and group; ``by_seed`` and ``label`` are read.
        classes: label -> CSS class of its line.
        title: what the picture shows, for those who cannot see it.
    """
    lines = {str(row["label"]): _points(row["by_seed"]) for row in rows}
    steps = [step for points in lines.values() for step, _, _ in points]
    tops = [high for points in lines.values() for _, _, high in points]
    lows = [low for points in lines.values() for _, low, _ in points]
    log = min(lows) > 0
    x = _scale(min(0, *steps), max(steps), _LEFT, _WIDTH - _RIGHT, log=False)
    bottom, top = _around(min(lows), max(tops), log)
    y = _scale(bottom, top, _HEIGHT - _BOTTOM, _TOP, log=log)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}" class="chart">',
        f"<title>{escape(title)}</title>",
    ]
    for value in _ticks(bottom, top, log):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value)}" y2="{y(value)}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y(value)}" dy=".32em" text-anchor="end">{value:g}</text>')
    for value in sorted({*steps[:1], max(steps), _middle(steps)}):
        parts.append(f'<text x="{x(value)}" y="{_HEIGHT - _BOTTOM + 14}" text-anchor="middle">{value:,}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">training steps</text>')
    for label, points in lines.items():
        dash = " dashed" if label.endswith(", plain start") else ""
        arm = f'class="{classes[label]}{dash}" data-arm="{escape(label)}"'
        band = [f"{x(s)},{y(high)}" for s, _, high in points] + [f"{x(s)},{y(low)}" for s, low, _ in reversed(points)]
        line = [f"{x(s)},{y(_centre(low, high))}" for s, low, high in points]
        parts.append(f'<g {arm}><polygon class="band" points="{" ".join(band)}"/>')
        parts.append(f'<polyline points="{" ".join(line)}"/>')
        parts += [f'<circle cx="{point.partition(",")[0]}" cy="{point.partition(",")[2]}" r="2"/>' for point in line]
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def dots(rows: Sequence[Mapping[str, Any]], classes: Mapping[str, str], title: str) -> str:
    """Return one panel: the last distance of each row, a mark (mean over seeds) and a bar (one sd either way).

    Args:
        rows: as of ``chart``.
        classes: label -> CSS class of its mark.
        title: what the picture shows, for those who cannot see it.
    """
    ends = {str(row["label"]): _points(row["by_seed"])[-1][1:] for row in rows}
    height, left = _TOP + _ROW * len(ends) + _BOTTOM, 10 + 5.4 * max(len(label) for label in ends)
    bottom, top = _around(min(low for low, _ in ends.values()), max(high for _, high in ends.values()), log=False)
    x = _scale(bottom, top, left, _WIDTH - _RIGHT, log=False)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}" class="chart">',
        f"<title>{escape(title)}</title>",
    ]
    floor = _TOP + _ROW * len(ends)
    for value in _ticks(bottom, top, log=False):
        parts.append(f'<line class="grid" x1="{x(value)}" x2="{x(value)}" y1="{_TOP}" y2="{floor}"/>')
        parts.append(f'<text x="{x(value)}" y="{floor + 14}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text x="{(left + _WIDTH) / 2}" y="{height - 4}" text-anchor="middle">distance at the end</text>')
    for i, (label, (low, high)) in enumerate(ends.items()):
        y, fill = _TOP + _ROW * (i + 0.5), ' style="fill-opacity: .25"' if label.endswith(", plain start") else ""
        parts.append(f'<g class="{classes[label]}" data-arm="{escape(label)}">')
        parts.append(f'<text x="{left - 5}" y="{y}" dy=".32em" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<polyline points="{x(low)},{y} {x(high)},{y}"/>')
        parts.append(f'<circle cx="{x(_centre(low, high))}" cy="{y}" r="3.5"{fill}/></g>')
    return "".join([*parts, "</svg>"])


def _points(by_seed: Mapping[str, Sequence[Sequence[float]]]) -> list[tuple[int, float, float]]:
    """Return (step, mean - sd, mean + sd) at the steps that every seed was measured at."""
    curves = [{int(step): value for step, value in curve} for curve in by_seed.values()]
    found = []
    for step in sorted(set.intersection(*(set(curve) for curve in curves))):
        values = [curve[step] for curve in curves]
        half = stdev(values) if len(values) > 1 else 0.0
        centre = mean(values)
        half = min(half, 0.9 * abs(centre))  # a band that reaches 0 has no place on a logarithmic axis
        found.append((step, centre - half, centre + half))
    return found


def _centre(low: float, high: float) -> float:
    return (low + high) / 2


def _scale(first: float, last: float, begin: float, end: float, *, log: bool) -> Any:
    a, b = (math.log(first), math.log(last)) if log else (first, last)
    width = (b - a) or 1.0
    return lambda value: round(begin + ((math.log(value) if log else value) - a) / width * (end - begin), 1)


def _around(low: float, high: float, log: bool) -> tuple[float, float]:
    if log:
        return low / 1.08, high * 1.08
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """Return round values within the axis, four or so.

    >>> _ticks(0.25, 1.2, True), _ticks(-0.1, 2.2, False), _ticks(0.34, 0.64, True)
    ([0.3, 0.5, 0.7, 1.0], [0, 1, 2], [0.4, 0.5, 0.6])
    """
    if log and high / low > 3:
        found = [m * 10.0**e for e in range(-9, 9) for m in (1, 2, 3, 5, 7) if low <= m * 10.0**e <= high]
        return [round(value, 12) for value in (found if len(found) < 6 else found[:: -(-len(found) // 5)])]
    step = 10 ** math.floor(math.log10(high - low))
    step = next(s for s in (step / 5, step / 2, step, 2 * step, 5 * step) if (high - low) / s <= 4)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _middle(steps: Sequence[int]) -> int:
    ordered = sorted(set(steps))
    return ordered[len(ordered) // 2]
