"""What a container of images lists, and what a path inside it says: which split, which class."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from immiscible_diffusion.data._decode import Reader

__all__ = [
    "Bad",
    "Labels",
    "Listing",
    "arranged",
    "is_ignored",
    "joined",
    "label_faults",
    "plain",
    "split_of",
    "subset",
]
__all__ += ["IMAGE_SUFFIXES", "no_split", "unsafe"]

IMAGE_SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
_BESIDE = frozenset((".csv", ".html", ".json", ".jsonl", ".md", ".rst", ".sha256", ".tsv", ".txt", ".xml", ".yaml"))
_BESIDE_NAMES = frozenset(("license", "readme", "thumbs.db", "desktop.ini", "__macosx"))
_SPLITS = {"train": "train", "training": "train", "test": "test", "val": "validation", "valid": "validation"}
_SPLITS |= {"validation": "validation", "dev": "validation", "testing": "test"}

Labels = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class Bad(NamedTuple):
    """Something that cannot be used: its name and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """The images of one split of one container.

    Args:
        names: what each image is called in a message.
        read: returns the encoded bytes of image i.
        labels: whole numbers from 0; -1 for images of a split without labels; None without any.
        classes: the names of the classes where the container has names.
        captions: one or more texts for each image, or None.
        bad: what was found and cannot be used.
    """

    names: Sequence[str]
    read: Reader
    labels: Labels | None = None
    classes: tuple[str, ...] | None = None
    captions: tuple[tuple[str, ...], ...] | None = None
    bad: tuple[Bad, ...] = ()


@dataclass(frozen=True)
class _Picked:
    read: Reader
    rows: Labels

    def __call__(self, row: int) -> bytes:
        return self.read(int(self.rows[row]))


@dataclass(frozen=True)
class _Joined:
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
        read=_Picked(listing.read, chosen),
        labels=None if listing.labels is None else listing.labels[chosen],
        captions=None if listing.captions is None else tuple(listing.captions[i] for i in chosen),
    )


def joined(first: Listing, second: Listing) -> Listing:
    """Return both listings as one, the rows of the second after those of the first."""
    labels = None
    if first.labels is not None or second.labels is not None:
        parts = [np.full(len(each.names), -1) if each.labels is None else each.labels for each in (first, second)]
        labels = np.concatenate(parts).astype(np.int64)
    captions = None
    if first.captions is not None and second.captions is not None:
        captions = first.captions + second.captions
    return Listing(
        [*first.names, *second.names],
        _Joined(first.read, len(first.names), second.read),
        labels,
        first.classes,
        captions,
        first.bad + second.bad,
    )


def plain(name: str) -> str:
    r"""Return a name that can be printed: bytes that are not UTF-8 and control characters are written as escapes.

    >>> plain("caf\udce9.png")
    'caf\\udce9.png'
    """
    if name.isascii() and name.isprintable():
        return name
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def split_of(word: str) -> str | None:
    """Return the split that a word names, or that a file's name begins with; None if it names none.

    >>> split_of("train-00000-of-00002.parquet"), split_of("val"), split_of("trainer.parquet")
    ('train', 'validation', None)
    """
    return _SPLITS.get(re.split(r"[-_.]", word.lower(), maxsplit=1)[0])


def no_split(where: str, split: str, found: Sequence[str]) -> ValueError:
    """Return the error for a split that is not there."""
    there = f"there are {sorted(set(found))}" if found else "it has no splits, only 'train'"
    return ValueError(f"no split {split!r} in {where}; {there}. Set source.split and source.held_out_split")


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


class _Arranged(NamedTuple):
    chosen: list[int]
    labels: Labels | None
    classes: tuple[str, ...] | None
    bad: list[Bad]


def arranged(paths: Sequence[str], split: str, where: str, table: Mapping[str, int] | None = None) -> _Arranged:
    """Return which images belong to a split, with the labels that their folders or a table give them.

    Where every image lies in a folder named like a split (``train``, ``test``, ``val``, ...), those folders are the
    splits. Below them the first folder is the class, numbered in the order of the names over all splits; images
    that lie directly there have no class, which is a mistake where others have one.

    Args:
        paths: relative, with forward slashes.
        split: the wanted one.
        where: the container's name in messages.
        table: path -> label, in place of the folders; empty where there are no labels whatever the folders.

    Raises:
        ValueError: there is no such split.
    """
    tops = {path.split("/", 1)[0] if "/" in path else "" for path in paths}
    wanted = split_of(split) or split
    parts = [(wanted, path) for path in paths]
    if tops and all(top.lower() in _SPLITS for top in tops):
        parts = [(_SPLITS[top.lower()], rest) for top, _, rest in (path.partition("/") for path in paths)]
        if wanted not in {name for name, _ in parts}:
            raise no_split(where, split, sorted(tops))
    elif wanted != "train":
        raise no_split(where, split, [])
    chosen = [i for i, (name, _) in enumerate(parts) if name == wanted]
    if table is not None and not table:
        return _Arranged(chosen, None, None, [])
    if table is not None:
        labels = np.array([table.get(paths[i], -1) for i in chosen], np.int64)
        bad = [Bad(paths[i], "dataset.json has no label for it") for i, n in zip(chosen, labels, strict=True) if n < 0]
        return _Arranged([i for i, n in zip(chosen, labels, strict=True) if n >= 0], labels[labels >= 0], None, bad)
    known = {name for name, _ in parts}
    deciding = "train" if "train" in known else wanted
    classes = sorted({path.split("/", 1)[0] for name, path in parts if name == deciding and "/" in path})
    if not any("/" in parts[i][1] for i in chosen):
        return _Arranged(chosen, None, tuple(classes) or None, [])
    number, good, numbers, bad = {name: i for i, name in enumerate(classes)}, [], [], []
    for i in chosen:
        top, slash, _ = parts[i][1].partition("/")
        if slash and top in number:
            good.append(i)
            numbers.append(number[top])
        else:
            reason = (
                f"its class folder {plain(top)!r} is not among those of train" if slash else "it has no class folder"
            )
            bad.append(Bad(paths[i], reason if slash else f"{reason}, and others have one"))
    return _Arranged(good, np.array(numbers, np.int64), tuple(classes), bad)


def label_faults(labels: Sequence[int | None], classes: int | None) -> dict[int, str]:
    """Return row -> fault for labels that are missing, negative or beyond the classes.

    >>> label_faults([0, None, -1, 3], classes=3)
    {1: 'it has no label', 2: 'its label is -1; labels start at 0', 3: 'its label is 3; there are 3 classes'}
    """
    faults = {}
    for i, label in enumerate(labels):
        if label is None:
            faults[i] = "it has no label"
        elif label < 0:
            faults[i] = f"its label is {label}; labels start at 0"
        elif classes is not None and label >= classes:
            faults[i] = f"its label is {label}; there are {classes} classes"
    return faults
