"""A batch larger than the training rows: the message says where the others are, and which options say so."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from encodable import Blur, Pictures
from immiscible_diffusion import Images
from immiscible_diffusion.data import Digits, Latents, Windows
from immiscible_diffusion.data.latent_files import encode
from immiscible_diffusion.types import Source
from pictures import encoded, folder
from test_contracts import demonstrations


def digits(path: Path) -> Source:
    return Digits(held_out_rows=1697)


def images(path: Path) -> Source:
    return Images(str(folder(path / "set", {f"{i}.png": encoded(i) for i in range(120)})), held_out_rows=20)


def images_of_two_splits(path: Path) -> Source:
    files = {f"train/{i:03d}.png": encoded(i) for i in range(100)} | {"test/0.png": encoded(200)}
    return Images(str(folder(path / "set", files)), held_out_split="test", held_out_rows=0)


def limited_images(path: Path) -> Source:
    files = {f"train/{i:03d}.png": encoded(i) for i in range(110)} | {"test/0.png": encoded(200)}
    return Images(str(folder(path / "set", files)), held_out_split="test", held_out_rows=0, limit=100)


def windows(path: Path) -> Source:
    return Windows(str(demonstrations(path / "x.parquet")), held_out_episodes=1)


def latents(path: Path) -> Source:
    list(encode(Pictures(count=132), Blur(), path / "latents"))
    return Latents(str(path / "latents"))


SOURCES: list[tuple[Callable[[Path], Source], int, str]] = [
    (digits, 100, "source.held_out_rows = 1697 of 1797 are held out"),
    (images, 100, "source.held_out_rows = 20 of 120 are held out"),
    (images_of_two_splits, 100, "split 'train' has no more"),
    (limited_images, 100, "source.limit is 100"),
    (windows, 99, "source.held_out_episodes = 1 of 12 are held out"),
    (latents, 99, "33 of 132 were held out when .*latents was encoded"),
]


@pytest.mark.parametrize(("made", "rows", "why"), SOURCES)
def test_a_batch_that_is_too_large_says_where_the_rows_are(
    tmp_path: Path, made: Callable[[Path], Source], rows: int, why: str
) -> None:
    source = made(tmp_path)
    message = rf"^batch is 128; these data have {rows} training rows, for {why}: set train.batch within 1 .. {rows}$"
    with pytest.raises(ValueError, match=message):
        next(source.batches(128, seed=0))
    assert [len(batch.raw) for batch in itertools.islice(source.batches(rows, seed=0), 2)] == [rows, rows]
