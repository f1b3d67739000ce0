"""Images that cannot be used: one clear error that names them, or a list of what was left out. All are made here."""

import itertools
import json
import os
import re
import stat
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from immiscible_diffusion import Images
from pictures import GOOD, SHADES, content, encoded, folder, rows, shades, shards, zipped

pytestmark = pytest.mark.medium

NOISE = Image.effect_noise((64, 64), 90).convert("RGB")


def png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (8, 8)) -> bytes:
    """Return a PNG with this size in its header and these chunks."""
    head = (b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (head, *chunks, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def text_bomb() -> bytes:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("note", "x" * (2 * PngImagePlugin.MAX_TEXT_CHUNK), zip=True)
    return content(NOISE, pnginfo=notes)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
CONTENTS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", r"it is empty \(0 bytes\)"),
    "truncated PNG": (content(NOISE)[:900], "truncated|broken"),
    "truncated JPEG": (content(NOISE, "JPEG")[:900], "truncated"),
    "truncated WebP": (content(NOISE, "WEBP")[:300], "no image of a known format|could not create decoder"),
    "header alone": (content(NOISE)[:20], "Truncated File Read"),
    "text": (b"This is not an image.\n" * 20, "no image of a known format"),
    "random bytes": (bytes(np.random.default_rng(0).integers(0, 256, 500, np.uint8)), "no image of a known format"),
    "PostScript": (POSTSCRIPT, "no image of a known format"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>', "no image of a known format"),
    "flipped byte": (
        content(NOISE)[:500] + b"\xff\x00\xff" + content(NOISE)[503:],
        "broken|truncated|cannot|Error|bad",
    ),
    "bomb": (png((b"IDAT", zlib.compress(b"\0" * 1000)), size=(60000, 60000)), "more pixels than max_pixels"),
    "huge": (png((b"IDAT", zlib.compress(b"\0" * 1000)), size=(9000, 9900)), "more than max_pixels = 1000000|pixels"),
    "zero width": (png((b"IDAT", zlib.compress(b"")), size=(0, 8)), "no image|cannot|zero|height|width|tile"),
    "no pixels": (png(), "."),
    "text bomb": (text_bomb(), "too large"),
    "floats": (content(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), "floating-point"),
    "32 bits": (content(Image.fromarray(np.full((8, 8), 10**6, np.int32)), "TIFF"), "do not fit 16-bit grey"),
    "smaller than the crop": (encoded(1, size=(6, 30)), "it is 6 x 30 pixels, smaller than crop = 8"),
}


def bad_file(name: str, data: bytes) -> Callable[[Path], Path]:
    return lambda path: folder(path / "set", {**GOOD, name: data})


def edm_table(label: int | None) -> Callable[[Path], Path]:
    """Return what writes the good pictures and one more, with a ``dataset.json`` that gives it this label, or none."""
    labels = [[name, i // 4] for i, name in enumerate(GOOD)] + ([] if label is None else [["a/bad.png", label]])
    table = json.dumps({"labels": labels}).encode()
    return lambda path: folder(path / "set", {**GOOD, "a/bad.png": encoded(9), "dataset.json": table})


def link(target: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        folder(path, {"outside.png": encoded(7)})
        root = folder(path / "set", GOOD)
        (root / "a" / "bad.png").symlink_to(target)
        return root

    return make


def pipe(path: Path) -> Path:
    root = folder(path / "set", GOOD)
    os.mkfifo(root / "a" / "bad.png")
    return root


def folder_as_image(path: Path) -> Path:
    return folder(path / "set", {**GOOD, "a/bad.png/inner.png": encoded(3)})


def bad_member(name: str, change: Callable[[zipfile.ZipInfo], None] = lambda info: None, **options: Any) -> Any:
    def make(path: Path) -> Path:
        with zipfile.ZipFile(zipped(path / "set.zip", GOOD), "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the name that is there twice
            info = zipfile.ZipInfo(name)
            change(info)
            archive.writestr(info, encoded(9), **options)
        return path / "set.zip"

    return make


def linked(info: zipfile.ZipInfo) -> None:
    info.external_attr = (stat.S_IFLNK | 0o777) << 16


def encrypted(path: Path) -> Path:
    """Set the flag of encryption in both headers of the last member."""
    archive = bytearray(bad_member("a/bad.png")(path).read_bytes())
    archive[archive.rindex(b"PK\x03\x04") + 6] |= 1
    archive[archive.rindex(b"PK\x01\x02") + 8] |= 1
    (path / "set.zip").write_bytes(archive)
    return path / "set.zip"


def damaged_member(path: Path) -> Path:
    archive = bytearray(bad_member("a/bad.png")(path).read_bytes())
    archive[archive.index(b"a/bad.png") + 30] ^= 0xFF
    (path / "set.zip").write_bytes(archive)
    return path / "set.zip"


def tar_link() -> tarfile.TarInfo:
    member = tarfile.TarInfo("bad.png")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member


def damaged_group(path: Path) -> Path:
    """Overwrite the page header of the last row group's images; the footer and the labels stay whole."""
    from importlib import import_module

    file = rows(encoded(9))(path)
    group = import_module("pyarrow.parquet").read_metadata(file).row_group(2)
    data = bytearray(file.read_bytes())
    begin = group.column(0).data_page_offset
    data[begin : begin + 30] = b"\xff" * 30
    file.write_bytes(data)
    return file


PLACES: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "unsupported suffix": (bad_file("a/bad.heic", b"x"), "a/bad.heic", "its suffix '.heic' is no image's"),
    "no suffix": (bad_file("a/bad", b"x"), "a/bad", "its suffix '' is no image's"),
    "loose beside classes": (
        bad_file("bad.png", encoded(1)),
        "set/bad.png",
        "it has no class folder, and others have one",
    ),
    "dataset.json: negative label": (edm_table(-1), "bad.png", "its label is -1; labels start at 0"),
    "dataset.json: no label": (edm_table(None), "bad.png", "dataset.json has no label for it"),
    "link outside": (link("../../outside.png"), "a/bad.png", "a link that points outside the folder"),
    "link to a system file": (link("/etc/hostname"), "a/bad.png", "a link that points outside the folder"),
    "dangling link": (link("nowhere.png"), "a/bad.png", "a link to nothing"),
    "link to a folder": (link("../b"), "a/bad.png", "a link to a folder"),
    "link to itself": (link("bad.png"), "a/bad.png", "link|loop"),
    "named pipe": (pipe, "a/bad.png", "it is not a regular file"),
    "folder named as an image": (folder_as_image, "a/bad.png", "it is a folder with an image's name"),
    "name that is not UTF-8": (bad_file(os.fsdecode(b"a/caf\xe9.png"), b""), r"a/caf\\udce9.png", "it is empty"),
    "name with a line break": (bad_file("a/x\ny.png", b""), r"a/x\\ny.png", "it is empty"),
    "zip: parent folder": (bad_member("../bad.png"), "../bad.png", "its path leaves the archive"),
    "zip: hidden parent": (bad_member("a/../../bad.png"), "bad.png", "its path leaves the archive"),
    "zip: backslashes": (bad_member("a\\..\\..\\bad.png"), "bad.png", "its path leaves the archive"),
    "zip: absolute": (bad_member("/bad.png"), "/bad.png", "its path is absolute"),
    "zip: drive": (bad_member("C:/bad.png"), "C:/bad.png", "its path is absolute"),
    "zip: twice": (bad_member("a/1.png"), "a/1.png", "its name stands in the archive twice"),
    "zip: link": (bad_member("a/bad.png", linked), "a/bad.png", "it is a link"),
    "zip: encrypted": (encrypted, "a/bad.png", "it is encrypted"),
    "zip: damaged": (damaged_member, "a/bad.png", "checksum does not fit|Error -3"),
    "zip: method": (bad_member("a/bad.png", compress_type=zipfile.ZIP_LZMA), "a/bad.png", "compressed by method 14"),
    "tar: parent folder": (shards(("../bad.png", encoded(9))), "../bad.png", "its path leaves the archive"),
    "tar: absolute": (shards(("/bad.png", encoded(9))), "/bad.png", "its path is absolute"),
    "tar: link": (shards(extra=tar_link()), "bad.png", "it is a link"),
    "tar: twice": (shards(("1.png", encoded(9))), "1.png", "its name stands in the archive twice"),
    "tar: two images": (shards(("bad.png", encoded(9)), ("bad.jpg", encoded(9))), "bad", "more than one image"),
    "tar: no image": (shards(("bad.cls", b"1")), "bad", "there is no image, only"),
    "tar: no suffix": (shards(("bad", b"1")), "bad", "its name has no suffix"),
    "tar: no label": (shards(("bad.png", encoded(9))), "bad.png", "it has no label"),
    "tar: negative label": (shards(("bad.png", encoded(9)), ("bad.cls", b"-1")), "bad.png", "its label is -1"),
    "tar: fraction": (shards(("bad.png", encoded(9)), ("bad.cls", b"1.5")), "bad", "its label is '1.5', not a whole"),
    "tar: NaN": (shards(("bad.png", encoded(9)), ("bad.cls", b"nan")), "bad", "its label is 'nan', not a whole"),
    "tar: broken json": (shards(("bad.png", encoded(9)), ("bad.json", b"{")), "bad", "its json cannot be read"),
    "tar: text label": (
        shards(("bad.png", encoded(9)), ("bad.json", b'{"label": "x"}')),
        "bad.png",
        "its label is 'x'; most are whole numbers",
    ),
    "tar: empty image": (shards(("bad.png", b""), ("bad.cls", b"1")), "bad.png", "it is empty"),
    "parquet: negative label": (rows(encoded(9), -1), "row 8", "its label is -1; labels start at 0"),
    "parquet: label beyond": (rows(encoded(9), 2), "row 8", "its label is 2; there are 2 classes"),
    "parquet: no label": (rows(encoded(9), None), "row 8", "it has no label"),
    "parquet: no bytes": (rows(None), "row 8", "its cell holds no bytes"),
    "parquet: a path": (rows({"bytes": None, "path": "/etc/hostname"}), "row 8", "its cell holds no bytes"),
    "parquet: empty": (rows(b""), "row 8", "it is empty"),
    "parquet: damaged group": (damaged_group, "row 8", "row group 2 of set.parquet is damaged"),
}
PLACES |= {name: (bad_file("a/bad.png", data), "a/bad.png", reason) for name, (data, reason) in CONTENTS.items()}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("memory", [True, False])
def test_what_cannot_be_used_stops_or_is_listed(tmp_path: Path, name: str, memory: bool) -> None:
    make, where, reason = PLACES[name]
    path = str(make(tmp_path))
    options: dict[str, Any] = {"size": 8, "held_out_rows": 2, "memory": memory, "max_pixels": 10**6, "crop": 8}
    with pytest.raises(ValueError, match=rf"(?s)^cannot (use|read the image) .*{where}: .*({reason})") as stopped:
        shades(Images(path, **options))
    assert "\n" not in str(stopped.value)
    str(stopped.value).encode("utf-8")
    source = Images(path, **options, on_bad="skip")
    with pytest.warns(UserWarning, match=r"skipped 1 (files|images) of .*such as"):
        kept = shades(source)
    assert kept == SHADES
    ((bad, why),) = source.skipped
    assert re.search(where, bad)
    assert re.search(reason, why)


CONTAINERS = [bad_file("a/x.txt", b""), shards(), rows(encoded(0), 0), lambda path: zipped(path / "x.zip", GOOD)]


@pytest.mark.filterwarnings("ignore:.* held-out images of .* are training images too")
@pytest.mark.parametrize("make", CONTAINERS)
def test_the_containers_alone_are_good(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    source = Images(str(make(tmp_path)), size=8, held_out_rows=2, crop=8)
    assert shades(source) == SHADES
    assert source.skipped == ()


def test_there_are_at_least_thirty_kinds() -> None:
    assert len(PLACES) >= 30


def test_a_good_neighbour_stands_in_for_a_bad_image(tmp_path: Path) -> None:
    """Every batch is full, memory and disk agree, and labels follow the image that is shown."""
    bad = {f"b/x{i}.png": b"not an image" for i in range(3)}
    path = str(folder(tmp_path / "set", {**GOOD, **bad}))
    seen = []
    for memory in (True, False):
        source = Images(path, size=8, held_out_rows=2, memory=memory, on_bad="skip")
        with pytest.warns(UserWarning, match="skipped"):
            seen.append(list(itertools.islice(source.batches(3, 0), 9)))
        held = source.held_out()
        assert len(source.skipped) == 3
        for batch in seen[-1]:
            assert batch.cond is not None
            assert torch.equal(batch.raw[:, 0, 4, 4].long() // 100, batch.cond)
            assert torch.equal(source.take(batch.rows).raw, batch.raw)  # type: ignore[arg-type]
        assert set(held.raw[:, 0, 4, 4].tolist()) <= set(SHADES)
    assert all(torch.equal(a.raw, b.raw) for a, b in zip(*seen, strict=True))
    assert all(torch.equal(a.rows, b.rows) for a, b in zip(*seen, strict=True))
