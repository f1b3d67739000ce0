import itertools
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from immiscible_diffusion import Images
from immiscible_diffusion.data import _loading
from pictures import content, encoded, folder, parquet, tarred, zipped

PETS = {f"{name}/{i}.png": encoded(100 * label + 10 * i) for label, name in enumerate(["cat", "dog"]) for i in range(5)}
SHADES = {100 * label + 10 * i: label for label in range(2) for i in range(5)}


def all_rows(source: Images) -> dict[int, int]:
    """Return shade -> label over training and held-out rows."""
    batches = [source.held_out(), *itertools.islice(source.batches(1, 0), source.rows)]
    images, labels = torch.cat([b.raw for b in batches]), torch.cat([b.cond for b in batches if b.cond is not None])
    assert images.dtype == torch.uint8
    assert images.shape[1:] == source.shape
    return dict(zip(images[:, 0, 2, 2].tolist(), labels.tolist(), strict=True))


def pets(kind: str, path: Path) -> str:
    """Return the ten pets in a container of this kind."""
    if kind == "folder":
        return str(folder(path / "pets", PETS))
    if kind == "zip":
        return str(zipped(path / "pets.zip", {f"all/{name}": data for name, data in PETS.items()}))
    if kind == "parquet":
        return str(parquet(path / "train-0.parquet", list(PETS.values()), list(SHADES.values()), classes=2, group=3))
    members = [(f"{i}.{s}", d) for i, x in enumerate(PETS.values()) for s, d in (("png", x), ("cls", b"%d" % (i // 5)))]
    tarred(path / "shards" / "pets-000.tar", members[:8])
    tarred(path / "shards" / "pets-001.tar", members[8:])
    return str(path / "shards")


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("kind", ["folder", "zip", "parquet", "shards"])
def test_every_container_gives_its_images_with_their_labels(tmp_path: Path, kind: str, memory: bool) -> None:
    source = Images(pets(kind, tmp_path), size=8, held_out_rows=2, memory=memory)
    assert all_rows(source) == SHADES
    assert source.classes == 2
    assert source.rows == 8
    assert source.class_names == {"parquet": ("class 0", "class 1"), "shards": None}.get(kind, ("cat", "dog"))
    assert source.skipped == ()


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_memory_and_disk_give_the_same_batches(tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = {"size": 8, "held_out_rows": 3, "flip": True}
    one, other = (Images(pets(kind, tmp_path), memory=memory, **options) for memory in (True, False))
    for a, b in itertools.islice(zip(one.batches(3, 5), other.batches(3, 5), strict=False), 7):
        assert all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))  # type: ignore[arg-type]
    assert torch.equal(one.held_out().raw, other.held_out().raw)


def test_the_files_of_the_hub_are_splits(tmp_path: Path) -> None:
    data = tmp_path / "set" / "data"
    parquet(data / "train-00000-of-00002.parquet", [encoded(1), encoded(2)], [0, 1], classes=3)
    parquet(data / "train-00001-of-00002.parquet", [encoded(3)], [2], classes=3)
    parquet(data / "test-00000-of-00001.parquet", [encoded(4), encoded(5)], [2, 0], classes=3)
    source = Images(str(tmp_path / "set"), size=4, held_out_split="test", held_out_rows=0)
    assert (source.rows, source.classes) == (3, 3)
    assert sorted(source.held_out().raw[:, 0, 0, 0].tolist()) == [4, 5]
    assert source.held_out().rows.tolist() == [3, 4]  # type: ignore[union-attr]
    assert all_rows(source) == {1: 0, 2: 1, 3: 2, 4: 2, 5: 0}
    with pytest.warns(UserWarning, match="1 of 3 classes of .* have no training row, such as 'class "):
        assert all_rows(Images(str(tmp_path / "set"), size=4, held_out_rows=1)) == {1: 0, 2: 1, 3: 2}
    with pytest.raises(ValueError, match=r"no split 'val' in .*; there are \['test', 'train'\]"):
        Images(str(tmp_path / "set"), split="val").held_out()


def test_folders_named_like_splits_are_splits(tmp_path: Path) -> None:
    files = {"train/a/1.png": encoded(1), "train/b/deep/2.png": encoded(2), "val/b/3.png": encoded(3)}
    for path in (
        folder(tmp_path / "set", files),
        zipped(tmp_path / "set.zip", {f"x/{k}": v for k, v in files.items()}),
    ):
        source = Images(str(path), size=4, held_out_split="valid", held_out_rows=0)
        assert all_rows(source) == {1: 0, 2: 1, 3: 1}  # b keeps its number though the split has no a
        assert source.held_out().raw[:, 0, 0, 0].tolist() == [3]
    (tmp_path / "set" / "val" / "unknown").mkdir()
    (tmp_path / "set" / "val" / "unknown" / "4.png").write_bytes(encoded(4))
    with pytest.raises(
        ValueError, match=r"val/unknown/4.png: its class folder 'unknown' is not among the classes of train"
    ):
        Images(str(tmp_path / "set"), split="val", size=4, held_out_rows=1).held_out()


def test_tables_of_the_edm_tools_give_the_labels(tmp_path: Path) -> None:
    files = {f"0000{i % 2}/img{i}.png": encoded(i) for i in range(4)}
    table = b'{"labels": [["00000/img0.png", 1], ["00001/img1.png", 1], ["00000/img2.png", 0], ["00001/img3.png", 0]]}'
    for path in (
        folder(tmp_path / "edm", {**files, "dataset.json": table}),
        zipped(tmp_path / "edm.zip", {**files, "dataset.json": table}),
    ):
        source = Images(str(path), size=4, held_out_rows=1)
        assert all_rows(source) == {0: 1, 1: 1, 2: 0, 3: 0}
        assert source.classes == 2
    without = zipped(tmp_path / "without.zip", {**files, "dataset.json": b'{"labels": null}'})
    assert Images(str(without), size=4, held_out_rows=1).classes is None


def test_shards_hold_labels_in_tables_and_captions(tmp_path: Path) -> None:
    members = []
    for i in range(4):
        members += [
            (f"./{i}.jpg", encoded(10 * i, "JPEG")),
            (f"./{i}.json", b'{"label": %d, "kind": %d}' % (i // 2, 1 - i // 2)),
        ]
        members += [(f"./{i}.txt", b"number %d" % i)]
    path = tarred(tmp_path / "train-0.tar", members)
    source = Images(str(path), size=4, held_out_rows=1, caption="txt")
    assert all_rows(source) == {0: 0, 10: 0, 20: 1, 30: 1}
    assert source.captions(torch.tensor([2, 0])) == [("number 2",), ("number 0",)]
    assert all_rows(Images(str(path), size=4, held_out_rows=1, label="kind")) == {0: 1, 10: 1, 20: 0, 30: 0}
    assert Images(str(path), size=4, held_out_rows=1).captions(torch.tensor([0])) == [()]


def test_captions_of_a_table(tmp_path: Path) -> None:
    texts = [["a", "b"], ["c"], ["d", "e"]]
    path = parquet(tmp_path / "x.parquet", [encoded(i) for i in range(3)], None, captions=texts)
    source = Images(str(path), size=4, held_out_rows=1, caption="captions")
    assert source.captions(torch.tensor([1, 2])) == [("c",), ("d", "e")]
    assert source.classes is None


def test_rows_are_taken_by_number_unmirrored(tmp_path: Path) -> None:
    wide = np.zeros((8, 8, 3), np.uint8)
    wide[:, :4] = 200
    path = folder(tmp_path / "x", {f"{i}.png": content(Image.fromarray(wide // (i + 1))) for i in range(6)})
    source = Images(str(path), size=8, held_out_rows=2, flip=True)
    taken = source.take(torch.tensor([4, 1, 4]))
    assert taken.raw[:, 0, 0, 0].tolist() == [40, 100, 40]
    assert taken.raw[:, 0, 0, 7].tolist() == [0, 0, 0]
    assert taken.rows.tolist() == [4, 1, 4]  # type: ignore[union-attr]
    for batch in itertools.islice(source.batches(4, 0), 3):
        whole = source.take(batch.rows).raw  # type: ignore[arg-type]
        assert all(torch.equal(a, b) or torch.equal(a, b.flip(-1)) for a, b in zip(batch.raw, whole, strict=True))
    with pytest.raises(ValueError, match=r"rows 2 .. 6 are asked for; .* has 0 .. 5"):
        source.take(torch.tensor([2, 6]))


@pytest.mark.filterwarnings("ignore:.* held-out images of .* are training images too")
def test_flips_are_fair_belong_to_the_row_and_come_only_where_asked(tmp_path: Path) -> None:
    wide = np.zeros((4, 4, 3), np.uint8)
    wide[:, :2] = 255
    path = folder(tmp_path / "x", {f"{i:03d}.png": content(Image.fromarray(wide)) for i in range(101)})

    def mirrored(flip: bool, size: int, epochs: int) -> list[dict[int, bool]]:
        """Return row -> whether it was mirrored for each epoch, by what is seen in the pixels."""
        flips = []
        batches = Images(str(path), size=4, held_out_rows=1, flip=flip).batches(size, 3)
        for _ in range(epochs):
            part = list(itertools.islice(batches, 100 // size))
            left = torch.cat([batch.raw[:, 0, 0, 0] for batch in part]).tolist()
            rows = torch.cat([batch.rows for batch in part if batch.rows is not None]).tolist()
            flips.append({row: shade == 0 for row, shade in zip(rows, left, strict=True)})
        return flips

    seen = mirrored(True, 10, 8)
    assert seen == mirrored(True, 50, 8)  # whatever the batch size
    assert seen[0] != seen[1]
    share = sum(sum(epoch.values()) for epoch in seen) / 800
    assert abs(share - 0.5) < 4 * 0.5 / 800**0.5  # four standard errors
    assert not any(any(epoch.values()) for epoch in mirrored(False, 10, 2))
    held = Images(str(path), size=4, held_out_rows=100, flip=True).held_out().raw
    assert set(held[:, 0, 0, 0].tolist()) == {255}


@pytest.mark.filterwarnings("ignore:.* held-out images of .* are training images too")
def test_the_central_square_is_kept(tmp_path: Path) -> None:
    canvas = np.zeros((10, 30, 3), np.uint8)
    canvas[:, 10:20] = 200
    path = parquet(tmp_path / "x.parquet", [content(Image.fromarray(canvas))] * 2, [0, 0])
    image = Images(str(path), size=10, held_out_rows=1).held_out().raw
    assert set(image.flatten().tolist()) == {200}


@pytest.mark.filterwarnings("ignore:.* held-out images of .* are training images too")
def test_a_crop_is_central_and_resized_afterwards(tmp_path: Path) -> None:
    """The CelebA way: 178 x 218 pixels, the central 140, then 64; rows and columns count up to tell where it lay."""
    canvas = np.zeros((218, 178, 3), np.uint8)
    canvas[..., 0], canvas[..., 1] = np.arange(218)[:, None], np.arange(178)[None, :]
    path = folder(tmp_path / "x", {f"{i}.png": content(Image.fromarray(canvas)) for i in range(2)})
    kept = Images(str(path), size=140, crop=140, held_out_rows=1).held_out().raw[0]
    assert kept[0, :, 0].tolist() == list(range(39, 179))
    assert kept[1, 0, :].tolist() == list(range(19, 159))
    small = Images(str(path), size=70, crop=140, resize="box", held_out_rows=1).held_out().raw[0]
    expected = kept.float().reshape(3, 70, 2, 70, 2).mean((2, 4))
    assert float((small - expected).abs().max()) <= 0.5  # rounding


@pytest.mark.filterwarnings("ignore:.* held-out images of .* are training images too")
def test_the_filter_is_pillows(tmp_path: Path) -> None:
    noise = Image.effect_noise((31, 31), 90).convert("RGB")
    path = folder(tmp_path / "x", {f"{i}.png": content(noise) for i in range(2)})
    for name in ("nearest", "box", "bilinear", "bicubic", "lanczos"):
        image = Images(str(path), size=9, resize=name, held_out_rows=1).held_out().raw[0]
        expected = np.asarray(noise.resize((9, 9), Image.Resampling[name.upper()]))
        assert np.array_equal(image.permute(1, 2, 0), expected)


def test_limit_reads_the_first_images_and_keeps_the_classes(tmp_path: Path) -> None:
    source = Images(pets("folder", tmp_path), size=8, held_out_rows=2, limit=4)
    with pytest.warns(UserWarning, match="1 of 2 classes of .* have no training row, such as 'dog'"):
        assert all_rows(source) == {0: 0, 10: 0, 20: 0, 30: 0}
    assert source.classes == 2


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    whole = content(Image.effect_noise((64, 64), 90).convert("RGB"))
    path = parquet(tmp_path / "x.parquet", [whole, whole[:200], whole], [0, 0, 0])
    with pytest.raises(ValueError, match=r"cannot read the image .*x.parquet, row 1: "):
        Images(str(path), size=8, held_out_rows=1).held_out()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "images need path"),
        ({"path": "nowhere/set.parquet"}, "no file"),
        ({"path": "nowhere/on/the/hub"}, "no file or folder nowhere/on/the/hub"),
        ({"path": "a\0b"}, "no file or folder"),
        ({"image": "picture"}, r"no image column 'picture' in .*; there are \['img', 'label'\]"),
        ({"label": "class"}, "no label column 'class'"),
        ({"caption": "text"}, "no caption column 'text'"),
        ({"held_out_rows": 3}, "none to train"),
        ({"held_out_rows": 0}, "held_out_rows is 0; without a held_out_split"),
        ({"held_out_split": "test"}, "no split 'test'"),
        ({"split": "val", "held_out_split": "validation"}, "two splits, or one"),
        ({"size": 0}, "size is 0; it must be at least 1"),
        ({"workers": -1}, "workers is -1; it must be at least 0"),
        ({"resize": "cubic"}, "resize is 'cubic', one of"),
        ({"on_bad": "ignore"}, "on_bad is 'ignore', one of"),
        ({"max_pixels": 10**9}, "max_pixels is 1000000000; it must lie within 1 .. 178956970"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = parquet(tmp_path / "x.parquet", [encoded(i) for i in range(3)], [0, 1, 2])
    with pytest.raises(ValueError, match=message):
        next(Images(**{"path": str(path), "size": 8, "held_out_rows": 1, **options}).batches(1, 0))


def test_a_set_that_does_not_fit_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_loading, "free_bytes", lambda: 10 * 3 * 8 * 8)
    path = pets("folder", tmp_path)
    with pytest.raises(ValueError, match=r"10 decoded images need .* set source.memory = false"):
        Images(path, size=8, held_out_rows=2).held_out()
    assert all_rows(Images(path, size=8, held_out_rows=2, memory=False)) == SHADES


def test_a_set_loads_only_while_memory_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs that start together both see the memory free; the one that is still loading when it is gone says so."""
    path = pets("folder", tmp_path)
    left = iter([10**9, 10**9, 0])
    monkeypatch.setattr(_loading, "CHUNK", 4)
    monkeypatch.setattr(_loading, "free_bytes", lambda: next(left))
    with pytest.raises(ValueError, match=r"10 decoded images need 0.0 GiB more and 0.0 GiB of memory are free"):
        Images(path, size=8, held_out_rows=2).held_out()


def test_a_hub_name_that_cannot_be_reached_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="cannot read images from nobody/nothing"):
        Images("nobody/nothing", held_out_rows=1).held_out()


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's library is asked for the named split; a row that points out of its cache is refused."""
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", tmp_path / "cache")
    folder(tmp_path, {"cache/1.png": encoded(1), "secret.png": encoded(2)})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})

    def load(name: str, split: str) -> Any:
        inside = {"bytes": None, "path": str(tmp_path / "cache" / "1.png")}
        outside = {"bytes": None, "path": str(tmp_path / "secret.png")}
        others = [{"bytes": encoded(shade), "path": None} for shade in (9, 8, 7)]
        cells = [*others, inside] if split == "train" else [outside]
        rows = {"image": cells, "label": [1, 0, 1, 0][: len(cells)]}
        return datasets.Dataset.from_dict(rows, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = Images("me/mine", size=4, held_out_rows=1)
    assert all_rows(source) == {9: 1, 8: 0, 7: 1, 1: 0}
    assert source.class_names == ("a", "b")
    with pytest.raises(ValueError, match=r"me/mine, test row 0: it points to .*secret.png, outside the hub's cache"):
        Images("me/mine", size=4, held_out_split="test", held_out_rows=0).held_out()
