"""Pictures that are in the held-out data and in training are counted and told."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from immiscible_diffusion import Images
from immiscible_diffusion.data.containers import copies
from pictures import encoded, folder, parquet, tarred, zipped


def shades(copied: int) -> tuple[list[int], list[int]]:
    """Return the shades of 8 training and 4 held-out pictures, of which some are those of training."""
    return list(range(8)), [*range(copied), *range(100, 104 - copied)]


def in_folder(path: Path, train: list[int], test: list[int]) -> Path:
    files = {f"train/{i}.png": encoded(shade) for i, shade in enumerate(train)}
    return folder(path / "set", files | {f"test/{i}.png": encoded(shade) for i, shade in enumerate(test)})


def in_zip(path: Path, train: list[int], test: list[int]) -> Path:
    root = in_folder(path, train, test)
    return zipped(path / "set.zip", {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*.png")})


def in_shards(path: Path, train: list[int], test: list[int]) -> Path:
    for name, part in (("train", train), ("test", test)):
        tarred(path / "set" / f"{name}-0.tar", [(f"{i}.png", encoded(shade)) for i, shade in enumerate(part)])
    return path / "set"


def in_table(path: Path, train: list[int], test: list[int]) -> Path:
    for name, part in (("train", train), ("test", test)):
        parquet(path / "set" / f"{name}-0.parquet", [encoded(shade) for shade in part], None)
    return path / "set"


OPTIONS: dict[str, Any] = {"size": 4, "held_out_split": "test", "held_out_rows": 0}


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("write", [in_folder, in_zip, in_shards, in_table])
def test_copies_are_counted_and_told_once(tmp_path: Path, write: Callable[..., Path], memory: bool) -> None:
    source = Images(str(write(tmp_path, *shades(3))), memory=memory, **OPTIONS)
    if write is in_table and not memory:
        source.held_out()  # the sizes of single images are not known before all are read
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for one in (source, source, Images(source.path, memory=memory, **OPTIONS)):
            one.held_out()
            next(one.batches(4, 0))
    (line,) = (str(warning.message) for warning in caught)
    assert re.match(r"3 of 4 held-out images of .* are training images too, such as .*test", line)


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("write", [in_folder, in_zip, in_shards, in_table])
def test_pictures_that_differ_are_not_told(tmp_path: Path, write: Callable[..., Path], memory: bool) -> None:
    held = Images(str(write(tmp_path, *shades(0))), memory=memory, **OPTIONS).held_out()
    assert len(held.raw) == 4


def test_a_random_choice_from_one_split_is_compared_too(tmp_path: Path) -> None:
    path = folder(tmp_path / "set", {f"{i}.png": encoded(i // 2) for i in range(10)})
    for memory in (True, False):
        with pytest.warns(UserWarning, match="3 of 5 held-out images of .*source.held_out_split"):
            Images(str(path), size=4, held_out_rows=5, memory=memory).held_out()


def test_pictures_that_cannot_be_read_are_no_copies(tmp_path: Path) -> None:
    path = folder(tmp_path / "set", {f"{i}.png": encoded(i) if i < 6 else b"x" for i in range(12)})
    for memory in (True, False):
        with pytest.warns(UserWarning, match=r"skipped|training images too") as told:
            Images(str(path), size=4, held_out_rows=6, on_bad="skip", memory=memory).held_out()
        assert [str(line.message)[:7] for line in told] == ["skipped"] if memory else True


def test_what_is_read_for_a_comparison_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose size no other has costs nothing; the rest are compared while bytes last."""
    noise = {
        name: encoded(9, size=size) for name, size in (("small", (8, 8)), ("wide", (900, 600)), ("tall", (90, 120)))
    }
    names = {"train/a.png": "small", "train/b.png": "wide", "test/a.png": "small", "test/b.png": "wide"}
    root = folder(tmp_path / "set", {path: noise[name] for path, name in names.items()})
    folder(root, {"test/c.png": noise["tall"]})
    assert len({len(data) for data in noise.values()}) == 3
    for most, expected in ((10**6, "2 of 3"), (2 * 2**15, "1 of 2")):
        monkeypatch.setattr(copies, "_MOST_BYTES", most)
        with pytest.warns(UserWarning, match=f"^{expected} held-out images"):
            Images(str(root), memory=False, max_pixels=10**6 + most, **OPTIONS).held_out()
