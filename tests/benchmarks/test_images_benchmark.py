import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.images import _picture, bench_images
from immiscible_diffusion import Images
from pictures import content, folder

pytestmark = pytest.mark.medium


def photographs(path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (12, 40, 30, 3), np.uint8)
    return folder(path / "x", {f"{i:02d}.png": content(Image.fromarray(image)) for i, image in enumerate(noise)})


def test_every_way_is_timed_and_the_record_is_json(tmp_path: Path) -> None:
    record = bench_images(str(photographs(tmp_path)), 8, batch=4, batches=3, repeats=2, workers=[0])
    assert json.loads(json.dumps(record)) == record
    names = [row["name"] for row in record["rows"]]
    assert names == ["Images, 0 workers", "Images, in memory", "torch DataLoader, 0 workers", "plain Pillow"]
    for row in record["rows"]:
        assert 0 < row["slowest"] <= row["images_per_second"] <= row["fastest"]
        assert len(row["first_batch_seconds"]) == 2


@pytest.mark.slow
def test_workers_are_timed_too(tmp_path: Path) -> None:
    record = bench_images(str(photographs(tmp_path)), 8, batch=4, batches=3, repeats=1, workers=[1, 2])
    assert len(record["rows"]) == 6
    assert all(row["images_per_second"] > 0 for row in record["rows"])


@pytest.mark.parametrize("crop", [0, 20])
def test_what_is_compared_makes_the_same_pixels(tmp_path: Path, crop: int) -> None:
    source = Images(str(photographs(tmp_path)), size=8, crop=crop, held_out_rows=1)
    taken = source.take(torch.arange(12)).raw.permute(0, 2, 3, 1)
    assert all(np.array_equal(taken[i], _picture(source, i)) for i in range(12))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch": 0}, "must be >= 1"), ({"workers": []}, "some numbers"), ({"batch": 12}, "fewer than a batch of 12")],
)
def test_wrong_numbers_are_refused(tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bench_images(str(photographs(tmp_path)), 8, **{"batch": 4, **options})  # type: ignore[arg-type]
