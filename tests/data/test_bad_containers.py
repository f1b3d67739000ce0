"""Containers that cannot be used are one error, whatever is to become of single images."""

import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from immiscible_diffusion import Images
from immiscible_diffusion.data.containers import listing
from pictures import GOOD, SHADES, encoded, folder, parquet, rows, shades, shards, tarred, zipped

pytestmark = pytest.mark.medium


def cut(make: Callable[[Path], Path], keep: float) -> Callable[[Path], Path]:
    def made(path: Path) -> Path:
        file = make(path)
        data = file.read_bytes()
        file.write_bytes(data[: int(len(data) * keep)])
        return file

    return made


def tar_without_end(path: Path) -> Path:
    """Cut a shard between two members, where only the missing end tells."""
    file = shards()(path)
    with tarfile.open(file) as archive:
        place = archive.getmembers()[6].offset
    file.write_bytes(file.read_bytes()[:place])
    return file


def tar_header(path: Path) -> Path:
    file = shards()(path)
    with tarfile.open(file) as archive:
        place = archive.getmembers()[6].offset
    data = bytearray(file.read_bytes())
    data[place + 10] ^= 0xFF
    file.write_bytes(data)
    return file


def table(labels: list[Any]) -> Callable[[Path], Path]:
    return lambda path: parquet(path / "x.parquet", [encoded(1)] * len(labels), labels)


def two_tables(first: str, second: str, **more: Any) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        parquet(path / "set" / first, [encoded(1)], [0], classes=2)
        parquet(path / "set" / second, [encoded(1)], [0], **{"classes": 2, **more})
        return path / "set"

    return make


def table_link(path: Path) -> Path:
    file = parquet(path / "x.parquet", [encoded(1)], [0])
    (path / "set").mkdir()
    (path / "set" / "x.parquet").symlink_to(file)
    return path / "set"


def pipe_as_table(path: Path) -> Path:
    (path / "set").mkdir()
    os.mkfifo(path / "set" / "x.parquet")
    return path / "set"


WHOLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty folder": (lambda path: folder(path, {}), "there is no image in"),
    "hidden files alone": (
        lambda path: folder(path, {".DS_Store": b"x", "__MACOSX/._1.png": b"x", "a/.1.png": b"x"}),
        "there is no image in",
    ),
    "texts alone": (lambda path: folder(path, {"a/1.txt": b"x", "README": b"x"}), "there is no image in"),
    "one image": (lambda path: folder(path, {"1.png": encoded(1)}), "none to train"),
    "broken table of labels": (lambda path: folder(path, {**GOOD, "dataset.json": b"{"}), "cannot read .*dataset.json"),
    "odd table of labels": (
        lambda path: folder(path, {**GOOD, "dataset.json": b'{"labels": [["a/0.png", 1.5]]}'}),
        r"labels must be a list of \[path, whole number or name\]",
    ),
    "empty zip": (lambda path: zipped(path / "x.zip", {}), "there is no image in"),
    "truncated zip": (cut(lambda path: zipped(path / "x.zip", GOOD), 0.6), "cannot read the archive"),
    "text named .zip": (lambda path: folder(path, {"x.zip": b"text"}) / "x.zip", "cannot read the archive"),
    "truncated tar": (cut(shards(), 0.3), "cannot read the archive"),
    "tar without an end": (tar_without_end, "cannot read the archive"),
    "damaged tar header": (tar_header, "there is no valid header at byte"),
    "text named .tar": (lambda path: folder(path, {"x.tar": b"text"}) / "x.tar", "cannot read the archive"),
    "empty tar": (lambda path: tarred(path / "x.tar", []), "there is no image"),
    "compressed tar": (
        lambda path: folder(path, {"x.tar.gz": b"\x1f\x8b"}) / "x.tar.gz",
        "it is compressed as a whole",
    ),
    "text named .parquet": (lambda path: folder(path, {"x.parquet": b"text"}) / "x.parquet", "cannot read .*x.parquet"),
    "truncated parquet": (cut(rows(encoded(1)), 0.8), "cannot read .*set.parquet"),
    "parquet without rows": (table([]), "holds null|there is no row"),
    "float labels": (
        table([0.0, 1.0]),
        "'label' of .*x.parquet must hold names or whole numbers from 0; it holds double: set source.label",
    ),
    "NaN labels": (table([0.0, float("nan")]), "must hold names or whole numbers from 0; it holds double"),
    "lists of labels": (
        table([[0], [1]]),
        r"must hold names or whole numbers from 0; it holds list<.*: set source.label",
    ),
    "tables of labels": (table([{"a": 0}] * 2), r"must hold names or whole numbers from 0; it holds struct<a: int64>"),
    "other columns": (two_tables("train-0.parquet", "train-1.parquet", classes=3), "has other columns or classes than"),
    "a nameless split": (two_tables("train-0.parquet", "more.parquet"), "more.parquet names no split"),
    "link to a table outside": (table_link, "is a link that points outside"),
    "pipe as a table": (pipe_as_table, "is not a regular file"),
    "two kinds": (
        lambda path: shards()(two_tables("train-0.parquet", "train-1.parquet")(path)).parent,
        "name the folder of one kind",
    ),
    "device": (lambda path: Path("/dev/null"), "neither a folder nor"),
    "nothing there": (lambda path: path / "nothing" / "here", "no file or folder"),
    "every image bad": (lambda path: folder(path, {f"{i}.png": b"x" for i in range(5)}), "cannot read|none of the"),
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("on_bad", ["stop", "skip"])
@pytest.mark.filterwarnings("ignore:skipped")
def test_a_container_that_cannot_be_used_is_one_error(tmp_path: Path, name: str, on_bad: Any) -> None:
    make, reason = WHOLE[name]
    with pytest.raises(ValueError, match=reason):
        next(Images(str(make(tmp_path)), size=8, held_out_rows=1, on_bad=on_bad).batches(1, 0))


def test_no_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, for the tests may run as root, whom nothing stops."""
    path = folder(tmp_path / "set", GOOD)
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda file, mode: not str(file).endswith("a/1.png") and allowed(file, mode))
    with pytest.raises(ValueError, match=r"cannot use .*a/1.png: there is no permission to read it"):
        Images(str(path), size=8, held_out_rows=1).held_out()


@pytest.mark.parametrize(("inside", "message"), [("", "cannot read the folder"), ("a", "the folder cannot be read")])
def test_a_closed_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str, message: str) -> None:
    path, scan = folder(tmp_path / "set", GOOD), os.scandir

    def closed(place: Any) -> Any:
        if Path(place) == path / inside:
            raise PermissionError(13, "Permission denied")
        return scan(place)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(ValueError, match=rf"{message}.*Permission denied"):
        Images(str(path), size=8, held_out_rows=1).held_out()


def test_a_member_that_would_unpack_to_too_much_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(tmp_path / "x.zip", {**GOOD, "a/bad.png": b"\0" * 20_000})
    monkeypatch.setattr(listing, "MAX_BYTES", 10_000)
    with pytest.raises(ValueError, match=r"a/bad.png: it has 20000 bytes; an image may have 10000"):
        Images(str(path), size=8, held_out_rows=1).held_out()


def test_a_member_that_lies_about_its_size_is_not_unpacked_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table says 100 bytes, the stream holds 10 million: no more than 101 are ever made of it."""
    data = b"\0" * 10**7
    archive = bytearray(zipped(tmp_path / "x.zip", {**GOOD, "a/bad.png": data}).read_bytes())
    at = archive.rindex(b"PK\x01\x02")
    archive[at + 24 : at + 28] = struct.pack("<I", 100)
    (tmp_path / "x.zip").write_bytes(archive)
    made: list[int] = []
    real = zlib.decompressobj

    class Watched:
        def __init__(self, bits: int) -> None:
            self.inner = real(bits)

        def decompress(self, packed: bytes, most: int) -> bytes:
            unpacked = self.inner.decompress(packed, most)
            made.append(len(unpacked))
            return unpacked

    monkeypatch.setattr(zlib, "decompressobj", Watched)
    source = Images(str(tmp_path / "x.zip"), size=8, held_out_rows=1)
    with pytest.raises(ValueError, match=r"a/bad.png: its checksum does not fit"):
        source.held_out()
    assert max(made) <= 1000


def test_side_files_are_left_alone(tmp_path: Path) -> None:
    beside = {
        "README.md": b"",
        "a/boxes.txt": b"",
        "LICENSE": b"",
        "labels.csv": b"",
        ".DS_Store": b"",
        "a/Thumbs.db": b"",
    }
    source = Images(str(folder(tmp_path / "set", {**GOOD, **beside})), size=8, held_out_rows=1)
    assert shades(source) == SHADES
    assert source.skipped == ()


@pytest.mark.filterwarnings("ignore:.* held-out images of .* are training images too")
def test_links_inside_are_followed_and_the_folder_may_be_one(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", GOOD)
    (root / "b" / "9.png").symlink_to("../a/1.png")
    (tmp_path / "way").symlink_to(root)
    source = Images(str(tmp_path / "way"), size=8, held_out_rows=1)
    assert source.rows + 1 == len(GOOD) + 1
    assert shades(source) == SHADES
