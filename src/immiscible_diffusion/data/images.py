"""Images of one's own: a folder, an archive, shards, parquet files in the hub's format, or a data set on the hub."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import tee
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from immiscible_diffusion.data._batch_order import flipped_orders
from immiscible_diffusion.data._changes import state_of
from immiscible_diffusion.data._decode import PILLOW_LIMIT, Decoder, Resize
from immiscible_diffusion.data._loading import CHUNK, chunks, decoded, loaded
from immiscible_diffusion.data.containers.copies import equal_files, equal_rows
from immiscible_diffusion.data.containers.listing import Bad, Columns, digest, plain
from immiscible_diffusion.data.containers.open import ImageSet, OnBad, open_rows
from immiscible_diffusion.data.containers.splits import split_of
from immiscible_diffusion.registry import register
from immiscible_diffusion.share import Share
from immiscible_diffusion.types import Batch, Bool, Int

__all__ = ["Images"]


@register("source")
@dataclass(frozen=True)
class Images:
    """RGB images, cropped to their central square and resized, uint8; what may be read is in ``docs/data.md``.

    Batches depend on (seed, batch number, data) alone: not on ``workers``, nor on ``memory``.

    Args:
        path: a folder (class sub-folders become labels), a ``.zip`` archive, ``.parquet`` files or WebDataset
            ``.tar`` shards (one, or a folder of them), or a hub name.
        size: height and width in pixels.
        split: which split is trained on, where the data have splits.
        image: the column or member that holds the images; found by its usual names if empty (see ``columns``).
        label: the column or member that holds names or whole numbers of classes; found likewise if empty; ``none``
            leaves labels aside.
        held_out_rows: how many images training never sees, a fixed random choice; 0 takes all of ``held_out_split``.
        limit: read only the first so many images of the split; 0 reads all.
        held_out_split: the split that held-out images come from; empty takes them out of ``split``.
        crop: side in pixels of the central square that is kept before resizing; 0 keeps the largest.
        resize: the filter.
        flip: mirror training images at random, a function of (seed, epoch, row).
        caption: the column or member that holds texts; none if empty.
        memory: decode once and keep the pixels; else decode every batch from disk.
        workers: processes that decode; 0 decodes in this one.
        on_bad: ``stop`` at an image that cannot be used, or ``skip`` it: see ``skipped``.
        max_pixels: a larger image cannot be used.

    Raises:
        ValueError: a value that is out of its range.
    """

    path: str = ""
    size: int = 32
    split: str = "train"
    image: str = ""
    label: str = ""
    held_out_rows: int = 500
    limit: int = 0
    held_out_split: str = ""
    crop: int = 0
    resize: Resize = "lanczos"
    flip: bool = False
    caption: str = ""
    memory: bool = True
    workers: int = 0
    on_bad: OnBad = "stop"
    max_pixels: int = PILLOW_LIMIT

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError(
                "path is empty; images need path = a folder, a .zip, .tar or .parquet file, or a hub data set's name"
            )
        split, held_out_split = (split_of(name) or name for name in (self.split, self.held_out_split))
        if not split or split == held_out_split:
            raise ValueError(f"split is {self.split!r} and held_out_split {self.held_out_split!r}: two splits, or one")
        for name in ("size", "held_out_rows", "limit", "crop", "workers"):
            least = 1 if name == "size" else 0
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.held_out_rows == 0 and not self.held_out_split:
            raise ValueError("held_out_rows is 0; without a held_out_split it must be at least 1")
        if self.resize not in get_args(Resize) or self.on_bad not in get_args(OnBad):
            raise ValueError(
                f"resize is {self.resize!r}, one of {list(get_args(Resize))}; "
                f"on_bad is {self.on_bad!r}, one of {list(get_args(OnBad))}"
            )
        if not 1 <= self.max_pixels <= 2 * PILLOW_LIMIT:
            raise ValueError(f"max_pixels is {self.max_pixels}; it must lie within 1 .. {2 * PILLOW_LIMIT}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image, (3, size, size)."""
        return (3, self.size, self.size)

    @property
    def rows(self) -> int:
        """How many images an epoch has, with those that turn out to be unusable."""
        return len(self._opened.train)

    @property
    def classes(self) -> int | None:
        """The number of classes, or None without labels."""
        classes = self._opened.classes
        return None if classes is None else classes.amount

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes in the order of their labels, or None where the data have none."""
        classes = self._opened.classes
        return None if classes is None else classes.names

    @property
    def columns(self) -> Columns:
        """The columns, or members of shards, that images, labels and captions come from; empty where there are none."""
        return self._opened.listing.columns

    @property
    def skipped(self) -> tuple[Bad, ...]:
        """What was left out so far, (name, reason) each; with ``memory`` everything that will be."""
        found = self._opened
        if self.memory:
            _ = self._pixels
        names = found.listing.names
        return found.listing.bad + tuple(Bad(names[row], reason) for row, reason in sorted(found.bad.items()))

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """Yield training batches for ever, images (size, 3, h, w) and labels (size,) or None.

        Where ``on_bad`` is ``skip``, the next good image in the order of the training rows stands in for a bad one.

        Raises:
            ValueError: size is not within 1 and the number of training rows; unreadable data.
        """
        return self.share_batches(size, seed, start, Share())

    def share_batches(self, size: int, seed: int, start: int, share: Share) -> Iterator[Batch]:
        """Yield this share of each of these batches.

        Raises:
            ValueError: as ``batches``.
        """
        data = self._opened
        whole = flipped_orders(len(data.train), size, seed, start, self._held_out_words())
        shares = ((share.of(order), share.of(flip)) for order, flip in whole)
        if self.memory:
            for order, flip in shares:
                yield self._batch(*self._fetch(data.train[order]), flip)
            return
        plans, ahead = tee(shares)
        upcoming = (data.train[order] for order, _ in ahead)
        with closing(decoded(self._decoder(), upcoming, self.workers)) as made:
            for (rows, pixels, bad), (_, flip) in zip(made, plans, strict=False):
                yield self._batch(rows, pixels, bad, flip)

    def training_rows(
        self, places: Int[Tensor, " b"], mirrored: Bool[Tensor, " b"], generator: torch.Generator | None = None
    ) -> Batch:
        """Return the training images at these places, 0 .. rows - 1, with their labels, mirrored where asked.

        Where ``on_bad`` is ``skip``, the next good image stands in for a bad one. Without ``flip`` none is mirrored.

        Raises:
            ValueError: unreadable data.
        """
        return self._batch(*self._fetch(self._opened.train[places]), mirrored)

    def held_out(self) -> Batch:
        """Return the images and labels that training never sees; bad ones are missing from it.

        Raises:
            ValueError: unreadable data.
        """
        if not self.memory:
            _compared(self, self._state)
        return self._without_bad(self._opened.held)

    def take(self, rows: Int[Tensor, " b"]) -> Batch:
        """Return these rows in this order and unmirrored, images (b, 3, h, w), labels and row numbers.

        Numbers run from 0 through training and held-out rows together; bad ones are missing from the result.

        Raises:
            ValueError: there is no such row; unreadable data.
        """
        count = len(self._opened.listing.names)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < count:
            raise ValueError(
                f"rows {int(rows.min())} .. {int(rows.max())} are asked for; {self.path} has 0 .. {count - 1}"
            )
        return self._without_bad(rows)

    def row_name(self, row: int) -> str:
        """Return the path of an image, or where in which archive or table it is."""
        return self._opened.listing.names[row]

    def encoded(self, row: int) -> bytes:
        """Return the bytes of one image as they are stored.

        Raises:
            OSError, ValueError: they cannot be read.
        """
        return self._opened.listing.read(row)

    def listing_digest(self) -> str:
        """Return a SHA-256 of the names, sizes, labels and captions of all rows, held-out ones included."""
        return digest(self._opened.listing, plain(str(Path(self.path).expanduser())))

    def captions(self, rows: Int[Tensor, " b"]) -> list[tuple[str, ...]]:
        """Return the captions of these rows, none or more each."""
        texts = self._opened.listing.captions
        return [() if texts is None else texts[row] for row in rows.tolist()]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle: the options and the state of the files, but neither listing nor pixels."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_opened", "_pixels")}

    @cached_property
    def _state(self) -> str:
        return state_of(self.path)

    @cached_property
    def _opened(self) -> ImageSet:
        return _opened(self, self._state)

    @cached_property
    def _pixels(self) -> Tensor:
        return _pixels(self, self._state)

    def _held_out_words(self) -> str:
        """Return how many of the split's rows are held out, and by which option, or that there are no more."""
        opened = self._opened
        if self.held_out_split:
            return f"source.limit is {self.limit}" if self.limit else f"split {self.split!r} has no more"
        return f"source.held_out_rows = {len(opened.held)} of {len(opened.listing.names)} are held out"

    def _decoder(self) -> Decoder:
        return Decoder(self._opened.listing.read, self.size, self.crop, self.resize, self.max_pixels)

    def _fetch(self, rows: Tensor) -> tuple[Tensor, Tensor, dict[int, str]]:
        """Return rows, their pixels, and position -> reason of the bad ones."""
        if self.memory:
            pixels, bad = self._pixels[rows], self._opened.bad
            return rows, pixels, {i: bad[row] for i, row in enumerate(rows.tolist()) if row in bad} if bad else {}
        parts = [*decoded(self._decoder(), iter(chunks(rows)), self.workers if len(rows) > CHUNK else 0)]
        bad = {k * CHUNK + i: reason for k, part in enumerate(parts) for i, reason in part.bad.items()}
        return rows, torch.cat([torch.empty(0, *self.shape, dtype=torch.uint8), *(part.pixels for part in parts)]), bad

    def _without_bad(self, rows: Tensor) -> Batch:
        rows, pixels, bad = self._fetch(rows)
        self._opened.note(rows, bad, self.on_bad)
        good = torch.tensor([i for i in range(len(rows)) if i not in bad], dtype=torch.long)
        return Batch(pixels[good], self._opened.labels(rows[good]), rows[good])

    def _batch(self, rows: Tensor, pixels: Tensor, bad: dict[int, str], flip: Tensor) -> Batch:
        self._opened.note(rows, bad, self.on_bad)
        rows = rows.clone()
        for i in bad:
            rows[i], pixels[i] = self._stand_in(int(rows[i]))
        if self.flip:
            pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
        return Batch(pixels, self._opened.labels(rows), rows)

    def _stand_in(self, row: int) -> tuple[int, Tensor]:
        data = self._opened
        at = int((data.train == row).nonzero())
        for other in data.train.roll(-at - 1)[:-1].tolist():
            if other in data.bad:
                continue
            number = torch.tensor([other])
            _, pixels, bad = self._fetch(number)
            if not bad:
                return other, pixels[0]
            data.note(number, bad, self.on_bad)
        raise ValueError(f"none of the {len(data.train)} training images of {self.path} can be read")


@lru_cache(maxsize=8)
def _opened(source: Images, state: str) -> ImageSet:
    """Return the data that equal sources share, as long as their files have not changed."""
    return open_rows(
        source.path,
        Columns(source.image, source.label, source.caption),
        split=source.split,
        held_out_split=source.held_out_split,
        held_out_rows=source.held_out_rows,
        limit=source.limit,
        on_bad=source.on_bad,
    )


@lru_cache(maxsize=8)
def _compared(source: Images, state: str) -> None:
    """Compare the files of held-out and training images, once."""
    opened = source._opened
    opened.warn_of_copies(*equal_files(opened.listing, opened.train, opened.held))


@lru_cache(maxsize=8)
def _pixels(source: Images, state: str) -> Tensor:
    """Return all images decoded, (n, 3, size, size)."""
    opened = source._opened
    count = len(opened.listing.names)
    pixels, bad = loaded(source._decoder(), count, source.workers, strict=source.on_bad == "stop")
    opened.note(torch.arange(count), bad, source.on_bad)
    good = torch.tensor([row not in bad for row in range(count)])
    train, held = (rows[good[rows]] for rows in (opened.train, opened.held))
    opened.warn_of_copies(*equal_rows(pixels, train, held))
    return pixels
