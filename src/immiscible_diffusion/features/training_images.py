"""The images that training sees, as stored, for fitting features and for the noise floor."""

import itertools

import torch
from torch import Tensor

from immiscible_diffusion.features._resize import reduced
from immiscible_diffusion.features._shown import shown
from immiscible_diffusion.types import Codec, Source

__all__ = ["decoded", "stored", "training_images"]

_READ, _DECODED = 500, 50
"""Rows read and decoded at a time: an autoencoder needs much memory for each."""


def training_images(source: Source, codec: Codec, rows: int, side: int = 0) -> tuple[Tensor, Tensor | None]:
    """Return training data as stored, (n, c, h, w) for images, and their class labels, (n,), or None without labels.

    The rows are distinct, in a fixed random order, and mirrored where the source mirrors them. A number that is not
    a whole number of reads falls short by a few rows.

    Args:
        source: whose training rows.
        codec: brings back what is not stored as images, such as latents.
        rows: how many at most.
        side: to which square images are reduced, in pixels; 0 leaves them as they are.

    >>> from immiscible_diffusion import Digits, Pixels
    >>> images, labels = training_images(Digits(), Pixels(), 200)
    >>> tuple(images.shape), tuple(labels.shape)
    ((200, 1, 8, 8), (200,))
    """
    rows = min(rows, source.rows)
    reads = -(-rows // _READ)
    batches = list(itertools.islice(source.batches(rows // reads, 0), reads))
    labels = None
    if source.classes is not None:
        labels = torch.cat([batch.cond for batch in batches if batch.cond is not None])
    label = "reading training images for the features, once"
    return torch.cat([stored(batch.raw, codec, side) for batch in shown(batches, reads, label)]), labels


def stored(raw: Tensor, codec: Codec, side: int = 0) -> Tensor:
    """Return data in the form of samples: images unchanged, other data encoded and decoded by the codec.

    Square images are then reduced to ``side`` pixels, unless it is 0.

    >>> from immiscible_diffusion import Pixels
    >>> stored(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), Pixels()).shape
    torch.Size([2, 1, 8, 8])
    """
    if raw.dtype == torch.uint8 and raw.ndim == 4:
        return reduced(raw, side)
    return decoded(raw, codec, side)


def decoded(raw: Tensor, codec: Codec, side: int = 0) -> Tensor:
    """Return data after a codec encoded and decoded them, some rows at a time, reduced to ``side`` as in ``stored``."""
    with torch.no_grad():
        parts = [reduced(codec.decode(codec.encode(part)), side) for part in torch.split(raw, _DECODED)]
    return torch.cat(parts)
