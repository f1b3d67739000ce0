"""Figures in few bytes, against what matplotlib writes: every element, its text, its places and its style."""

import io
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from immiscible_diffusion.report.drawing import figure_bytes, pyplot

pytestmark = pytest.mark.medium
LINK = "{http://www.w3.org/1999/xlink}href"


def commands(path: str) -> list[tuple[str, ...]]:
    """Return the commands of an SVG path with their numbers, to a tenth; a line after a line or a move has its own."""
    whole = []
    for command, numbers in re.findall(r"([A-Za-z])([^A-Za-z]*)", path):
        cut = re.findall(r"-?\d+(?:\.\d)?", re.sub(r"(\.\d)\d+", r"\1", numbers))
        places = [f"{float(number) + 0:.1f}" for number in cut]
        size = {"M": 2, "L": 2, "C": 6, "Q": 4, "z": 0}[command]
        for i in range(0, max(len(places), 1), size or 1):
            whole.append((command if i == 0 or command != "M" else "L", *places[i : i + size]))
    return whole


def styled(svg: bytes) -> list[tuple[Any, ...]]:
    """Return every element that is drawn: its kind, text, style, path and places, with classes and names resolved."""
    root = ElementTree.fromstring(svg)  # noqa: S314
    rules = {
        name: text
        for sheet in root.findall(".//{*}style")
        for name, text in re.findall(r"\.(\w+)\{([^}]*)\}", sheet.text or "")
    }
    named = {element.get("id", ""): element for element in root.iter()}
    drawn: list[tuple[Any, ...]] = []
    for element in root.iter():
        kind = element.tag.rpartition("}")[2]
        if kind in ("path", "use", "text", "tspan", "rect"):
            style = element.get("style", rules.get(element.get("class", ""), ""))
            places = {
                key: re.sub(r"(\d\.\d)\d+", r"\1", re.sub(r"\s+", " ", element.get(key, ""))).strip()
                for key in ("x", "y", "transform")
            }
            path = named[element.get(LINK, "#").removeprefix("#")] if LINK in element.attrib else element
            drawn.append((kind, (element.text or "").strip(), style, commands(path.get("d", "")), places))
    return drawn


def test_a_short_svg_draws_what_matplotlib_draws() -> None:
    plt = pyplot()
    figure, axes = plt.subplots(1, 2)
    for axis in axes:
        axis.plot([1, 2, 3.14159], [1, 10, 100], marker="o", label="a < b")
        axis.fill_between([1, 2, 3], [1, 2, 3], [2, 3, 4], alpha=0.2)
        axis.set_yscale("log")
        axis.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    short = figure_bytes(figure, "svg")
    assert styled(short) == styled(buffer.getvalue())
    assert len(styled(short)) > 50
    assert len(short) < 0.6 * len(buffer.getvalue())
    other = styled(short.replace(b"stroke-width: 1.5", b"stroke-width: 1.6"))
    assert other != styled(buffer.getvalue())  # control: a style that is lost
    first = re.search(rb' d="M[^"]*"', short)
    assert first
    other = styled(short.replace(first[0], first[0].replace(b"M", b"M1 1 ", 1), 1))
    assert other != styled(buffer.getvalue())  # control: a path with one place more
    referred = set(re.findall(rb"#([\w.-]+)[\")]", short))
    assert referred
    assert all(b'id="%s"' % name in short for name in referred if not re.fullmatch(rb"[0-9a-f]{6}", name))
