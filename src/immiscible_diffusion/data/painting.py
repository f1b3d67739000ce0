"""In-painting and out-painting: the condition is the known part of the picture and where it is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from immiscible_diffusion.registry import register
from immiscible_diffusion.share import Share
from immiscible_diffusion.shared_batches import shared
from immiscible_diffusion.streams import stream, stream_seed
from immiscible_diffusion.types import Batch, Codec, Float, HasListing, Source, UInt8

__all__ = ["Painting"]

_GREY = 127


@register("source")
@dataclass(frozen=True)
class Painting:
    """Another source's data, each with a hole that a net is to fill; for nets with ``beside`` = 1 + channels.

    ``cond`` is (b, 1 + c, h, w), float32, in model space: 1 where the hole is, then the known part, 0 in the hole. The
    known part is encoded from the picture with a grey hole: an autoencoder sees nothing of what is to be filled.
    The hole is a box for in-painting (``inside``), and all but a box for out-painting (``outside``); the box's sides
    and place are uniform, and a function of (seed, epoch, row). The whole picture is trained on and generated, known
    part included, as Stable Diffusion's in-painting models do.

    Departs: of stored latents the picture is gone, and the hole is cut out of x; the latents around it, made of the
    whole picture, tell something of what was in it, in training and in held-out pictures alike.

    Args:
        source: whose data; its labels and captions are left aside.
        codec: the run's own, which turns raw data into x.
        hole: ``inside`` or ``outside``.
        least: the box's shortest side, as a share of the picture's, in (0, 1].
        most: the longest, in [least, 1].

    Raises:
        ValueError: an unknown hole, or shares out of range.
    """

    source: Source
    codec: Codec
    hole: Literal["inside", "outside"] = "inside"
    least: float = 0.4
    most: float = 0.7

    def __post_init__(self) -> None:
        if self.hole not in ("inside", "outside"):
            raise ValueError(f"hole is {self.hole!r}; it must be 'inside' or 'outside'")
        if not 0 < self.least <= self.most <= 1:
            raise ValueError(f"the box's sides are {self.least} .. {self.most}; they need 0 < least <= most <= 1")

    @property
    def original(self) -> Source:
        """The source whose data are painted."""
        return self.source

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one raw datum."""
        return tuple(self.source.shape)

    @property
    def rows(self) -> int:
        """How many rows are trained on."""
        return self.source.rows

    @property
    def classes(self) -> int | None:
        """None: the condition is the known part."""
        return None

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """Yield the source's batches for ever, with masks and known parts as condition.

        Raises:
            ValueError: as the source; it numbers no rows, or its data are no pictures.
        """
        return self._painted(self.source.batches(size, seed, start), size, seed, start)

    def share_batches(self, size: int, seed: int, start: int, share: Share) -> Iterator[Batch]:
        """Yield this share of each of these batches."""
        return self._painted(shared(self.source, size, seed, start, share), size, seed, start)

    def _painted(self, batches: Iterator[Batch], size: int, seed: int, start: int) -> Iterator[Batch]:
        per_epoch = max(1, self.rows // size)
        for number, batch in enumerate(batches, start):
            if batch.rows is None:
                raise ValueError(f"{type(self.source).__name__} numbers no rows, which name their holes")
            epoch_seed = stream_seed(seed, number // per_epoch, "hole")
            yield batch._replace(cond=self._condition(batch.raw, epoch_seed, batch.rows))

    def held_out(self) -> Batch:
        """Return the data that training never sees, each with one hole that is always the same."""
        batch = self.source.held_out()
        return batch._replace(cond=self._held_out_condition(batch.raw))

    def held_out_conditions(self, rows: int) -> Float[Tensor, "b c h w"]:
        """Return masks and known parts of the first held-out rows, or of all if there are fewer.

        An autoencoder takes long for many pictures: ask for those that are needed.
        """
        return self._held_out_condition(self.source.held_out().raw[:rows])

    def pictures(self, n: int) -> list[UInt8[Tensor, "n c h w"]]:
        """Return the first n held-out images with a grey hole, and as they are."""
        images = self.source.held_out().raw[:n]
        return [_grey(images, self._held_out_condition(images)[:, :1]), images]

    def listing_digest(self) -> str | None:
        """Return the digest of the inner source's files; None if it reads no files."""
        return self.source.listing_digest() if isinstance(self.source, HasListing) else None

    def _held_out_condition(self, raw: Tensor) -> Float[Tensor, "b c h w"]:
        """Return the condition of the first held-out data, in their order."""
        return self._condition(raw, 0, torch.arange(len(raw)))

    def _condition(self, raw: Tensor, seed: int, rows: Tensor) -> Float[Tensor, "b c h w"]:
        _, *shape = self.codec.encode(raw[:1]).shape
        if len(shape) != 3:
            raise ValueError(f"painting is for pictures, (c, h, w) in model space; there came {tuple(shape)}")
        holes = torch.stack([self._hole(stream(seed, row, "hole"), *shape[1:]) for row in rows.tolist()]).unsqueeze(1)
        # A source of stored latents holds out pictures, whose known part is to be as it was in training.
        known = _grey(raw, holes) if raw.dtype == torch.uint8 and raw.shape[1:] == self.shape else raw
        x = self.codec.encode(known)
        return torch.cat([holes.to(x), x * (1 - holes.to(x))], 1)

    def _hole(self, generator: torch.Generator, h: int, w: int) -> Float[Tensor, "h w"]:
        """Return the mask of one hole: 1 in it, 0 in the known part."""
        draws = torch.rand(4, generator=generator).tolist()
        sides = [
            max(1, round(n * (self.least + u * (self.most - self.least)))) for n, u in zip((h, w), draws, strict=False)
        ]
        corner = [int(u * (n - side + 1)) for n, side, u in zip((h, w), sides, draws[2:], strict=True)]
        box = torch.zeros(h, w)
        box[corner[0] : corner[0] + sides[0], corner[1] : corner[1] + sides[1]] = 1
        return box if self.hole == "inside" else 1 - box


def _grey(images: UInt8[Tensor, "b c h w"], holes: Float[Tensor, "b 1 y x"]) -> UInt8[Tensor, "b c h w"]:
    """Return images with a grey hole, (b, c, h, w), where the mask, which may be coarser, is 1."""
    holes = torch.nn.functional.interpolate(holes.to(images.device), images.shape[2:], mode="nearest")
    return torch.where(holes > 0, torch.full_like(images, _GREY), images)
