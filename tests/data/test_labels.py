"""Labels as data sets have them: names or numbers, with gaps, under many column names, in every container."""

import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from immiscible_diffusion import Images
from immiscible_diffusion.data.containers.listing import Columns
from pictures import encoded, folder, parquet, tarred, zipped

Writer = Callable[..., Path]


def in_folder(path: Path, labels: Sequence[Any], name: str = "set") -> Path:
    """Write pictures of shades 0, 10, ... with a ``dataset.json`` of these labels."""
    table = json.dumps({"labels": [[f"{i}.png", label] for i, label in enumerate(labels)]}).encode()
    return folder(path / name, {f"{i}.png": encoded(10 * i) for i in range(len(labels))} | {"dataset.json": table})


def in_zip(path: Path, labels: Sequence[Any], name: str = "set") -> Path:
    root = in_folder(path / "of-zip", labels, name)
    return zipped(path / f"{name}.zip", {f"all/{file.name}": file.read_bytes() for file in root.iterdir()})


def in_table(path: Path, labels: Sequence[Any], name: str = "set") -> Path:
    return parquet(path / f"{name}.parquet", [encoded(10 * i) for i in range(len(labels))], labels)


def in_shards(path: Path, labels: Sequence[Any], name: str = "set") -> Path:
    members = [
        (f"{i}.{end}", data)
        for i, label in enumerate(labels)
        for end, data in (("png", encoded(10 * i)), ("cls", str(label).encode()))
    ]
    return tarred(path / f"{name}.tar", members)


def in_json_of_shards(path: Path, labels: Sequence[Any], name: str = "set") -> Path:
    members = [
        (f"{i}.{end}", data)
        for i, label in enumerate(labels)
        for end, data in (("png", encoded(10 * i)), ("json", json.dumps({"Class": label}).encode()))
    ]
    return tarred(path / f"{name}.tar", members)


WRITERS = [in_folder, in_zip, in_table, in_shards, in_json_of_shards]


def labels_by_shade(source: Images) -> list[int]:
    """Return the labels of all rows in the order of their shades."""
    batches = [source.held_out(), *itertools.islice(source.batches(1, 0), source.rows)]
    pairs = [
        (int(image[0, 0, 0]), int(label))
        for batch in batches
        if batch.cond is not None
        for image, label in zip(batch.raw, batch.cond, strict=True)
    ]
    return [label for _, label in sorted(pairs)]


@pytest.mark.parametrize("write", WRITERS)
def test_names_are_numbered_in_their_order(tmp_path: Path, write: Writer) -> None:
    source = Images(str(write(tmp_path, ["dog", "cat", "émeu", "cat", "dog", "émeu"])), size=4, held_out_rows=1)
    assert source.class_names == ("cat", "dog", "émeu")
    assert source.classes == 3
    assert labels_by_shade(source) == [1, 0, 2, 0, 1, 2]


@pytest.mark.parametrize("write", WRITERS)
def test_numbers_without_gaps_are_kept(tmp_path: Path, write: Writer) -> None:
    source = Images(str(write(tmp_path, [2, 0, 1, 1, 0, 2])), size=4, held_out_rows=1)
    assert (source.classes, source.class_names) == (3, None)
    assert labels_by_shade(source) == [2, 0, 1, 1, 0, 2]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("values", [(1, 2, 3), (0, 7, 1_000_000)])
def test_numbers_with_gaps_are_mapped_and_told(tmp_path: Path, write: Writer, values: tuple[int, int, int]) -> None:
    a, b, c = values
    source = Images(str(write(tmp_path, [c, a, b, b, a, c])), size=4, held_out_rows=1)
    with pytest.warns(UserWarning, match=rf"3 whole numbers from {a} to {c}, not all from 0 .* {a} -> 0, {b} -> 1"):
        assert source.classes == 3
    assert source.class_names == (str(a), str(b), str(c))
    assert labels_by_shade(source) == [2, 0, 1, 1, 0, 2]


@pytest.mark.parametrize("write", WRITERS)
def test_a_negative_number_is_refused(tmp_path: Path, write: Writer) -> None:
    path = str(write(tmp_path, [0, 1, -1, 0, 1]))
    with pytest.raises(ValueError, match=r"cannot use .*: its label is -1; labels start at 0.*on_bad = 'skip'"):
        Images(path, size=4, held_out_rows=1).rows  # noqa: B018


@pytest.mark.parametrize("write", WRITERS)
def test_a_label_that_training_lacks_is_refused(tmp_path: Path, write: Writer) -> None:
    labels = [0, 1, 2, 3]  # whichever is held out, no training row has its label
    with pytest.raises(ValueError, match=r"1 of 1 held-out rows .* no training row has.*source.held_out_rows.*'none'"):
        Images(str(write(tmp_path, labels)), size=4, held_out_rows=1).rows  # noqa: B018
    if write in (in_table, in_shards, in_json_of_shards):
        root = tmp_path / "two"
        write(root, ["a", "b"] * 3, "train-0")
        write(root, ["a", "c"], "test-0")
        with pytest.raises(ValueError, match=r"1 of 2 held-out rows .* such as 'c'"):
            Images(str(root), size=4, held_out_split="test", held_out_rows=0).rows  # noqa: B018


def test_more_noted_classes_than_images_are_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", [encoded(1), encoded(2)], [0, 1], classes=3)
    with pytest.raises(ValueError, match=r"has 3 classes and 2 images of split 'train'.*source.label = 'none'"):
        Images(str(path), size=4, held_out_rows=1).rows  # noqa: B018


@pytest.mark.parametrize("write", [*WRITERS, lambda path, labels: class_folders(path, labels)])
def test_labels_can_be_left_aside(tmp_path: Path, write: Writer) -> None:
    path = str(write(tmp_path, ["a", "b", "a", "b"]))
    source = Images(path, size=4, held_out_rows=1, label="none")
    assert (source.classes, source.class_names, source.rows) == (None, None, 3)
    assert source.held_out().cond is None
    assert Images(path, size=4, held_out_rows=1).classes == 2  # control


def class_folders(path: Path, labels: Sequence[str]) -> Path:
    return folder(path / "set", {f"{label}/{i}.png": encoded(10 * i) for i, label in enumerate(labels)})


@pytest.mark.parametrize("label", [1.5, [1], {"a": 1}])
@pytest.mark.parametrize("write", [in_table, in_json_of_shards, in_folder, in_zip])
def test_labels_of_other_kinds_are_one_refusal(tmp_path: Path, write: Writer, label: Any) -> None:
    path = str(write(tmp_path, [label] * 4))
    named = "source.label" if write in (in_table, in_json_of_shards) else "dataset.json|archive"
    with pytest.raises(ValueError, match=named) as refused:
        Images(path, size=4, held_out_rows=1).rows  # noqa: B018
    assert re.search("whole numbers? ", str(refused.value))


def test_a_rarer_kind_of_label_is_at_fault(tmp_path: Path) -> None:
    numbers, names = in_shards(tmp_path, [0, 1, "x", 0, 1]), in_shards(tmp_path, ["a", "b", 911, "a", "b"], "names")
    for path, label, most in ((numbers, "x", "whole numbers"), (names, "911", "names")):
        with pytest.raises(ValueError, match=rf"2.png: its label is '{label}'; most are {most}"):
            Images(str(path), size=4, held_out_rows=1).rows  # noqa: B018


def table(path: Path, **columns: Any) -> Path:
    """Write a table with these columns, without notes."""
    pq.write_table(pa.table(columns), path)
    return path


PICTURES = [encoded(10 * i) for i in range(6)]
LABELS = [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("name", ["label", "Labels", "class", "fine_label", "CLS"])
@pytest.mark.parametrize("image", ["image", "Image", "IMG", "jpg", "png"])
def test_columns_are_found_whatever_their_case(tmp_path: Path, name: str, image: str) -> None:
    columns = {image: PICTURES, name: LABELS, "coarse_label": [0] * 6}
    source = Images(str(table(tmp_path / "x.parquet", **columns)), size=4, held_out_rows=1)
    assert source.columns == Columns(image, name, "")
    assert labels_by_shade(source) == LABELS


def test_a_column_that_is_noted_as_classes_is_found(tmp_path: Path) -> None:
    features = {"Photo": {"_type": "Image"}, "breed": {"_type": "ClassLabel", "names": ["a", "b"]}}
    cells = pa.array([{"bytes": data} for data in PICTURES])
    notes = {"huggingface": json.dumps({"info": {"features": features}})}
    written = pa.table({"Photo": cells, "breed": LABELS}).replace_schema_metadata(notes)
    pq.write_table(written, tmp_path / "x.parquet")
    source = Images(str(tmp_path / "x.parquet"), size=4, held_out_rows=1)
    assert source.columns == Columns("Photo", "breed", "")
    assert source.class_names == ("a", "b")
    assert labels_by_shade(source) == LABELS


@pytest.mark.parametrize(("first", "second", "option"), [("label", "Label", "label"), ("image", "png", "image")])
def test_two_candidates_are_refused(tmp_path: Path, first: str, second: str, option: str) -> None:
    columns = {"image": PICTURES, "label": LABELS, first: None, second: None}
    filled = {name: PICTURES if option == "image" and name != "label" else values for name, values in columns.items()}
    filled = {name: LABELS if values is None else values for name, values in filled.items()}
    path = table(tmp_path / "x.parquet", **(filled | {"image": PICTURES}))
    with pytest.raises(ValueError, match=rf"2 columns that may hold {option}s, .*: set source.{option}"):
        Images(str(path), size=4, held_out_rows=1).rows  # noqa: B018
    chosen = Images(str(path), size=4, held_out_rows=1, **{option: second})  # type: ignore[arg-type]
    assert getattr(chosen.columns, option) == second
    assert labels_by_shade(chosen) == LABELS


def test_no_column_names_the_option(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", picture=PICTURES, label=LABELS)
    with pytest.raises(
        ValueError,
        match=r"no column is called image, img, jpg, png in .*; there are \['picture', 'label'\]: set source.image",
    ):
        Images(str(path), size=4, held_out_rows=1).rows  # noqa: B018


@pytest.mark.parametrize("values", [["b", "a"] * 3, [1, 0] * 3])
def test_a_column_of_categories_is_read(tmp_path: Path, values: list[Any]) -> None:
    path = table(tmp_path / "x.parquet", image=PICTURES, label=pa.array(values).dictionary_encode())
    assert labels_by_shade(Images(str(path), size=4, held_out_rows=1)) == [1, 0] * 3


def test_labels_of_a_shard_that_differ_are_refused(tmp_path: Path) -> None:
    def written(name: str, label: Any) -> str:
        members = [
            (f"{i}.{end}", data)
            for i in range(4)
            for end, data in (("png", encoded(i)), ("cls", b"%d" % (i % 2)), ("json", note(label(i))))
        ]
        return str(tarred(tmp_path / name, members))

    def note(label: Any) -> bytes:
        return json.dumps({"label": label}).encode()

    same = Images(written("same.tar", lambda i: i % 2), size=4, held_out_rows=1)
    assert same.columns == Columns("png", "cls", "")
    assert labels_by_shade(same) == [0, 1, 0, 1]
    other = written("other.tar", lambda i: f"name {i % 2}")
    with pytest.raises(ValueError, match=r"labels that differ, {'cls': 0, 'label': 'name 0'}: set source.label"):
        Images(other, size=4, held_out_rows=1).rows  # noqa: B018
    assert Images(other, size=4, held_out_rows=1, label="label").class_names == ("name 0", "name 1")
    boxes = written("boxes.tar", lambda i: [i])
    assert labels_by_shade(Images(boxes, size=4, held_out_rows=1)) == [0, 1, 0, 1]


@pytest.mark.parametrize("path", ["./{}", "{}", ".\\{}"])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_paths_of_a_table_are_recognised(tmp_path: Path, path: str, kind: str) -> None:
    files = {f"{'ab'[i % 2]}/{i}.png": encoded(10 * i) for i in range(6)}
    names = [path.format(name.replace("/", "\\") if "\\" in path else name) for name in files]
    labels = {"labels": [[name, i // 3] for i, name in enumerate(names)]}
    files["dataset.json"] = json.dumps(labels).encode()
    root = folder(tmp_path / "set", files) if kind == "folder" else zipped(tmp_path / "set.zip", files)
    assert labels_by_shade(Images(str(root), size=4, held_out_rows=1)) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("other", ["0.png", "./0.png"])
def test_one_picture_with_two_labels_is_refused(tmp_path: Path, other: str) -> None:
    pairs = [["0.png", 0], ["1.png", 1], [other, 1]]
    files = {f"{i}.png": encoded(10 * i) for i in range(2)}
    for root in (
        folder(tmp_path / "set", {**files, "dataset.json": json.dumps({"labels": pairs}).encode()}),
        zipped(tmp_path / "set.zip", {**files, "dataset.json": json.dumps({"labels": pairs}).encode()}),
    ):
        with pytest.raises(ValueError, match=r"0.png has two labels, 0 and 1"):
            Images(str(root), size=4, held_out_rows=1).rows  # noqa: B018
    same = [*pairs[:2], [other, 0], ["../outside.png", 5]]
    folder(tmp_path, {"outside.png": encoded(99), "set/2.png": encoded(20), "set/3.png": encoded(30)})
    more = [*same, ["2.png", 0], ["3.png", 1]]
    folder(tmp_path / "set", {"dataset.json": json.dumps({"labels": more}).encode()})
    assert labels_by_shade(Images(str(tmp_path / "set"), size=4, held_out_rows=1)) == [0, 1, 0, 1]


def test_folders_of_an_archive_may_be_written_with_backslashes(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {f"{'ab'[i % 2]}\\{i}.png": encoded(10 * i) for i in range(6)})
    source = Images(str(path), size=4, held_out_rows=1)
    assert source.class_names == ("a", "b")
    assert labels_by_shade(source) == [0, 1] * 3


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "train/metadata.jsonl"])
@pytest.mark.parametrize("write", [folder, zipped])
def test_a_table_that_is_not_read_is_told(
    tmp_path: Path, name: str, write: Callable[[Path, dict[str, bytes]], Path], recwarn: pytest.WarningsRecorder
) -> None:
    images = {f"train/{i}.png": encoded(10 * i) for i in range(4)}
    path = str(write(tmp_path / "x.zip", {**images, name: b"file_name,label"}))
    assert Images(path, size=4, held_out_rows=1, label="none").rows == 3
    assert Images(str(write(tmp_path / "y.zip", images)), size=4, held_out_rows=1).rows == 3
    assert not recwarn.list  # the controls: labels that are not wanted, and no table
    with pytest.warns(UserWarning, match=f"{name} of .* is not read: labels come from folders or dataset.json"):
        assert Images(path, size=4, held_out_rows=1).classes is None


@pytest.mark.parametrize("write", [folder, zipped])
@pytest.mark.parametrize("option", ["image", "label", "caption"])
def test_a_folder_has_no_columns(tmp_path: Path, option: str, write: Callable[[Path, dict[str, bytes]], Path]) -> None:
    path = str(write(tmp_path / "x.zip", {f"{i}.png": encoded(10 * i) for i in range(4)}))
    with pytest.raises(ValueError, match=f"source.{option} is 'text'; .* has no columns: leave the option out"):
        Images(path, size=4, held_out_rows=1, **{option: "text"}).rows  # type: ignore[arg-type]  # noqa: B018


TEXTLESS = {
    "int64": [1, 2, 3, 4],
    "struct<raw: string>": [{"raw": "x"}] * 4,
    "binary": [b"x"] * 4,
    "list<[a-z]+: struct<raw: string>>": [[{"raw": "x"}]] * 4,
    "null": [None] * 4,
}


@pytest.mark.parametrize("kind", TEXTLESS)
def test_captions_that_are_no_texts_are_refused(tmp_path: Path, kind: str) -> None:
    path = str(table(tmp_path / "x.parquet", image=PICTURES[:4], text=TEXTLESS[kind]))
    with pytest.raises(
        ValueError, match=f"column 'text' of .* must hold texts, .* it holds {kind}: set source.caption"
    ):
        Images(path, size=4, held_out_rows=1, caption="text").rows  # noqa: B018


@pytest.mark.parametrize(
    "texts", [["a", "b"] * 2, [["a", None], ["b", "c"]] * 2, pa.array(["a", "b"] * 2).dictionary_encode()]
)
def test_captions_that_are_texts_are_kept_and_missing_ones_left_out(tmp_path: Path, texts: Any) -> None:
    path = str(table(tmp_path / "x.parquet", image=PICTURES[:4], text=texts))
    captions = Images(path, size=4, held_out_rows=1, caption="text").captions(torch.arange(2))
    assert captions == [("a",), ("b",) if texts[1] != ["b", "c"] else ("b", "c")]
