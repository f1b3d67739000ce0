"""The report of an experiment: tables, figures and one self-contained page, made from its run folders."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from immiscible_diffusion.extras import needs
from immiscible_diffusion.files import write_bytes, write_json
from immiscible_diffusion.report.figures import distance_figure
from immiscible_diffusion.report.measures import metric_label
from immiscible_diffusion.report.pictures import samples_figure
from immiscible_diffusion.report.record import record
from immiscible_diffusion.report.sentences import (
    change_cell,
    final_rows,
    findings,
    floor_findings,
    measured_once,
    of_metric,
    speedup_cells,
)
from immiscible_diffusion.report.summary import MARKS, summary_sentences, summary_table

__all__ = ["FIGURES", "data_uri", "inspect_table", "render", "report", "terminal_table", "text_table"]

FIGURES = ("figures/distance.svg", "figures/samples.webp")
"""The pictures that a report writes into an experiment's folder."""


def report(folder: Path, to: Path | None = None) -> Path:
    """Write ``report.html``, ``summary.json`` and ``FIGURES`` of an experiment; return the page.

    Args:
        folder: of the experiment's runs.
        to: where they are written; by default the same folder.

    Raises:
        ValueError: the folder holds no finished run.
        OSError: a file cannot be written.
    """
    to = folder if to is None else to
    numbers = record(folder)
    figures = dict(zip(FIGURES, (distance_figure(numbers), samples_figure(numbers, folder)), strict=True))
    for name, data in figures.items():
        write_bytes(to / name, data)
    write_json(to / "summary.json", numbers)
    write_bytes(to / "report.html", _page(numbers, figures))
    return to / "report.html"


def terminal_table(numbers: Mapping[str, Any]) -> Table:
    """Return the final values of a record's first metric for a terminal, in at most eight rows."""
    head, rows = summary_table(numbers)
    configuration = next(iter(numbers["configurations"].values()))
    table = text_table(f"Final {metric_label(configuration, numbers['metrics'][0])}", head, rows)
    table.caption = MARKS if any("*" in cell for row in rows for cell in row) else None
    table.caption_justify = "left"
    return table


def text_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> Table:
    """Return a table for a terminal: the first columns are text, the others numbers."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def inspect_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return what ``diagnostics.inspect`` measured as a table for a terminal."""
    cells = [
        [
            row["coupling"],
            change_cell(row["distance_reduction_percent"]),
            f"{row['cosine']:.3f}",
            f"{row['noise_square']:.3f}",
            f"{row['shift']:.2f}",
            f"{row['kl']:.2f}",
            f"{100 * leak['accuracy']:.0f} ({100 * leak['chance']:.0f}) %" if (leak := row["leak"]) else "-",
            f"{row['milliseconds']:.2f}",
            "-" if row["cost_ms"] is None else f"{row['cost_ms']:.2f}",
        ]
        for row in rows
    ]
    columns = ("coupling", "distance", "cosine", "noise²", "shift", "KL, nat", "class leak", "ms", "of it cost")
    table = text_table("Couplings on these data", columns, cells)
    table.caption = (
        "shift: mean along x/|x|; KL from N(0, I) in the data's leading directions; leak: a probe's accuracy (chance)"
    )
    return table


def _pair_cells(numbers: Mapping[str, Any]) -> list[list[str]]:
    """Return the effect of each coupling on its pairs and its cost, a row an arm; finished arms come first."""
    pairs, pace = numbers["pairs"], numbers["pace"]
    return [
        [
            arm,
            change_cell(pairs[arm]["distance_reduction_percent"]),
            f"{pairs[arm]['noise_square']:.3f}",
            f"{pairs[arm]['milliseconds']:.2f}",
            f"{pace[arm]['coupling_percent']:.1f} %" if pace.get(arm) else "-",
        ]
        for arm in dict.fromkeys([*pace, *pairs])
    ]


def _page(numbers: Mapping[str, Any], figures: Mapping[str, bytes]) -> bytes:
    metrics = numbers["metrics"]
    head, rows = summary_table(numbers)
    configuration = next(iter(numbers["configurations"].values()))
    seeds = sorted({run["seed"] for run in numbers["runs"]})
    return render(
        Path(__file__).parent / "templates" / "report.html",
        **numbers,
        once=measured_once(numbers["curves"]),
        label={name: metric_label(configuration, name) for name in metrics},
        plain_start=any(row["start"] != "matched" for row in numbers["curves"]),
        speedup_rows={name: [speedup_cells(row) for row in of_metric(numbers["speedups"], name)] for name in metrics},
        final_rows={name: final_rows(numbers, name) for name in metrics},
        pair_rows=_pair_cells(numbers),
        sentences=summary_sentences(numbers),
        summary_head=head,
        summary_rows=rows,
        marks=MARKS if any("*" in cell for row in rows for cell in row) else "",
        findings=findings(numbers, metrics[0]) + floor_findings(numbers["instrument"], metrics[0]),
        images=[data_uri(name, data) for name, data in figures.items()],
        seeds=seeds,
        configuration=configuration,
        configuration_text=json.dumps(configuration, indent=2),
        environment_text=json.dumps(numbers["environment"], indent=2),
    )


def render(template: Path, **values: Any) -> bytes:
    """Return a jinja2 template filled in, ending in one line break; values are escaped in a template named ``.html``.

    Raises:
        ImportError: jinja2 is not installed.
    """
    with needs("report", "pages need jinja2"):
        import jinja2
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return (environment.get_template(template.name).render(**values).rstrip() + "\n").encode()


def data_uri(name: str, data: bytes) -> str:
    """Return a picture's address that holds the picture itself, so that a page needs no other file.

    >>> data_uri("figures/distance.svg", b"<svg/>")
    'data:image/svg+xml;base64,PHN2Zy8+'
    """
    kind = {".svg": "svg+xml"}.get(Path(name).suffix, Path(name).suffix[1:])
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
