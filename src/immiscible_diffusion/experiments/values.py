"""The plain values of experiment files: read, extended, overridden. They are made objects elsewhere: no torch here."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "built_in",
    "labelled",
    "merged",
    "overridden",
    "parse_override",
    "presets",
    "read_toml",
    "read_values",
    "with_preset",
]

_TABLES = ["base", "grid", "scale", "published"]
_KEYS = ["extends", "title", "source", "question", *_TABLES]


def built_in() -> dict[str, Path]:
    """Return the experiments that come with the package, by name."""
    folder = Path(__file__).parent
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def presets() -> dict[str, Path]:
    """Return the presets that come with the package, by name: a source and a codec each."""
    folder = Path(__file__).parent / "presets"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def with_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's values on top of the values of its preset; the run's own keys win.

    A source or codec of another name (``use``) takes the preset's place as a whole.

    Raises:
        ValueError: there is no such preset.

    >>> with_preset({"preset": "cifar10", "codec": {"std": 64.2}})["codec"]
    {'use': 'pixels', 'std': 64.2}
    """
    run_values = {key: value for key, value in values.items() if key != "preset"}
    if "preset" not in values:
        return run_values
    known = presets()
    if values["preset"] not in list(known):
        raise ValueError(f"no preset {values['preset']!r}; there are {sorted(known)}")
    for key, given in read_toml(known[values["preset"]]).items():
        mine = run_values.get(key, {})
        mine = {"use": mine} if isinstance(mine, str) else mine
        if isinstance(mine, Mapping) and mine.get("use", given["use"]) == given["use"]:
            run_values[key] = {**given, **mine}
    return run_values


def read_toml(path: Path) -> dict[str, Any]:
    """Return the values of a TOML file.

    Raises:
        ValueError: the file is missing or not TOML.
    """
    try:
        return _parsed(path.read_text(encoding="utf-8-sig"))  # some editors write a byte-order mark
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def parse_override(text: str) -> tuple[str, Any]:
    """Return the dotted key and the value of ``a.b=value``; the value is TOML, or a bare string.

    Raises:
        ValueError: there is no key or no equals sign, or the value is nested too deeply.

    >>> parse_override("train.steps=10"), parse_override("coupling=nearest")
    (('train.steps', 10), ('coupling', 'nearest'))
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set {text!r}: write it as key.of.the.file=value")
    try:
        return key.strip(), _parsed(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
    except ValueError as error:
        raise ValueError(f"--set {key.strip()}: {error}") from error


def _parsed(text: str) -> dict[str, Any]:
    """Return the values of TOML text.

    Raises:
        ValueError: it is not TOML, or is nested too deeply to be read.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_values(name: str) -> dict[str, Any]:
    """Return the values of the experiment of this name, or of this TOML file, with the files that it extends.

    ``extends = "fig7-ablation"`` or ``extends = "bases/ddim.toml"``, a path beside the file, names the file that it
    builds on; that file may build on another. How their values meet is said at ``merged``. An option that the result
    lacks is filled in: the title is the file's name, the rest is empty.

    Raises:
        ValueError: there is no such file, a file extends itself, it is not TOML, or it has keys that no experiment has.
    """
    known = built_in()
    path = known.get(name) or Path(name)
    if not path.is_file():
        raise ValueError(f"no experiment or file {name!r}; there are {sorted(known)}")
    values = _extended(path, ())
    if "base" not in values:
        raise ValueError(f"{path}: [base], one whole run, is missing")
    for key, value in values.items():
        if key in _TABLES and not isinstance(value, Mapping):
            raise ValueError(f"{path}: {key} is {value!r}; it must be a table, [{key}]")
        if key not in _TABLES and not isinstance(value, str):
            raise ValueError(f"{path}: {key} is {value!r}; it must be a string")
    for name, overrides in values.get("scale", {}).items():
        if not isinstance(overrides, Mapping):
            raise ValueError(f"{path}: scale.{name} is {overrides!r}; it must be a table of key = value")
    grid = {key: labelled(f"grid.{key}", choices, str(path)) for key, choices in values.get("grid", {}).items()}
    return {"title": path.stem, "source": "", "question": "", "scale": {}, "published": {}, **values, "grid": grid}


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return one table upon another: tables are merged key by key, any other value is replaced.

    A table with another ``use`` replaces the whole table; a table upon a bare name gives the name its options.

    >>> merged({"net": "mlp", "train": {"steps": 10, "lr": 0.1}}, {"net": {"width": 8}, "train": {"steps": 20}})
    {'net': {'use': 'mlp', 'width': 8}, 'train': {'steps': 20, 'lr': 0.1}}
    >>> merged({"net": {"use": "mlp", "width": 8}}, {"net": {"use": "unet"}})
    {'net': {'use': 'unet'}}
    """
    result = dict(below)
    for key, value in above.items():
        old = below.get(key)
        if isinstance(old, str) and isinstance(value, Mapping):
            old = {"use": old}
        if (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and value.get("use", old.get("use")) == old.get("use")
        ):
            value = merged(old, value)
        result[key] = value
    return result


def labelled(key: str, choices: Any, where: str) -> dict[str, Any]:
    """Return the choices of a varied key by label; a list's values are their own labels.

    Raises:
        ValueError: there are none, or they are neither a list nor a table.
    """
    if isinstance(choices, Mapping) and choices:
        return dict(choices)
    if isinstance(choices, list) and choices:
        return {str(value): value for value in choices}
    raise ValueError(f"{where}: {key} must be a list of values or a table of label = value")


def _extended(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Return a file's values on top of the values of the file that it extends."""
    if path.resolve() in above:
        raise ValueError(f"{above[0]}: extends leads back to {path.name}")
    values = read_toml(path)
    if unknown := sorted(set(values) - set(_KEYS)):
        raise ValueError(f"{path}: unknown key {unknown[0]}; there are {_KEYS}")
    if (base := values.pop("extends", None)) is None:
        return values
    known = built_in()
    below = known.get(base) or path.parent / base if isinstance(base, str) else None
    if below is None or not below.is_file():
        raise ValueError(f"{path}: extends = {base!r} is no file beside it, and none of {sorted(known)}")
    return merged(_extended(below, (*above, path.resolve())), values)


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
