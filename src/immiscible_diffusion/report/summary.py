"""The numbers of an experiment, read from its run folders: what every table and figure is made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import ttest_rel

from immiscible_diffusion.files import read_index, read_json, read_lines
from immiscible_diffusion.report.speedup import Curve, Speedup, speedup

__all__ = ["Measured", "Summary", "counted", "paired_p", "read_summary"]

REFERENCE = "independent"


@dataclass(frozen=True)
class Measured:
    """One arm at one number of sampling steps from one start: seed -> curve for each metric."""

    arm: str
    sampling_steps: int
    start: str
    curves: dict[str, dict[int, Curve]]

    @property
    def label(self) -> str:
        """The arm's name, with its start where that is not the coupling's own."""
        return self.arm if self.start == "matched" else f"{self.arm}, plain start"

    def final(self, metric: str) -> dict[int, float]:
        """Return the last value of a metric by seed."""
        return {seed: curve[-1][1] for seed, curve in self.curves[metric].items()}


@dataclass(frozen=True)
class Summary:
    """All that was measured. ``runs`` and ``pairs`` are the contents of ``index.json`` and ``pairs.json``."""

    folder: Path
    index: dict[str, Any]
    pairs: dict[str, dict[str, float]]
    measured: list[Measured]
    metrics: list[str]
    unfinished: list[str]

    @property
    def sampling_steps(self) -> list[int]:
        """The numbers of sampling steps that were evaluated, rising."""
        return sorted({each.sampling_steps for each in self.measured})

    @property
    def labels(self) -> list[str]:
        """The arms in the order of the index, each followed by its plain start where it was measured."""
        return list(dict.fromkeys(each.label for each in self.measured))

    def reference(self, arm: str) -> str:
        """Return the arm of independent noise that is like this one in everything else that varies."""
        points = {run["arm"]: run.get("point", {}) for run in self.index["runs"]}
        mine = {**points.get(arm, {}), "coupling": REFERENCE}
        return next((name for name, point in points.items() if point and point == mine), REFERENCE)

    def group(self, arm: str) -> str:
        """Return what an arm shares with its reference, in words; empty where the coupling alone varies."""
        points = {run["arm"]: run.get("point", {}) for run in self.index["runs"]}
        rest = {key: label for key, label in points.get(arm, {}).items() if key != "coupling"}
        return ", ".join(f"{key.partition(',')[0].rpartition('.')[2]} {label}" for key, label in rest.items())

    @property
    def groups(self) -> list[str]:
        """The groups of arms that are compared with each other, in the order of the index."""
        return list(dict.fromkeys(self.group(measured.arm) for measured in self.measured))

    def find(self, label: str, sampling_steps: int) -> Measured | None:
        """Return what was measured of one arm and start at one number of sampling steps."""
        found = [m for m in self.measured if m.label == label and m.sampling_steps == sampling_steps]
        return found[0] if found else None

    def against(self, label: str, sampling_steps: int) -> tuple[Measured, Measured] | None:
        """Return an arm and its reference; None where either is missing, and for the reference itself."""
        arm = self.find(label, sampling_steps)
        reference = None if arm is None else self.find(self.reference(arm.arm), sampling_steps)
        if arm is None or reference is None or arm.label == reference.label:
            return None
        return arm, reference

    @property
    def measured_once(self) -> bool:
        """Whether nothing was measured before the end of training, so that there are no curves."""
        return all(len(c) < 2 for each in self.measured for by_seed in each.curves.values() for c in by_seed.values())

    def speedup(self, label: str, sampling_steps: int, metric: str) -> Speedup | None:
        """Return how much sooner an arm reaches its reference's final distance; None without a reference or curves."""
        found = self.against(label, sampling_steps)
        if found is None or self.measured_once:
            return None
        both = sorted(set(found[0].curves[metric]) & set(found[1].curves[metric]))
        curves = [{seed: each.curves[metric][seed] for seed in both} for each in reversed(found)]
        return speedup(*curves) if both else None


def paired_p(first: dict[int, float], second: dict[int, float]) -> float | None:
    """Return the two-sided p value of a paired t-test over common seeds, None with fewer than three or no difference.

    >>> round(paired_p({0: 1.0, 1: 2.0, 2: 3.0}, {0: 2.0, 1: 3.5, 2: 4.0}), 3)
    0.02
    """
    seeds = sorted(set(first) & set(second))
    differences = [first[seed] - second[seed] for seed in seeds]
    if len(seeds) < 3 or len(set(differences)) == 1:
        return None
    return float(ttest_rel([first[s] for s in seeds], [second[s] for s in seeds]).pvalue)


def counted(steps: int) -> str:
    """Return a number of sampling steps as words."""
    return f"{steps} sampling step{'s' * (steps > 1)}"


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation, 0 for a single value."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def read_summary(folder: Path) -> Summary:
    """Return the numbers of the experiment whose runs lie in a folder. Unfinished runs are named and left out.

    Raises:
        ValueError: there is no index, no finished run, or a file that cannot be read.
    """
    index, pairs = read_index(folder), read_json(folder / "pairs.json")
    curves: dict[tuple[str, int, str], dict[str, dict[int, list[tuple[int, float]]]]] = {}
    unfinished, metrics = [], list[str]()
    for run in index["runs"]:
        path = folder / run["folder"]
        if not (path / "export" / "immiscible.json").is_file():
            unfinished.append(run["folder"])
            continue
        metrics = _metrics(path)
        for line in read_lines(path / "evaluations.jsonl"):
            by_metric = curves.setdefault((run["arm"], line["sampling_steps"], line["start"]), {})
            for metric in metrics:
                by_metric.setdefault(metric, {}).setdefault(run["seed"], []).append((line["step"], line[metric]))
    if not curves:
        raise ValueError(f"{folder} holds no finished run; run `immiscible train {index['experiment']}` first")
    measured = [
        Measured(arm, steps, start, {metric: dict(by_seed) for metric, by_seed in by_metric.items()})
        for (arm, steps, start), by_metric in curves.items()
    ]
    return Summary(folder, index, pairs, measured, metrics, unfinished)


def _metrics(path: Path) -> list[str]:
    """Return the names under which a run's distances are kept, those of its first network first."""
    asked = read_json(path / "config.json")["evaluate"]
    names = [_name(choice) for choice in asked["metrics"]]
    return names + [f"{name}-{_name(features)}" for features in asked.get("also", []) for name in names]


def _name(choice: dict[str, Any]) -> str:
    return str(choice["use"]).rpartition(":")[2].lower()
