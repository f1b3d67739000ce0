"""From the plain values of a file to the objects of a run, with errors that name the key."""

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from immiscible_diffusion.registry import KINDS, describe, lookup, make
from immiscible_diffusion.train import Train
from immiscible_diffusion.types import Codec, Coupling, Features, Method, Metric, Source

__all__ = ["Config", "Evaluation", "build", "overridden", "parse_override", "read_config", "read_toml"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """When and how samples are measured against held-out data.

    Args:
        every: training steps between evaluations; the last step is always evaluated.
        steps: sampling steps to evaluate at.
        samples: generated images a measurement.
        seed: names the noise that samples start from; equal for all arms.
        features: the network whose features are compared.
        metrics: the distances between them.
        guidance: the scale of classifier-free guidance; 1 is none.
        also: further networks, whose distances are kept as METRIC-NETWORK beside those of ``features``.

    Raises:
        ValueError: counts below 1, no sampling steps, or a guidance that is negative or not finite.
    """

    every: int
    steps: tuple[int, ...]
    samples: int
    seed: int
    features: Features
    metrics: dict[str, Metric]
    guidance: float = 1.0
    also: tuple[Features, ...] = ()

    def __post_init__(self) -> None:
        if self.every < 1 or self.samples < 2 or not self.steps or min(self.steps) < 1:
            raise ValueError("an evaluation needs every >= 1, samples >= 2 and sampling steps >= 1")
        kinds = [type(features) for features in (self.features, *self.also)]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"evaluate.also names a network twice: {[kind.__name__ for kind in kinds]}")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance is {self.guidance}; it must be finite and at least 0")


@dataclasses.dataclass(frozen=True)
class Config:
    """One whole run. ``net`` is the description of the net: it has ``build(shape, classes)``."""

    source: Source
    codec: Codec
    coupling: Coupling
    method: Method
    net: Any
    train: Train
    evaluate: Evaluation

    def plain(self) -> dict[str, Any]:
        """Return the plain values that ``read_config`` makes an equal configuration of, every default filled in."""
        kinds = {kind: describe(kind, getattr(self, kind)) for kind in ("source", "codec", "coupling", "method", "net")}
        evaluate = dataclasses.asdict(self.evaluate) | {
            "features": describe("features", self.evaluate.features),
            "metrics": [describe("metric", metric) for metric in self.evaluate.metrics.values()],
            "also": [describe("features", features) for features in self.evaluate.also],
        }
        return {**kinds, "train": dataclasses.asdict(self.train), "evaluate": evaluate}


def read_config(values: Mapping[str, Any]) -> Config:
    """Return the run that plain values describe.

    Raises:
        ValueError: an unknown or missing key, a wrong type, or a value that its object refuses; names the key.

    >>> values = {"source": "digits", "codec": "pixels", "coupling": "assignment", "method": "denoising", "net": "mlp"}
    >>> evaluate = {"every": 10, "steps": [5], "samples": 10, "features": "digits_classifier", "metrics": ["frechet"]}
    >>> read_config({**values, "train": {"steps": 10}, "evaluate": evaluate}).train.steps
    10
    """
    fields = [field.name for field in dataclasses.fields(Config)]
    _refuse_unknown(values, fields, "")
    if missing := [name for name in fields if name not in values]:
        raise ValueError(f"{missing[0]} is missing; a run needs {fields}")
    kinds = ("source", "codec", "coupling", "method", "net")
    parts = {kind: build(kind, values[kind], kind) for kind in kinds}
    train = _checked(Train, values["train"], "train")
    return Config(**parts, train=_called(Train, train, "train"), evaluate=_evaluation(values["evaluate"]))


def read_toml(path: Path) -> dict[str, Any]:
    """Return the values of a TOML file.

    Raises:
        ValueError: the file is missing or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def parse_override(text: str) -> tuple[str, Any]:
    """Return the dotted key and the value of ``a.b=value``; the value is TOML, or a bare string.

    Raises:
        ValueError: there is no key or no equals sign.

    >>> parse_override("train.steps=10"), parse_override("coupling=nearest")
    (('train.steps', 10), ('coupling', 'nearest'))
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set {text!r}: write it as key.of.the.file=value")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def overridden(values: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return the values with one dotted key changed.

    An option of something that is chosen by a bare name keeps the name: ``coupling = "nearest"`` and
    ``coupling.k`` give ``{use = "nearest", k = ...}``.

    Raises:
        ValueError: the key leads through a value that has no keys.

    >>> overridden({"coupling": "nearest"}, "coupling.k", 8)
    {'coupling': {'use': 'nearest', 'k': 8}}
    """
    head, _, rest = key.partition(".")
    if not rest:
        return {**values, head: value}
    inner = values.get(head, {})
    if isinstance(inner, str):
        inner = {"use": inner}
    if not isinstance(inner, Mapping):
        raise ValueError(f"{head} is {inner!r} and has no key {rest!r}")
    return {**values, head: overridden(inner, rest, value)}


def _evaluation(values: Any) -> Evaluation:
    _refuse_unknown(values, [field.name for field in dataclasses.fields(Evaluation)], "evaluate")
    features = build("features", values.get("features", "pooled_pixels"), "evaluate.features")
    chosen, further = values.get("metrics", ["frechet", "kernel"]), values.get("also", [])
    for key, given in (("metrics", chosen), ("also", further)):
        if not isinstance(given, list | tuple):
            raise ValueError(f"evaluate.{key} is {given!r}; it must be a list")
    also = tuple(build("features", choice, f"evaluate.also[{i}]") for i, choice in enumerate(further))
    metrics = {_use(choice): build("metric", choice, f"evaluate.metrics[{i}]") for i, choice in enumerate(chosen)}
    numbers = {
        "seed": 0,
        **{key: values[key] for key in ("every", "steps", "samples", "seed", "guidance") if key in values},
    }
    checked = _checked(Evaluation, numbers, "evaluate")
    return _called(Evaluation, {**checked, "features": features, "metrics": metrics, "also": also}, "evaluate")  # type: ignore[no-any-return]


def _use(choice: Any) -> str:
    name = choice.get("use", "") if isinstance(choice, Mapping) else choice
    return str(name).rpartition(":")[2].lower()


def build(kind: str, choice: Any, where: str) -> Any:
    """Return the object of one kind that a name or a table describes, its options checked against their types.

    Args:
        kind: one of the registry's kinds.
        choice: a name, or a table with ``use`` and options.
        where: the dotted key that heads every message.

    Raises:
        ValueError: an unknown name or option, a wrong type, or a value that the object refuses.
    """
    if not isinstance(choice, str | Mapping):
        raise ValueError(f"{where} is {choice!r}; it must be a name or a table with use = NAME")
    options = {"use": choice} if isinstance(choice, str) else dict(choice)
    try:
        cls = lookup(kind, str(options.get("use", "")))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    nested = {key: build(key, options[key], f"{where}.{key}") for key in options if key in KINDS}
    plain = {key: value for key, value in options.items() if key not in nested and key != "use"}
    return _called(
        lambda **given: make(kind, {"use": options["use"], **given}), _checked(cls, plain, where) | nested, where
    )


def _checked(cls: type[Any], values: Any, where: str) -> dict[str, Any]:
    """Return values coerced to the types of the dataclass's fields."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r}; it must be a table")
    hints = get_type_hints(cls)
    _refuse_unknown(values, [field.name for field in dataclasses.fields(cls)], where)
    checked = {}
    for key, value in values.items():
        try:
            checked[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{where}.{key} is {value!r}: {first['msg'].lower()}") from error
    return checked


def _called(cls: Any, values: dict[str, Any], where: str) -> Any:
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    except TypeError as error:
        raise ValueError(f"{where}: a key is missing: {error}") from error


def _refuse_unknown(values: Any, allowed: list[str], where: str) -> None:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or 'the configuration'} is {values!r}; it must be a table")
    if unknown := sorted(set(values) - set(allowed)):
        dotted = f"{where}.{unknown[0]}" if where else unknown[0]
        raise ValueError(f"unknown key {dotted}; there are {allowed}")
