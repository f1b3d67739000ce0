"""Images in WebDataset shards: tar archives whose members are grouped by their key and read in place."""

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from immiscible_diffusion.data._decode import MAX_BYTES, UnreadableError
from immiscible_diffusion.data.containers.listing import (
    IMAGE_SUFFIXES,
    Bad,
    Columns,
    Labels,
    Listing,
    is_ignored,
    labelled,
    plain,
    read_span,
    unsafe,
)

__all__ = ["list_shards"]

_BLOCK = 512
_MAX_TEXT = 2**20
_SUFFIX = re.compile(r"(?P<key>(?:.*/)?[^/.]*)\.(?P<suffix>[^/]+)")


@dataclass(frozen=True)
class _TarReader:
    files: tuple[str, ...]
    places: Labels  # (n, 3): file, offset, bytes

    def __call__(self, row: int) -> bytes:
        file, offset, size = map(int, self.places[row])
        if size > MAX_BYTES:
            raise UnreadableError(f"it has {size} bytes; an image may have {MAX_BYTES}")
        return read_span(self.files[file], offset, size)


@dataclass
class _Group:
    """The members of one key: where each of them lies, and the texts among them."""

    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)


def list_shards(files: Sequence[Path], columns: Columns) -> Listing:
    """Return the images of tar shards, which are neither unpacked nor loaded.

    The key is a member's path up to the first dot of its name, the rest is what it holds: an image, ``cls`` (a whole
    number), ``json`` (a table), ``txt`` (a caption).

    Args:
        files: the shards, in order.
        columns: what the members or keys are called.

    Raises:
        ValueError: a shard is damaged, or none has an image.
    """
    bad: list[Bad] = []
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    labels: list[int | None] = []
    captions: list[tuple[str, ...]] = []
    for number, path in enumerate(files):
        for key, group in _groups(path, {columns.caption}, bad).items():
            name = f"{path}: {key}"
            try:
                suffix = _image_of(group, columns.image)
                if suffix is None:
                    continue
                labels.append(_label_of(group, columns.label))
                captions.append(_captions_of(group, columns.caption) if columns.caption else ())
            except UnreadableError as error:
                del labels[len(names) :], captions[len(names) :]
                bad.append(Bad(name, str(error)))
                continue
            names.append(f"{name}.{suffix}")
            places.append((number, *group.places[suffix]))
    if not names and not bad:
        raise ValueError(
            f"there is no image {columns.image or 'member'} in {files[0].parent if len(files) > 1 else files[0]}"
        )
    spans = np.array(places, np.int64).reshape(-1, 3)
    listing = Listing(
        [plain(name) for name in names],
        _TarReader(tuple(str(path.resolve()) for path in files), spans),
        spans[:, 2],
        bad=tuple(Bad(plain(name), reason) for name, reason in bad),
    )
    has_labels = bool(columns.label) or any(number is not None for number in labels)
    return labelled(listing, labels if has_labels else None, captions if columns.caption else None)


def _groups(path: Path, wanted: set[str], bad: list[Bad]) -> dict[str, _Group]:
    groups: dict[str, _Group] = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in _members(shard, path):
                name = member.name.removeprefix("./")
                fault = _fault(member)
                if fault is None and (member.isdir() or is_ignored(_hidden_only(name))):
                    continue
                match = _SUFFIX.fullmatch(name)
                if fault is None and match is None:
                    fault = "its name has no suffix"
                if fault is not None or match is None:
                    bad.append(Bad(f"{path}: {name}", fault or ""))
                    continue
                group, suffix = groups.setdefault(match["key"], _Group()), match["suffix"].lower()
                if suffix in group.places:
                    bad.append(Bad(f"{path}: {name}", "its name stands in the archive twice"))
                    continue
                group.places[suffix] = (member.offset_data, member.size)
                if suffix in {"cls", "json", "txt"} | wanted and member.size <= _MAX_TEXT:
                    file = shard.extractfile(member)
                    group.texts[suffix] = file.read() if file else b""
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        raise ValueError(f"cannot read the archive {plain(str(path))}: {error}") from error
    return groups


def _members(shard: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the members without keeping them, and see that the archive ends as one."""
    size = path.stat().st_size
    while (member := shard.next()) is not None:
        shard.members = []  # type: ignore[attr-defined]
        if member.offset_data + member.size > size:
            raise EOFError(f"it is cut off within {plain(member.name)}")
        yield member
    if read_span(str(path), shard.offset, _BLOCK).strip(b"\0"):
        raise EOFError(f"there is no valid header at byte {shard.offset}")


def _hidden_only(name: str) -> str:
    """Return the key's path without what follows its first dot: texts and tables belong to the groups here."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + (last if last.startswith(".") else last.partition(".")[0])


def _fault(member: tarfile.TarInfo) -> str | None:
    if reason := unsafe(member.name):
        return reason
    if member.issym() or member.islnk():
        return "it is a link"
    if not (member.isfile() or member.isdir()) or member.issparse():
        return "it is not a regular file"
    return None


def _image_of(group: _Group, image: str) -> str | None:
    """Return what the image of a group is called; None for a group that has nothing to do with one."""
    if image:
        if image.lower() in group.places:
            return image.lower()
        raise UnreadableError(f"there is no {image!r} beside {sorted(group.places)}")
    found = [suffix for suffix in group.places if f".{suffix}" in IMAGE_SUFFIXES]
    if len(found) > 1:
        raise UnreadableError(f"it has more than one image, {sorted(found)}: set source.image")
    if found:
        return found[0]
    beside = {"cls", "json", "txt"}
    if set(group.places) <= beside and "cls" not in group.places:
        return None
    raise UnreadableError(f"there is no image, only {sorted(group.places)}")


def _label_of(group: _Group, label: str) -> int | None:
    if label in ("", "cls") and "cls" in group.texts:
        text = group.texts["cls"].decode("utf-8", "replace").strip()
        if not re.fullmatch(r"[+-]?\d{1,18}", text):
            raise UnreadableError(f"its label is {plain(text[:40])!r}, not a whole number")
        return int(text)
    if label == "cls" or "json" not in group.texts:
        return None
    value = _table(group).get(label or "label")
    if value is not None and type(value) is not int:
        raise UnreadableError(f"its {label or 'label'} is {str(value)[:40]!r}, not a whole number")
    return value


def _captions_of(group: _Group, caption: str) -> tuple[str, ...]:
    if caption in group.texts:
        return (group.texts[caption].decode("utf-8", "replace").strip(),)
    value = _table(group).get(caption) if "json" in group.texts else None
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UnreadableError(f"it has no caption {caption!r}")
    return tuple(texts)


def _table(group: _Group) -> dict[str, object]:
    try:
        value = json.loads(group.texts["json"])
    except ValueError as error:
        raise UnreadableError(f"its json cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}
