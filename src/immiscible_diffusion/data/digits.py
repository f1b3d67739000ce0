"""Real handwritten digits that scikit-learn carries: a data set that needs no download."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from immiscible_diffusion.data._batch_order import orders
from immiscible_diffusion.registry import register
from immiscible_diffusion.share import Share
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Batch, Bool, Int

__all__ = ["Digits"]


@register("source")
@dataclass(frozen=True)
class Digits:
    """1,797 greyscale images of 8 x 8 pixels in ten classes (UCI Optical Recognition of Handwritten Digits).

    Args:
        held_out_rows: how many images training never sees, a fixed random choice.

    Raises:
        ValueError: held_out_rows is not within 1 .. 1796.
    """

    held_out_rows: int = 500

    def __post_init__(self) -> None:
        if not 1 <= self.held_out_rows < 1797:
            raise ValueError(f"held_out_rows is {self.held_out_rows}; it must lie within 1 .. 1796")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image, (1, 8, 8)."""
        return (1, 8, 8)

    @property
    def rows(self) -> int:
        """How many images are trained on."""
        return 1797 - self.held_out_rows

    @property
    def classes(self) -> int | None:
        """Ten digits."""
        return 10

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """Yield training batches for ever, images (size, 1, 8, 8) and labels (size,).

        Raises:
            ValueError: size is not within 1 and the number of training rows.
        """
        return self.share_batches(size, seed, start, Share())

    def share_batches(self, size: int, seed: int, start: int, share: Share) -> Iterator[Batch]:
        """Yield this share of each of these batches."""
        rows, why = _split()[self.held_out_rows :], f"source.held_out_rows = {self.held_out_rows} of 1797 are held out"
        for order in orders(len(rows), size, seed, start, why):
            yield self.take(rows[share.of(order)])

    def training_rows(
        self, places: Int[Tensor, " b"], mirrored: Bool[Tensor, " b"], generator: torch.Generator | None = None
    ) -> Batch:
        """Return the training images at these places, 0 .. rows - 1, with their labels; none is ever mirrored."""
        return self.take(_split()[self.held_out_rows :][places])

    def take(self, rows: Int[Tensor, " b"]) -> Batch:
        """Return the images and labels with these row numbers, in this order.

        Raises:
            ValueError: a number below 0 or above 1796.
        """
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < 1797:
            raise ValueError(f"digits have rows 0 .. 1796; there came {int(rows.min())} .. {int(rows.max())}")
        images, labels = _load()
        return Batch(images[rows], labels[rows], rows)

    def held_out(self) -> Batch:
        """Return the images and labels that training never sees."""
        images, labels = _load()
        rows = _split()[: self.held_out_rows]
        return Batch(images[rows], labels[rows], rows)


@cache
def _load() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits need scikit-learn: pip install 'immiscible-diffusion[data]'") from error
    digits = load_digits()
    images = torch.from_numpy(digits.images * 255 / 16).round().to(torch.uint8).unsqueeze(1)
    return images, torch.from_numpy(digits.target).long()


@cache
def _split() -> Tensor:
    return torch.randperm(1797, generator=stream(0, 0, "data"))
