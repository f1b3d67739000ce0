"""The report of an experiment: tables, figures and one self-contained page, made of what the run folders hold."""

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from rich.table import Table

from immiscible_diffusion.analysis.summary import Summary, paired_p, read_summary, spread
from immiscible_diffusion.figures import NAMES, curves_figure, samples_figure
from immiscible_diffusion.files import read_json, write_bytes, write_json

__all__ = ["finals", "inspect_table", "report", "speedups", "terminal_tables"]


def report(folder: Path) -> Path:
    """Write ``report.html``, ``summary.json`` and ``figures/*.png`` into an experiment's folder; return the page.

    Raises:
        ValueError: the folder holds no finished run.
    """
    summary = read_summary(folder)
    seed = min(run["seed"] for run in summary.index["runs"] if run["folder"] not in summary.unfinished)
    figures = {f"curves-{metric}": curves_figure(summary, metric) for metric in summary.metrics}
    figures["samples"] = samples_figure(summary, seed)
    for name, png in figures.items():
        write_bytes(folder / "figures" / f"{name}.png", png)
    numbers = _numbers(summary)
    write_json(folder / "summary.json", numbers)
    page = _page(summary, numbers, figures, seed)
    write_bytes(folder / "report.html", page.encode())
    return folder / "report.html"


def speedups(summary: Summary, metric: str) -> list[dict[str, Any]]:
    """Return a row an arm and number of sampling steps: steps to the target and their ratio."""
    rows = []
    for label in summary.labels:
        for count in summary.sampling_steps:
            found = summary.speedup(label, count, metric)
            if found is None or label == "independent":
                continue
            reached = [steps for steps in found.steps.values() if steps is not None]
            rows.append(
                {
                    "arm": label,
                    "sampling_steps": count,
                    "metric": metric,
                    "target": mean(found.target.values()),
                    "reference_steps": mean(found.reference_steps.values()),
                    "steps": found.mean_steps,
                    "seeds": len(found.steps),
                    "seeds_reached": len(reached),
                    "at_first": bool(reached) and max(reached) <= summary.first_step(label, count, metric),
                    **{key: value for key, value in asdict(found).items() if key in ("ratio", "low", "high")},
                    "by_seed": {str(seed): steps for seed, steps in found.steps.items()},
                    "reference_by_seed": {str(seed): steps for seed, steps in found.reference_steps.items()},
                }
            )
    return rows


def finals(summary: Summary, metric: str) -> list[dict[str, Any]]:
    """Return a row an arm and number of sampling steps: the last distance over seeds, against independent noise."""
    rows = []
    for label in summary.labels:
        for count in summary.sampling_steps:
            measured, reference = summary.find(label, count), summary.find("independent", count)
            if measured is None:
                continue
            values = measured.final(metric)
            middle, deviation = spread(list(values.values()))
            row = {"arm": label, "sampling_steps": count, "metric": metric, "mean": middle, "sd": deviation}
            if reference is not None and label != "independent":
                base = reference.final(metric)
                both = sorted(set(values) & set(base))
                row["difference"] = mean(values[s] - base[s] for s in both) if both else None
                row["p"] = paired_p(values, base)
            rows.append({**row, "by_seed": {str(seed): value for seed, value in values.items()}})
    return rows


def terminal_tables(summary: Summary, metric: str) -> list[Table]:
    """Return the speed-ups and the couplings' own figures as tables for a terminal."""
    title = f"Training steps to the independent arm's final {NAMES.get(metric, metric)} distance"
    first = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in ("coupling", "sampling", "target", "indep.", "steps", "speed-up", "95 % interval"):
        first.add_column(column, justify="left" if column == "coupling" else "right")
    for row in speedups(summary, metric):
        first.add_row(*_speedup_cells(row))
    second = Table(title="What each coupling does to its pairs", title_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in ("coupling", "distance", "mean noise²", "ms a batch", "share of a step"):
        second.add_column(column, justify="left" if column == "coupling" else "right")
    for pair in _pair_rows(summary):
        second.add_row(*pair["cells"])
    return [first, second]


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


def _numbers(summary: Summary) -> dict[str, Any]:
    """Return everything the page says, with where it comes from."""
    runs = [run for run in summary.index["runs"] if run["folder"] not in summary.unfinished]
    first = summary.folder / runs[0]["folder"]
    return {
        **{key: summary.index[key] for key in ("experiment", "title", "source", "question")},
        "runs": runs,
        "unfinished": summary.unfinished,
        "configuration": read_json(first / "config.json"),
        "environment": read_json(first / "environment.json"),
        "pairs": summary.pairs,
        "speedups": [row for metric in summary.metrics for row in speedups(summary, metric)],
        "finals": [row for metric in summary.metrics for row in finals(summary, metric)],
    }


def _speedup_cells(row: dict[str, Any]) -> list[str]:
    name = [row["arm"], str(row["sampling_steps"]), f"{row['target']:.1f}", f"{row['reference_steps']:.0f}"]
    if row["ratio"] is None:
        return [*name, "-", "not reached", f"by {row['seeds'] - row['seeds_reached']} of {row['seeds']}"]
    if row["at_first"]:
        return [*name, f"≤ {row['steps']:.0f}", f"≥ {row['ratio']:.2f} x", "first eval."]
    interval = "one seed" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}"
    return [*name, f"{row['steps']:.0f}", f"{row['ratio']:.2f} x", interval]


def _pair_rows(summary: Summary) -> list[dict[str, Any]]:
    rows = []
    for arm in dict.fromkeys(run["arm"] for run in summary.index["runs"]):
        pair = summary.pairs[arm]
        share = _share(summary, arm)
        cells = [
            arm,
            f"{0 - round(pair['distance_reduction_percent'], 2):+.2f} %",
            f"{pair['noise_square']:.3f}",
            f"{pair['milliseconds']:.2f}",
            "-" if share is None else f"{share:.1f} %",
        ]
        rows.append({"arm": arm, "share_percent": share, "cells": cells})
    return rows


def _share(summary: Summary, arm: str) -> float | None:
    """Return the coupling's share of training time in percent, over the finished runs of an arm."""
    coupling = step = 0.0
    for run in summary.index["runs"]:
        log = summary.folder / run["folder"] / "log.jsonl"
        if run["arm"] == arm and run["folder"] not in summary.unfinished:
            last = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
            # A prefetched pairing costs what the step waited for it; that is never less than the pairing otherwise.
            waited = min(last["coupling_seconds"], last.get("waiting_seconds", last["coupling_seconds"]))
            coupling, step = coupling + waited, step + last["step_seconds"]
    return 100 * coupling / step if step else None


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
    return template.render(
        **numbers,
        metric=metric,
        metrics=summary.metrics,
        written={metric: NAMES.get(metric, metric) for metric in summary.metrics},
        labels=summary.labels,
        sampling_steps=summary.sampling_steps,
        speedup_rows={name: [_speedup_cells(row) for row in speedups(summary, name)] for name in summary.metrics},
        final_rows={name: finals(summary, name) for name in summary.metrics},
        pair_rows=[row["cells"] for row in _pair_rows(summary)],
        findings=_findings(summary, metric),
        images={name: base64.b64encode(png).decode() for name, png in figures.items()},
        seeds=sorted({run["seed"] for run in numbers["runs"]}),
        sample_seed=seed,
        configuration_text=json.dumps(numbers["configuration"], indent=2),
        environment_text=json.dumps(numbers["environment"], indent=2),
    )


def _findings(summary: Summary, metric: str) -> list[str]:
    """Return what the tables say, a sentence for each number of sampling steps; what is absent is said as well."""
    name = NAMES.get(metric, metric)
    sentences = []
    for count in summary.sampling_steps:
        rows = [row for row in speedups(summary, metric) if row["sampling_steps"] == count]
        if not rows:
            continue
        target, steps = rows[0]["target"], rows[0]["reference_steps"]
        shown = [row for row in rows if row["low"] is not None and row["low"] > 1]
        parts = [f"{row['arm']} {_times_fewer(row)}" for row in shown]
        if missing := [row["arm"] for row in rows if row not in shown]:
            parts.append(f"no speed-up is shown for {' and '.join(missing)}")
        sentences.append(
            f"At {count} sampling steps independent noise reaches its final {name} distance, {target:.1f}, after "
            f"{steps:.0f} training steps: " + "; ".join(parts) + "."
        )
    return sentences


def _times_fewer(row: dict[str, Any]) -> str:
    if row["at_first"]:
        return f"by its first evaluation, at least {row['ratio']:.1f} times sooner"
    return f"after {row['steps']:.0f}, {row['ratio']:.1f} times sooner ({row['low']:.1f} to {row['high']:.1f})"
