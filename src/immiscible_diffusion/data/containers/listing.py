"""What a container of images lists."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from immiscible_diffusion.data._decode import MAX_BYTES, Reader, UnreadableError
from immiscible_diffusion.files import digest_of

__all__ = [
    "IMAGE_SUFFIXES",
    "LABELS",
    "Bad",
    "Columns",
    "Label",
    "Labels",
    "Listing",
    "check_size",
    "digest",
    "is_ignored",
    "joined",
    "plain",
    "read_span",
    "subset",
    "unsafe",
]

IMAGE_SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
_BESIDE = frozenset((".csv", ".html", ".json", ".jsonl", ".md", ".rst", ".sha256", ".tsv", ".txt", ".xml", ".yaml"))
_BESIDE_NAMES = frozenset(("license", "readme", "thumbs.db", "desktop.ini", "__macosx"))
LABELS = ("label", "labels", "class", "fine_label", "cls")
"""What columns of labels are usually called, whatever their case."""
Label = int | str
"""What a container gives for a class: its name, or a whole number from 0."""
Labels = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class Bad(NamedTuple):
    """Something that cannot be used: its name and why."""

    name: str
    reason: str


class Columns(NamedTuple):
    """The columns of a table, or members of a shard, that hold images, labels and captions.

    Args:
        image: such as ``img``, or in a shard ``jpg``; if empty, found by the hub's notes, or by a suffix.
        label: names or whole numbers of classes; if empty, one of ``LABELS`` (in a shard ``cls`` or such a key of
            ``json``), if one is there; ``none`` leaves labels aside.
        caption: one or more texts; none if empty.
    """

    image: str = ""
    label: str = ""
    caption: str = ""


_NO_COLUMNS = Columns()


@dataclass(frozen=True)
class Listing:
    """The images of one split of one container.

    Args:
        names: what each image is called in a message.
        read: returns the encoded bytes of image i.
        sizes: the encoded bytes of each image, (n,), or of its whole group.
        labels: a name or a whole number for each image; None for images of a split without labels, or for all.
        classes: the names of all classes in their order, where the container knows them.
        captions: one or more texts for each image, or None.
        bad: what was found and cannot be used.
        columns: those that images, labels and captions come from; empty where the container has none.
        grouped: whether images are read in groups, as the row groups of parquet files are.
    """

    names: Sequence[str]
    read: Reader
    sizes: Labels
    labels: Sequence[Label | None] | None = None
    classes: tuple[str, ...] | None = None
    captions: tuple[tuple[str, ...], ...] | None = None
    bad: tuple[Bad, ...] = ()
    columns: Columns = _NO_COLUMNS
    grouped: bool = False


@dataclass(frozen=True)
class _SubsetReader:
    read: Reader
    rows: Labels

    def __call__(self, row: int) -> bytes:
        return self.read(int(self.rows[row]))


@dataclass(frozen=True)
class _JoinedReader:
    first: Reader
    count: int
    second: Reader

    def __call__(self, row: int) -> bytes:
        return self.first(row) if row < self.count else self.second(row - self.count)


def subset(listing: Listing, rows: Sequence[int]) -> Listing:
    """Return the listing of these rows, in this order."""
    chosen = np.asarray(rows, np.int64)
    return replace(
        listing,
        names=[listing.names[i] for i in chosen],
        read=_SubsetReader(listing.read, chosen),
        sizes=listing.sizes[chosen],
        labels=None if listing.labels is None else [listing.labels[i] for i in chosen],
        captions=None if listing.captions is None else tuple(listing.captions[i] for i in chosen),
    )


def joined(first: Listing, second: Listing) -> Listing:
    """Return both listings as one: the rows of the first, then the rows of the second."""
    labels: list[Label | None] | None = None
    if first.labels is not None or second.labels is not None:
        labels = [
            label
            for part in (first, second)
            for label in ([None] * len(part.names) if part.labels is None else part.labels)
        ]
    captions = None
    if first.captions is not None and second.captions is not None:
        captions = first.captions + second.captions
    return Listing(
        [*first.names, *second.names],
        _JoinedReader(first.read, len(first.names), second.read),
        np.concatenate([first.sizes, second.sizes]),
        labels,
        first.classes,
        captions,
        first.bad + second.bad,
        first.columns,
        first.grouped,
    )


def digest(listing: Listing, root: str) -> str:
    """Return the SHA-256 of the sorted names below ``root``, sizes, labels and captions of all images."""
    count = len(listing.names)
    rows = zip(
        (name.removeprefix(root) for name in listing.names),
        listing.sizes.tolist(),
        [None] * count if listing.labels is None else listing.labels,
        [None] * count if listing.captions is None else listing.captions,
        strict=True,
    )
    return digest_of("\n".join(sorted(map(json.dumps, rows))).encode())


def plain(name: str) -> str:
    r"""Return a name that can be printed: bytes that are not UTF-8 and control characters are written as escapes.

    >>> plain("caf\udce9.png")
    'caf\\udce9.png'
    """
    if name.isascii() and name.isprintable():
        return name
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def unsafe(name: str) -> str | None:
    """Return why an archive member's name cannot be trusted, or None.

    >>> unsafe("cat/1.png"), unsafe("../../etc/passwd")
    (None, 'its path leaves the archive')
    """
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", name):
        return "its path is absolute"
    if ".." in re.split(r"[/\\]", name):
        return "its path leaves the archive"
    return "its path holds a zero byte" if "\0" in name else None


def is_ignored(path: str) -> bool:
    """Return whether a file stands beside images by custom: hidden files, texts, tables, licences.

    >>> is_ignored("cat/.DS_Store"), is_ignored("__MACOSX/cat/1.png"), is_ignored("cat/1.heic")
    (True, True, False)
    """
    parts = path.lower().split("/")
    if any(part in _BESIDE_NAMES or (part.startswith(".") and part not in (".", "..")) for part in parts):
        return True
    stem, dot, suffix = parts[-1].rpartition(".")
    return bool(dot) and (f".{suffix}" in _BESIDE or stem in _BESIDE_NAMES)


def read_span(path: str, first: int, count: int) -> bytes:
    """Return bytes ``first`` .. ``first + count`` of a file.

    Raises:
        UnreadableError: the file ends before.
    """
    with Path(path).open("rb") as file:
        file.seek(first)
        content = file.read(count)
    if len(content) < count:
        raise UnreadableError(f"{Path(path).name} ends after {first + len(content)} bytes; {first + count} are needed")
    return content


def check_size(size: int) -> None:
    """Refuse an image of more than ``MAX_BYTES`` bytes.

    Raises:
        UnreadableError: it is larger.
    """
    if size > MAX_BYTES:
        raise UnreadableError(f"it has {size} bytes; an image may have {MAX_BYTES}")
