"""Images of one's own: a folder, parquet files in the hub's format, or a data set on the hub."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from immiscible_diffusion.data._order import orders
from immiscible_diffusion.registry import register
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Batch

__all__ = ["Images"]


@register("source")
@dataclass(frozen=True)
class Images:
    """RGB images, cropped to their central square and resized; decoded once and held in memory as uint8.

    Args:
        path: a folder (class sub-folders become labels), a ``.parquet`` file or a folder of them, or a hub name.
        size: height and width in pixels.
        split: which split of a hub data set is read.
        image: the column that holds the images; found by itself if empty.
        label: the column that holds integer labels; none if empty, or ``label`` where there is one.
        held_out_rows: how many images training never sees, a fixed random choice.
        limit: read only that many images; 0 reads all.

    Raises:
        ValueError: sizes that are not positive.
    """

    path: str = ""
    size: int = 32
    split: str = "train"
    image: str = ""
    label: str = ""
    held_out_rows: int = 500
    limit: int = 0

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("images need path = a folder, a .parquet file, or a hub data set's name")
        if self.size < 1 or self.held_out_rows < 1 or self.limit < 0:
            raise ValueError(f"{self} needs size >= 1, held_out_rows >= 1 and limit >= 0")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image, (3, size, size)."""
        return (3, self.size, self.size)

    @property
    def rows(self) -> int:
        """How many images are trained on."""
        return len(_load(self)[0]) - self.held_out_rows

    @property
    def classes(self) -> int | None:
        """The number of classes, or None without labels."""
        labels = _load(self)[1]
        return None if labels is None else int(labels.max()) + 1

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """Yield training batches for ever, images (size, 3, h, w) and labels (size,) or None.

        Raises:
            ValueError: size is not within 1 and the number of training rows; unreadable data.
        """
        rows = self._order()[self.held_out_rows :]
        for order in orders(len(rows), size, seed, start):
            yield self._pick(rows[order])

    def held_out(self) -> Batch:
        """Return the images and labels that training never sees.

        Raises:
            ValueError: unreadable data.
        """
        return self._pick(self._order()[: self.held_out_rows])

    def _order(self) -> Tensor:
        count = len(_load(self)[0])
        if count <= self.held_out_rows:
            raise ValueError(f"{self.path} has {count} images and held_out_rows is {self.held_out_rows}: none to train")
        return torch.randperm(count, generator=stream(0, 0, "data"))

    def _pick(self, rows: Tensor) -> Batch:
        images, labels = _load(self)
        return Batch(images[rows], None if labels is None else labels[rows], rows)


@cache
def _load(source: Images) -> tuple[Tensor, Tensor | None]:
    table = _table(source)
    image, label = _columns(source, table)
    if source.limit:
        table = table.select(range(min(source.limit, len(table))))
    table = table.cast_column(image, _undecoded())
    pixels = np.empty((len(table), source.size, source.size, 3), np.uint8)
    for i, cell in enumerate(table[image]):
        pixels[i] = _decode(cell, source.size, f"{source.path}, row {i}")
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    if not label:
        return images, None
    labels = torch.tensor(table[label][:])
    if labels.is_floating_point() or labels.ndim != 1 or int(labels.min()) < 0:
        raise ValueError(f"column {label!r} of {source.path} must hold whole numbers from 0")
    return images, labels.long()


def _table(source: Images) -> Any:
    """Return the rows as a data set whose image column holds undecoded bytes."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError("images need datasets: pip install 'immiscible-diffusion[data]'") from error
    path = Path(source.path)
    files = sorted(map(str, path.rglob("*.parquet"))) if path.is_dir() else [source.path]
    datasets.disable_progress_bars()
    try:
        if path.is_dir() and not files:
            table = datasets.load_dataset("imagefolder", data_dir=source.path, split="train")
        elif path.exists() and files[0].endswith(".parquet"):
            table = datasets.load_dataset("parquet", data_files=files, split="train")
        elif path.exists() or path.suffix:
            raise ValueError(
                f"{source.path} is neither a folder nor a .parquet file" if path.exists() else f"no file {path}"
            )
        else:
            table = datasets.load_dataset(source.path, split=source.split)
    except (OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"cannot read images from {source.path}: {error}") from error
    return table


def _undecoded() -> Any:
    import datasets

    return datasets.Image(decode=False)


def _columns(source: Images, table: Any) -> tuple[str, str]:
    import datasets

    found = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    image = source.image or (found or [n for n in ("image", "img") if n in table.column_names] or [""])[0]
    label = source.label or ("label" if "label" in table.column_names else "")
    for what, name in (("image", image), ("label", label)):
        if (name or what == "image") and name not in table.column_names:
            raise ValueError(f"no {what} column {name!r} in {source.path}; there are {table.column_names}")
    return image, label


def _decode(cell: Any, size: int, where: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """Return one image as RGB, (size, size, 3)."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] else cell["path"]) as opened:
            picture = ImageOps.fit(opened.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        name = cell.get("path") or where
        raise ValueError(f"cannot read the image {name} ({where}): {error}") from error
    return np.asarray(picture)
