"""The report of an experiment: tables, figures and one self-contained page, made of what the run folders hold."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from immiscible_diffusion.files import write_bytes, write_json
from immiscible_diffusion.report.figures import NAMES, curves_figure, ends_figure, samples_figure
from immiscible_diffusion.report.record import finals, pace, record, speedups
from immiscible_diffusion.report.sentences import final_cells, findings, number, speedup_cells
from immiscible_diffusion.report.summary import Summary, read_summary

__all__ = ["inspect_table", "report", "terminal_tables"]


def report(folder: Path) -> Path:
    """Write ``report.html``, ``summary.json`` and ``figures/*.png`` into an experiment's folder; return the page.

    Raises:
        ValueError: the folder holds no finished run.
    """
    summary = read_summary(folder)
    seed = min(run["seed"] for run in summary.index["runs"] if run["folder"] not in summary.unfinished)
    draw, name = (ends_figure, "ends") if summary.measured_once else (curves_figure, "curves")
    figures = {f"{name}-{metric}": draw(summary, metric) for metric in summary.metrics}
    figures["samples"] = samples_figure(summary, seed)
    for name, png in figures.items():
        write_bytes(folder / "figures" / f"{name}.png", png)
    numbers = record(summary)
    write_json(folder / "summary.json", numbers)
    page = _page(summary, numbers, figures, seed)
    write_bytes(folder / "report.html", page.encode())
    return folder / "report.html"


def terminal_tables(summary: Summary, metric: str) -> list[Table]:
    """Return the speed-ups, or the ends where there are no curves, and the couplings' own figures for a terminal."""
    name = NAMES.get(metric, metric)
    if summary.measured_once:
        columns: Sequence[str] = ("coupling", "sampling", "mean ± s.d.", "difference", "p")
        cells = [final_cells(row) for row in finals(summary, metric)]
        first = _table(f"Final {name} distance", columns, cells)
    else:
        columns = ("coupling", "sampling", "target", "indep.", "steps", "speed-up", "95 % interval")
        cells = [speedup_cells(row) for row in speedups(summary, metric)]
        first = _table(f"Training steps to the independent arm's final {name} distance", columns, cells)
    pairs = [pair["cells"] for pair in _pair_rows(summary)]
    columns = ("coupling", "distance", "mean noise²", "ms a batch", "share of a step")
    return [first, _table("What each coupling does to its pairs", columns, pairs)]


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column == "coupling" else "right")
    for row in rows:
        table.add_row(*row)
    return table


def inspect_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return what ``analysis.inspect`` measured as a table for a terminal."""
    table = Table(title="Couplings on these data", title_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in ("coupling", "distance", "cosine", "noise²", "shift", "KL, nat", "class leak", "ms", "of it cost"):
        table.add_column(column, justify="left" if column == "coupling" else "right", overflow="fold")
    for row in rows:
        leak = row["leak"]
        table.add_row(
            row["coupling"],
            f"{0 - round(row['distance_reduction_percent'], 2):+.2f} %",
            f"{row['cosine']:.3f}",
            f"{row['noise_square']:.3f}",
            f"{row['shift']:.2f}",
            f"{row['kl']:.2f}",
            "-" if leak is None else f"{100 * leak['accuracy']:.0f} ({100 * leak['chance']:.0f}) %",
            f"{row['milliseconds']:.2f}",
            "-" if row["cost_ms"] is None else f"{row['cost_ms']:.2f}",
        )
    table.caption = (
        "shift: mean along x/|x|; KL from N(0, I) in the data's leading directions; leak: a probe's accuracy (chance)"
    )
    return table


def _pair_rows(summary: Summary) -> list[dict[str, Any]]:
    rows = []
    for arm in dict.fromkeys(run["arm"] for run in summary.index["runs"]):
        pair = summary.pairs[arm]
        found = pace(summary, arm)
        share = None if found is None else found["coupling_percent"]
        cells = [
            arm,
            f"{0 - round(pair['distance_reduction_percent'], 2):+.2f} %",
            f"{pair['noise_square']:.3f}",
            f"{pair['milliseconds']:.2f}",
            "-" if share is None else f"{share:.1f} %",
        ]
        rows.append({"arm": arm, "share_percent": share, "cells": cells})
    return rows


def _page(summary: Summary, numbers: dict[str, Any], figures: dict[str, bytes], seed: int) -> str:
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("the report needs jinja2: pip install 'immiscible-diffusion[report]'") from error
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    template = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(
        "report.html"
    )
    metric = summary.metrics[0]
    configuration = next(iter(numbers["configurations"].values()))
    return template.render(
        **numbers,
        metric=metric,
        number=number,
        told={"curves": "Distance against training steps", "ends": "Distance at the end of training"},
        drawn=next(iter(figures)).partition("-")[0],
        written={metric: NAMES.get(metric, metric) for metric in summary.metrics},
        labels=summary.labels,
        sampling_steps=summary.sampling_steps,
        speedup_rows={name: [speedup_cells(row) for row in speedups(summary, name)] for name in summary.metrics},
        final_rows={name: finals(summary, name) for name in summary.metrics},
        pair_rows=[row["cells"] for row in _pair_rows(summary)],
        findings=findings(speedups(summary, metric), finals(summary, metric), NAMES.get(metric, metric)),
        images={name: base64.b64encode(png).decode() for name, png in figures.items()},
        seeds=sorted({run["seed"] for run in numbers["runs"]}),
        sample_seed=seed,
        configuration=configuration,
        configuration_text=json.dumps(configuration, indent=2),
        environment_text=json.dumps(numbers["environment"], indent=2),
    )
