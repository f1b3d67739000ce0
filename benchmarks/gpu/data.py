"""The training images of a GPU run: sheets of lossless WebP in the pack, one tensor on the device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from immiscible_diffusion.data._batch_order import flipped_orders
from immiscible_diffusion.files import read_json
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Batch

__all__ = ["SHEET", "Resident", "invented", "read_sheets", "sheet_bytes"]

SHEET = 16
"""Images in a row and in a column of a sheet: together they take 5 % less than one file each."""


def sheet_bytes(images: Tensor) -> bytes:
    """Return up to 256 images, (n, 3, h, w), uint8, as one lossless WebP, row by row; unused tiles stay black."""
    import io

    from PIL import Image

    n, _, h, w = images.shape
    sheet = torch.zeros(SHEET * SHEET, 3, h, w, dtype=torch.uint8)
    sheet[:n] = images
    rows = sheet.reshape(SHEET, SHEET, 3, h, w).permute(0, 3, 1, 4, 2).reshape(SHEET * h, SHEET * w, 3)
    buffer = io.BytesIO()
    Image.fromarray(rows.numpy()).save(buffer, "WEBP", lossless=True, quality=100, method=4)
    return buffer.getvalue()


def read_sheets(pack: Path) -> Tensor:
    """Return the training images of a pack, (n, 3, h, w), uint8.

    Raises:
        ValueError: the pack has no images, or fewer than it says.
    """
    from PIL import Image

    about = read_json(pack / "pack.json")
    sheets = list[Tensor]()
    for path in sorted((pack / "images").glob("*.webp")):
        with Image.open(path) as opened:
            pixels = torch.from_numpy(np.array(opened.convert("RGB")))
        h, w = pixels.shape[0] // SHEET, pixels.shape[1] // SHEET
        cells = pixels.reshape(SHEET, h, SHEET, w, 3).permute(0, 2, 4, 1, 3)
        sheets.append(cells.reshape(SHEET * SHEET, 3, h, w))
    if sum(map(len, sheets)) < about["images"]:
        raise ValueError(f"{pack} says {about['images']} images and holds {sum(map(len, sheets))}: build it again")
    return torch.cat(sheets)[: about["images"]].contiguous()


def invented(n: int, size: int = 8) -> Tensor:
    """Return smooth random images for a dry run, (n, 3, size, size), uint8, the same at every call."""
    coarse = torch.rand(n, 3, 2, 2, generator=stream(0, 0, "data"))
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)
    return (255 * smooth).round().to(torch.uint8)


@dataclass(frozen=True, eq=False)
class Resident:
    """A source whose images, (n, c, h, w), uint8, are on the device; every other epoch mirrors a row, by chance."""

    images: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image, (c, h, w)."""
        return tuple(self.images.shape[1:])

    @property
    def rows(self) -> int:
        """How many images are trained on."""
        return len(self.images)

    @property
    def classes(self) -> int | None:
        """No labels."""
        return None

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """Yield training batches for ever, (size, c, h, w); batch i depends on (seed, i) alone."""
        device = self.images.device
        for order, flip in flipped_orders(len(self.images), size, seed, start):
            raw, mirrored = self.images[order.to(device)], flip.to(device)[:, None, None, None]
            yield Batch(torch.where(mirrored, raw.flip(-1), raw), None, order)

    def held_out(self, rows: Sequence[int] | None = None) -> Batch:
        """Return no images: the reference of a GPU run is moments."""
        return Batch(self.images[:0], None)
