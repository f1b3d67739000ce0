"""Images in a folder: its sub-folders are classes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from immiscible_diffusion.data.containers.labels import parsed_labels
from immiscible_diffusion.data.containers.listing import (
    IMAGE_SUFFIXES,
    Bad,
    Columns,
    Label,
    Listing,
    check_size,
    is_ignored,
    plain,
)
from immiscible_diffusion.data.containers.paths import METADATA, arranged, check_no_columns, warn_of_metadata

__all__ = ["list_folder"]


@dataclass(frozen=True)
class _FolderReader:
    root: str
    paths: list[str]

    def __call__(self, row: int) -> bytes:
        path = Path(self.root, self.paths[row])
        check_size(path.stat().st_size)
        return path.read_bytes()


def list_folder(root: Path, split: str, columns: Columns) -> Listing:
    """Return the images of a folder.

    Raises:
        ValueError: there is no image or no such split; a folder cannot be read; columns are named.
    """
    check_no_columns(columns, str(root))
    bad: list[Bad] = []
    base = root.resolve()
    sizes = dict(_walk(base, "", bad))
    paths = sorted(sizes, key=lambda path: path.split("/"))
    table = _labels_of(base / "dataset.json") if (base / "dataset.json").is_file() else None
    if columns.label == "none":
        table = {}
    else:
        tops = ["", *sorted({path.split("/")[0] + "/" for path in paths if "/" in path})]
        warn_of_metadata([top + name for top in tops for name in METADATA if (base / top / name).is_file()], str(root))

    def reader(rows: list[int]) -> _FolderReader:
        return _FolderReader(str(base), [paths[i] for i in rows])

    return arranged(paths, [sizes[path] for path in paths], split, str(root), table, bad, "/", reader)


def _walk(base: Path, inside: str, bad: list[Bad]) -> Iterator[tuple[str, int]]:
    """Yield relative path and bytes of the images below a folder; what cannot be used is added to ``bad``."""
    try:
        with os.scandir(base / inside) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        if not inside:
            raise ValueError(f"cannot read the folder {base}: {error.strerror}") from error
        bad.append(Bad(inside, f"the folder cannot be read: {error.strerror}"))
        return
    for entry in entries:
        path = f"{inside}/{entry.name}" if inside else entry.name
        if is_ignored(path):
            continue
        fault = _fault(base, entry)
        if fault:
            bad.append(Bad(path, fault))
        elif entry.is_dir():
            yield from _walk(base, path, bad)
        else:
            yield path, entry.stat().st_size


def _fault(base: Path, entry: "os.DirEntry[str]") -> str | None:
    suffix = Path(entry.name).suffix.lower()
    if entry.is_symlink():
        try:
            target = Path(entry.path).resolve()
        except (OSError, RuntimeError):  # a RuntimeError before Python 3.13
            return "it is a link that leads to itself"
        if not target.is_relative_to(base):
            return "it is a link that points outside the folder"
        if target.is_dir():
            return "it is a link to a folder; such links are not followed"
        if not target.exists():
            return "it is a link to nothing"
    if entry.is_dir():
        return "it is a folder with an image's name" if suffix in IMAGE_SUFFIXES else None
    if suffix not in IMAGE_SUFFIXES:
        return f"its suffix {plain(suffix)!r} is no image's"
    if not entry.is_file():  # a pipe would be waited on for ever
        return "it is not a regular file"
    return None if os.access(entry.path, os.R_OK) else "there is no permission to read it"


def _labels_of(path: Path) -> dict[str, Label] | None:
    try:
        return parsed_labels(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
