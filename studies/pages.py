"""The pages over all recorded results: Markdown for the repository, and one HTML file that needs nothing else."""

import base64
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from statistics import mean
from typing import Any

from immiscible_diffusion.report.figures import NAMES
from immiscible_diffusion.report.record import read_record, speedup_values
from immiscible_diffusion.report.sentences import final_cells, findings, speedup_cells
from immiscible_diffusion.report.speedup import Curve
from immiscible_diffusion.report.summary import counted
from studies.charts import chart, dots
from studies.exhibits import exhibits
from studies.papers import papers, states
from studies.published import published, published_note, published_thresholds
from studies.thresholds import thresholds

__all__ = ["pages"]

_FOLDER = "docs/results"
_WHY = {"cpu": "computing time: up to an hour on two cores", "gpu": "no GPU was at hand"}
_WIDEST = 900
"""Pixels of the widest picture of samples in the HTML page."""


def pages(root: Path) -> dict[str, bytes]:
    """Return every page by its path from the root, made of ``results/**/summary.json`` and the lists of the package.

    The same records give the same bytes.

    Raises:
        ValueError: a record that cannot be read.
        ImportError: jinja2 or Pillow is not installed.
    """
    shown = [_view(path, root) for path in sorted((root / "results").rglob("summary.json"))]
    _tell_shared(shown)
    waiting, others, first = _waiting(root), exhibits(root), _headline(shown)
    found = {f"{_FOLDER}/{view['page']}.md": _render("record.md", view=view) for view in shown}
    found[f"{_FOLDER}/README.md"] = _render("results.md", views=shown, headline=first, waiting=waiting, exhibits=others)
    pictures = {view["page"]: _embedded(root / view["folder"] / "samples.png") for view in shown}
    pictures |= {each["picture"]: _embedded(root / each["picture"]) for each in others if each["picture"]}
    found[f"{_FOLDER}/index.html"] = _render(
        "results.html", views=shown, headline=first, waiting=waiting, exhibits=others, pictures=pictures
    )
    return found


def _view(path: Path, root: Path) -> dict[str, Any]:
    """Return what the templates say of one record."""
    numbers = read_record(path)
    folder = path.parent.relative_to(root)
    scale = folder.parts[2] if len(folder.parts) > 2 else ""
    curves = numbers.get("curves", [])
    metrics = numbers.get("metrics") or list(dict.fromkeys(row["metric"] for row in numbers["finals"]))
    first = numbers.get("configuration") or next(iter(numbers["configurations"].values()))
    labels = list(dict.fromkeys(row["arm"] for row in numbers["finals"]))
    drawn = [f"{kind}-{metric}.png" for metric in metrics for kind in ("curves", "ends")]
    return {
        **{key: numbers[key] for key in ("title", "source", "question", "unfinished")},
        "experiment": numbers["experiment"],
        "page": "-".join(folder.parts[1:]),
        "scale": scale,
        "folder": folder.as_posix(),
        "metrics": metrics,
        "written": {metric: NAMES.get(metric, metric) for metric in metrics},
        "label": {metric: _label(first, metric) for metric in metrics},
        "seeds": len({run["seed"] for run in numbers["runs"]}),
        "arms": list(dict.fromkeys(run["arm"] for run in numbers["runs"])),
        "ends": _ends(curves),
        "findings": findings(
            _of(numbers["speedups"], metrics[0]), _of(numbers["finals"], metrics[0]), NAMES.get(metrics[0], metrics[0])
        ),
        "speedups": {metric: [_speedup(row) for row in _of(numbers["speedups"], metric)] for metric in metrics},
        "qualities": {metric: _qualities(numbers, metric) for metric in metrics},
        "curved": bool(numbers["speedups"]),
        "finals": {metric: [_final(row) for row in _of(numbers["finals"], metric)] for metric in metrics},
        "panels": {metric: _panels(_of(curves, metric), labels, numbers["title"]) for metric in metrics},
        "classes": _classes(labels, numbers["runs"]),
        "counts": sorted({row["sampling_steps"] for row in numbers["finals"]}),
        "costs": [_cost(arm, pair, numbers.get("pace", {}).get(arm)) for arm, pair in numbers["pairs"].items()],
        "configuration": json.dumps(first, indent=2),
        "setup": _setup(first),
        "environment": numbers["environment"][-1],
        "published": published(numbers, metrics[0]),
        "note": published_note(numbers["experiment"]),
        "thresholds": published_thresholds(numbers["experiment"]),
        "repeatable": "configurations" in numbers,
        "figures": [name for name in drawn if (path.parent / name).is_file()],
        "has_samples": (path.parent / "samples.png").is_file(),
    }


def _tell_shared(views: Sequence[dict[str, Any]]) -> None:
    """Add to each view the arms whose runs an earlier page shows, too: they are one result, not two."""
    first: dict[str, tuple[str, str]] = {}
    for view in views:
        found = [(arm, *first.setdefault(values, (view["page"], view["title"]))) for arm, values in view.pop("ends")]
        view["shared"] = list(dict.fromkeys(f"{arm}: {title}" for arm, page, title in found if page != view["page"]))


def _ends(curves: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return (arm, its last measurements as text) for every metric and number of sampling steps.

    Seventeen digits of three seeds are equal in the same runs alone.
    """
    found = []
    for row in curves:
        ends = {seed: curve[-1] for seed, curve in row["by_seed"].items()}
        about = [row["start"], row["metric"], row["sampling_steps"], ends]
        found.append((row["arm"], json.dumps(about, sort_keys=True)))
    return found


def _headline(views: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return training steps to the independent arm's final quality on real images, a row an arm and sampling steps.

    Runs that an earlier experiment has, too, are not told again.
    """
    rows = []
    for view in views:
        metric, told = view["metrics"][0], {each.partition(": ")[0] for each in view["shared"]}
        ends = {(row["arm"], row["count"]): row["cells"] for row in view["finals"][metric]}
        for row in view["speedups"][metric] if view["scale"] == "cpu" else []:
            if row["arm"].removesuffix(", plain start") not in told:
                name, end = f"[{view['title'].partition(':')[0]}]({view['page']}.md)", ends[row["arm"], row["count"]]
                rows.append([name, *row["cells"][:-1], end[3], end[4]])
    return rows


def _of(rows: Sequence[Mapping[str, Any]], metric: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["metric"] == metric]


def _speedup(row: Mapping[str, Any]) -> dict[str, Any]:
    seconds = row.get("seconds_ratio")
    cells = [*speedup_cells(row), "-" if seconds is None else f"{seconds:.2f} x"]
    return {"cells": cells, "arm": row["arm"], "count": row["sampling_steps"]}


def _cost(arm: str, pair: Mapping[str, float], pace: Mapping[str, float] | None) -> list[str]:
    """Return what a coupling does to its pairs and what it costs, as text."""
    leak = f"{100 * pair['leak_accuracy']:.0f} ({100 * pair['leak_chance']:.0f})" if "leak_accuracy" in pair else "-"
    cells = [arm, f"{0 - round(pair['distance_reduction_percent'], 2):+.2f} %", f"{pair['noise_square']:.3f}", leak]
    cells += [f"{pair['milliseconds']:.2f}"]
    return [*cells, *(["-", "-"] if pace is None else [f"{pace['step_ms']:.1f}", f"{pace['coupling_percent']:.2f}"])]


def _qualities(numbers: Mapping[str, Any], metric: str) -> list[dict[str, Any]]:
    """Return the speed-up for every quality that the reference passed through, where it was measured three times."""
    curves = {(row["label"], row["sampling_steps"]): _by_seed(row) for row in _of(numbers.get("curves", []), metric)}
    found = []
    for row in _of(numbers["finals"], metric):
        arm, reference = (curves.get((row.get(key, ""), row["sampling_steps"]), {}) for key in ("arm", "reference"))
        both = sorted(set(arm) & set(reference))
        if not both or min(len(reference[seed]) for seed in both) < 3:
            continue
        for _, each in thresholds({s: reference[s] for s in both}, {s: arm[s] for s in both}):
            about = {"arm": row["arm"], "sampling_steps": row["sampling_steps"], "target": mean(each.target.values())}
            cells = speedup_cells(about | speedup_values(each))
            found.append({"cells": cells, "arm": row["arm"], "count": row["sampling_steps"]})
    return found


def _by_seed(row: Mapping[str, Any]) -> dict[int, Curve]:
    return {int(seed): [(int(step), value) for step, value in curve] for seed, curve in row["by_seed"].items()}


def _final(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"cells": final_cells(row), "arm": row["arm"], "count": row["sampling_steps"]}


def _panels(rows: Sequence[Mapping[str, Any]], labels: Sequence[str], title: str) -> list[dict[str, Any]]:
    """Return a chart for every group and number of sampling steps."""
    found = []
    for key in dict.fromkeys((row["group"], row["sampling_steps"]) for row in rows):
        same = [row for row in rows if (row["group"], row["sampling_steps"]) == key]
        once = max(len(curve) for row in same for curve in row["by_seed"].values()) < 2
        head = counted(key[1]) + (f", {key[0]}" if key[0] else "")
        svg = (dots if once else chart)(same, _classes(labels, same), f"{title}: {head}")
        found.append({"head": head, "count": key[1], "svg": svg})
    return found


def _classes(labels: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return a CSS class by label: c0 for independent noise, the same for one coupling in every group."""
    couplings = list(dict.fromkeys(_coupling(label) for label in labels))
    ordered = sorted(couplings, key=lambda name: name != "independent")
    return {label: f"c{ordered.index(_coupling(label)) % 7}" for label in labels}


def _coupling(label: str) -> str:
    """Return the part of an arm's label that names its coupling."""
    arm = label.partition(",")[0]
    known = ("independent", "assignment", "nearest", "flipped")
    return next((arm[arm.index(name) :] for name in known if name in arm), arm)


def _label(configuration: Mapping[str, Any], metric: str) -> str:
    """Return what a metric is called: FID where it is one."""
    features = configuration["evaluate"]["features"]
    base, _, network = metric.partition("-")
    if base == "frechet" and not network and features["use"] == "inception":
        return f"FID ({features['layer']} features)"
    return f"{NAMES.get(base, base)} distance, {network or features['use']} (not FID)"


def _setup(configuration: Mapping[str, Any]) -> str:
    """Return the set-up in a sentence."""
    source, net, train, asked = (configuration[key] for key in ("source", "net", "train", "evaluate"))
    inner = source.get("source", source)
    data = str(inner.get("path") or inner["use"]).rpartition("/")[2]
    size = f" at {inner['size']} x {inner['size']} pixels" if inner.get("size") else ""
    wide = net.get("channels") or net.get("width") or net.get("depth")
    method = configuration["method"]
    way = f"{method['use']}, {method['predict']}" if method.get("predict") else method["use"]
    return (
        f"{data}{size}; {way}; net {net['use']} {wide}; "
        f"{train['steps']:,} steps of {train['batch']}, learning rate {train['lr']:g}, average {train['ema']:g}; "
        f"{asked['samples']:,} generated images a measurement against the held-out ones"
    )


def _waiting(root: Path) -> list[dict[str, str]]:
    """Return what was not run, the reason, and what would run it: a row a command."""
    found: dict[str, dict[str, str]] = {}
    for item in papers():
        for scale, state in states(item, root).items():
            if state == "ready" and scale != "paper":
                command = f"immiscible train {item.experiment} --scale {scale}" if item.experiment else item.command
                name = f"{item.name} of arXiv:{item.paper}" if item.paper else item.name
                row = found.setdefault(command, {"what": "", "scale": scale, "why": _WHY[scale], "command": command})
                row["what"] += f", {name}" if row["what"] else name
    return list(found.values())


def _embedded(path: Path) -> str:
    """Return a picture of samples for the page, no wider than needed; empty where there is none."""
    if not path.is_file():
        return ""
    from PIL import Image

    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if image.width > _WIDEST:
        image = image.resize((_WIDEST, round(image.height * _WIDEST / image.width)), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=80, method=4)
    return base64.b64encode(buffer.getvalue()).decode()


def _render(template: str, **values: Any) -> bytes:
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("the pages need jinja2: pip install 'immiscible-diffusion[report]'") from error
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=template.endswith(".html"), undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    text: str = environment.get_template(template).render(**values)
    return (text.rstrip() + "\n").encode()
