import io
import itertools
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from immiscible_diffusion import Images
from immiscible_diffusion.data.images import _load


@pytest.fixture(autouse=True)
def _no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _load.cache_clear()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(shade: int, mode: str = "RGB", size: tuple[int, int] = (20, 12)) -> Image.Image:
    return Image.fromarray(np.full((size[1], size[0], 3), shade, np.uint8)).convert(mode)


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def folder(path: Path) -> Path:
    for label, name in enumerate(["cat", "dog"]):
        (path / name).mkdir(parents=True)
        for i in range(5):
            picture(100 * label + 10 * i, "L" if i == 0 else "RGB").save(path / name / f"{i}.png")
    return path


def parquet(path: Path, cells: list[bytes], labels: list[int]) -> Path:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=3)})
    rows: dict[str, list[Any]] = {"img": [{"bytes": cell, "path": None} for cell in cells], "label": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
    return path


def all_rows(source: Images) -> dict[int, int]:
    """Return shade -> label over training and held-out rows."""
    batches = [source.held_out(), *itertools.islice(source.batches(1, 0), source.rows)]
    images, labels = torch.cat([b.raw for b in batches]), torch.cat([b.cond for b in batches if b.cond is not None])
    assert images.dtype == torch.uint8
    assert images.shape[1:] == source.shape
    return dict(zip(images[:, 0, 2, 2].tolist(), labels.tolist(), strict=True))


def test_a_folder_gives_images_with_its_sub_folders_as_labels(tmp_path: Path) -> None:
    source = Images(str(folder(tmp_path / "pets")), size=8, held_out_rows=2)
    assert all_rows(source) == {100 * label + 10 * i: label for label in range(2) for i in range(5)}
    assert source.classes == 2


def test_parquet_in_the_hubs_format(tmp_path: Path) -> None:
    path = parquet(tmp_path / "train.parquet", [encoded(picture(20 * i)) for i in range(6)], [0, 1, 2, 0, 1, 2])
    source = Images(str(path), size=8, held_out_rows=2)
    assert all_rows(source) == {20 * i: i % 3 for i in range(6)}
    assert Images(str(path), size=8, held_out_rows=2, limit=4).rows == 2


def test_a_folder_of_parquet_shards_and_a_data_set_folder(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    parquet(tmp_path / "set" / "train-00000-of-00002.parquet", [encoded(picture(1)), encoded(picture(2))], [0, 1])
    parquet(tmp_path / "set" / "train-00001-of-00002.parquet", [encoded(picture(3))], [2])
    assert all_rows(Images(str(tmp_path / "set"), size=4, held_out_rows=1)) == {1: 0, 2: 1, 3: 2}


def test_the_central_square_is_kept(tmp_path: Path) -> None:
    canvas = np.zeros((10, 30, 3), np.uint8)
    canvas[:, 10:20] = 200
    path = parquet(tmp_path / "x.parquet", [encoded(Image.fromarray(canvas))] * 2, [0, 0])
    image = Images(str(path), size=10, held_out_rows=1).held_out().raw
    assert set(image.flatten().tolist()) == {200}


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    whole = encoded(Image.effect_noise((64, 64), 90).convert("RGB"))
    path = parquet(tmp_path / "x.parquet", [whole, whole[:200], whole], [0, 1, 2])
    with pytest.raises(ValueError, match=r"cannot read the image .*row 1"):
        Images(str(path), size=8, held_out_rows=1).held_out()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "images need path"),
        ({"path": "nowhere/set.parquet"}, "no file"),
        ({"image": "picture"}, "no image column 'picture'"),
        ({"label": "class"}, "no label column 'class'"),
        ({"held_out_rows": 3}, "none to train"),
        ({"size": 0}, "size >= 1"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = parquet(tmp_path / "x.parquet", [encoded(picture(i)) for i in range(3)], [0, 1, 2])
    with pytest.raises(ValueError, match=message):
        next(Images(**{"path": str(path), "size": 8, "held_out_rows": 1, **options}).batches(1, 0))


def test_a_hub_name_that_cannot_be_reached_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="cannot read images from nobody/nothing"):
        Images("nobody/nothing", held_out_rows=1).held_out()
