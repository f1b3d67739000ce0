"""Images in a zip archive, which is read in place."""

import stat
import struct
import zipfile
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from immiscible_diffusion.data._decode import MAX_BYTES, UnreadableError
from immiscible_diffusion.data.containers.labels import parsed_labels
from immiscible_diffusion.data.containers.listing import (
    IMAGE_SUFFIXES,
    Bad,
    Columns,
    Labels,
    Listing,
    check_size,
    is_ignored,
    plain,
    read_span,
    unsafe,
)
from immiscible_diffusion.data.containers.paths import METADATA, arranged, check_no_columns, warn_of_metadata
from immiscible_diffusion.data.containers.splits import is_split, like_splits

__all__ = ["list_zip"]

_LOCAL_HEADER = 30


@dataclass(frozen=True)
class _ZipReader:
    """Reads members by their place; a process needs no table of the whole archive."""

    path: str
    members: Labels  # (n, 5): header offset, compressed bytes, bytes, method, CRC

    def __call__(self, row: int) -> bytes:
        offset, packed, size, method, crc = map(int, self.members[row])
        check_size(max(size, packed))
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


def list_zip(path: Path, split: str, columns: Columns) -> Listing:
    """Return the images of a zip archive, which is neither unpacked nor loaded.

    A single folder that holds everything else is looked through.

    Raises:
        ValueError: the archive is damaged, or has no image or no such split, or columns are named.
    """
    check_no_columns(columns, str(path))
    bad: list[Bad] = []
    members: dict[str, zipfile.ZipInfo] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            tables = {}
            for info in archive.infolist():
                name = info.filename.replace("\\", "/").removeprefix("./")  # some tools for Windows write backslashes
                if info.is_dir() or (is_ignored(name) and not unsafe(info.orig_filename)):
                    tables[name] = info
                    continue
                twice = "its name stands in the archive twice" if name in members else None
                if fault := _member_fault(info) or twice:
                    bad.append(Bad(name, fault))
                else:
                    members[name] = info
            paths = sorted(members, key=lambda name: name.split("/"))
            top = "" if "dataset.json" in tables else _common_top(paths, tables)
            notes = tables.get(f"{top}dataset.json")
            usable = notes is not None and not notes.flag_bits & 1 and notes.file_size < MAX_BYTES
            table = parsed_labels(archive.read(notes)) if notes is not None and usable else None
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ValueError(f"cannot read the archive {path}: {error}") from error

    def reader(rows: list[int]) -> _ZipReader:
        chosen = [members[paths[i]] for i in rows]
        places = [(i.header_offset, i.compress_size, i.file_size, i.compress_type, i.CRC) for i in chosen]
        return _ZipReader(str(path.resolve()), np.array(places, np.int64).reshape(-1, 5))

    sizes = [members[name].file_size for name in paths]
    if columns.label == "none":
        table = {}
    else:
        warn_of_metadata([name for name in tables if name.rpartition("/")[2] in METADATA], str(path))
    return arranged(paths, sizes, split, str(path), table, bad, ": ", reader, within=top)


def _member_fault(info: zipfile.ZipInfo) -> str | None:
    if reason := unsafe(info.orig_filename):
        return reason
    if stat.S_ISLNK(info.external_attr >> 16):
        return "it is a link"
    if info.flag_bits & 1:
        return "it is encrypted"
    suffix = Path(info.filename).suffix.lower()
    return None if suffix in IMAGE_SUFFIXES else f"its suffix {plain(suffix)!r} is no image's"


def _common_top(paths: Sequence[str], beside: Collection[str]) -> str:
    """Return the one folder around everything, with its slash, where it is neither split nor class; else nothing."""
    tops = {path.split("/", 1)[0] for path in paths if "/" in path}
    if len(tops) != 1 or not all("/" in path for path in paths):
        return ""
    top = tops.pop()
    deep = all(path.count("/") >= 2 for path in paths)
    return f"{top}/" if not is_split(top) and (deep or f"{top}/dataset.json" in beside or like_splits([top])) else ""
