"""The text of an experiment file, with a comment above each option that has one."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["experiment_text"]


def experiment_text(values: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """Return the TOML text that ``read_toml`` reads as these values.

    Args:
        values: tables, lists, strings, numbers and booleans.
        comments: dotted key -> a line for people.

    >>> print(experiment_text({"base": {"train": {"steps": 10}}}, {"base.train.steps": "A short run."}), end="")
    [base.train]
    # A short run.
    steps = 10
    """
    return "\n".join(_lines(values, comments, ())) + "\n"


def _lines(values: Mapping[str, Any], comments: Mapping[str, str], above: tuple[str, ...]) -> Iterator[str]:
    tables = {key: value for key, value in values.items() if isinstance(value, Mapping) and value}
    plain = {key: value for key, value in values.items() if key not in tables}
    if above and plain:
        if comment := comments.get(".".join(above), ""):
            yield f"# {comment}"
        yield f"[{'.'.join(_key(part) for part in above)}]"
    for key, value in plain.items():
        if comment := comments.get(".".join((*above, key)), ""):
            yield f"# {comment}"
        yield f"{_key(key)} = {_value(value)}"
    for i, (key, table) in enumerate(tables.items()):
        if plain or i:
            yield ""
        yield from _lines(table, comments, (*above, key))


def _key(key: str) -> str:
    """Return a key, in quotes where a bare one may not hold it."""
    bare = bool(key) and key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
