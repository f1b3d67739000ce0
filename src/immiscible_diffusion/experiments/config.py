"""From the plain values of a file to the objects of a run, with errors that name the key."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

from immiscible_diffusion.checks import check_choice
from immiscible_diffusion.registry import describe, make, read_table, written
from immiscible_diffusion.train import Train
from immiscible_diffusion.types import Codec, Coupling, Features, Method, Metric, NetDescription, Source

__all__ = ["Config", "Evaluation", "read_config"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """When and how samples are measured against held-out data.

    Args:
        every: training steps to the first evaluation, and between evaluations; the last step is always evaluated.
        growth: at 1 evaluations are equally far apart; above it, each comes at this many times the step of the one
            before, rounded up to a multiple of ``every``.
        steps: sampling steps to evaluate at.
        last_steps: further sampling steps, at which the last evaluation alone measures.
        samples: generated images a measurement.
        seed: names the noise that samples start from; equal for all arms.
        features: the network whose features are compared.
        metrics: the distances between them.
        guidance: the scale of classifier-free guidance; 1 is none.
        also: further networks, whose distances are kept as METRIC-NETWORK beside the distances in ``features``.
        reference: what samples are compared with. ``stored``: the held-out data, so that a distance holds what the
            codec loses, too. ``decoded``: these encoded and decoded by the codec, so that it holds the model's part
            alone; for latents of an autoencoder.

    Raises:
        ValueError: counts below 1, no sampling steps or one twice, a guidance that is negative or not finite, or an
            unknown reference.
    """

    every: int
    steps: tuple[int, ...]
    samples: int
    seed: int
    features: Features
    metrics: dict[str, Metric]
    guidance: float = 1.0
    growth: float = 1.0
    last_steps: tuple[int, ...] = ()
    also: tuple[Features, ...] = ()
    reference: Literal["stored", "decoded"] = "stored"

    def __post_init__(self) -> None:
        for name, value, least in (("every", self.every, 1), ("samples", self.samples, 2)):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if not self.steps or min(self.steps) < 1:
            raise ValueError(f"steps is {list(self.steps)}; it must be a list of numbers of sampling steps >= 1")
        if self.last_steps and min(self.last_steps) < 1:
            raise ValueError(f"last_steps is {list(self.last_steps)}; it must be a list of sampling steps >= 1")
        if len(set(self.all_steps)) < len(self.all_steps):
            raise ValueError(
                f"steps and last_steps are {list(self.steps)} and {list(self.last_steps)}; each number of sampling "
                "steps may occur once"
            )
        kinds = [type(features) for features in (self.features, *self.also)]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"also names a network twice: {[kind.__name__ for kind in kinds]}")
        if not 1 <= self.growth < math.inf:
            raise ValueError(f"growth is {self.growth}; it must be finite and at least 1")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance is {self.guidance}; it must be finite and at least 0")
        check_choice("reference", self.reference, Literal["stored", "decoded"])

    @property
    def all_steps(self) -> tuple[int, ...]:
        """The sampling steps of the last evaluation."""
        return self.steps + self.last_steps

    def due(self, last: int) -> list[int]:
        """Return the training steps that are evaluated in a run of ``last`` steps, rising.

        >>> from immiscible_diffusion.features import PooledPixels
        >>> Evaluation(100, (5,), 10, 0, PooledPixels(), {}, growth=1.5).due(1000)
        [100, 200, 300, 500, 800, 1000]
        """
        steps = list[int]()
        step = self.every
        while step < last:
            steps.append(step)
            step = self.every * max(step // self.every + 1, math.ceil(step * self.growth / self.every))
        return [*steps, last]


@dataclasses.dataclass(frozen=True)
class Config:
    """One whole run.

    Raises:
        ValueError: a net's description that lacks a method of ``types.NetDescription``.
    """

    source: Source
    codec: Codec
    coupling: Coupling
    method: Method
    net: NetDescription
    train: Train
    evaluate: Evaluation

    def __post_init__(self) -> None:
        if lacking := [name for name in ("condition", "build", "save", "load") if not hasattr(self.net, name)]:
            raise ValueError(f"the net {type(self.net).__name__} needs the methods {lacking} of types.NetDescription")

    def plain(self) -> dict[str, Any]:
        """Return the plain values that ``read_config`` makes an equal configuration of, every default filled in."""
        kinds = {kind: describe(kind, getattr(self, kind)) for kind in ("source", "codec", "coupling", "method", "net")}
        evaluate = dataclasses.asdict(self.evaluate) | {
            "features": describe("features", self.evaluate.features),
            "metrics": [describe("metric", metric) for metric in self.evaluate.metrics.values()],
            "also": [describe("features", features) for features in self.evaluate.also],
        }
        return {**kinds, "train": written(self.train), "evaluate": evaluate}


def read_config(values: Mapping[str, Any]) -> Config:
    """Return the run that plain values describe.

    Raises:
        ValueError: an unknown or missing key, a wrong type, or a value that its object refuses; names the key.

    >>> values = {"source": "digits", "codec": "pixels", "coupling": "assignment", "method": "denoising", "net": "mlp"}
    >>> evaluate = {"every": 10, "steps": [5], "samples": 10, "features": "classifier", "metrics": ["frechet"]}
    >>> read_config({**values, "train": {"steps": 10}, "evaluate": evaluate}).train.steps
    10
    """
    fields = [field.name for field in dataclasses.fields(Config)]
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"unknown key {unknown[0]}; there are {fields}")
    if missing := [name for name in fields if name not in values]:
        raise ValueError(f"{missing[0]} is missing; a run needs {fields}")
    kinds = ("source", "codec", "coupling", "method", "net")
    parts = {kind: make(kind, values[kind]) for kind in kinds}
    train = read_table(Train, values["train"], "train")
    return Config(**parts, train=train, evaluate=_evaluation(values["evaluate"]))


def as_stored(config: Config) -> dict[str, Any]:
    """Return a run's plain values as its ``config.json`` holds them: JSON values, lists in place of tuples."""
    return dict(json.loads(json.dumps(config.plain())))


def with_defaults(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored values of a run with each option that came since at its default.

    A default is what earlier versions did. What can no longer be read is returned as it is.

    Args:
        plain: what ``Config.plain`` gave, in this version or in an earlier one, as JSON values.
    """
    try:
        return as_stored(read_config(plain))
    except (ValueError, ImportError):
        return dict(plain)


def _evaluation(values: Any) -> Evaluation:
    if not isinstance(values, Mapping):
        raise ValueError(f"evaluate is {values!r}; it must be a table")
    features = make("features", values.get("features", "pooled_pixels"), where="evaluate.features")
    chosen, further = values.get("metrics", ["frechet", "kernel"]), values.get("also", [])
    for key, given in (("metrics", chosen), ("also", further)):
        if not isinstance(given, list | tuple):
            raise ValueError(f"evaluate.{key} is {given!r}; it must be a list")
    if not chosen:
        raise ValueError("evaluate.metrics is empty; name at least one metric, such as frechet")
    names = [_use(choice) for choice in chosen]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"evaluate.metrics names {twice[0]} twice, and its values have one name; measure one of them")
    also = tuple(make("features", choice, where=f"evaluate.also[{i}]") for i, choice in enumerate(further))
    metrics = {_use(choice): make("metric", choice, where=f"evaluate.metrics[{i}]") for i, choice in enumerate(chosen)}
    parts = {"features": features, "metrics": metrics, "also": also}
    return read_table(Evaluation, {"seed": 0, **values, **parts}, "evaluate")


def _use(choice: Any) -> str:
    name = choice.get("use", "") if isinstance(choice, Mapping) else choice
    return str(name).rpartition(":")[2].lower()
