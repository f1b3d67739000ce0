"""Pictures of samples: grids of images, and paths as lines."""

from io import BytesIO
from pathlib import Path

import numpy as np
from torch import Tensor

from immiscible_diffusion.files import write_bytes
from immiscible_diffusion.types import Float, UInt8

__all__ = ["save_grid", "save_paths"]


def save_grid(images: UInt8[Tensor, "n c h w"], path: Path, columns: int = 8) -> None:
    """Write images as one PNG, pixel for pixel, with a line of one grey pixel between them."""
    from PIL import Image

    n, c, h, w = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * (h + 1) - 1, columns * (w + 1) - 1, c), 128, np.uint8)
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = i // columns * (h + 1), i % columns * (w + 1)
        canvas[top : top + h, left : left + w] = image
    buffer = BytesIO()
    Image.fromarray(canvas.squeeze(2) if c == 1 else canvas).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def save_paths(paths: Float[Tensor, "n t c"], path: Path, size: int = 512) -> None:
    """Write sequences of places as one PNG of lines, by their first two coordinates; of other data, nothing."""
    from PIL import Image, ImageDraw

    if paths.ndim != 3 or paths.shape[2] < 2:
        return
    places = paths[..., :2].double()
    low, high = places.amin((0, 1)), places.amax((0, 1))
    scaled = (places - low) / float((high - low).max().clamp(min=1e-9)) * (size - 20) + 10
    canvas = Image.new("L", (size, size), 255)
    pen = ImageDraw.Draw(canvas)
    for points in scaled.tolist():
        pen.line([(x, size - y) for x, y in points], fill=90, width=1)
    buffer = BytesIO()
    canvas.save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
