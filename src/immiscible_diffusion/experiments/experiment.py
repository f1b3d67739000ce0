"""Experiments: one TOML file is a table or a figure; its grid is the runs behind it."""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from immiscible_diffusion.experiments.config import Config, read_config
from immiscible_diffusion.experiments.values import labelled, overridden, read_values, with_preset

__all__ = ["Cell", "Experiment", "read_experiment"]


_LONGEST = 60
"""Characters of an arm's name in a folder's name; a file system takes 255 bytes."""


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
        """The name of its run folder: arm, seed and a hash of every option of training; evaluations do not count.

        What a file name cannot hold everywhere is an underscore in it.
        """
        plain = {key: value for key, value in self.config.plain().items() if key != "evaluate"}
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]
        arm = re.sub(r"[^\w.,=+-]", "_", self.arm)[:_LONGEST].lstrip(".") or "run"
        return f"{arm}-seed{self.seed}-{digest}"


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

        Overrides come last. Where one names a grid key, that key is no longer varied, until a later ``grid.KEY`` varies
        it again; ``train.seed`` may be a list.

        Raises:
            ValueError: an unknown scale, or a configuration that is refused.
        """
        base, grid = self._at(scale, overrides)
        seeds = grid.pop("train.seed", None) or {"0": _seed(base)}
        if wrong := [seed for seed in seeds.values() if not isinstance(seed, int) or isinstance(seed, bool)]:
            raise ValueError(f"{self.name}: train.seed is {wrong[0]!r}; seeds must be whole numbers")
        cells = []
        for seed, *point in itertools.product(seeds.values(), *(grid[key].items() for key in grid)):
            values = overridden(base, "train.seed", seed)
            for key, (_, value) in zip(grid, point, strict=True):
                values = _varied(values, key, value)
            for key, value in overrides:  # an option of something that the grid chooses
                if key != "train.seed" and not (key.startswith("grid.") and key[5:] in grid):
                    values = overridden(values, key, value)
            labels = {key: label for key, (label, _) in zip(grid, point, strict=True)}
            cells.append(Cell(_arm(labels.values()), seed, read_config(with_preset(values)), labels))
        if twice := [name for name, count in Counter(cell.folder for cell in cells).items() if count > 1]:
            raise ValueError(f"{self.name}: two runs would share the folder {twice[0]}; give them other labels")
        return cells

    def arms(self, scale: str | None = None) -> list[str]:
        """Return the names of the arms, in order; no configuration is made, and no data are looked for.

        Raises:
            ValueError: an unknown scale.
        """
        _, grid = self._at(scale, ())
        grid.pop("train.seed", None)
        return [_arm(labels) for labels in itertools.product(*grid.values())]

    def _at(
        self, scale: str | None, overrides: Sequence[tuple[str, Any]]
    ) -> tuple[dict[str, Any], dict[str, Mapping[str, Any]]]:
        """Return the base and the grid at a scale, changed by the overrides."""
        if scale is not None and scale not in self.scale:
            raise ValueError(f"{self.name} has no scale {scale!r}; there are {sorted(self.scale)}")
        base, grid = dict(self.base), dict(self.grid)
        for key, value in [*(self.scale[scale].items() if scale else ()), *overrides]:
            if key == "train.seed":
                grid[key] = labelled(key, value if isinstance(value, list) else [value], self.name)
            elif key.startswith("grid.") and key[5:] in self.grid:
                grid[key[5:]] = labelled(key, value, self.name)
            else:
                grid.pop(key, None)
                base = overridden(base, key, value)
        return base, {key: grid[key] for key in ("train.seed", *self.grid) if key in grid}  # in the file's order


def _arm(labels: Iterable[str]) -> str:
    return "-".join(labels) or "run"


def read_experiment(name: str) -> Experiment:
    """Return the experiment of this name, or of the TOML file at this path.

    Raises:
        ValueError: there is none, it is not TOML, or it has keys that no experiment has.
    """
    return Experiment(Path(name).stem, **read_values(name))


def _seed(base: Mapping[str, Any]) -> Any:
    train = base.get("train", {})
    if not isinstance(train, Mapping):
        raise ValueError(f"train is {train!r}; it must be a table")
    return train.get("seed", 0)


def _varied(values: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return the values at one point of an axis, which may vary several keys together.

    Raises:
        ValueError: there are not as many values as keys.
    """
    keys = [name.strip() for name in key.split(",")]
    chosen = value if len(keys) > 1 else [value]
    if not isinstance(chosen, list) or len(chosen) != len(keys):
        raise ValueError(f"grid.{key} has the value {value!r}; it must be a list of {len(keys)} values")
    changed = dict(values)
    for name, one in zip(keys, chosen, strict=True):
        changed = overridden(changed, name, one)
    return changed
