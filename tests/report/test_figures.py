"""Figures show the recorded numbers where they are, and fit into a repository."""

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from immiscible_diffusion.report.figures import distance_figure
from immiscible_diffusion.report.pictures import samples_figure
from sweeps import sweep

pytestmark = pytest.mark.medium

SVG = "{http://www.w3.org/2000/svg}"
LARGEST = 60_000


def record(by_label: Mapping[str, Mapping[str, Any]], counts: tuple[int, ...] = (2, 10)) -> dict[str, Any]:
    """Return a record of one metric, the same curves at every number of sampling steps."""
    arms = {label: label.removesuffix(", plain start") for label in by_label}
    rows = [
        {
            "label": label,
            "arm": arms[label],
            "start": "matched" if label == arms[label] else "normal",
            "group": "",
            "sampling_steps": count,
            "metric": "frechet",
            "by_seed": by_seed,
        }
        for label, by_seed in by_label.items()
        for count in counts
    ]
    finals = [{"arm": label, "reference": "independent"} for label in by_label if label != "independent"]
    runs = [{"arm": arm, "seed": seed, "folder": f"{arm}-{seed}"} for arm in arms.values() for seed in (0, 1)]
    config = {"evaluate": {"features": {"use": "classifier"}}}
    numbers = {"metrics": ["frechet"], "curves": rows, "finals": finals, "runs": runs}
    return numbers | {"configurations": dict.fromkeys(arms.values(), config)}


CURVES = {
    "independent": {"0": [[100, 8.0], [1000, 4.0]], "1": [[100, 12.0], [1000, 6.0]]},
    "near": {"0": [[100, 8.0], [1000, 1.0]], "1": [[100, 12.0], [1000, 1.0]]},
    "near, plain start": {"0": [[100, 8.0], [1000, 2.0]], "1": [[100, 12.0], [1000, 2.0]]},
}


def texts(svg: bytes) -> list[str]:
    return ["".join(each.itertext()) for each in ElementTree.fromstring(svg).iter(f"{SVG}text")]  # noqa: S314


def lines(svg: bytes) -> list[list[float]]:
    """Return the places (x, y, x, y) of all drawn lines of two points that are not of one axis alone."""
    paths = [each.get("d", "") for each in ElementTree.fromstring(svg).iter(f"{SVG}path")]  # noqa: S314
    lists = [re.findall(r"-?[\d.]+", path) for path in paths if set(re.findall("[A-Za-z]", path)) == {"M"}]
    pairs = [[float(number) for number in numbers] for numbers in lists if len(numbers) == 4]
    return [[x, y, u, v] for x, y, u, v in pairs if x != u and y != v]


def test_curves_fall_as_their_means_do_on_a_logarithmic_axis() -> None:
    svg = distance_figure(record(CURVES))
    drawn = lines(svg)
    assert len(drawn) == 6  # three arms, two panels
    for panel in (drawn[:3], drawn[3:]):
        falls = [v - y for _, y, _, v in panel]  # y counts downwards
        # Means: 10 to 5, 10 to 1 and 10 to 2, so the second falls log 10 / log 2 times as far as the first.
        assert falls[1] / falls[0] == pytest.approx(np.log(10) / np.log(2), rel=1e-3)
        assert falls[2] / falls[0] == pytest.approx(np.log(5) / np.log(2), rel=1e-3)
    assert texts(svg).count("training steps") == 2
    assert {"2 sampling steps", "10 sampling steps", "near, plain start"} <= set(texts(svg))
    assert "Fréchet distance, classifier (not FID)" in texts(svg)
    # Control: another number, another picture.
    other = json.loads(json.dumps(CURVES))
    other["near"]["0"][1][1] = 2.0
    assert lines(distance_figure(record(other))) != drawn


def test_a_negative_value_has_a_linear_axis() -> None:
    below = {"independent": {"0": [[100, 4.0], [200, 2.0]]}, "near": {"0": [[100, 4.0], [200, -2.0]]}}
    drawn = lines(distance_figure(record(below, counts=(2,))))
    falls = [v - y for _, y, _, v in drawn]
    assert falls[1] / falls[0] == pytest.approx(3, rel=1e-3)


def test_one_measurement_is_a_mark_in_a_row() -> None:
    once = {label: {seed: curve[-1:] for seed, curve in by_seed.items()} for label, by_seed in CURVES.items()}
    svg = distance_figure(record(once))
    assert "training steps" not in texts(svg)
    assert texts(svg).count("Fréchet distance, classifier (not FID)") == 2
    assert {*CURVES} <= set(texts(svg))
    assert svg.count(b"fill: #ffffff; stroke: #0072b2") >= 1  # the plain start is hollow


def test_the_same_record_gives_the_same_bytes_without_a_date() -> None:
    first, second = (distance_figure(record(CURVES)) for _ in range(2))
    assert first == second
    assert b"<dc:date" not in first


@pytest.mark.parametrize(("size", "arms"), sweep([(8, 24), (8, 2), (32, 6), (100, 3)], 4))
def test_samples_fit_whatever_their_number_and_size(tmp_path: Path, size: int, arms: int) -> None:
    """Noise compresses worst; every arm keeps its first images, in the order of the record."""
    generator = np.random.default_rng(0)
    numbers = record({f"arm{i}": {"0": [[1, 1.0]]} for i in range(arms)}, counts=(5,))
    height = 8 * (size + 1) - 1
    for i in range(arms):
        grid = generator.integers(0, 256, (height, height, 3), np.uint8)
        grid[:size, :size] = (250, 240 // arms * i, 0)
        path = tmp_path / f"arm{i}-0" / "samples" / "steps-5-matched.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(grid).save(path)
    data = samples_figure(numbers, tmp_path)
    assert len(data) < LARGEST
    with Image.open(io.BytesIO(data)) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert 500 < pixels.shape[1] <= 1040
    columns = min(arms, 4)
    width = pixels.shape[1] // columns
    high = pixels.shape[0] // -(-arms // columns)
    for i in range(arms):
        corner = pixels[
            i // columns * high + 37 : i // columns * high + 43, i % columns * width + 7 : i % columns * width + 13
        ]
        assert np.abs(corner.mean((0, 1)) - (250, 240 // arms * i, 0)).max() < 120 // arms, i


def test_two_arms_lie_below_each_other(tmp_path: Path) -> None:
    """The images of one noise meet: the second arm of 2 sampling steps is below the first, that of 4 beside it."""
    numbers = record({f"arm{i}": {"0": [[1, 1.0]]} for i in range(2)}, counts=(2, 4))
    for i in range(2):
        folder = tmp_path / f"arm{i}-0" / "samples"
        folder.mkdir(parents=True)
        for count in (2, 4):
            Image.fromarray(np.full((23, 23, 3), 60 * i + 20 * count, np.uint8)).save(
                folder / f"steps-{count}-matched.png"
            )
    with Image.open(io.BytesIO(samples_figure(numbers, tmp_path))) as picture:
        pixels = np.asarray(picture.convert("L")).astype(int)
    height, width = (side // 2 for side in pixels.shape)
    shades = [[pixels[row * height + 100, column * width + 100] for column in range(2)] for row in range(2)]
    assert np.abs(np.array(shades) - [[40, 80], [100, 140]]).max() < 5


def test_pictures_of_this_repository_are_small() -> None:
    root = Path(__file__).parents[2]
    pictures = [path for place in ("results", "docs") for path in (root / place).rglob("*") if path.is_file()]
    texts = ".css", ".html", ".js", ".json", ".md"
    pictures = [path for path in pictures if path.suffix not in texts]
    assert len(pictures) > 20
    assert {path.suffix for path in pictures} == {".svg", ".webp"}
    assert [path for path in pictures if path.stat().st_size >= LARGEST] == []
