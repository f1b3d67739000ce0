"""The samples of an experiment's arms side by side."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from immiscible_diffusion.report.drawing import webp
from immiscible_diffusion.report.sentences import counted

__all__ = ["samples_figure"]

_WIDTH = 1040
"""Pixels of the widest picture of samples, about a page's width."""
_MOST_COLUMNS = 4


def samples_figure(numbers: Mapping[str, Any], folder: Path) -> bytes:
    """Return the sample grids of a record's first seed as WebP, each arm's under the same initial noise.

    Up to four arms have a column each, and a row is a number of sampling steps. Two arms of an even count of such
    numbers lie below each other, so that the two images of one noise meet. Small images are enlarged pixel for pixel.
    Where 64 images an arm do not fit into 60 kB, fewer are shown.

    Args:
        numbers: the record of the runs.
        folder: the experiment's folder, which holds the runs' folders.
    """
    from PIL import Image

    seed = min(run["seed"] for run in numbers["runs"])
    folders = {run["arm"]: folder / run["folder"] / "samples" for run in numbers["runs"] if run["seed"] == seed}
    counts = sorted({row["sampling_steps"] for row in numbers["curves"]})
    grids = dict[tuple[str, str], Any]()
    labels = list(dict.fromkeys((row["label"], row["arm"], row["start"]) for row in numbers["curves"]))
    for count in counts:
        for label, arm, start in labels:
            path = folders.get(arm, folder) / f"steps-{count}-{start}.png"
            if path.is_file():
                with Image.open(path) as opened:
                    grids[label, counted(count)] = np.asarray(opened.convert("RGB"))
    shown, heads = (list(dict.fromkeys(key[side] for key in grids)) for side in (0, 1))
    columns = len(shown)
    if columns == 2 and len(heads) % 2 == 0 and len(grids) == 2 * len(heads):
        pairs = [(heads[i : i + 2], label) for i in range(0, len(heads), 2) for label in shown]
        grids = {(label, head): grids[label, head] for beside, label in pairs for head in beside}
    columns = columns if 1 < columns <= _MOST_COLUMNS else _MOST_COLUMNS
    return webp(
        _side_by_side({head: _cut(grid, rows) for head, grid in grids.items()}, columns) for rows in (8, 4, 2, 1)
    )


def _cut(grid: Any, rows: int) -> Any:
    """Return the first rows of a grid of eight rows of images with a line between them, else all that is given."""
    height = len(grid) + 1
    return grid[: height * rows // 8 - 1] if height % 8 == 0 else grid


def _side_by_side(pictures: Mapping[tuple[str, str], Any], columns: int) -> Any:
    """Return pictures (h, w, 3) of values 0..255 as one, each below its two lines of text."""
    from PIL import Image, ImageDraw, ImageFont

    width, gap, head = _WIDTH // columns - 8, 8, 34
    shown = dict[tuple[str, str], Any]()
    for key, pixels in pictures.items():
        image, times = Image.fromarray(pixels), width / pixels.shape[1]
        size = (max(1, int(times)) * image.width, max(1, int(times)) * image.height)
        small = times < 1
        size = (width, round(image.height * times)) if small else size
        shown[key] = image.resize(size, Image.Resampling.LANCZOS if small else Image.Resampling.NEAREST)
    wide, high = (max((picture.size[side] for picture in shown.values()), default=1) for side in (0, 1))
    rows = -(-len(shown) // columns)
    canvas = Image.new("RGB", (columns * (wide + gap), max(1, rows * (high + head + gap))), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for i, ((label, count), image) in enumerate(shown.items()):
        left, top = i % columns * (wide + gap) + gap // 2, i // columns * (high + head + gap)
        pen.multiline_text((left, top + 2), f"{label}\n{count}", fill="black", font=font, spacing=1)
        canvas.paste(image, (left, top + head))
    return canvas
