"""What a container of images lists, and what a path inside it says: which split, which class."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from immiscible_diffusion.data._decode import MAX_BYTES, Reader, UnreadableError
from immiscible_diffusion.files import digest_of

__all__ = [
    "Bad",
    "Columns",
    "Labels",
    "Listing",
    "arranged",
    "digest",
    "is_ignored",
    "joined",
    "label_faults",
    "labelled",
    "of_split",
    "plain",
    "split_of",
    "subset",
]
__all__ += ["IMAGE_SUFFIXES", "check_size", "no_split", "parsed_labels", "read_span", "unsafe"]

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


class Columns(NamedTuple):
    """The columns of a table, or members of a shard, that hold images, labels and captions.

    Args:
        image: such as ``img``, or in a shard ``jpg``; if empty, found by the hub's notes, or by a suffix.
        label: whole numbers; if empty, ``label`` (in a shard ``cls`` or the key ``label`` of ``json``), if it is there.
        caption: one or more texts; none if empty.
    """

    image: str = ""
    label: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Listing:
    """The images of one split of one container.

    Args:
        names: what each image is called in a message.
        read: returns the encoded bytes of image i.
        sizes: the encoded bytes of each image, (n,); in parquet files, of the images of its row group.
        labels: whole numbers from 0; -1 for images of a split without labels; None without any.
        classes: the names of the classes where the container has names.
        captions: one or more texts for each image, or None.
        bad: what was found and cannot be used.
    """

    names: Sequence[str]
    read: Reader
    sizes: Labels
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
        sizes=listing.sizes[chosen],
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
        np.concatenate([first.sizes, second.sizes]),
        labels,
        first.classes,
        captions,
        first.bad + second.bad,
    )


def digest(listing: Listing, root: str) -> str:
    """Return the SHA-256 of the sorted names below ``root``, sizes, labels and captions of all images."""
    count = len(listing.names)
    rows = zip(
        (name.removeprefix(root) for name in listing.names),
        listing.sizes.tolist(),
        [None] * count if listing.labels is None else listing.labels.tolist(),
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


def arranged(
    paths: Sequence[str],
    sizes: Sequence[int],
    split: str,
    where: str,
    table: Mapping[str, int] | None,
    bad: Sequence[Bad],
    joint: str,
    reader: Callable[[list[int]], Reader],
    within: str = "",
) -> Listing:
    """Return the images of a split, with the labels that their folders or a table give them.

    Where every image lies in a folder named like a split (``train``, ``test``, ``val``, ...), those folders are the
    splits. Below them the first folder is the class, numbered in the order of the names over all splits; images
    that lie directly there have no class, which is a mistake where others have one.

    Args:
        paths: relative to the container, with forward slashes.
        sizes: the bytes of each.
        split: the wanted one.
        where: the container's name in messages.
        table: path -> label, in place of the folders; empty where there are no labels whatever the folders.
        bad: what cannot be used, known before.
        joint: stands between the container's name and a path in messages.
        reader: returns the reader of the paths with these numbers.
        within: the folder around everything, with its slash, which names neither split nor class.

    Raises:
        ValueError: there is no image or no such split.
    """
    inner = [path.removeprefix(within) for path in paths]
    parts = _splits(inner, split, where)
    splits, rests = [name for name, _ in parts], [rest for _, rest in parts]
    wanted = split_of(split) or split
    chosen = [i for i, name in enumerate(splits) if name == wanted]
    deciding = "train" if "train" in splits else wanted
    names = sorted({rest.split("/", 1)[0] for name, rest in parts if name == deciding and "/" in rest})
    numbers = {name: number for number, name in enumerate(names)}
    labels: dict[int, int] = {}
    faults: dict[int, str] = {}
    if table is not None:
        labels = {i: table[inner[i]] for i in chosen if table.get(inner[i], -1) >= 0}
        faults = {i: "dataset.json has no label for it" for i in chosen if i not in labels} if table else {}
    elif any("/" in rests[i] for i in chosen):
        for i in chosen:
            top, slash, _ = rests[i].partition("/")
            if not slash:
                faults[i] = "it has no class folder, and others have one"
            elif top not in numbers:
                faults[i] = f"its class folder {plain(top)!r} is not among those of train"
            else:
                labels[i] = numbers[top]
    good = [i for i in chosen if i not in faults]
    bad = [*bad, *(Bad(paths[i], reason) for i, reason in faults.items())]
    if not good and not bad:
        raise ValueError(f"there is no image in {where}; images end in {sorted(IMAGE_SUFFIXES)}")
    return Listing(
        [plain(f"{where}{joint}{paths[i]}") for i in good],
        reader(good),
        np.array([sizes[i] for i in good], np.int64),
        np.array([labels[i] for i in good], np.int64) if labels or faults else None,
        tuple(names) or None if table is None else None,
        bad=tuple(Bad(plain(f"{where}{joint}{name}"), reason) for name, reason in bad),
    )


def _splits(paths: Sequence[str], split: str, where: str) -> list[tuple[str, str]]:
    """Return the split of each path and what of the path is below it."""
    wanted = split_of(split) or split
    tops = {path.split("/", 1)[0] if "/" in path else "" for path in paths}
    if tops and all(top.lower() in _SPLITS for top in tops):
        parts = [(_SPLITS[top.lower()], rest) for top, _, rest in (path.partition("/") for path in paths)]
        if wanted not in {name for name, _ in parts}:
            raise no_split(where, split, sorted(tops))
        return parts
    if wanted != "train":
        raise no_split(where, split, [])
    return [("train", path) for path in paths]


def labelled(
    listing: Listing, labels: Sequence[int | None] | None, captions: Sequence[tuple[str, ...]] | None
) -> Listing:
    """Return the listing with labels and captions, if any; rows whose label or caption is at fault are taken out."""
    faults: dict[int, str] = {}
    if labels is not None:
        faults = label_faults(labels, None if listing.classes is None else len(listing.classes))
    if captions is not None:
        faults |= {i: "it has no caption" for i, texts in enumerate(captions) if not texts}
    whole = replace(
        listing,
        labels=None if labels is None else np.array([-1 if n is None else n for n in labels], np.int64),
        captions=None if captions is None else tuple(captions),
        bad=listing.bad + tuple(Bad(listing.names[i], reason) for i, reason in sorted(faults.items())),
    )
    return subset(whole, [i for i in range(len(listing.names)) if i not in faults]) if faults else whole


def of_split(files: Sequence[Path], split: str, where: str) -> list[Path]:
    """Return the files of a split: those whose name, or whose folder's, begins with it, as on the hub.

    Files none of which names a split are all of them ``train``.

    Raises:
        ValueError: there is no such split, or some files name one and others do not.
    """
    named = {path: split_of(path.name) or split_of(path.parent.name) for path in files}
    wanted, found = split_of(split) or split, sorted({name for name in named.values() if name})
    if found and (nameless := [path for path, name in named.items() if name is None]):
        raise ValueError(f"{plain(str(nameless[0]))} names no split, but others in {where} do: {found}")
    chosen = [path for path, name in named.items() if (name or "train") == wanted]
    if not chosen:
        raise no_split(where, split, found)
    return chosen


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


def parsed_labels(content: bytes) -> dict[str, int] | None:
    """Return path -> label from a ``dataset.json`` as EDM's and StyleGAN's data tools write it; None for another."""
    values = json.loads(content)
    if not isinstance(values, Mapping) or "labels" not in values:
        return None
    pairs = values["labels"] or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and type(pair[1]) is int
        for pair in pairs
    ):
        raise ValueError("labels must be a list of [path, whole number]")
    return dict(pairs)


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
