"""The tables and figures of the papers, each with what reproduces it, and how far that has been carried out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from immiscible_diffusion.experiments.experiment import read_experiment
from immiscible_diffusion.experiments.values import read_toml
from immiscible_diffusion.files import read_json

__all__ = ["MARKERS", "SCALES", "Item", "papers", "papers_page", "papers_table", "state", "states"]

SCALES = ["cpu", "gpu", "paper"]
"""The scales whose results are recorded; ``smoke`` is a test."""
MARKERS = "<!-- papers -->", "<!-- /papers -->"
_KEYS = {"paper", "name", "what", "experiment", "command", "record", "why"}


@dataclass(frozen=True)
class Item:
    """One table or figure.

    Args:
        paper: its number on arXiv; empty for a question of this project.
        name: as it is called there.
        what: what it shows, in a few words.
        experiment: the experiment that reproduces it, or is nearest to it.
        command: the program that does, where no experiment does; or what draws it from an experiment's runs.
        record: the file, from the repository's root, that the result is kept in, where it is not the experiment's
            ``results/EXPERIMENT/SCALE/summary.json``; SCALE in it stands for the scale, and without it the result has
            one scale, ``cpu``.
        why: why there is no result to compare, or what is left out.

    Raises:
        ValueError: neither an experiment, a command nor a reason.
    """

    paper: str
    name: str
    what: str
    experiment: str = ""
    command: str = ""
    record: str = ""
    why: str = ""

    def __post_init__(self) -> None:
        if not (self.experiment or self.command or self.why):
            raise ValueError(f"{self.name} of {self.paper} needs an experiment, a command or why there is neither")

    @property
    def calls(self) -> list[str]:
        """The commands that make it, in order."""
        train = [f"immiscible train {self.experiment} --scale cpu"] if self.experiment else []
        return train + ([self.command] if self.command else [])


def papers() -> list[Item]:
    """Return every table and figure, in the order of the papers.

    Raises:
        ValueError: the list that comes with the package is damaged.

    >>> {item.experiment for item in papers() if item.name == "Table 5" and item.paper == "2406.12303"}
    {'table5-norm'}
    """
    path = Path(__file__).parent / "papers.toml"
    items = []
    for values in read_toml(path).get("items", []):
        if unknown := sorted(set(values) - _KEYS):
            raise ValueError(f"{path}: unknown key {unknown[0]}; there are {sorted(_KEYS)}")
        items.append(Item(**values))
    return items


def states(item: Item, root: Path) -> dict[str, str]:
    """Return the state of an item's result by scale.

    Args:
        item: the table or figure.
        root: the repository's root, or any folder with ``results/EXPERIMENT/SCALE/summary.json`` as
            ``immiscible report RUNS --record`` writes it.

    Raises:
        ValueError: a record that cannot be read.
    """
    experiment = read_experiment(item.experiment) if item.experiment else None
    scales = experiment.scale if experiment else {}
    possible = list(scales) if item.experiment else ["cpu"] if item.command else []
    by_scale = {}
    for scale in SCALES:
        if item.record and scale in possible and (root / _record(item, scale)).is_file():
            by_scale[scale] = "recorded"
        elif item.record or experiment is None:
            by_scale[scale] = "ready" if scale in possible else "-"
        else:
            folder = (root / _record(item, scale)).parent
            arms = experiment.arms(scale) if scale in scales else []
            by_scale[scale] = state(folder, scales.get(scale), arms)
    return by_scale


def state(folder: Path, wanted: Mapping[str, Any] | None, arms: Sequence[str] = ()) -> str:
    """Return the state of a folder of results: ``recorded``, ``in part``, ``ready`` to be run, or ``-`` if not.

    Args:
        folder: holds ``summary.json``, if anything was recorded.
        wanted: what the experiment's file sets at this scale, None where it has none. A record that was made with
            another number (steps, images and the like) is said to be of an earlier set-up.
        arms: of the experiment at this scale; a record that lacks one is said to be in part.

    Raises:
        ValueError: ``summary.json`` cannot be read.

    >>> state(Path("nowhere"), {}), state(Path("nowhere"), None)
    ('ready', '-')
    """
    if not (folder / "summary.json").is_file():
        return "-" if wanted is None else "ready"
    record = read_json(folder / "summary.json")
    runs, left = len(record.get("runs", [])), len(record.get("unfinished", []))
    seeds = len({run["seed"] for run in record.get("runs", [])})
    done = f"{runs} runs, {seeds} seed{'s' * (seeds != 1)}"
    if left:
        return f"in part: {done}, {left} to come"
    if missing := [arm for arm in arms if arm not in {run["arm"] for run in record["runs"]}]:
        return f"in part: {done}, without {', '.join(missing)}"
    made: Mapping[str, Any] = next(iter(record.get("configurations", {}).values()), {})
    return f"recorded of an earlier set-up: {done}" if _is_other(made, wanted or {}) else f"recorded: {done}"


def _is_other(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Return whether a recorded configuration has another number than a scale sets, apart from the varied options."""
    varied = {name.strip() for key in wanted if key.startswith("grid.") for name in key[5:].split(",")}
    for key, value in wanted.items():
        kind, _, name = key.partition(".")
        choice = made.get(kind, {})
        values = value if isinstance(value, list) else [value]
        number = key not in varied | {"train.seed"} and all(isinstance(item, int | float) for item in values)
        if number and isinstance(choice, Mapping) and name in choice and choice[name] != value:
            return True
    return False


def papers_table(items: Sequence[Item], root: Path) -> list[list[str]]:
    """Return a row an item: paper, name, what, file or command, and the state of each scale."""
    rows = []
    for item in items:
        by = item.experiment or item.command or "none"
        rows.append([item.paper, item.name, item.what, by, *states(item, root).values()])
    return rows


def papers_page(page: str, items: Sequence[Item], root: Path) -> str:
    """Return a Markdown page with the list between its markers, in place of the old one.

    Raises:
        ValueError: the page has no markers.
    """
    before, begin, rest = page.partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    if not begin or not end:
        raise ValueError(f"the page has no place for the list: put {MARKERS[0]} and {MARKERS[1]} into it")
    parts = [_section(paper, [item for item in items if item.paper == paper], root) for paper in _order(items)]
    return f"{before}{begin}\n{chr(10).join(parts)}\n{end}{after}"


def _order(items: Sequence[Item]) -> list[str]:
    return list(dict.fromkeys(item.paper for item in items))


def _section(paper: str, items: Sequence[Item], root: Path) -> str:
    title = f"[arXiv:{paper}](https://arxiv.org/abs/{paper})" if paper else "Questions of this project"
    lines = [f"### {title}", "", "| | what | made by | cpu | gpu | paper |", "|---|---|---|---|---|---|"]
    for item in items:
        file = f"../src/immiscible_diffusion/experiments/{item.experiment}.toml"
        made = [f"[{item.experiment}]({file})"] if item.experiment else []
        made += [f"`{item.command}`"] if item.command else []
        cells: list[Any] = [item.name, item.what + (f". {item.why}" if item.why else "")]
        cells += [", then ".join(made) or "nothing"]
        cells += [_linked(text, item, scale, root) for scale, text in states(item, root).items()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _linked(text: str, item: Item, scale: str, root: Path) -> str:
    """Return a state with a link to its record, where there is one."""
    target = _record(item, scale)
    return f"[{text}](../{target})" if text.startswith(("recorded", "in part")) and (root / target).exists() else text


def _record(item: Item, scale: str) -> str:
    """Return where the result of a scale is kept, from the repository's root."""
    return item.record.replace("SCALE", scale) or f"results/{item.experiment}/{scale}/summary.json"
