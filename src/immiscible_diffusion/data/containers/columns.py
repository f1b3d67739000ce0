"""Which columns of a table hold the images and their labels."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from immiscible_diffusion.data.containers.listing import LABELS, Columns

__all__ = ["check_captions", "check_labels", "chosen_columns"]

_IMAGES = ("image", "img", "jpg", "png")
_NUMBERS, _TEXTS = r"u?int(8|16|32|64)|bool", "(large_)?string(_view)?"
_USABLE = re.compile(rf"{_NUMBERS}|{_TEXTS}|dictionary<values=({_NUMBERS}|{_TEXTS}), .*>")


def chosen_columns(
    names: Sequence[str], features: Mapping[str, Mapping[str, Any]], columns: Columns, where: str
) -> Columns:
    """Return the columns that are named, or else found by their names, whatever the case, and by the hub's notes.

    Args:
        names: the table's columns.
        features: the hub's notes on them, where there are any.
        columns: the names that are wanted; an empty one is found.
        where: the table's name in messages.

    Raises:
        ValueError: no such column, no column of images, or two that could be meant.
    """
    typed = {kind: [name for name in names if features.get(name, {}).get("_type") == kind] for kind in _TYPES}
    image = columns.image or _one_of(typed["Image"] or names, _IMAGES, typed["Image"], "image", where)
    label = columns.label or _one_of(names, LABELS, typed["ClassLabel"], "label", where)
    for what, name in (("image", image), ("label", label), ("caption", columns.caption)):
        if name not in names and (name or what == "image") and (what, name) != ("label", "none"):
            lacking = f"no {what} column {name!r}" if name else f"no column is called {', '.join(_IMAGES)}"
            raise ValueError(f"{lacking} in {where}; there are {list(names)}: set source.{what}")
    return Columns(image, "" if label == "none" else label, columns.caption)


_TYPES = ("Image", "ClassLabel")


def _one_of(
    names: Sequence[str], usual: Sequence[str], typed: Sequence[str], what: Literal["image", "label"], where: str
) -> str:
    """Return the one column of a usual name, else the one that the notes give this type, else nothing."""
    candidates = [name for name in names if name.lower() in usual] or list(typed)
    if len(candidates) > 1:
        choice = " or to 'none'" if what == "label" else ""
        raise ValueError(
            f"{where} has {len(candidates)} columns that may hold {what}s, {candidates}: set source.{what} to one of "
            f"them{choice}"
        )
    return candidates[0] if candidates else ""


def check_labels(kind: str, column: str, where: str) -> None:
    """Raise ValueError unless Arrow's type of a column is one of texts or whole numbers, plain or as a dictionary.

    >>> check_labels("dictionary<values=string, indices=int8, ordered=0>", "breed", "pets.parquet")
    """
    if not _USABLE.fullmatch(kind):
        raise ValueError(
            f"column {column!r} of {where} must hold names or whole numbers from 0; it holds {kind}: set source.label "
            "to another column, or to 'none'"
        )


def check_captions(kind: str, column: str, where: str) -> None:
    """Raise ValueError unless Arrow's type of a column is one of texts, or of lists of texts.

    >>> check_captions("list<element: string>", "captions", "pets.parquet")
    """
    if not re.fullmatch(
        rf"{_TEXTS}|dictionary<values={_TEXTS}, .*>|(large_|fixed_size_)?list<\w+: {_TEXTS}.*>.*", kind
    ):
        raise ValueError(
            f"column {column!r} of {where} must hold texts, one or a list a row; it holds {kind}: set source.caption "
            "to another column"
        )
