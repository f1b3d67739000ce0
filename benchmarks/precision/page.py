"""The tables of docs/precision.md, from the measured values alone."""

import re
from typing import Any

__all__ = ["filled", "tables"]

_NAMES = {
    "train": "other training images",
    "test": "test images",
    "jpeg75": "test images, JPEG quality 75",
    "noise8": "test images, noise of 8 grey levels",
    "noise25": "test images, noise of 25 grey levels",
}


def tables(measured: dict[str, Any]) -> dict[str, str]:
    """Return each table's name and its text in Markdown."""
    agreement = [
        [row["stage"], row["against"], _value(row["ours"]), f"{row['error']:.1e}", f"{row['agreed']:.0e}"]
        for row in measured["agreement"]
    ]
    published = [
        [
            _NAMES[row["set"]],
            *(f"{ours:.4g} ({reference:g})" for ours, reference in _pairs(row)),
            f"{row['agreed']:.0%}",
        ]
        for row in measured["published"]
    ]
    layers = list(measured["bias"][0]["layers"]) if measured["bias"] else []
    bias = [
        [f"{row['images']:,}", *(_spread(row["layers"][layer]) for layer in layers), str(row["parts"])]
        for row in measured["bias"]
    ]
    return {
        "agreement": _table(["stage", "against", "value", "relative error", "agreed"], agreement),
        "published": _table(["1,000 first training images and 1,000", "768 features", "1280", "agreed"], published),
        "bias": _table(["images a side", *(f"{layer} features" for layer in layers), "parts"], bias),
    }


def filled(page: str, measured: dict[str, Any]) -> str:
    """Return the page with each table in its place, between ``<!-- NAME -->`` and ``<!-- /NAME -->``.

    Raises:
        ValueError: the page has no such marks for a table.
    """
    for name, table in tables(measured).items():
        marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        page, count = marks.subn(lambda match, text=table: f"{match[1]}{text}\n{match[2]}", page)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"the page has {count} places <!-- {name} --> ... <!-- /{name} -->; it needs one")
    return page


def _pairs(row: dict[str, Any]) -> list[tuple[float, float]]:
    return list(zip(row["ours"], row["published"], strict=True))


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _spread(estimate: dict[str, float | None]) -> str:
    return f"{estimate['mean']:.3g}" if estimate["sd"] is None else f"{estimate['mean']:.3g} ± {estimate['sd']:.1g}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
