"""Which names mean a split, and when a container's splits are not clear."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from immiscible_diffusion.data.containers.listing import plain

__all__ = ["is_split", "like_splits", "no_split", "of_split", "parted", "split_of"]

_SPLITS = {"train": "train", "training": "train", "test": "test", "val": "validation", "valid": "validation"}
_SPLITS |= {"validation": "validation", "dev": "validation", "testing": "test"}
_MORE = frozenset(
    (
        "data",
        "dataset",
        "folder",
        "image",
        "images",
        "img",
        "imgs",
        "photos",
        "pictures",
        "set",
        "split",
        "copy",
        "old",
        "new",
        "backup",
    )
)
"""What may follow a split's name without making it another word: ``train_images``, but not ``train_station``."""
_JOINED = re.compile(f"^({'|'.join(_SPLITS)})({'|'.join(sorted(_MORE))})$")
"""Both without anything between them: ``testset``."""


def split_of(word: str) -> str | None:
    """Return the split that a word names, or that a file's name begins with; None if it names none.

    >>> split_of("train-00000-of-00002.parquet"), split_of("val"), split_of("trainer.parquet")
    ('train', 'validation', None)
    """
    return _SPLITS.get(re.split(r"[-_.]", word.lower(), maxsplit=1)[0])


def is_split(folder: str) -> bool:
    """Return whether a folder has exactly the name of a split, in any case."""
    return folder.lower() in _SPLITS


def no_split(where: str, split: str, there: Sequence[str]) -> ValueError:
    """Return the error for a split that is not there."""
    listed = f"there are {sorted(set(there))}" if there else "it has no splits, only 'train'"
    return ValueError(f"no split {split!r} in {where}; {listed}. Set source.split and source.held_out_split")


def parted(paths: Sequence[str], split: str, where: str) -> list[tuple[str, str]]:
    """Return the split of each path, and the path below the split's folder.

    Folders are splits if every image lies in a folder whose name is exactly the name of a split.

    Raises:
        ValueError: there is no such split, or a split stands beside classes or images.
    """
    wanted = split_of(split) or split
    tops = {path.split("/", 1)[0] if "/" in path else "" for path in paths}
    if tops and all(map(is_split, tops)):
        parts = [(_SPLITS[top.lower()], rest) for top, _, rest in (path.partition("/") for path in paths)]
        if wanted not in {name for name, _ in parts}:
            raise no_split(where, split, sorted(tops))
        _refuse_inner(paths, where, from_depth=2)
        return parts
    if splits := like_splits(tops):
        beside = min(tops - {splits[0]}, default="nothing else") or "images"
        raise ValueError(
            f"{where} has {splits[0]!r} beside {beside!r}: a split or a class? Where all folders at the top are called "
            "train, test or val, source.split and source.held_out_split choose among them, and the folders below are "
            "classes; move the others there, or set source.path to the one folder to train on"
        )
    _refuse_inner(paths, where, from_depth=1)
    if wanted != "train":
        raise no_split(where, split, [])
    return [("train", path) for path in paths]


def of_split(files: Sequence[Path], split: str, root: Path) -> list[Path]:
    """Return the files of a split: those whose name, or whose folder's, begins with it, as on the hub.

    Files none of which names a split are all of them ``train``.

    Raises:
        ValueError: there is no such split, or it is not clear which split a file belongs to.
    """
    where = plain(str(root))
    named = {path: split_of(path.name) or _folders_split(path, root) for path in files}
    wanted, split_names = split_of(split) or split, sorted({name for name in named.values() if name})
    nameless = [path for path, name in named.items() if name is None]
    if split_names and nameless:
        raise ValueError(f"{plain(str(nameless[0]))} names no split, but others in {where} do: {split_names}")
    if not split_names:
        names = {path.relative_to(root).as_posix().removesuffix(path.suffix) for path in files}
        if splits := like_splits({name for name in names if "/" not in name}):
            raise ValueError(
                f"{where} has {splits[0]!r} and {splits[-1]!r}: splits? Let their names begin with train, test or val, "
                "for source.split and source.held_out_split, or set source.path to one file"
            )
        _refuse_inner(names, where, from_depth=0)
    chosen = [path for path, name in named.items() if (name or "train") == wanted]
    if not chosen:
        raise no_split(where, split, split_names)
    return chosen


def _folders_split(path: Path, root: Path) -> str | None:
    """Return the split that a file's folder names; the root names none, for all files are in it."""
    return None if path.parent == root else split_of(path.parent.name)


def _refuse_inner(paths: Iterable[str], where: str, from_depth: int) -> None:
    """Refuse two splits side by side in a folder further down: their images would be one class or several."""
    children: dict[str, set[str]] = {}
    for path in paths:
        folders = path.split("/")[:-1]
        for depth in range(from_depth, len(folders)):
            children.setdefault("/".join(folders[:depth]), set()).add(folders[depth])
    for parent, names in children.items():
        splits = sorted(name for name in names if is_split(name))
        if len({_SPLITS[name.lower()] for name in splits}) > 1:
            raise ValueError(
                f"{where} has {splits[0]!r} and {splits[-1]!r} side by side in its folder {parent!r}, where they are "
                "no splits: set source.path to that folder or to one of the two, or lay the images out as train/CLASS "
                "and test/CLASS"
            )


def like_splits(names: Iterable[str]) -> list[str]:
    """Return the names that look like names of splits, sorted.

    A split's name alone, with a number or with a word such as ``images``, does. So does one that begins with a split
    and goes on otherwise, or ends with one, where it has a counterpart: ``my_train`` beside ``my_test``.

    >>> like_splits(["cat", "Test2"]), like_splits(["bullet_train", "test_tube"]), like_splits(["a_train", "a_test"])
    (['Test2'], [], ['a_test', 'a_train'])
    """
    surely: list[str] = []
    maybe: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(names):
        first, *more = _words(name)
        if first in _SPLITS and all(word in _MORE or not word for word in more):
            surely.append(name)
        elif first in _SPLITS:
            maybe.setdefault("", []).append((name, _SPLITS[first]))
        elif more and more[-1] in _SPLITS:
            maybe.setdefault("-".join([first, *more[:-1]]), []).append((name, _SPLITS[more[-1]]))
    pairs = [alike for alike in maybe.values() if len({split for _, split in alike}) > 1]
    return sorted(surely + [name for alike in pairs for name, _ in alike])


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case, without the digits at their ends.

    A capital begins a word, and a split's name ends one where a word such as ``set`` follows.

    >>> _words("trainA"), _words("Test-2"), _words("testset"), _words("trains")
    (['train', 'a'], ['test', ''], ['test', 'set'], ['trains'])
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    words = [word.rstrip("0123456789") for word in re.split(r"[^\w]|_", spaced)]
    return [part for word in words for part in _JOINED.sub(r"\1 \2", word).split(" ")]
