"""Digests of listings: equal wherever the files lie, different after any change of names, sizes or labels."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from encodable import Blur, Pictures
from immiscible_diffusion import Images
from immiscible_diffusion.codecs import Pixels
from immiscible_diffusion.data import Digits, Latents, Painting, Windows
from immiscible_diffusion.data.latent_files import encode
from immiscible_diffusion.types import HasListing
from pictures import encoded, folder, parquet, tarred, zipped
from test_contracts import demonstrations

Files = dict[str, bytes]
PETS = {f"{name}/{i}.png": encoded(10 * i) for name in ("cat", "dog") for i in range(3)}
OTHERS = {
    "one more": PETS | {"dog/3.png": encoded(7)},
    "one less": dict(list(PETS.items())[1:]),
    "another label": {name.replace("cat/2", "dog/4"): data for name, data in PETS.items()},
    "another size": PETS | {"dog/2.png": encoded(7, size=(40, 40))},
}


def in_folder(path: Path, files: Files) -> Path:
    return folder(path / "set", files)


def in_zip(path: Path, files: Files) -> Path:
    return zipped(path / "set.zip", files)


def in_shards(path: Path, files: Files) -> Path:
    members = [(f"{i}.{end}", x) for i, (name, data) in enumerate(files.items()) for end, x in parts(name, data)]
    tarred(path / "set" / "a-0.tar", members[:4])
    tarred(path / "set" / "a-1.tar", members[4:])
    return path / "set"


def parts(name: str, data: bytes) -> list[tuple[str, bytes]]:
    return [("png", data), ("cls", b"%d" % name.startswith("dog"))]


def in_table(path: Path, files: Files) -> Path:
    return parquet(path / "set.parquet", list(files.values()), [name.startswith("dog") for name in files], group=4)


@pytest.mark.parametrize("write", [in_folder, in_zip, in_shards, in_table])
def test_a_digest_tells_changed_files_from_moved_ones(tmp_path: Path, write: Callable[[Path, Files], Path]) -> None:
    def digest(name: str, files: Files, memory: bool = True) -> str:
        return Images(str(write(tmp_path / name, files)), held_out_rows=2, memory=memory).listing_digest()

    here = digest("here", PETS)
    assert digest("elsewhere", PETS, memory=False) == here
    assert len({here, *(digest(name, files) for name, files in OTHERS.items())}) == 5


def test_no_image_is_read_for_a_digest(tmp_path: Path) -> None:
    path = folder(tmp_path / "set", dict.fromkeys(PETS, b"no picture"))
    assert len(Images(str(path), held_out_rows=2).listing_digest()) == 64


def test_a_digest_covers_both_splits(tmp_path: Path) -> None:
    files = {f"train/{name}": data for name, data in PETS.items()} | {"test/cat/0.png": encoded(1)}
    more = files | {"test/cat/1.png": encoded(1)}

    def digest(name: str, files: Files) -> str:
        path = folder(tmp_path / name, files)
        return Images(str(path), held_out_split="test", held_out_rows=0).listing_digest()

    assert digest("one", files) == digest("same", files) != digest("more", more)


def test_latents_and_episodes_have_one(tmp_path: Path) -> None:
    for name, salt in (("one", 0), ("same", 0), ("other", 1)):
        list(encode(Pictures(salt=salt), Blur(), tmp_path / name))
    one, same, other = (Latents(str(tmp_path / name)).listing_digest() for name in ("one", "same", "other"))
    assert one == same != other
    first = Windows(str(demonstrations(tmp_path / "a.parquet"))).listing_digest()
    assert Windows(str(demonstrations(tmp_path / "b.parquet")), horizon=4).listing_digest() == first
    windows = Windows(str(demonstrations(tmp_path / "c.parquet")))
    windows.windowed().episodes.actions[3, 0] += 1.0
    assert windows.listing_digest() != first


def test_painting_hands_it_on(tmp_path: Path) -> None:
    images = Images(str(folder(tmp_path / "set", PETS)), held_out_rows=2)
    painting = Painting(images, Pixels())
    assert isinstance(painting, HasListing)
    assert painting.listing_digest() == images.listing_digest()
    assert Painting(Digits(), Pixels()).listing_digest() is None
    assert not isinstance(Digits(), HasListing)
    assert torch.equal(painting.held_out().raw, images.held_out().raw)
