"""What is chosen for data of one's own: by their number, sizes, colours and labels, and by the time at hand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from immiscible_diffusion.experiments.experiment import read_experiment
from immiscible_diffusion.runs.check import check_run
from immiscible_diffusion.runs.look import Look, experiment_name, look_at_images
from immiscible_diffusion.runs.plan import Choice, _choices, _features, _sizes, plan
from pictures import photos

SMALL = [("net.channels", [8]), ("evaluate.samples", 20), ("evaluate.steps", [2])]


def look(rows: int, **options: Any) -> Look:
    values = {"path": "photos", "latents": False, "shortest": 500, "image_side": None, "grey": False, "classes": None}
    return Look(rows=rows, read_seconds=0.0, **{**values, **options})


def chosen(found: Look, size: int = 16, device: str = "cpu", **given: Any) -> dict[str, Any]:
    choices = _choices(found, size, 400, Choice("evaluate.features", "pooled_pixels"), given, device)
    return {choice.key: choice.value for choice in choices}


@pytest.mark.parametrize(("rows", "held_out", "batch"), [(60, 12, 48), (300, 60, 128), (60_000, 1000, 128)])
def test_held_out_share_and_batch_follow_the_number_of_images(rows: int, held_out: int, batch: int) -> None:
    values = chosen(look(rows))
    assert (values["source.held_out_rows"], values["train.batch"]) == (held_out, batch)
    assert values["train.batch"] <= rows - held_out


def test_a_value_that_is_given_stays_and_the_others_follow_it() -> None:
    given: dict[str, Any] = {"source.held_out_rows": 60, "train.lr": 0.5}
    values = chosen(look(100), **given)
    assert (values["source.held_out_rows"], values["train.batch"], values["train.lr"]) == (60, 40, 0.5)


def test_options_that_are_not_chosen_are_kept() -> None:
    given: dict[str, Any] = {"source.split": "test", "net.use": "mlp", "net.width": 8}
    values = chosen(look(100), **given)
    assert (values["source.split"], values["net.use"], values["net.width"]) == ("test", "mlp", 8)
    assert "net.channels" not in values
    assert "net.channels" in chosen(look(100))


@pytest.mark.parametrize(
    ("shortest", "device", "sizes"),
    [(500, "cpu", [16, 32]), (28, "cpu", [16]), (12, "cpu", [12]), (7, "cpu", [8]), (500, "cuda", [32, 64])],
)
def test_images_are_not_enlarged(shortest: int, device: str, sizes: list[int]) -> None:
    assert _sizes(look(100, shortest=shortest), {}, device) == sizes


@pytest.mark.parametrize(
    ("about", "size", "seconds", "use", "why"),
    [
        ({"rows": 100, "classes": 2}, 16, 1e9, "pooled_pixels", "needs 200 training images and there are 80"),
        ({"rows": 300}, 16, 1e9, "pooled_pixels", "needs 960 training images without labels and there are 240"),
        ({"rows": 300, "classes": 20}, 16, 1e9, "pooled_pixels", "without labels and there are 240"),
        ({"rows": 300, "classes": 2}, 16, 1e9, "labels", "learns the 2 classes"),
        ({"rows": 1100}, 16, 1e9, "pooled_pixels", "without labels and there are 880"),
        ({"rows": 1200}, 16, 1e9, "rotation", "the images have no labels"),
        ({"rows": 1500}, 4, 1e9, "pooled_pixels", "takes images of 8 pixels and more"),
        ({"rows": 1500}, 128, 1e9, "rotation", "the images have no labels"),
        ({"rows": 1500}, 16, 1e-9, "pooled_pixels", "seconds to train"),
        ({"rows": 1500, "latents": True, "image_side": 64}, 8, 1e9, "pooled_pixels", "every latent decoded"),
        ({"rows": 1500, "classes": 1}, 16, 1e9, "rotation", "the images have no labels"),
        ({"rows": 1500, "classes": 10}, 16, 1e9, "labels", "learns the 10 classes"),
        ({"rows": 1500, "classes": 100}, 16, 1e9, "rotation", "100 classes have fewer than 20 images each"),
    ],
)
def test_features_are_what_can_be_learned_in_time(
    about: dict[str, Any], size: int, seconds: float, use: str, why: str
) -> None:
    choice, fitting = _features(look(**about), size, {}, seconds)
    assert (choice.value if isinstance(choice.value, str) else choice.value["task"]) == use
    assert why in choice.why
    assert (fitting > 0) == isinstance(choice.value, dict) or seconds < 1


@pytest.mark.parametrize(("size", "reduced"), [(64, {}), (128, {"size": 64})])
@pytest.mark.parametrize("classes", [None, 2])
def test_images_of_more_than_64_pixels_are_reduced_for_the_classifier(
    size: int, reduced: dict[str, int], classes: int | None
) -> None:
    task = "labels" if classes else "rotation"
    choice, _ = _features(look(1500, classes=classes), size, {}, 1e9)
    assert choice.value == {"use": "classifier", "task": task} | reduced
    assert ("It sees them reduced to 64 pixels." in choice.why) == bool(reduced)


def test_a_look_at_a_folder(tmp_path: Path) -> None:
    grey = look_at_images(str(photos(tmp_path / "grey", 45, mode="L")), {})
    assert (grey.rows, grey.shortest, grey.grey, grey.classes) == (45, 37, True, None)
    labelled = look_at_images(str(photos(tmp_path / "colour", 45, classes=3)), {})
    assert (labelled.rows, labelled.grey, labelled.classes) == (45, False, 3)
    (tmp_path / "colour" / "class-0" / "0000.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="skipped 1 images"):
        assert look_at_images(str(tmp_path / "colour"), {}).shortest == 37


def test_too_few_images_are_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 39 images and a comparison needs at least 40: .* \(source.path\)$"):
        look_at_images(str(photos(tmp_path, 39)), {})
    assert look_at_images(str(photos(tmp_path, 40)), {}).rows == 40


@pytest.mark.parametrize("name", ["../odd name.d/", "...", "ünï"])
def test_names_are_those_of_folders(name: str, tmp_path: Path) -> None:
    assert (tmp_path / experiment_name(name)).parent == tmp_path
    assert experiment_name(name).endswith("-images")


@pytest.mark.medium
@pytest.mark.parametrize(("count", "classes", "features"), [(45, 0, "pooled_pixels"), (260, 2, "classifier")])
def test_the_file_is_an_experiment_that_the_check_lets_pass(
    count: int, classes: int, features: str, tmp_path: Path
) -> None:
    made = plan(str(photos(tmp_path / "photos", count, classes=classes)), overrides=SMALL, workers=2, minutes=30)
    file = tmp_path / f"{made.name}.toml"
    file.write_text(made.text, encoding="utf-8")
    cells = read_experiment(str(file)).cells()
    assert [(cell.arm, cell.seed) for cell in cells] == [
        (arm, seed) for seed in range(3) for arm in ("independent", "assignment")
    ]
    config = cells[1].config
    assert config.plain()["evaluate"]["features"]["use"] == features
    assert config.source.rows == count - count // 5
    assert config.net.channels == (8,)  # type: ignore[attr-defined]
    assert config.train.steps % 100 == 0
    assert len(config.evaluate.due(config.train.steps)) == 5
    assert made.seconds >= 3 * config.train.steps * made.timing.step
    if not classes:
        assert check_run(config, torch.device("cpu")).problems == []
    # Control: less time, fewer steps or a smaller size.
    hasty = plan(str(tmp_path / "photos"), overrides=[*SMALL, ("train.seed", 7)], workers=2, minutes=0.1)
    assert hasty.steps == 400 <= made.steps
    file.write_text(hasty.text, encoding="utf-8")
    assert [cell.seed for cell in read_experiment(str(file)).cells()] == [7, 7]
