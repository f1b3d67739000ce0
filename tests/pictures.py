"""Pictures and containers that the tests of image sources are made of."""

import io
import json
import os
import signal
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from immiscible_diffusion.types import Source


def encoded(shade: int = 100, kind: str = "PNG", size: tuple[int, int] = (20, 12)) -> bytes:
    """Return a picture of one shade as the bytes of a file."""
    return content(Image.fromarray(np.full((size[1], size[0], 3), shade, np.uint8)), kind)


def content(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return a picture as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def photos(folder: Path, count: int, *, mode: str = "RGB", classes: int = 0) -> Path:
    """Write pictures of mixed sizes and formats, in folders of classes where there are any."""
    for i in range(count):
        place = folder / f"class-{i % classes}" if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(256, size=(40 + i % 5, 30 + 7 * (i % 3), 3), dtype=np.uint8)
        picture = Image.fromarray(noise).convert(mode)
        picture.save(place / f"{i:04d}.{('png', 'jpg')[i % 2]}")
    return folder


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, files: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def parquet(path: Path, cells: Sequence[Any], labels: Sequence[Any] | None, classes: int = 0, **more: Any) -> Path:
    """Write a table in the hub's format; ``classes`` are noted as the hub does it, ``group`` rows make a row group."""
    pa, pq = import_module("pyarrow"), import_module("pyarrow.parquet")
    group = more.pop("group", 1000)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [cell if isinstance(cell, dict) else {"bytes": cell, "path": None} for cell in cells]
    columns = {"img": pa.array(rows, kind)} | ({} if labels is None else {"label": pa.array(labels)})
    columns |= {name: pa.array(values) for name, values in more.items()}
    features: dict[str, Any] = {"img": {"_type": "Image"}}
    if classes:
        features["label"] = {"_type": "ClassLabel", "names": [f"class {i}" for i in range(classes)]}
    notes = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(notes), path, row_group_size=group, compression="none")
    return path


@dataclass(frozen=True)
class Shades:
    """Reads a picture whose shade is its row; the rows of ``faults`` fail, each in a way of its own."""

    faults: tuple[int, ...] = ()

    def __call__(self, row: int) -> bytes:
        if row in self.faults:
            raise (OSError if row % 2 else ZeroDivisionError)(f"row {row} is at fault")
        return encoded(row)


@dataclass(frozen=True)
class Deadly:
    """Ends the process that reads row 7."""

    def __call__(self, row: int) -> bytes:
        if row == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return encoded(row)


GOOD = {f"{name}/{i}.png": encoded(100 * c + 10 * i) for c, name in enumerate("ab") for i in range(4)}
"""Eight pictures of two classes."""
SHADES = sorted(100 * c + 10 * i for c in range(2) for i in range(4))


def shards(*members: tuple[str, bytes], extra: tarfile.TarInfo | None = None) -> Callable[[Path], Path]:
    """Return what writes a shard of the good pictures, these members and one without content."""

    def make(path: Path) -> Path:
        files = [
            (f"{i}.{s}", d) for i, x in enumerate(GOOD.values()) for s, d in (("png", x), ("cls", b"%d" % (i // 4)))
        ]
        tarred(path / "set.tar", [*files, *members])
        if extra is not None:
            with tarfile.open(path / "set.tar", "a") as archive:
                archive.addfile(extra)
        return path / "set.tar"

    return make


def rows(cell: Any, label: Any = 0) -> Callable[[Path], Path]:
    """Return what writes a table of the good pictures and one more row."""
    labels = [i // 4 for i in range(8)]
    return lambda path: parquet(path / "set.parquet", [*GOOD.values(), cell], [*labels, label], classes=2, group=4)


def shades(source: Source) -> list[int]:
    """Return the shades of all images, each once, from a pass over training and held-out rows."""
    held, batches = source.held_out(), source.batches(1, 0)
    seen = {int(next(batches).raw[0, 0, 4, 4]) for _ in range(source.rows)} | set(held.raw[:, 0, 4, 4].tolist())
    return sorted(seen)
