"""Run folders as arms: runs that are alike but for the seed, named by what tells the arms apart."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from immiscible_diffusion.files import read_index, read_json, read_lines
from immiscible_diffusion.report.measures import rises
from immiscible_diffusion.report.speedup import Curve
from immiscible_diffusion.runs.folder import CONFIG, EVALUATION, LOG, SESSIONS, is_finished

__all__ = ["Arm", "Measurements", "Pace", "Run", "differences", "read_arms", "refuse_unlike"]

_MEASURED_BY = "source", "evaluate.features", "evaluate.samples", "evaluate.seed"
"""Keys that decide what a distance is a distance of: runs that differ here cannot be compared."""
_HARDWARE = "system", "processor", "accelerator", "threads"
_NO_METRIC = {"step", "sampling_steps", "start", "samples", "sample_seed", "wall_seconds"}


@dataclass(frozen=True)
class Run:
    """One finished run as its folder holds it: resolved configuration, a session's environment each, lines written."""

    folder: Path
    config: Mapping[str, Any]
    environment: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]]
    log: Sequence[Mapping[str, Any]]

    @property
    def seed(self) -> int:
        """The seed of training."""
        return int(self.config["train"]["seed"])

    @cached_property
    def choices(self) -> dict[str, str]:
        """The configuration without the seed, dotted key -> JSON text."""
        return {key: text for key, text in _flat(self.config).items() if key != "train.seed"}


@dataclass(frozen=True)
class Pace:
    """Milliseconds of a training step, and the percentage of them that the step spent on its coupling."""

    step_ms: float
    coupling_percent: float


@dataclass(frozen=True)
class Measurements:
    """One arm at one number of sampling steps from one start: metric -> seed -> curve.

    ``start`` is ``matched``, the coupling's own, or ``normal``. ``rising`` are the metrics of which larger values are
    better. ``hardware`` says what its runs ran on.
    """

    arm: str
    sampling_steps: int
    start: str
    curves: Mapping[str, Mapping[int, Curve]]
    rising: frozenset[str]
    pace: Pace | None
    hardware: frozenset[str]

    @property
    def label(self) -> str:
        """The arm's name, with its start where that is not the coupling's own."""
        return self.arm if self.start == "matched" else f"{self.arm}, plain start"

    def final(self, metric: str) -> dict[int, float]:
        """Return the last value of a metric by seed."""
        return {seed: curve[-1][1] for seed, curve in self.curves[metric].items()}


@dataclass(frozen=True)
class Arm:
    """Runs that are alike but for the seed, seed -> run; ``point`` is grid key -> label, empty outside a grid."""

    name: str
    runs: Mapping[int, Run]
    point: Mapping[str, str] = field(default_factory=dict)

    @property
    def first(self) -> Run:
        """The run of the lowest seed."""
        return next(iter(self.runs.values()))

    @property
    def hardware(self) -> frozenset[str]:
        """What the runs ran on; more than one member where they ran on different machines."""
        return self._sessions(*_HARDWARE)

    @property
    def software(self) -> frozenset[str]:
        """Versions and commits of the runs."""
        return self._sessions("commit", "packages")

    @cached_property
    def measured(self) -> list[Measurements]:
        """All that was measured, by rising number of sampling steps, the coupling's own start first."""
        table: dict[tuple[int, str], dict[str, dict[int, list[tuple[int, float]]]]] = {}
        for seed, run in self.runs.items():
            for line in sorted(run.evaluations, key=lambda line: int(line["step"])):
                by_metric = table.setdefault((line["sampling_steps"], line["start"]), {})
                for metric, value in line.items():
                    if metric not in _NO_METRIC and isinstance(value, int | float):
                        by_metric.setdefault(metric, {}).setdefault(seed, []).append((line["step"], float(value)))
        metrics = {metric for curves in table.values() for metric in curves}
        rising = frozenset(metric for metric in metrics if rises(metric, self.first.config))
        pace, hardware = self.pace, self.hardware
        return [Measurements(self.name, *key, curves, rising, pace, hardware) for key, curves in sorted(table.items())]

    @cached_property
    def pace(self) -> Pace | None:
        """The median over the logged intervals of all runs: a mean would count what other programs took meanwhile."""
        steps, couplings = list[float](), list[float]()
        for run in self.runs.values():
            start = {"step": 0, "step_seconds": 0.0, "coupling_seconds": 0.0, "waiting_seconds": 0.0}
            for before, after in pairwise([start, *run.log]):
                count = after["step"] - before["step"]
                if count <= 0 or "step_seconds" not in after or "step_seconds" not in before:  # damaged, or cut
                    continue
                spent = {key: (after[key] - before[key]) / count for key in start if key in before and key in after}
                steps.append(spent["step_seconds"])
                # Prefetched pairs cost what the step waited for them, which is never less than the pairing otherwise.
                couplings.append(min(spent[key] for key in ("coupling_seconds", "waiting_seconds") if key in spent))
        if not steps:
            return None
        step, coupling = median(steps), median(couplings)
        return Pace(round(1000 * step, 3), round(100 * coupling / step, 3) if step else 0.0)

    def _sessions(self, *keys: str) -> frozenset[str]:
        sessions = [session for run in self.runs.values() for session in run.environment]
        return frozenset(json.dumps([session.get(key) for key in keys]) for session in sessions)


def read_arms(paths: Sequence[Path]) -> tuple[list[Arm], list[str]]:
    """Return the arms of run and experiment folders, in the order given, and the runs left out with the reasons.

    An experiment's arms have the names of its ``index.json``; other runs are named by the keys in which they differ,
    as ``coupling=assignment``.

    Raises:
        ValueError: a path is neither kind of folder, a file cannot be read, no run is finished, or one arm has the
            same seed twice.
    """
    groups: dict[str, list[tuple[Run, Mapping[str, Any]]]] = {}
    seen, notes = set[Path](), list[str]()
    for folder, entry in (listed for path in paths for listed in _listed(path, notes)):
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        if not is_finished(folder):
            notes.append(f"left out, not finished: {folder}")
            continue
        run = _read(folder)
        groups.setdefault(json.dumps(run.choices, sort_keys=True), []).append((run, entry))
    if not groups:
        raise ValueError(f"no finished run in {', '.join(map(str, paths))}; train them to the end first")
    entries = [next((entry for _, entry in group if entry), {}) for group in groups.values()]
    names = _names([entry.get("arm", "") for entry in entries], [group[0][0].choices for group in groups.values()])
    arms = zip(names, groups.values(), entries, strict=True)
    return [
        Arm(name, _by_seed(name, [run for run, _ in group]), entry.get("point", {})) for name, group, entry in arms
    ], notes


def differences(arm: Arm, other: Arm) -> dict[str, str]:
    """Return key -> how its value differs, for the keys of both arms except the keys of the couplings.

    An option of something that only one arm chose is left out: the differing choice is listed.
    """
    first, second = arm.first.choices, other.first.choices
    return {
        key.removesuffix(".use"): f"{_plain(first.get(key, 'absent'))}, not {_plain(second.get(key, 'absent'))}"
        for key in sorted(set(first) | set(second))
        if first.get(key) != second.get(key)
        and _above(first, key) == _above(second, key)
        and key.partition(".")[0] != "coupling"
    }


def refuse_unlike(arm: Arm, other: Arm, metric: str) -> None:
    """Refuse two arms whose numbers are not of the same measurement.

    Raises:
        ValueError: source, features, number or seed of samples, or the metric's options differ; names the key.
    """
    differing = {key: text for key, text in differences(arm, other).items() if key.startswith(_MEASURED_BY)}
    metrics = [_metric(side.first.choices, metric) for side in (arm, other)]
    if metrics[0] != metrics[1]:
        differing["evaluate.metrics"] = f"{metrics[0]}, not {metrics[1]}"
    if differing:
        said = "; ".join(f"{key} is {text}" for key, text in differing.items())
        raise ValueError(f"{arm.name} was not measured as {other.name} was, so they are not compared: {said}")


def _listed(path: Path, notes: list[str]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield run folders with their entries in the index, empty for those that have none."""
    if (path / "config.json").is_file():
        yield path, {}
        return
    inside = sorted(config.parent for config in path.glob("*/config.json"))
    if not (path / "index.json").is_file():
        if not inside:
            raise ValueError(f"{path} holds neither a run (config.json) nor an experiment (index.json)")
        yield from ((folder, {}) for folder in inside)
        return
    entries = read_index(path)["runs"]
    yield from ((path / entry["folder"], entry) for entry in entries)
    if others := {folder.name for folder in inside} - {entry["folder"] for entry in entries}:
        notes.append(f"left out, not in {path / 'index.json'}: {', '.join(sorted(others))}; name them to include them")


def _read(folder: Path) -> Run:
    path = folder / "environment.json"
    return Run(
        folder,
        config=read_json(folder / "config.json", CONFIG),
        environment=read_json(path, SESSIONS) if path.is_file() else [{}],
        evaluations=read_lines(folder / "evaluations.jsonl", EVALUATION),
        log=read_lines(folder / "log.jsonl", LOG),
    )


def _by_seed(name: str, group: Sequence[Run]) -> dict[int, Run]:
    runs: dict[int, Run] = {}
    for run in group:
        if run.seed in runs:
            raise ValueError(f"{name}, seed {run.seed}, is there twice: {runs[run.seed].folder} and {run.folder}")
        runs[run.seed] = run
    return dict(sorted(runs.items()))


def _names(labels: Sequence[str], configs: Sequence[Mapping[str, str]]) -> list[str]:
    """Return a name for each configuration: its label in the index where no other has it, else what differs."""
    names = []
    for label, config in zip(labels, configs, strict=True):
        differing = _telling(config, configs) or "run"
        names.append(differing if not label else label if labels.count(label) == 1 else f"{label} ({differing})")
    return names


def _telling(config: Mapping[str, str], all_configs: Sequence[Mapping[str, str]]) -> str:
    """Return the keys and values that tell one configuration from those that made the same choices above the key."""
    parts = []
    for key, value in config.items():
        peers = [other for other in all_configs if _above(other, key) == _above(config, key)]
        if any(other.get(key) != value for other in peers):
            parts.append(f"{key.removesuffix('.use')}={_plain(value)}")
    return ", ".join(parts)


def _above(config: Mapping[str, str], key: str) -> list[str | None]:
    """Return the names chosen by ``use`` on the way to a key: options are comparable only under equal choices."""
    steps = key.removesuffix(".use").split(".")[:-1]
    return [config.get(".".join([*steps[: i + 1], "use"])) for i in range(len(steps))]


def _metric(config: Mapping[str, str], metric: str) -> str:
    """Return the metric's choice and options as JSON; if no metric has this name, the options of all metrics."""
    chosen = json.loads(config.get("evaluate.metrics", "[]"))
    same = [choice for choice in chosen if str(choice.get("use")).rpartition(":")[2].lower() == metric]
    return json.dumps(same or chosen, sort_keys=True)


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": json.dumps(value)}
    return flat


def _plain(text: str) -> str:
    return text.strip('"')
