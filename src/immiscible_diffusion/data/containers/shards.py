"""Images in WebDataset shards: tar archives whose members are grouped by their key and read in place."""

import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from immiscible_diffusion.data._decode import MAX_BYTES, UnreadableError
from immiscible_diffusion.data.containers.labels import labelled
from immiscible_diffusion.data.containers.listing import (
    IMAGE_SUFFIXES,
    LABELS,
    Bad,
    Columns,
    Label,
    Labels,
    Listing,
    is_ignored,
    plain,
    read_span,
    unsafe,
)
from immiscible_diffusion.files import parsed_json

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
    number, or a name), ``json`` (a table), ``txt`` (a caption).

    Args:
        files: the shards, in order.
        columns: what the members or keys are called.

    Raises:
        ValueError: a shard is damaged, or none has an image.
    """
    bad: list[Bad] = []
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    labels: list[Label | None] = []
    captions: list[tuple[str, ...]] = []
    keys: set[str] = set()
    for number, path in enumerate(files):
        for key, group in _groups(path, {columns.caption}, bad).items():
            name = f"{path}: {key}"
            try:
                suffix = _image_of(group, columns.image)
                if suffix is None:
                    continue
                key_of_label, label = _label_of(group, columns.label, name)
                labels.append(label)
                captions.append(_captions_of(group, columns.caption) if columns.caption else ())
            except UnreadableError as error:
                del labels[len(names) :], captions[len(names) :]
                bad.append(Bad(name, str(error)))
                continue
            keys.add(key_of_label)
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
        columns=Columns(_joined(name.rsplit(".", 1)[1] for name in names), _joined(keys - {""}), columns.caption),
    )
    has_labels = columns.label not in ("", "none") or any(number is not None for number in labels)
    return labelled(listing, labels if has_labels else None, captions if columns.caption else None)


def _joined(names: Iterable[str]) -> str:
    return "/".join(sorted(set(names)))


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
    """Return the name of a group's image; None for a group without any part of an image."""
    if image:
        if image.lower() in group.places:
            return image.lower()
        raise UnreadableError(f"there is no {image!r} beside {sorted(group.places)}")
    suffixes = [suffix for suffix in group.places if f".{suffix}" in IMAGE_SUFFIXES]
    if len(suffixes) > 1:
        raise UnreadableError(f"it has more than one image, {sorted(suffixes)}: set source.image")
    if suffixes:
        return suffixes[0]
    beside = {"cls", "json", "txt"}
    if set(group.places) <= beside and "cls" not in group.places:
        return None
    raise UnreadableError(f"there is no image, only {sorted(group.places)}")


def _label_of(group: _Group, label: str, name: str) -> tuple[str, Label | None]:
    """Return where the label of a group stands, ``cls`` or a key of its ``json``, and the label; None if it has none.

    Raises:
        UnreadableError: the label is neither a whole number nor a name.
        ValueError: there are two that differ.
    """
    if label == "none":
        return "", None
    labels: dict[str, object] = {}
    if label in ("", "cls") and "cls" in group.texts:
        labels["cls"] = _label_in(group.texts["cls"].decode("utf-8", "replace").strip())
    if label != "cls" and "json" in group.texts:
        with suppress(UnreadableError) if labels else nullcontext():
            values = _table(group)
            keys = [label] if label else [key for key in values if key.lower() in LABELS]
            labels |= {key: values[key] for key in keys if values.get(key) is not None}
    if "cls" in labels:  # beside it, lists and tables are notes of another kind
        labels = {key: value for key, value in labels.items() if isinstance(value, int | str)}
    for key, value in labels.items():
        if not isinstance(value, int | str):
            wrong = plain(str(value)[:40])
            raise UnreadableError(f"its {key} is {wrong!r}, not a whole number or a name: set source.label")
    if len(set(labels.values())) > 1:
        raise ValueError(f"{plain(name)} has labels that differ, {labels}: set source.label to one of these, or 'none'")
    for key, value in labels.items():
        return key, int(value) if isinstance(value, bool) else cast(Label, value)
    return "", None


def _label_in(text: str) -> Label:
    """Return the whole number or name that a text is; one that is another number is neither."""
    if re.fullmatch(r"[+-]?\d{1,18}", text):
        return int(text)
    try:
        float(text)
    except ValueError:
        return text
    raise UnreadableError(f"its label is {plain(text[:40])!r}, not a whole number or a name")


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
        value = parsed_json(group.texts["json"])
    except ValueError as error:
        raise UnreadableError(f"its json cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}
