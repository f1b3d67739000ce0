"""Figures in few bytes, against what matplotlib writes: every element, its text, its places and its style."""

import io
import re
from xml.etree import ElementTree

import pytest

from immiscible_diffusion.report.drawing import figure_bytes, pyplot

pytestmark = pytest.mark.medium


def styled(svg: bytes) -> list[tuple[str, str, str, dict[str, str]]]:
    """Return every element that is drawn: its kind, text, style and places, with classes resolved."""
    root = ElementTree.fromstring(svg)  # noqa: S314
    rules = {
        name: text
        for sheet in root.findall(".//{*}style")
        for name, text in re.findall(r"\.(\w+)\{([^}]*)\}", sheet.text or "")
    }
    drawn = []
    for element in root.iter():
        kind = element.tag.rpartition("}")[2]
        if kind in ("path", "use", "text", "tspan", "rect"):
            style = element.get("style", rules.get(element.get("class", ""), ""))
            places = {
                key: re.sub(r"(\d\.\d)\d+", r"\1", re.sub(r"\s+", " ", element.get(key, ""))).strip()
                for key in ("d", "x", "y", "transform")
            }
            drawn.append((kind, (element.text or "").strip(), style, places))
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
    assert len(short) < 0.7 * len(buffer.getvalue())
    other = styled(short.replace(b"stroke-width: 1.5", b"stroke-width: 1.6"))
    assert other != styled(buffer.getvalue())  # control: a style that is lost
    referred = set(re.findall(rb"#([\w.-]+)[\")]", short))
    assert referred
    assert all(b'id="%s"' % name in short for name in referred if not re.fullmatch(rb"[0-9a-f]{6}", name))
