"""Experiments: one TOML file is a table or a figure; its grid is the runs behind it."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from immiscible_diffusion.experiments.config import Config, overridden, read_config, read_toml

__all__ = ["Cell", "Experiment", "built_in", "presets", "read_experiment", "with_preset"]

_KEYS = ["title", "source", "question", "base", "grid", "scale", "published"]


@dataclass(frozen=True)
class Cell:
    """One run of an experiment: its arm (every varied value but the seed), its seed and its configuration.

    ``point`` says the arm key by key: what the file varies -> the label of this run's value.
    """

    arm: str
    seed: int
    config: Config
    point: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The name of its run folder: arm, seed and a hash of the resolved configuration."""
        text = json.dumps(self.config.plain(), sort_keys=True)
        return f"{self.arm}-seed{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Experiment:
    """What an experiment file says.

    Args:
        name: the file's stem.
        title: one line for people.
        source: the table or figure that it reproduces.
        question: what it is to answer.
        base: one whole run; ``preset`` in it names data that come with the package.
        grid: dotted key -> {label: value}; the runs are the product. ``"a.b, c.d"`` varies keys together, with a list
            of values under each label.
        scale: scale name -> dotted overrides; ``grid.KEY`` gives a varied key other choices, as other data may need.
        published: figures of the literature to stand beside the measured ones.
    """

    name: str
    title: str
    source: str
    question: str
    base: Mapping[str, Any]
    grid: Mapping[str, Mapping[str, Any]]
    scale: Mapping[str, Mapping[str, Any]]
    published: Mapping[str, Any]

    def cells(self, scale: str | None = None, overrides: Sequence[tuple[str, Any]] = ()) -> list[Cell]:
        """Return the runs, seeds outermost, so that every arm has its first seed before any has its second.

        Overrides come last. Where one names a grid key, that key is no longer varied; ``train.seed`` may be a list.

        Raises:
            ValueError: an unknown scale, or a configuration that is refused.
        """
        if scale is not None and scale not in self.scale:
            raise ValueError(f"{self.name} has no scale {scale!r}; there are {sorted(self.scale)}")
        base, grid = dict(self.base), dict(self.grid)
        for key, value in [*(self.scale[scale].items() if scale else ()), *overrides]:
            if key == "train.seed":
                grid[key] = {str(seed): seed for seed in (value if isinstance(value, list) else [value])}
            elif key.startswith("grid.") and key[5:] in grid:
                grid[key[5:]] = _labelled(key, value, self.name)
            else:
                grid.pop(key, None)
                base = overridden(base, key, value)
        seeds = grid.pop("train.seed", {"0": base.get("train", {}).get("seed", 0)})
        cells = []
        for seed, *point in itertools.product(seeds.values(), *(grid[key].items() for key in grid)):
            values = overridden(base, "train.seed", seed)
            for key, (_, value) in zip(grid, point, strict=True):
                values = _varied(values, key, value)
            for key, value in overrides:  # an option of something that the grid chooses
                if key != "train.seed" and not (key.startswith("grid.") and key[5:] in grid):
                    values = overridden(values, key, value)
            arm = "-".join(label for label, _ in point) or "run"
            labels = {key: label for key, (label, _) in zip(grid, point, strict=True)}
            cells.append(Cell(arm, int(seed), read_config(with_preset(values)), labels))
        return cells


def built_in() -> dict[str, Path]:
    """Return the experiments that come with the package, by name."""
    folder = Path(__file__).parent
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def presets() -> dict[str, Path]:
    """Return the presets that come with the package, by name: a source and a codec each."""
    folder = Path(__file__).parent / "presets"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def with_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's values with those of the preset that it names; its own keys win.

    A source or codec of another name (``use``) takes the preset's place as a whole.

    Raises:
        ValueError: there is no such preset.

    >>> with_preset({"preset": "cifar10", "codec": {"std": 64.2}})["codec"]
    {'use': 'pixels', 'std': 64.2}
    """
    own = {key: value for key, value in values.items() if key != "preset"}
    if "preset" not in values:
        return own
    known = presets()
    if values["preset"] not in list(known):
        raise ValueError(f"no preset {values['preset']!r}; there are {sorted(known)}")
    for key, given in read_toml(known[values["preset"]]).items():
        mine = own.get(key, {})
        mine = {"use": mine} if isinstance(mine, str) else mine
        if isinstance(mine, Mapping) and mine.get("use", given["use"]) == given["use"]:
            own[key] = {**given, **mine}
    return own


def read_experiment(name: str) -> Experiment:
    """Return the experiment of this name, or of the TOML file at this path.

    Raises:
        ValueError: there is none, it is not TOML, or it has keys that no experiment has.
    """
    known = built_in()
    path = known.get(name) or Path(name)
    if not path.is_file():
        raise ValueError(f"no experiment or file {name!r}; there are {sorted(known)}")
    values = read_toml(path)
    if unknown := sorted(set(values) - set(_KEYS)):
        raise ValueError(f"{path}: unknown key {unknown[0]}; there are {_KEYS}")
    if not isinstance(values.get("base"), Mapping):
        raise ValueError(f"{path}: [base], one whole run, is missing")
    grid = {key: _labelled(f"grid.{key}", choices, str(path)) for key, choices in values.get("grid", {}).items()}
    return Experiment(
        path.stem,
        values.get("title", path.stem),
        values.get("source", ""),
        values.get("question", ""),
        values["base"],
        grid,
        values.get("scale", {}),
        values.get("published", {}),
    )


def _varied(values: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return the values at one point of an axis, which may vary several keys together.

    Raises:
        ValueError: there are not as many values as keys.
    """
    keys = [each.strip() for each in key.split(",")]
    chosen = value if len(keys) > 1 else [value]
    if not isinstance(chosen, list) or len(chosen) != len(keys):
        raise ValueError(f"grid.{key} has the value {value!r}; it must be a list of {len(keys)} values")
    changed = dict(values)
    for each, one in zip(keys, chosen, strict=True):
        changed = overridden(changed, each, one)
    return changed


def _labelled(key: str, choices: Any, where: str) -> dict[str, Any]:
    if isinstance(choices, Mapping) and choices:
        return dict(choices)
    if isinstance(choices, list) and choices:
        return {str(value): value for value in choices}
    raise ValueError(f"{where}: {key} must be a list of values or a table of label = value")
