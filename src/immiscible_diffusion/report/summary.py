"""The numbers of one experiment: its arms, grouped with the independent arm that each is compared with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from immiscible_diffusion.files import read_index, read_json
from immiscible_diffusion.report.compare import Comparison
from immiscible_diffusion.report.read_runs import Arm, Measured, read_arms
from immiscible_diffusion.runs.folder import is_finished

__all__ = ["Summary", "counted", "read_summary"]

REFERENCE = "independent"


@dataclass(frozen=True)
class Summary:
    """All that was measured. ``index`` and ``pairs`` are the contents of ``index.json`` and ``pairs.json``."""

    folder: Path
    index: dict[str, Any]
    pairs: dict[str, dict[str, float]]
    arms: list[Arm]
    unfinished: list[str]

    @property
    def measured(self) -> list[Measured]:
        """What was measured of every arm, in the order of the index."""
        return [measured for arm in self.arms for measured in arm.measured]

    @property
    def metrics(self) -> list[str]:
        """The metrics in the order of the configuration, those of its first feature network first."""
        return list(dict.fromkeys(metric for measured in self.measured for metric in measured.curves))

    @property
    def sampling_steps(self) -> list[int]:
        """The numbers of sampling steps that were evaluated, rising."""
        return sorted({measured.sampling_steps for measured in self.measured})

    @property
    def labels(self) -> list[str]:
        """The arms in the order of the index, each followed by its plain start where it was measured."""
        return list(dict.fromkeys(measured.label for measured in self.measured))

    def reference(self, arm: str) -> str:
        """Return the arm of independent noise that is like this one in everything else that varies."""
        points = {each.name: each.point for each in self.arms}
        point = {**points.get(arm, {}), "coupling": REFERENCE}
        return next((name for name, other in points.items() if other and other == point), REFERENCE)

    def group(self, arm: str) -> str:
        """Return what an arm shares with its reference, in words; empty where the coupling alone varies."""
        point = next((each.point for each in self.arms if each.name == arm), {})
        rest = {key: label for key, label in point.items() if key != "coupling"}
        return ", ".join(f"{key.partition(',')[0].rpartition('.')[2]} {label}" for key, label in rest.items())

    @property
    def groups(self) -> list[str]:
        """The groups of arms that are compared with each other, in the order of the index."""
        return list(dict.fromkeys(self.group(arm.name) for arm in self.arms))

    def find(self, label: str, sampling_steps: int) -> Measured | None:
        """Return what was measured of one arm and start at one number of sampling steps."""
        key = (label, sampling_steps)
        return next((each for each in self.measured if (each.label, each.sampling_steps) == key), None)

    def comparison(self, label: str, sampling_steps: int, metric: str) -> Comparison | None:
        """Return an arm against its reference over common seeds; None where there are none, or it is the reference."""
        arm = self.find(label, sampling_steps)
        reference = None if arm is None else self.find(self.reference(arm.arm), sampling_steps)
        if arm is None or reference is None or arm.label == reference.label:
            return None
        common = sorted(set(arm.curves[metric]) & set(reference.curves[metric]))
        return Comparison(reference, arm, metric, [(seed, seed) for seed in common]) if common else None

    @property
    def measured_once(self) -> bool:
        """Whether nothing was measured before the end of training, so that there are no curves."""
        return all(len(c) < 2 for each in self.measured for by_seed in each.curves.values() for c in by_seed.values())


def counted(steps: int) -> str:
    """Return a number of sampling steps as words."""
    return f"{steps} sampling step{'s' * (steps > 1)}"


def read_summary(folder: Path) -> Summary:
    """Return the numbers of the experiment whose runs lie in a folder. Unfinished runs are named and left out.

    Raises:
        ValueError: there is no index, no finished run, or a file that cannot be read.
    """
    index, pairs = read_index(folder), read_json(folder / "pairs.json")
    unfinished = [run["folder"] for run in index["runs"] if not is_finished(folder / run["folder"])]
    if len(unfinished) == len(index["runs"]):
        raise ValueError(f"{folder} holds no finished run; run `immiscible train {index['experiment']}` first")
    return Summary(folder, index, pairs, read_arms([folder])[0], unfinished)
