"""Folders and files that may be splits or classes: refused where that is not clear, taken as they are where it is."""

from collections.abc import Callable
from pathlib import Path

import pytest

from immiscible_diffusion import Images
from pictures import encoded, folder, parquet, tarred, zipped

UNCLEAR = {
    "a split beside classes": (("cat", "dog", "test"), "'test' beside 'cat'"),
    "a split of classes beside classes": (("cat", "dog", "test/cat", "test/dog"), "'test' beside 'cat'"),
    "a class beside splits": (("train/cat", "train/dog", "val/cat", "unlabelled"), "'train' beside 'unlabelled'"),
    "a number": (("train", "train2", "test"), "'test' beside 'train'"),
    "a suffix": (("train_images", "test_images"), "'test_images' beside 'train_images'"),
    "capitals and a number": (("Cat", "TEST-01"), "'TEST-01' beside 'Cat'"),
    "loose images": (("", "train"), "'train' beside 'images'"),
    "one that holds all": (("Training Set/cat", "Training Set/dog"), "'Training Set' beside 'nothing else'"),
    "another suffix": (("train-clean", "test-noisy"), "'test-noisy' beside 'train-clean'"),
    "a prefix": (("cifar_train/cat", "cifar_test/cat"), "'cifar_test' beside 'cifar_train'"),
    "validation": (("a", "b", "valid"), "'valid' beside 'a'"),
    "development": (("a", "b", "dev"), "'dev' beside 'a'"),
    "domains of two splits": (("trainA", "trainB", "testA", "testB"), "'testA' beside 'testB'"),
    "no gap before a suffix": (("trainset", "testset"), "'testset' beside 'trainset'"),
    "capitals in place of gaps": (("Cat", "TestImages"), "'TestImages' beside 'Cat'"),
    "a copy": (("cat", "test (1)"), r"'test \(1\)' beside 'cat'"),
    "an old one": (("cat", "test.old"), "'test.old' beside 'cat'"),
    "splits within classes": (("cat/train", "cat/test", "dog/train", "dog/test"), "'test' and 'train' side by side"),
    "splits below classes of a split": (("train/cat/train", "train/cat/val"), "'train' and 'val' side by side"),
}
CLEAR = {
    "classes": (("cat", "dog"), ("cat", "dog")),
    "splits": (("train/cat", "train/dog", "Test/cat"), ("cat", "dog")),
    "words with a split in them": (("bullet_train", "trainer", "testudo", "valley", "test_tube", "testaments"), 6),
    "a class called as a split, in a split": (("train/cat", "train/train", "train/test"), ("cat", "test", "train")),
    "one split word below a class": (("toys/train", "toys/car", "cat"), ("cat", "toys")),
}


def files(folders: tuple[str, ...]) -> dict[str, bytes]:
    """Return four images in each folder."""
    names = [f"{name}/{i}.png".lstrip("/") for name in folders for i in range(4)]
    return {name: encoded(10 * i) for i, name in enumerate(names)}


def in_folder(path: Path, contents: dict[str, bytes]) -> Path:
    return folder(path / "set", contents)


def in_zip(path: Path, contents: dict[str, bytes]) -> Path:
    return zipped(path / "set.zip", contents)


def in_wrapped_zip(path: Path, contents: dict[str, bytes]) -> Path:
    return zipped(path / "set.zip", {f"./all/{name}": data for name, data in contents.items()})


@pytest.mark.parametrize("write", [in_folder, in_zip, in_wrapped_zip])
@pytest.mark.parametrize("name", UNCLEAR)
def test_a_split_beside_classes_is_refused(
    tmp_path: Path, name: str, write: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    folders, message = UNCLEAR[name]
    one = len({name.split("/")[0] for name in folders}) == 1 and "train" not in folders[0]
    if (write is in_zip and one) or (write is in_wrapped_zip and "" in folders):
        pytest.skip("the one folder around everything names neither a split nor a class")
    path = write(tmp_path, files(folders))
    with pytest.raises(ValueError, match=f"{message}.*source.path"):
        Images(str(path), size=4, held_out_rows=2).rows  # noqa: B018


@pytest.mark.parametrize("write", [in_folder, in_zip])
@pytest.mark.parametrize("name", CLEAR)
def test_clear_layouts_are_taken(tmp_path: Path, name: str, write: Callable[[Path, dict[str, bytes]], Path]) -> None:
    folders, classes = CLEAR[name]
    source = Images(str(write(tmp_path, files(folders))), size=4, held_out_rows=1)
    expected = tuple(sorted(folders)) if isinstance(classes, int) else classes
    assert source.class_names == expected


def test_the_one_folder_of_an_archive_may_be_named_like_a_split(tmp_path: Path) -> None:
    loose = zipped(tmp_path / "val2017.zip", files(("val2017",)))
    source = Images(str(loose), size=4, held_out_rows=1)
    assert (source.rows, source.classes) == (3, None)
    whole = zipped(tmp_path / "all.zip", files(("train_images/cat", "train_images/dog")))
    assert Images(str(whole), size=4, held_out_rows=1).class_names == ("cat", "dog")


def test_the_name_of_the_folder_itself_is_no_split(tmp_path: Path) -> None:
    tarred(tmp_path / "test_set" / "0.tar", [(f"{i}.png", encoded(i)) for i in range(4)])
    assert Images(str(tmp_path / "test_set"), size=4, held_out_rows=1).rows == 3


@pytest.mark.parametrize("names", [("my_train", "my_test"), ("train/x/0", "test/x/0"), ("a/train/x/0", "a/val/x/0")])
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_files_that_may_be_splits_are_refused(tmp_path: Path, names: tuple[str, ...], kind: str) -> None:
    for name in names:
        place = tmp_path / f"{name}.{kind}"
        images = [encoded(10 * i) for i in range(3)]
        if kind == "tar":
            tarred(place, [(f"{i}.png", image) for i, image in enumerate(images)])
        else:
            parquet(place, images, None)
    with pytest.raises(ValueError, match=r"has '.*(test|train)'.* and '.*(train|val)'.*source.path"):
        Images(str(tmp_path), size=4, held_out_rows=1).rows  # noqa: B018
    assert Images(str(tmp_path / f"{names[0]}.{kind}"), size=4, held_out_rows=1).rows == 2
