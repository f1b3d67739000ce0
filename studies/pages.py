"""The pages over all recorded results: Markdown for the repository, and one HTML file that needs nothing else."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from immiscible_diffusion.experiments.experiment import read_experiment
from immiscible_diffusion.experiments.values import built_in
from immiscible_diffusion.report.measures import metric_label
from immiscible_diffusion.report.page import data_uri, render
from immiscible_diffusion.report.record import read_record, speedup_values
from immiscible_diffusion.report.sentences import (
    change_cell,
    final_rows,
    findings,
    floor_findings,
    of_metric,
    speedup_cells,
)
from immiscible_diffusion.report.speedup import Curve, falling
from studies.changes import best_changes, changes
from studies.details import details
from studies.dimension import gains_by_dimension
from studies.exhibits import exhibits
from studies.papers import papers, states
from studies.published import published, published_note, published_thresholds
from studies.rerun import reruns
from studies.start import start
from studies.thresholds import thresholds
from studies.wrapped import wrapped

__all__ = ["html_page", "pages"]

_FOLDER = "docs/results"
_TEMPLATES = Path(__file__).parent / "templates"
_WHY = {"cpu": "computing time: up to an hour on two cores", "gpu": "no GPU was at hand"}


def pages(root: Path) -> dict[str, bytes]:
    """Return every Markdown page by its path from the root, made of ``results/**/summary.json`` and the papers' list.

    The same records give the same bytes.

    Raises:
        ValueError: a record that cannot be read.
        ImportError: jinja2 is not installed.
    """
    values, gained = _everything(root), gains_by_dimension(root)
    texts = {f"{_FOLDER}/{view['page']}.md": render(_TEMPLATES / "record.md", view=view) for view in values["views"]}
    texts[f"{_FOLDER}/README.md"] = render(_TEMPLATES / "start.md", **start(values["views"], gained, root))
    texts[f"{_FOLDER}/details.md"] = render(_TEMPLATES / "details.md", **details(values["views"], gained, root))
    texts[f"{_FOLDER}/tables.md"] = render(_TEMPLATES / "results.md", **values)
    return {name: wrapped(text.decode()).encode() for name, text in texts.items()}


def html_page(root: Path) -> bytes:
    """Return all results as one HTML page that needs no other file; raises as ``pages`` does."""
    values = _everything(root)
    names = [name for view in values["views"] for name in (view["figure"], view["samples"])]
    names += [exhibit["picture"] for exhibit in values["exhibits"]]
    pictures = {name: data_uri(name, (root / name).read_bytes()) for name in names if name}
    return render(_TEMPLATES / "results.html", **values, pictures=pictures)


def _everything(root: Path) -> dict[str, Any]:
    """Return the values of the templates over all results."""
    views = [_view(path, root) for path in sorted((root / "results").rglob("summary.json"))]
    _tell_shared(views)
    return {"views": views, "headline": _headline(views), "exhibits": exhibits(root), "waiting": _waiting(root)}


def _view(path: Path, root: Path) -> dict[str, Any]:
    """Return the values of the templates for one record."""
    numbers = read_record(path)
    folder = path.parent.relative_to(root)
    scale = folder.parts[2] if len(folder.parts) > 2 else ""
    curves = numbers.get("curves", [])
    pictures = [name for name in ("distance.svg", "distance.png", "samples.webp") if (path.parent / name).is_file()]
    figure, samples = (
        next(((folder / name).as_posix() for name in pictures if name.startswith(kind)), "")
        for kind in ("distance", "samples")
    )
    metrics = numbers.get("metrics") or list(dict.fromkeys(row["metric"] for row in numbers["finals"]))
    first = numbers.get("configuration") or next(iter(numbers["configurations"].values()))
    return {
        **{key: numbers[key] for key in ("source", "unfinished")},
        **{key: _text(numbers, key) for key in ("title", "question")},
        "experiment": numbers["experiment"],
        "page": "-".join(folder.parts[1:]),
        "scale": scale,
        "folder": folder.as_posix(),
        "metrics": metrics,
        "label": {metric: metric_label(first, metric) for metric in metrics},
        "seeds": len({run["seed"] for run in numbers["runs"]}),
        "arms": list(dict.fromkeys(run["arm"] for run in numbers["runs"])),
        "ends": _ends(curves),
        "reaches": numbers["reaches"],
        "findings": findings(numbers, metrics[0]) + floor_findings(numbers["instrument"], metrics[0]),
        "speedups": {metric: [_speedup(row) for row in of_metric(numbers["speedups"], metric)] for metric in metrics},
        "qualities": {metric: _qualities(numbers, metric) for metric in metrics},
        "curved": bool(numbers["speedups"]),
        "changes": changes(numbers, metrics[0]),
        "best_changes": best_changes(numbers, metrics[0]),
        "pace": numbers.get("pace", {}),
        "instrument": numbers["instrument"],
        "finals": {metric: final_rows(numbers, metric) for metric in metrics},
        "costs": [_cost(arm, pair, numbers.get("pace", {}).get(arm)) for arm, pair in numbers["pairs"].items()],
        "configuration": json.dumps(first, indent=2),
        "setup": _setup(first),
        "train_steps": f"{first['train']['steps']:,}",
        "environment": numbers["environment"][-1],
        "published": published(numbers, metrics[0]),
        "note": published_note(numbers["experiment"]),
        "thresholds": published_thresholds(numbers["experiment"]),
        "repeatable": "configurations" in numbers,
        "reruns": reruns(path),
        "figure": figure,
        "samples": samples,
    }


def _text(numbers: Mapping[str, Any], key: str) -> str:
    """Return the title or question as the experiment's file has it, or as recorded if the package has no such file."""
    name = numbers["experiment"]
    return str(getattr(read_experiment(name), key)) if name in built_in() else str(numbers[key])


def _tell_shared(views: Sequence[dict[str, Any]]) -> None:
    """Add to each view the arms whose runs an earlier page shows, too: they are one result, not two."""
    first: dict[str, tuple[str, str]] = {}
    for view in views:
        earlier = [(arm, *first.setdefault(values, (view["page"], view["title"]))) for arm, values in view.pop("ends")]
        view["shared"] = list(dict.fromkeys(f"{arm}: {title}" for arm, page, title in earlier if page != view["page"]))


def _ends(curves: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return (arm, its last measurements as text) for every metric and number of sampling steps.

    Seventeen digits of three seeds are equal in the same runs alone.
    """
    last = []
    for row in curves:
        ends = {seed: curve[-1] for seed, curve in row["by_seed"].items()}
        about = [row["start"], row["metric"], row["sampling_steps"], ends]
        last.append((row["arm"], json.dumps(about, sort_keys=True)))
    return last


def _headline(views: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return training steps to the independent arm's quality on real images, a row an arm and sampling steps.

    Runs that an earlier experiment has, too, are left out.
    """
    rows = []
    for view in views:
        metric, shared = view["metrics"][0], {line.partition(": ")[0] for line in view["shared"]}
        ends = {tuple(cells[:2]): cells for cells in view["finals"][metric]}
        for cells in view["speedups"][metric] if view["scale"] == "cpu" else []:
            if cells[0].removesuffix(", plain start") not in shared:
                _, _, _, difference, p = ends[tuple(cells[:2])]
                name = view["title"].partition(":")[0]
                about = {
                    "name": name,
                    "page": view["page"],
                    "measure": view["label"][metric].removeprefix("Fréchet distance, "),
                }
                rows.append(about | {"cells": [*cells[:-1], difference, p]})
    return rows


def _speedup(row: Mapping[str, Any]) -> list[str]:
    seconds = row.get("seconds_ratio")
    return [*speedup_cells(row), "-" if seconds is None else f"{seconds:.2f} x"]


def _cost(arm: str, pair: Mapping[str, float], pace: Mapping[str, float] | None) -> list[str]:
    """Return the effect of a coupling on its pairs and its cost, as text."""
    leak = f"{100 * pair['leak_accuracy']:.0f} ({100 * pair['leak_chance']:.0f})" if "leak_accuracy" in pair else "-"
    cells = [arm, change_cell(pair["distance_reduction_percent"]), f"{pair['noise_square']:.3f}", leak]
    cells += [f"{pair['milliseconds']:.2f}"]
    return [*cells, *(["-", "-"] if pace is None else [f"{pace['step_ms']:.1f}", f"{pace['coupling_percent']:.2f}"])]


def _qualities(numbers: Mapping[str, Any], metric: str) -> list[list[str]]:
    """Return the speed-up for every quality that the reference passed through, where it was measured three times."""
    curves = {
        (row["label"], row["sampling_steps"]): _by_seed(row) for row in of_metric(numbers.get("curves", []), metric)
    }
    cells = []
    for row in of_metric(numbers["finals"], metric):
        arm, reference = (curves.get((row.get(key, ""), row["sampling_steps"]), {}) for key in ("arm", "reference"))
        both = sorted(set(arm) & set(reference))
        if not both or min(len(reference[seed]) for seed in both) < 3:
            continue
        rises, pair = metric in numbers["rising"], [{seed: side[seed] for seed in both} for side in (reference, arm)]
        for _, gain in thresholds(*(map(falling, pair) if rises else pair)):
            target = mean(1 / goal if rises else goal for goal in gain.target.values())
            about = {"arm": row["arm"], "sampling_steps": row["sampling_steps"], "target": target}
            cells.append(speedup_cells(about | speedup_values(gain)))
    return cells


def _by_seed(row: Mapping[str, Any]) -> dict[int, Curve]:
    return {int(seed): [(int(step), value) for step, value in curve] for seed, curve in row["by_seed"].items()}


def _setup(configuration: Mapping[str, Any]) -> str:
    """Return the set-up in a sentence."""
    source, net, train, evaluate = (configuration[key] for key in ("source", "net", "train", "evaluate"))
    inner = source.get("source", source)
    data = str(inner.get("path") or inner["use"]).rpartition("/")[2]
    size = f" at {inner['size']} x {inner['size']} pixels" if inner.get("size") else ""
    wide = net.get("channels") or net.get("width") or net.get("depth")
    method = configuration["method"]
    way = f"{method['use']}, {method['predict']}" if method.get("predict") else method["use"]
    decoded = ", encoded and decoded by the codec" if evaluate.get("reference") == "decoded" else ""
    return (
        f"{data}{size}; {way}; net {net['use']} {wide}; "
        f"{train['steps']:,} steps of {train['batch']}, learning rate {train['lr']:g}, average {train['ema']:g}; "
        f"{evaluate['samples']:,} generated images a measurement against the held-out ones{decoded}"
    )


def _waiting(root: Path) -> list[dict[str, str]]:
    """Return a row for each experiment that was not run: the reason, and the command that would run it."""
    rows: dict[str, dict[str, str]] = {}
    for item in papers():
        for scale, state in states(item, root).items():
            if state == "ready" and scale != "paper":
                command = f"immiscible train {item.experiment} --scale {scale}" if item.experiment else item.command
                name = f"{item.name} of arXiv:{item.paper}" if item.paper else item.name
                row = rows.setdefault(command, {"what": "", "scale": scale, "why": _WHY[scale], "command": command})
                row["what"] += f", {name}" if row["what"] else name
    return list(rows.values())
