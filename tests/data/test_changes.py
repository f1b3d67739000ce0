"""A source made anew sees the files as they are; one that is in use keeps what it has read."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from immiscible_diffusion import Images
from immiscible_diffusion.data import Windows
from immiscible_diffusion.data.containers import open as opening
from immiscible_diffusion.data.containers.folder import list_folder
from pictures import encoded, folder, parquet, tarred, zipped
from test_contracts import demonstrations


def in_folder(path: Path, shades: range) -> Path:
    return folder(path / "set", {f"{i:03d}.png": encoded(i) for i in shades})


def in_zip(path: Path, shades: range) -> Path:
    return zipped(path / "set.zip", {f"{i:03d}.png": encoded(i) for i in shades})


def in_shard(path: Path, shades: range) -> Path:
    return tarred(path / "set.tar", [(f"{i:03d}.png", encoded(i)) for i in shades])


def in_table(path: Path, shades: range) -> Path:
    return parquet(path / "set.parquet", [encoded(i) for i in shades], None)


def seen(source: Images) -> list[int]:
    return sorted(source.take(torch.arange(source.rows + 1)).raw[:, 0, 0, 0].tolist())


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("write", [in_folder, in_zip, in_shard, in_table])
def test_a_new_source_lists_anew(tmp_path: Path, write: Callable[[Path, range], Path], memory: bool) -> None:
    def made() -> Images:
        return Images(str(write(tmp_path, range(3))), size=4, held_out_rows=1, memory=memory)

    first = made()
    assert seen(first) == [0, 1, 2]
    path = str(write(tmp_path, range(6)))
    again = Images(path, size=4, held_out_rows=1, memory=memory)
    assert again == first
    assert seen(again) == [0, 1, 2, 3, 4, 5]
    assert first.rows == 2
    assert seen(Images(path, size=4, held_out_rows=1, memory=memory)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("memory", [True, False])
def test_a_picture_that_was_overwritten_is_read_anew(tmp_path: Path, memory: bool) -> None:
    path = in_folder(tmp_path, range(3))
    assert seen(Images(str(path), size=4, held_out_rows=1, memory=memory)) == [0, 1, 2]
    (path / "001.png").write_bytes(encoded(9))
    os.utime(path / "001.png", ns=(1, 1))
    assert seen(Images(str(path), size=4, held_out_rows=1, memory=memory)) == [0, 2, 9]


def test_equal_sources_share_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, listed = in_folder(tmp_path, range(3)), list[Any]()
    read = list_folder

    def counted(*args: Any) -> Any:
        listed.append(args)
        return read(*args)

    monkeypatch.setattr(opening, "list_folder", counted)
    one, other = (Images(str(path), size=4, held_out_rows=1) for _ in range(2))
    assert seen(one) == seen(other) == seen(pickle.loads(pickle.dumps(one))) == [0, 1, 2]  # noqa: S301
    assert len(listed) == 1
    assert one._pixels is other._pixels
    assert len(pickle.dumps(one)) < 2000


def test_new_windows_read_their_file_anew(tmp_path: Path) -> None:
    source = Windows(str(demonstrations(tmp_path / "a.parquet")))
    assert source.rows == 18
    more = demonstrations(tmp_path / "more.parquet")
    (tmp_path / "set").mkdir()
    more.rename(tmp_path / "a.parquet")
    os.utime(tmp_path / "a.parquet", ns=(1, 1))
    again = Windows(str(tmp_path / "a.parquet"))
    assert again == source
    assert again.windowed() is not source.windowed()
    assert again.windowed() is Windows(str(tmp_path / "a.parquet")).windowed()
    assert pickle.loads(pickle.dumps(source)).rows == source.rows  # noqa: S301
    assert len(pickle.dumps(source)) < 2000
