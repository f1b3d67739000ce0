"""Run folders as arms: runs that are alike but for the seed, named by what tells the arms apart."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from immiscible_diffusion.files import read_index, read_json, read_lines
from immiscible_diffusion.report.speedup import Curve
from immiscible_diffusion.runs.folder import is_finished

__all__ = ["Arm", "Run", "differences", "read_arms", "refuse_unlike"]

_MEASURED_BY = "source", "evaluate.features", "evaluate.samples", "evaluate.seed"
"""Keys that decide what a distance is a distance of: where they differ, numbers have nothing to say to each other."""

_HARDWARE = "system", "processor", "accelerator", "threads"


@dataclass(frozen=True)
class Run:
    """One finished run as its folder holds it.

    ``config`` is the resolved configuration without the seed, dotted key -> JSON text; ``hardware`` and ``software``
    say what its sessions ran on and with.
    """

    folder: Path
    seed: int
    config: Mapping[str, str]
    evaluations: Sequence[Mapping[str, Any]]
    log: Sequence[Mapping[str, Any]]
    hardware: frozenset[str]
    software: frozenset[str]

    def curve(self, metric: str, sampling_steps: int, start: str) -> Curve:
        """Return (training step, value) by rising step, empty where this was not measured."""
        asked = (sampling_steps, start)
        return sorted(
            (line["step"], float(line[metric]))
            for line in self.evaluations
            if (line["sampling_steps"], line["start"]) == asked and metric in line
        )

    def seconds(self, step: float) -> float | None:
        """Return the wall seconds of training, evaluations apart, up to a step; linear between two lines of the log."""
        if not self.log:
            return None
        steps, seconds = ([0.0, *(float(line[key]) for line in self.log)] for key in ("step", "step_seconds"))
        return float(np.interp(step, steps, seconds))

    def pace(self) -> tuple[float, float] | None:
        """Return the milliseconds that a step took, and those of them for which it had to wait for its coupling."""
        if not self.log:
            return None
        last = self.log[-1]
        # A prefetched pairing costs what the step waited for it; that is never less than the pairing otherwise.
        coupling = min(last["coupling_seconds"], last.get("waiting_seconds", last["coupling_seconds"]))
        return 1000 * last["step_seconds"] / last["step"], 1000 * coupling / last["step"]


@dataclass(frozen=True)
class Arm:
    """Runs that are alike but for the seed: seed -> run."""

    name: str
    runs: Mapping[int, Run]

    @property
    def config(self) -> Mapping[str, str]:
        """The configuration that the runs share."""
        return next(iter(self.runs.values())).config

    @property
    def hardware(self) -> frozenset[str]:
        """What the runs ran on; more than one member where they ran on different machines."""
        return frozenset[str]().union(*(run.hardware for run in self.runs.values()))

    @property
    def software(self) -> frozenset[str]:
        """Versions and commits of the runs."""
        return frozenset[str]().union(*(run.software for run in self.runs.values()))

    @property
    def series(self) -> list[tuple[int, str]]:
        """What was measured: (sampling steps, start), sorted."""
        return sorted({(e["sampling_steps"], e["start"]) for run in self.runs.values() for e in run.evaluations})

    def curves(self, metric: str, sampling_steps: int, start: str) -> dict[int, Curve]:
        """Return seed -> curve of the runs that have one."""
        found = {seed: run.curve(metric, sampling_steps, start) for seed, run in sorted(self.runs.items())}
        return {seed: curve for seed, curve in found.items() if curve}


def read_arms(paths: Sequence[Path]) -> tuple[list[Arm], list[str]]:
    """Return the arms of run folders and experiment folders, in the order given, and what was left out and why.

    An experiment's arms have the names of its ``index.json``; other runs are named by the keys in which they differ,
    as ``coupling=assignment``.

    Raises:
        ValueError: a path is neither kind of folder, a file cannot be read, no run is finished, or one arm has the
            same seed twice.
    """
    groups: dict[str, list[tuple[Run, str]]] = {}
    seen, notes = set[Path](), list[str]()
    for folder, label in (each for path in paths for each in _listed(path, notes)):
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        if not is_finished(folder):
            notes.append(f"left out, not finished: {folder}")
            continue
        run = _read(folder)
        groups.setdefault(json.dumps(run.config, sort_keys=True), []).append((run, label))
    if not groups:
        raise ValueError(f"no finished run in {', '.join(map(str, paths))}; train them to the end first")
    return [Arm(name, _by_seed(name, group)) for name, group in _named(list(groups.values())).items()], notes


def differences(arm: Arm, other: Arm) -> dict[str, str]:
    """Return key -> what it is here and there, of keys that both may have: options of another choice go without saying.

    The couplings are what arms are for; their keys are left out.
    """
    here, there = arm.config, other.config
    told = {}
    for key in sorted(set(here) | set(there)):
        if here.get(key) != there.get(key) and _choices(here, key) == _choices(there, key):
            told[key.removesuffix(".use")] = (
                f"{_plain(here.get(key, 'absent'))}, not {_plain(there.get(key, 'absent'))}"
            )
    return {key: text for key, text in told.items() if key.partition(".")[0] != "coupling"}


def refuse_unlike(arm: Arm, other: Arm, metric: str) -> None:
    """Refuse two arms whose numbers are not of the same measurement.

    Raises:
        ValueError: source, features, number or seed of samples, or the metric's options differ; names the key.
    """
    found = {key: text for key, text in differences(arm, other).items() if key.startswith(_MEASURED_BY)}
    metrics = [_metric(each.config, metric) for each in (arm, other)]
    if metrics[0] != metrics[1]:
        found["evaluate.metrics"] = f"{metrics[0]}, not {metrics[1]}"
    if found:
        said = "; ".join(f"{key} is {text}" for key, text in found.items())
        raise ValueError(f"{arm.name} was not measured as {other.name} was, so they are not compared: {said}")


def _listed(path: Path, notes: list[str]) -> Iterator[tuple[Path, str]]:
    """Yield run folders with their names in the index, empty for those that have none."""
    if (path / "config.json").is_file():
        yield path, ""
        return
    inside = sorted(each.parent for each in path.glob("*/config.json"))
    if not (path / "index.json").is_file():
        if not inside:
            raise ValueError(f"{path} holds neither a run (config.json) nor an experiment (index.json)")
        yield from ((folder, "") for folder in inside)
        return
    listed = [(str(run["folder"]), str(run["arm"])) for run in read_index(path)["runs"]]
    for folder, label in listed:
        yield path / folder, label
    if others := {each.name for each in inside} - {folder for folder, _ in listed}:
        notes.append(f"left out, not in {path / 'index.json'}: {', '.join(sorted(others))}; name them to include them")


def _read(folder: Path) -> Run:
    plain = read_json(folder / "config.json")
    try:
        seed = int(plain["train"].pop("seed"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} is not the configuration of a run: it has no train.seed") from error
    path = folder / "environment.json"
    sessions = read_json(path) if path.is_file() else [{}]
    hardware = frozenset(json.dumps([session.get(key) for key in _HARDWARE]) for session in sessions)
    software = frozenset(json.dumps([session.get("commit"), session.get("packages")]) for session in sessions)
    evaluations, log = (read_lines(folder / name) for name in ("evaluations.jsonl", "log.jsonl"))
    return Run(folder, seed, _flat(plain), evaluations, log, hardware, software)


def _by_seed(name: str, group: Sequence[tuple[Run, str]]) -> dict[int, Run]:
    runs: dict[int, Run] = {}
    for run, _ in group:
        if run.seed in runs:
            raise ValueError(f"{name}, seed {run.seed}, is there twice: {runs[run.seed].folder} and {run.folder}")
        runs[run.seed] = run
    return dict(sorted(runs.items()))


def _named(groups: Sequence[Sequence[tuple[Run, str]]]) -> dict[str, Sequence[tuple[Run, str]]]:
    """Return name -> group: the index's name where there is one that no other group has, else what differs."""
    labels = [next((label for _, label in group if label), "") for group in groups]
    configs = [group[0][0].config for group in groups]
    names = []
    for label, config in zip(labels, configs, strict=True):
        told = _telling(config, configs) or "run"
        names.append(told if not label else label if labels.count(label) == 1 else f"{label} ({told})")
    return dict(zip(names, groups, strict=True))


def _telling(config: Mapping[str, str], all_configs: Sequence[Mapping[str, str]]) -> str:
    """Return the keys and values that tell one configuration from those that made the same choices above the key."""
    parts = []
    for key, value in config.items():
        peers = [each for each in all_configs if _choices(each, key) == _choices(config, key)]
        if any(each.get(key) != value for each in peers):
            parts.append(f"{key.removesuffix('.use')}={_plain(value)}")
    return ", ".join(parts)


def _choices(config: Mapping[str, str], key: str) -> list[str | None]:
    """Return the names chosen by ``use`` on the way to a key: options are comparable only under equal choices."""
    steps = key.removesuffix(".use").split(".")[:-1]
    return [config.get(".".join([*steps[: i + 1], "use"])) for i in range(len(steps))]


def _metric(config: Mapping[str, str], metric: str) -> str:
    """Return the metric's choice and options as JSON, or those of all metrics where one of them yields it."""
    chosen = json.loads(config.get("evaluate.metrics", "[]"))
    own = [choice for choice in chosen if str(choice.get("use")).rpartition(":")[2].lower() == metric]
    return json.dumps(own or chosen, sort_keys=True)


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": json.dumps(value)}
    return flat


def _plain(text: str) -> str:
    return text.strip('"')
