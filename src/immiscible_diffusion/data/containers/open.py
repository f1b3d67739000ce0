"""Which kind of container a path is, and which of its rows are for training."""

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from immiscible_diffusion.data.containers.archive import list_zip
from immiscible_diffusion.data.containers.folder import list_folder
from immiscible_diffusion.data.containers.labels import Classes, classes_of, text_names
from immiscible_diffusion.data.containers.listing import Bad, Columns, Listing, joined, plain, subset
from immiscible_diffusion.data.containers.shards import list_shards
from immiscible_diffusion.data.containers.splits import no_split, of_split, split_of
from immiscible_diffusion.data.containers.tables import list_hub, list_parquet
from immiscible_diffusion.streams import stream

__all__ = ["ImageSet", "OnBad", "open_rows", "open_split"]

OnBad = Literal["stop", "skip"]
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".gz", ".bz2", ".xz", ".7z", ".rar")


@dataclass(frozen=True)
class ImageSet:
    """Training and held-out rows of one listing, and row -> reason of the images found to be bad when decoded."""

    where: str
    listing: Listing
    train: Tensor
    held: Tensor
    classes: Classes | None = None
    bad: dict[int, str] = field(default_factory=dict)

    def labels(self, rows: Tensor) -> Tensor | None:
        """Return the labels of rows, (b,), or None where the data or the split have none."""
        chosen = None if self.classes is None else torch.from_numpy(self.classes.numbers)[rows]
        return None if chosen is None or bool((chosen < 0).any()) else chosen

    def note(self, rows: Tensor, bad: dict[int, str], on_bad: OnBad) -> None:
        """Stop at the first of the rows (position -> reason) that are bad, or remember new ones and say how many."""
        names = self.listing.names
        if bad and on_bad == "stop":
            i, reason = next(iter(bad.items()))
            raise ValueError(
                f"cannot read the image {names[int(rows[i])]}: {reason}; source.on_bad = 'skip' leaves such images out"
            )
        new = {int(rows[i]): reason for i, reason in bad.items() if int(rows[i]) not in self.bad}
        if new:
            self.bad.update(new)
            self.warn(Bad(names[min(new)], new[min(new)]))

    def warn_of_copies(self, copies: Sequence[int], compared: int) -> None:
        """Say which held-out images, of those that were compared with the training images, are equal to one."""
        if copies:
            some = " and ".join(self.listing.names[row] for row in copies[:2])
            warnings.warn(
                f"{len(copies)} of {compared} held-out images of {self.where} are training images too, such as {some}: "
                "metrics flatter a net that has seen them; remove the copies, or set source.held_out_split",
                stacklevel=2,
            )

    def warn(self, last: Bad) -> None:
        """Say how many images have been left out."""
        count = len(self.listing.bad) + len(self.bad)
        warnings.warn(
            f"skipped {count} images of {self.where} so far, such as {last.name}: {last.reason}", stacklevel=2
        )


def open_rows(
    path: str, columns: Columns, *, split: str, held_out_split: str, held_out_rows: int, limit: int, on_bad: OnBad
) -> ImageSet:
    """Return training and held-out rows.

    Without a held-out split, a fixed random choice is held out; with one, its rows follow the training rows.

    Args:
        path: see ``open_split``.
        columns: likewise.
        split: what is trained on.
        held_out_split: where held-out images come from; empty: ``split``.
        held_out_rows: how many; 0 takes the whole held-out split.
        limit: use the first so many rows of ``split``; 0 uses all.
        on_bad: ``stop`` at anything that cannot be used, or ``skip`` it.

    Raises:
        ValueError: unreadable data, or too few.
    """
    listing = open_split(path, split, columns)
    names = listing.classes or text_names(listing.labels)
    listed = len(listing.names)
    if limit:
        listing = subset(listing, range(min(limit, len(listing.names))))
    count = len(listing.names)
    if held_out_split:
        other = open_split(path, held_out_split, columns)
        chosen = torch.randperm(len(other.names), generator=stream(0, 0, "data"))
        chosen = chosen[: held_out_rows or None].sort().values
        listing = joined(listing, subset(other, chosen.tolist()))
    if on_bad == "stop" and listing.bad:
        name, reason = listing.bad[0]
        more = f" (and {len(listing.bad) - 1} more)" if len(listing.bad) > 1 else ""
        raise ValueError(f"cannot use {name}: {reason}{more}; source.on_bad = 'skip' leaves it out")
    if names and len(names) > listed:
        raise ValueError(
            f"{plain(path)} has {len(names)} classes and {listed} images of split {split!r}; there can be "
            "no more classes than images: leave the labels aside with source.label = 'none'"
        )
    order = torch.randperm(count, generator=stream(0, 0, "data"))
    if held_out_split:
        train, held = torch.arange(count), torch.arange(count, len(listing.names))
    else:
        train, held = order[held_out_rows:], order[:held_out_rows]
    if not len(train) or not len(held):
        raise ValueError(
            f"{plain(path)} has {count} images and source.held_out_rows is {held_out_rows}: none to "
            + ("hold out" if len(train) else "train; lower source.held_out_rows, or add images")
        )
    classes = classes_of(listing.labels, names, train.tolist(), held.tolist(), plain(path))
    opened = ImageSet(plain(path), listing, train, held, classes)
    if listing.bad:
        opened.warn(listing.bad[0])
    return opened


def open_split(path: str, split: str, columns: Columns) -> Listing:
    """Return the images of one split of a folder, an archive, shards, tables or a data set on the hub.

    Raises:
        ValueError: there is nothing of the kind, or it is damaged.
    """
    place = Path(path).expanduser()
    where = plain(path)
    try:
        kind = "folder" if place.is_dir() else "file" if place.is_file() else "other" if place.exists() else "none"
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {where}: {error}") from error
    suffix = place.suffix.lower()
    if kind == "folder":
        tables, shards = _containers(place)
        if tables and shards:
            raise ValueError(f"{where} holds both {shards[0].name} and {tables[0].name}: name the folder of one kind")
        if tables:
            return list_parquet(of_split(tables, split, place), columns)
        return list_shards(of_split(shards, split, place), columns) if shards else list_folder(place, split, columns)
    if kind == "file" and suffix == ".zip":
        return list_zip(place, split, columns)
    if kind == "file" and suffix in (".parquet", ".tar"):
        file_split = split_of(place.name)
        if (split_of(split) or split) not in ("train", file_split):  # one file is trained on whatever it is called
            raise no_split(where, split, [file_split or "train"])
        return list_parquet([place], columns) if suffix == ".parquet" else list_shards([place], columns)
    if kind in ("file", "other"):
        packed = suffix and place.name.lower().endswith(_PACKED)
        advice = ": it is compressed as a whole and cannot be read in place; unpack it once" if packed else ""
        raise ValueError(f"{where} is neither a folder nor a .zip, .tar or .parquet file{advice}")
    if suffix in (".zip", ".parquet", ".tar", *_PACKED) or not _HUB_NAME.fullmatch(path):
        raise ValueError(f"no file or folder {where}")
    return list_hub(path, split, columns)


def _containers(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the parquet files and the tar shards of a folder, sorted."""
    tables: list[Path] = []
    shards: list[Path] = []
    base = root.resolve()
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            suffix = Path(name).suffix.lower()
            if suffix not in (".parquet", ".tar") or name.startswith("."):
                continue
            path = Path(folder, name)
            if not path.resolve().is_relative_to(base):
                raise ValueError(f"{plain(str(path))} is a link that points outside {plain(str(root))}")
            if not path.is_file():
                raise ValueError(f"{plain(str(path))} is not a regular file")
            (tables if suffix == ".parquet" else shards).append(path)
    return tables, shards
