"""Images as files: in a folder, or in a zip archive that is read in place."""

import json
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from immiscible_diffusion.data._decode import MAX_BYTES, UnreadableError
from immiscible_diffusion.data._listing import IMAGE_SUFFIXES, Bad, Labels, Listing, arranged, is_ignored, plain, unsafe

__all__ = ["list_folder", "list_zip", "read_span"]

_LOCAL_HEADER = 30


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


@dataclass(frozen=True)
class _FolderReader:
    root: str
    paths: tuple[str, ...]

    def __call__(self, row: int) -> bytes:
        path = Path(self.root, self.paths[row])
        _check_size(path.stat().st_size)
        return path.read_bytes()


@dataclass(frozen=True)
class _ZipReader:
    """Reads members by their place; a process needs no table of the whole archive."""

    path: str
    members: Labels  # (n, 5): header offset, compressed bytes, bytes, method, CRC

    def __call__(self, row: int) -> bytes:
        offset, packed, size, method, crc = map(int, self.members[row])
        _check_size(max(size, packed))
        header = read_span(self.path, offset, _LOCAL_HEADER)
        if header[:4] != b"PK\x03\x04":
            raise UnreadableError("the archive has no member where its table says so")
        names = sum(struct.unpack("<HH", header[26:30]))
        content = read_span(self.path, offset + _LOCAL_HEADER + names, packed)
        if method == zipfile.ZIP_DEFLATED:
            content = zlib.decompressobj(-15).decompress(content, size + 1)
        elif method != zipfile.ZIP_STORED:
            raise UnreadableError(f"it is compressed by method {method}; only stored and deflated members can be read")
        if len(content) != size or zlib.crc32(content) != crc:
            raise UnreadableError("its checksum does not fit: the archive is damaged")
        return content


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise UnreadableError(f"it has {size} bytes; an image may have {MAX_BYTES}")


def list_folder(root: Path, split: str) -> Listing:
    """Return the images of a folder.

    Raises:
        ValueError: there is no image or no such split; a folder cannot be read.
    """
    bad: list[Bad] = []
    base = root.resolve()
    paths = sorted(_walk(base, "", bad), key=lambda path: path.split("/"))
    table = _labels_of(base / "dataset.json") if (base / "dataset.json").is_file() else None
    found = arranged(paths, split, str(root), table)
    bad += found.bad
    if not found.chosen and not bad:
        raise ValueError(f"there is no image in {root}; images end in {sorted(IMAGE_SUFFIXES)}")
    chosen = tuple(paths[i] for i in found.chosen)
    named = tuple(Bad(plain(f"{root}/{name}"), reason) for name, reason in bad)
    names = [plain(f"{root}/{path}") for path in chosen]
    return Listing(names, _FolderReader(str(base), chosen), found.labels, found.classes, bad=named)


def _walk(base: Path, inside: str, bad: list[Bad]) -> Iterator[str]:
    """Yield the relative paths of the images below a folder; what cannot be used is added to ``bad``."""
    try:
        with os.scandir(base / inside) as found:
            entries = sorted(found, key=lambda entry: entry.name)
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
            yield path


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
        return f"its suffix {plain(suffix)!r} is not that of an image"
    if not entry.is_file():  # a pipe would be waited on for ever
        return "it is not a regular file"
    return None if os.access(entry.path, os.R_OK) else "there is no permission to read it"


def _labels_of(path: Path) -> dict[str, int] | None:
    try:
        return _parsed_labels(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _parsed_labels(content: bytes) -> dict[str, int] | None:
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


def list_zip(path: Path, split: str) -> Listing:
    """Return the images of a zip archive, which is neither unpacked nor loaded.

    A single folder that holds everything else is looked through.

    Raises:
        ValueError: the archive is damaged, or has no image or no such split.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            tables = [
                i for i in infos if i.filename == "dataset.json" and not i.flag_bits & 1 and i.file_size < MAX_BYTES
            ]
            table = _parsed_labels(archive.read(tables[0])) if tables else None
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ValueError(f"cannot read the archive {path}: {error}") from error
    bad: list[Bad] = []
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename.removeprefix("./")
        if info.is_dir() or (is_ignored(name) and not unsafe(info.orig_filename)):
            continue
        fault = _member_fault(info) or ("its name stands in the archive twice" if name in members else None)
        if fault:
            bad.append(Bad(name, fault))
        else:
            members[name] = info
    paths = sorted(members, key=lambda name: name.split("/"))
    within = "" if table is not None else _common_top(paths)
    found = arranged([name.removeprefix(within) for name in paths], split, str(path), table)
    bad += [Bad(within + name, reason) for name, reason in found.bad]
    if not found.chosen and not bad:
        raise ValueError(f"there is no image in {path}; images end in {sorted(IMAGE_SUFFIXES)}")
    chosen = [members[paths[i]] for i in found.chosen]
    places = [(i.header_offset, i.compress_size, i.file_size, i.compress_type, i.CRC) for i in chosen]
    return Listing(
        [plain(f"{path}: {info.filename}") for info in chosen],
        _ZipReader(str(path.resolve()), np.array(places, np.int64).reshape(-1, 5)),
        found.labels,
        found.classes,
        bad=tuple(Bad(plain(f"{path}: {name}"), reason) for name, reason in bad),
    )


def _member_fault(info: zipfile.ZipInfo) -> str | None:
    if reason := unsafe(info.orig_filename):
        return reason
    if stat.S_ISLNK(info.external_attr >> 16):
        return "it is a link"
    if info.flag_bits & 1:
        return "it is encrypted"
    suffix = Path(info.filename).suffix.lower()
    return None if suffix in IMAGE_SUFFIXES else f"its suffix {plain(suffix)!r} is not that of an image"


def _common_top(paths: list[str]) -> str:
    """Return the one top folder if there are folders below it and nothing else, with its slash, or nothing."""
    tops = {path.split("/", 1)[0] for path in paths}
    deep = bool(paths) and all(path.count("/") >= 2 for path in paths)
    return f"{tops.pop()}/" if len(tops) == 1 and deep else ""
