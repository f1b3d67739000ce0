"""The style of every figure, and figures and pictures as the bytes of a file."""

import re
from collections import Counter
from collections.abc import Iterable
from io import BytesIO
from typing import Any, Literal

from immiscible_diffusion.extras import needs

__all__ = ["COLOURS", "figure_bytes", "pyplot", "webp"]

COLOURS = ["#4d4d4d", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]
"""Grey for the reference, then the colour-blind safe palette of Okabe and Ito."""
_PLACE = re.compile(rb' (?:d|x|y|transform)="[^"]*"')
"""Places in an SVG; tenths of a point are enough."""
_MOST_BYTES = 60_000
"""Size of the largest WebP: pictures are kept in a repository's history for ever."""


def pyplot() -> Any:
    """Return matplotlib's ``pyplot`` without a window, in the style of every figure here.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with needs("report", "figures need matplotlib"):
        import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import matplotlib.ticker

    plt.rcParams.update({"figure.constrained_layout.use": True, "axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams.update({"svg.hashsalt": "immiscible", "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"]})
    return plt


def figure_bytes(figure: Any, form: Literal["png", "svg", "webp"]) -> bytes:
    """Return a figure's file and close it; the same figure gives the same bytes, so nothing in it names a date.

    A WebP has at most 60 kB, if need be with fewer pixels.
    """
    if form == "webp":
        from PIL import Image

        data = webp(Image.open(BytesIO(_saved(figure, "png", dpi))) for dpi in (130, 105, 85))
    else:
        data = _saved(figure, form, 130)
    pyplot().close(figure)
    return data


def _saved(figure: Any, form: Literal["png", "svg"], dpi: int) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format=form, dpi=dpi, metadata={"Software": None} if form == "png" else {"Date": None})
    if form == "png":
        return buffer.getvalue()
    return _shortened(buffer.getvalue())


def _shortened(svg: bytes) -> bytes:
    """Return an SVG file of matplotlib in less than half the bytes; the drawing stays the same to a tenth of a point.

    A style that comes several times is written once, as a class; names are short, and those that nothing refers to are
    left out; a path repeats no command.
    """
    svg = re.sub(rb"<metadata>.*?</metadata>", b"", svg, flags=re.DOTALL)
    svg = _PLACE.sub(lambda place: re.sub(rb"(\d\.\d)\d+", rb"\1", place[0]).replace(b"\n", b""), svg)
    svg = re.sub(rb' d="([^"]*)"', lambda path: b' d="%s"' % _commands(path[1]), svg)
    named = set(re.findall(rb"#([\w.-]+)", svg))
    names = [name for name in re.findall(rb' id="([^"]*)"', svg) if name in named]
    short = {name: b"n%d" % i for i, name in enumerate(dict.fromkeys(names))}
    svg = re.sub(rb' id="([^"]*)"', lambda name: b' id="%s"' % short[name[1]] if name[1] in short else b"", svg)
    svg = re.sub(rb"#([\w.-]+)", lambda name: b"#%s" % short.get(name[1], name[1]), svg)
    styles = Counter(re.findall(rb' style="([^"]*)"', svg))
    classes = {style: b"c%d" % i for i, style in enumerate(css for css, count in styles.items() if count > 1)}
    svg = re.sub(
        rb' style="([^"]*)"', lambda style: b' class="%s"' % classes[style[1]] if style[1] in classes else style[0], svg
    )
    rules = b"".join(b".%s{%s}" % (name, style) for style, name in classes.items())
    svg = re.sub(rb"\n\s*", b"\n", svg.replace(b"</style>", rules + b"</style>", 1))
    return re.sub(rb"</g>\n(?=</?g)|<g>\n(?=<)", lambda tags: tags[0].rstrip(), svg)


def _commands(path: bytes) -> bytes:
    """Return the commands of an SVG path without those that follow by themselves: a line after a line or a move.

    >>> _commands(b"M 1.0 -2.5 L 3.0 4.0 L 5.5 -0.0 C 1 2 3 4 5 6 L 7 8 z")
    b'M1-2.5 3 4 5.5 0C1 2 3 4 5 6L7 8z'
    """
    short, follows = b"", b""
    for command, places in re.findall(rb"([A-Za-z])([^A-Za-z]*)", path):
        numbers = [re.sub(rb"\.0$", b"", number) for number in places.split()]
        text = b" ".join(b"0" if number == b"-0" else number for number in numbers).replace(b" -", b"-")
        if command != follows:
            short += command + text
        else:
            short += text if text.startswith(b"-") else b" " + text
        follows = {b"M": b"L", b"m": b"l"}.get(command, command) if numbers else b""
    return short


def webp(pictures: Iterable[Any]) -> bytes:
    """Return the first of ever smaller pictures that fits into 60 kB as WebP, without loss or nearly so, else the last.

    >>> from PIL import Image
    >>> webp([Image.new("RGB", (20, 20))])[8:16]
    b'WEBPVP8L'
    """
    data = b""
    for picture in pictures:
        for options in ({"lossless": True}, {"quality": 90}, {"quality": 80}):
            buffer = BytesIO()
            picture.convert("RGB").save(buffer, "WEBP", **options)
            data = buffer.getvalue()
            if len(data) <= _MOST_BYTES:
                return data
    return data
