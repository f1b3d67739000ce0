"""Latents that ``encode`` stored: training without the encoder."""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from immiscible_diffusion.data._batch_order import orders
from immiscible_diffusion.data.latent_files.stored import MANIFEST, Manifest, Shard, check_file, read_manifest
from immiscible_diffusion.files import digest_of
from immiscible_diffusion.registry import register
from immiscible_diffusion.share import Share
from immiscible_diffusion.streams import stream, stream_seed
from immiscible_diffusion.types import Batch, Bool, Int

__all__ = ["Latents"]

_OPEN_SHARDS = 256  # a file handle each; systems allow 1,024 or so


@register("source")
@dataclass(frozen=True)
class Latents:
    """Draws from the stored posteriors of a data set's images; training never meets images or encoder.

    A batch's ``raw`` is z = mean + std * eps, (b, z, y, x), float32 and unscaled: the codec ``vae`` scales it. eps and
    the side of a row are functions of (seed, epoch, row), whatever the batch size; without a posterior
    (AutoencoderTiny) z is the mean. ``cond`` holds labels; without labels, the number of one caption of each row,
    drawn likewise, which ``caption_texts`` turns into text. Held-out data are images, for metrics.

    Shards are mapped into memory and read row by row: memory does not grow with the data set. Sizes and headers are
    checked when the folder is first read; ``verify`` checks every byte.

    Args:
        path: the folder that ``encode`` wrote.
        flip: show each row as its mirror image in half of the epochs; needs latents that were encoded so.

    Raises:
        ValueError: no path.
    """

    path: str = ""
    flip: bool = False

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path is empty; latents need path = a folder that `encode` wrote")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one latent, (z, y, x)."""
        return tuple(self._stored().manifest.shape)

    @property
    def rows(self) -> int:
        """How many latents are trained on."""
        return self._stored().first_rows[-1]

    @property
    def classes(self) -> int | None:
        """The number of classes, or None without labels."""
        return self._stored().manifest.classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes in the order of their labels, or None where the images had none."""
        names = self._stored().manifest.class_names
        return None if names is None else tuple(names)

    @property
    def encoder(self) -> dict[str, Any]:
        """What encoded them: class, SHA-256 of the weights, dtype, and its own scale and shift."""
        return self._stored().manifest.encoder

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """Yield training batches for ever: latents (size, z, y, x), labels or numbers of captions (size,), row numbers.

        Raises:
            ValueError: size is not within 1 and the number of rows; an unfinished or damaged folder; ``flip`` where
                mirror images were not encoded.
        """
        return self.share_batches(size, seed, start, Share())

    def share_batches(self, size: int, seed: int, start: int, share: Share) -> Iterator[Batch]:
        """Yield this share of each of these batches.

        Raises:
            ValueError: as ``batches``.
        """
        stored = self._stored()
        if self.flip and not stored.manifest.flip:
            raise ValueError(f"{self.path} was encoded without mirror images: encode with flip, or set flip = false")
        held_out = stored.files[-1].rows
        why = f"{held_out} of {self.rows + held_out} were held out when {self.path} was encoded"
        for number, order in enumerate(orders(self.rows, size, seed, start, why), start):
            epoch_seed = stream_seed(seed, number // (self.rows // size), "data")
            rows = [_drawn_row(stored, position, epoch_seed, self.flip) for position in share.of(order).tolist()]
            z, cond, numbers = zip(*rows, strict=True)
            yield Batch(torch.stack(z), None if cond[0] is None else torch.stack(cond), torch.stack(numbers))

    def training_rows(
        self, places: Int[Tensor, " b"], mirrored: Bool[Tensor, " b"], generator: torch.Generator | None = None
    ) -> Batch:
        """Return the training latents at these places, 0 .. rows - 1, with labels or numbers of captions.

        Args:
            places: which.
            mirrored: which of them belong to mirror images.
            generator: draws from the posteriors, and one of a row's captions; without it, the means and the first.

        Raises:
            ValueError: an unfinished or damaged folder.
        """
        stored = self._stored()
        rows = [
            _row(stored, place, bool(side), generator)
            for place, side in zip(places.tolist(), mirrored.tolist(), strict=True)
        ]
        z, cond, numbers = zip(*rows, strict=True)
        return Batch(torch.stack(z), None if cond[0] is None else torch.stack(cond), torch.stack(numbers))

    def held_out(self) -> Batch:
        """Return the images (n, c, h, w), uint8, that were kept from training, with labels or numbers of captions.

        The caption is the first of each.

        Raises:
            ValueError: an unfinished or damaged folder.
        """
        stored = self._stored()
        read, cond = stored.open(len(stored.files) - 1), None
        if stored.manifest.classes is not None:
            cond = read("labels")[:].clone()
        elif stored.manifest.captions:
            ends = read("row_ends")[:]
            cond = stored.first_captions[-2] + torch.cat([ends.new_zeros(1), ends[:-1]])
        return Batch(read("images")[:].clone(), cond, read("rows")[:].clone())

    def caption_texts(self, numbers: Int[Tensor, " b"]) -> list[str]:
        """Return the captions of these numbers, as ``cond`` holds them.

        Raises:
            ValueError: there are no captions, or none of a number; an unfinished or damaged folder.
        """
        stored, texts = self._stored(), []
        for number in numbers.tolist():
            if not 0 <= number < stored.first_captions[-1]:
                raise ValueError(f"no caption {number}; {self.path} has {stored.first_captions[-1]}")
            file = bisect_right(stored.first_captions, number) - 1
            read, at = stored.open(file), number - stored.first_captions[file]
            begin, end = (int(read("caption_ends")[i]) if i >= 0 else 0 for i in (at - 1, at))
            texts.append(read("captions")[begin:end].numpy().tobytes().decode())
        return texts

    def listing_digest(self) -> str:
        """Return a SHA-256 of the files' names, sizes and contents, as the manifest lists them.

        Raises:
            ValueError: an unfinished or damaged folder.
        """
        files = [(shard.file, shard.rows, shard.bytes, shard.sha256) for shard in self._stored().files]
        return digest_of(json.dumps(files).encode())

    def verify(self) -> int:
        """Read every file, compare its SHA-256 with the manifest's, and return the number of files.

        Raises:
            ValueError: names the first file that differs, and how.
        """
        stored = self._stored()
        for shard in stored.files:
            check_file(Path(self.path), stored.manifest, shard, content=True)
        return len(stored.files)

    def _stored(self) -> "_Folder":
        path = Path(self.path) / MANIFEST
        # The time tells another encoding into the same folder.
        return _checked(Path(self.path), path.stat().st_mtime_ns if path.is_file() else 0)


class _Folder(NamedTuple):
    """A folder that was looked at: its files, held-out images last, and the first row and caption of each."""

    folder: Path
    written: int
    manifest: Manifest
    files: list[Shard]
    first_rows: list[int]
    first_captions: list[int]

    def open(self, file: int) -> Callable[[str], Any]:
        return _open(self.folder / self.files[file].file, self.written)


@cache
def _checked(folder: Path, written: int) -> _Folder:
    manifest = read_manifest(folder)
    if not manifest.finished or manifest.held_out is None:
        progress = f"{len(manifest.shards)} of {manifest.count} shards"
        raise ValueError(f"{folder} holds {progress}: encode again into it to go on")
    files = [*manifest.shards, manifest.held_out]
    for shard in files:
        check_file(folder, manifest, shard)
    first_rows = [0, *accumulate(shard.rows for shard in manifest.shards)]
    return _Folder(folder, written, manifest, files, first_rows, [0, *accumulate(shard.captions for shard in files)])


@lru_cache(_OPEN_SHARDS)
def _open(path: Path, written: int) -> Callable[[str], Any]:
    """Return a function from a tensor's name to a slice of it, mapped from a file."""
    from safetensors import safe_open

    return cache(safe_open(path, "pt").get_slice)


def _drawn_row(stored: _Folder, position: int, epoch_seed: int, flip: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return one row's draw in one epoch, its condition and its number."""
    file = bisect_right(stored.first_rows, position) - 1
    row = stored.open(file)("rows")[position - stored.first_rows[file]]
    # A seed of its own: the epoch's order comes from (seed, epoch, "data") itself.
    generator = stream(epoch_seed, int(row), "data")
    mirrored = bool(torch.rand((), generator=generator) < 0.5) and flip  # drawn always, so that eps stays the same
    return _row(stored, position, mirrored, generator)


def _row(
    stored: _Folder, position: int, mirrored: bool, generator: torch.Generator | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return one row, its condition and its number; without a generator, its mean and its first caption."""
    file = bisect_right(stored.first_rows, position) - 1
    read, at = stored.open(file), position - stored.first_rows[file]
    row, side = read("rows")[at], "_flipped" if mirrored else ""
    z: Tensor = read("mean" + side)[at].float()
    if stored.manifest.posterior and generator is not None:  # out of place: z may lie in the mapped file
        z = z + read("std" + side)[at].float() * torch.randn(z.shape, generator=generator)
    if stored.manifest.classes is not None:
        return z, read("labels")[at], row
    if not stored.manifest.captions:
        return z, None, row
    begin, end = (int(read("row_ends")[i]) if i >= 0 else 0 for i in (at - 1, at))
    number = begin if generator is None else torch.randint(begin, end, (), generator=generator)
    return z, torch.as_tensor(stored.first_captions[file] + number), row
