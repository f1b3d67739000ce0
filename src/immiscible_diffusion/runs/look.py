"""Look at data of one's own: how many images there are, of which sizes and colours, and whether they have labels."""

import io
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from immiscible_diffusion.data import Images, Latents
from immiscible_diffusion.extras import needs

__all__ = ["Look", "absolute", "experiment_name", "look_at_images", "look_at_latents"]

_LEAST = 40
"""Fewer images leave too few to train on beside those that are held out."""
_LOOKED_AT = 64
_SMALL = 8
_READING = "split", "image", "label", "held_out_split", "limit", "crop", "resize", "max_pixels"
"""Options of the source that decide which images there are."""


@dataclass(frozen=True)
class Look:
    """What data hold.

    Args:
        path: where they are; an absolute path for files.
        latents: whether they are stored latents.
        rows: how many images there are to train on, those that will be held out among them.
        shortest: the median shorter side in pixels, of some images; of latents, their side.
        image_side: of the images that samples are compared with; None where it is yet to be chosen.
        grey: whether the images that were looked at are all grey.
        classes: how many there are, or None without labels.
        read_seconds: to read and decode one image.
    """

    path: str
    latents: bool
    rows: int
    shortest: int
    image_side: int | None
    grey: bool
    classes: int | None
    read_seconds: float

    @property
    def name(self) -> str:
        """The name of an experiment on these data."""
        return experiment_name(self.path, self.latents)


def experiment_name(path: str, latents: bool = False) -> str:
    """Return the name of an experiment on the images, or latents, of this path.

    >>> experiment_name("holiday photos/"), experiment_name("stanford/cars"), experiment_name("cats.zip")
    ('holiday-photos-images', 'cars-images', 'cats-images')
    """
    stem = re.sub(r"[^\w-]+", "-", Path(absolute(path)).name.partition(".")[0]).strip("-")
    return f"{stem or 'own'}-{'latents' if latents else 'images'}"


def absolute(path: str) -> str:
    """Return a path that holds wherever an experiment file is read; a name on the hub stays."""
    place = Path(path).expanduser()
    return str(place.resolve()) if place.exists() else path


def look_at_images(path: str, given: Mapping[str, Any]) -> Look:
    """Return the contents of a folder, archive, table or data set on the hub; 64 of its images are decoded.

    Args:
        path: as ``source.path`` takes it.
        given: dotted key of the experiment file -> value, where the user chose; those of the source decide what is
            there.

    Raises:
        ValueError: unreadable data, or fewer than 40 images.
    """
    with needs("data", "images need Pillow"):
        from PIL import Image
    options = {key: given[f"source.{key}"] for key in _READING if f"source.{key}" in given}
    source = Images(path=absolute(path), size=_SMALL, held_out_rows=1, on_bad="skip", memory=False, **options)
    count = source.rows + (0 if source.held_out_split else 1)
    if count < _LEAST:
        raise ValueError(
            f"{path} has {count} images and a comparison needs at least {_LEAST}: add images to it, or name another "
            "place (source.path)"
        )
    rows = torch.linspace(0, count - 1, min(count, _LOOKED_AT)).long()
    begun = time.perf_counter()
    pixels = source.take(rows).raw
    seconds = (time.perf_counter() - begun) / len(rows)
    if not len(pixels):
        raise ValueError(f"{path}: none of {len(rows)} files that were tried can be read; {source.skipped[0].reason}")
    bad = {entry.name for entry in source.skipped}
    sides = []
    for row in rows.tolist():
        if source.row_name(row) not in bad:
            with Image.open(io.BytesIO(source.encoded(row))) as image:
                sides.append(min(image.size))
    grey = bool((pixels == pixels[:, :1]).all())
    return Look(source.path, False, count, round(median(sides)), None, grey, source.classes, seconds)


def look_at_latents(path: str, given: Mapping[str, Any]) -> Look:
    """Return the contents of a folder of stored latents.

    Raises:
        ValueError: it is unfinished or damaged, or nothing names the autoencoder that made it.
    """
    source = Latents(path=absolute(path))
    if "codec.path" not in given:
        raise ValueError(
            f"{path} holds latents of {source.encoder['class']}: name its folder or hub name, which decodes the "
            "samples, with --set codec.path=PATH"
        )
    if source.rows < _LEAST:
        raise ValueError(
            f"{path} has {source.rows} latents to train on and a comparison needs at least {_LEAST}: encode more "
            "images, or hold out fewer (source.held_out_rows of `immiscible encode`)"
        )
    side, image = min(source.shape[1:]), source.held_out().raw[0]
    return Look(source.path, True, source.rows, side, min(image.shape[1:]), False, source.classes, 0.0)
