"""The GPU run in miniature on a CPU: all parts, going on where it was cut, and errors that stay in their part."""

import json
import math
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from safetensors.torch import load_file

from benchmarks.__main__ import app
from benchmarks.gpu.data import SHEET, Resident, invented, read_sheets, sheet_bytes
from benchmarks.gpu.effect import ARMS, packed, unpacked
from benchmarks.gpu.pack import EXPECTED, PACKAGES, fitting, tree_bytes
from benchmarks.gpu.rows import Rows
from benchmarks.gpu.run import run_part, stopped
from benchmarks.gpu.scale import DRY, PARTS, REAL, Scale, Site
from benchmarks.gpu.start import canonical, chosen
from immiscible_diffusion.cli.options import run_app
from immiscible_diffusion.files import write_json

pytestmark = pytest.mark.medium

FOUR = replace(DRY, last=4)


def part(
    name: str, folder: Path, scale: Scale = DRY, state: str = "state", earlier: Path | None = None, **options: Any
) -> Rows:
    rows = Rows(folder, earlier)
    run_part(name, rows, scale, pack=None, state=folder / state, earlier=earlier, **options)
    return rows


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dry run of all parts."""
    folder = tmp_path_factory.mktemp("gpu")
    for name in PARTS:
        part(name, folder)
    return folder


def test_every_part_is_done_and_says_where(dry: Path) -> None:
    rows = Rows(dry)
    for name in PARTS:
        assert rows.has(name, finished=True)
        assert rows.has("environment", of=name, python=sys.version.split()[0])
    assert "error" not in rows.path.read_text()


def test_the_effect_has_every_arm_at_equal_steps(dry: Path) -> None:
    rows = [row for row in Rows(dry).of("effect") if "arm" in row]
    assert {(row["study"], row["arm"], row["step"], row["sampling_steps"]) for row in rows} == {
        (study, arm, step, sampling)
        for study in ("flow-matching", "consistency")
        for arm in ARMS
        for step in (1, 2)
        for sampling in (1, 2)
    }
    assert all(row["frechet"] > 0 and math.isfinite(row["loss"]) for row in rows)
    assert {row["features"] for row in rows} == {"pooled_pixels/2"}
    last = {row["arm"]: row["frechet"] for row in rows if row["study"] == "flow-matching" and row["step"] == 2}
    assert last["independent"] != last["assignment"]


def test_the_weights_that_come_back_are_those_of_the_state(dry: Path) -> None:
    kept = torch.load(dry / "state" / "flow-matching.pt", weights_only=True)
    assert kept["step"] == 2
    for arm in ARMS:
        weights = unpacked(load_file(dry / f"flow-matching-{arm}.safetensors"))
        assert len(weights) > 9
        assert set(weights) == set(kept["arms"][arm]["ema"])
        for name, value in kept["arms"][arm]["ema"].items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=float(value.abs().max()) / 253)
    files = [path for path in dry.iterdir() if path.is_file()]
    assert len(files) <= 8  # what a lent machine gives back


def test_the_couplings_compare_both_solvers_and_a_training_step(dry: Path) -> None:
    rows = Rows(dry).of("couplings")
    solvers = {row["name"]: row for row in rows if row.get("b") == 16 and "solves" in row.get("name", "")}
    host, device = (solvers[f"this library, the {who} solves"] for who in ("host", "device"))
    assert host["distance_reduction_percent"] == pytest.approx(device["distance_reduction_percent"], abs=1e-3)
    assert host["distance_reduction_percent"] > 1
    timed = [row for row in rows if "median_ms" in row]
    assert all(0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"] for row in timed)
    assert {"official", "reference", "explicit candidates + scipy"} <= {row.get("name") for row in timed}
    arms = {row["arm"]: row for row in timed if row["task"] == "training step"}
    assert {"independent", "assignment", "assignment, prefetched"} <= set(arms)
    assert any(row["task"].startswith("semidiscrete") and row.get("distance_reduction_percent", 0) > 0 for row in timed)


def test_tests_and_throughput_are_recorded(dry: Path) -> None:
    tests = [row for row in Rows(dry).of("tests") if "test" in row]
    assert len(tests) >= 2
    assert {row["outcome"] for row in tests} == {"passed"}
    rows = [row for row in Rows(dry).of("throughput") if "mode" in row]
    assert {row["mode"] for row in rows} == set(DRY.modes)
    assert len({row["loop"] for row in rows}) == 3
    assert all(row["images_per_second"] > 0 for row in rows)


def test_a_second_call_measures_nothing_again(dry: Path) -> None:
    before = Rows(dry).path.read_text()
    for name in PARTS:
        part(name, dry)
    assert Rows(dry).path.read_text() == before


@pytest.mark.slow
def test_the_effect_goes_on_exactly_where_it_was_cut(tmp_path: Path) -> None:
    whole = part("effect", tmp_path / "whole", FOUR)
    cut = part("effect", tmp_path / "cut", replace(DRY, last=2))
    cut.path.write_text("".join(line + "\n" for line in cut.path.read_text().splitlines() if "finished" not in line))
    part("effect", tmp_path / "cut", FOUR)
    kept = [torch.load(tmp_path / name / "state" / "flow-matching.pt", weights_only=True) for name in ("whole", "cut")]
    assert kept[0]["step"] == kept[1]["step"] == 4
    for arm in ARMS:
        for name, value in kept[0]["arms"][arm]["ema"].items():
            assert torch.equal(value, kept[1]["arms"][arm]["ema"][name])
    assert cut.has("effect", finished=True)
    keys = [(row["study"], row["arm"], row["step"], row["sampling_steps"]) for row in cut.of("effect") if "arm" in row]
    assert len(keys) == len(set(keys)) == len([row for row in whole.of("effect") if "arm" in row])


@pytest.mark.slow
def test_another_machine_goes_on_from_the_weights_that_came_back(dry: Path, tmp_path: Path) -> None:
    for path in dry.iterdir():
        if path.is_file():
            text = path.read_bytes()
            (tmp_path / path.name).write_bytes(text)
    lines = (dry / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("".join(line + "\n" for line in lines if "finished" not in line))
    rows = part("effect", tmp_path / "new", FOUR, earlier=tmp_path)
    flow = [row for row in rows.of("effect") if row.get("study") == "flow-matching"]
    assert [row["origin"] for row in flow if row["step"] == 4] == ["averaged weights of step 2, in 8 bits"] * 4
    assert {row["origin"] for row in flow if row["step"] < 4} == {"new weights"}


def test_an_effect_that_is_short_of_time_stops_with_both_arms_equally_far(tmp_path: Path) -> None:
    rows = part("effect", tmp_path, replace(DRY, last=1000, first=1000, limits={"effect": 0.0}))
    found = [row for row in rows.of("effect") if "arm" in row]
    assert {(row["arm"], row["step"]) for row in found} == {(arm, 1) for arm in ARMS}
    assert not rows.has("effect", finished=True)


def test_an_error_is_one_line_and_the_other_parts_still_run(tmp_path: Path) -> None:
    def broken(site: Site) -> bool:
        site.rows.add("effect", step=1)
        raise RuntimeError("out of memory\nand a long traceback")

    def sound(site: Site) -> bool:
        site.rows.add("tests", value=math.nan)
        return True

    run: dict[str, Callable[[Site], bool]] = {"effect": broken, "tests": sound}
    for name in run:
        rows = part(name, tmp_path, run=run)
    lines = [json.loads(line) for line in rows.path.read_text().splitlines()]
    assert {"part": "effect", "error": "RuntimeError: out of memory"} in lines
    assert rows.has("effect", step=1)
    assert not rows.has("effect", finished=True)
    assert rows.has("tests", finished=True)
    assert rows.has("tests", value=None)


def test_a_process_that_outlasts_its_time_or_dies_is_named() -> None:
    assert stopped([sys.executable, "-c", ""], 60) == ""
    assert stopped([sys.executable, "-c", "import sys; sys.exit(3)"], 60) == "its process ended with 3"
    assert stopped([sys.executable, "-c", "import time; time.sleep(60)"], 0.2) == "ended after 0 s"


def test_eight_bits_keep_each_weight_to_half_a_scale() -> None:
    net = torch.nn.Linear(64, 8)
    with torch.no_grad():
        net.weight[0] *= 1000
    state = unpacked(packed(net))
    largest = net.weight.abs().amax(1, keepdim=True)
    assert bool(((state["weight"] - net.weight).abs() <= largest / 253).all())
    assert not torch.equal(state["weight"], net.weight)
    assert torch.equal(state["bias"], net.bias)
    # The control: one scale for all rows loses the small ones.
    assert bool(((state["weight"] - net.weight).abs()[1:] < largest[0] / 25_300).all())


def test_sheets_give_every_image_back(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (SHEET**2 + 3, 3, 8, 8), dtype=torch.uint8)
    (tmp_path / "images").mkdir()
    for i in range(2):
        content = sheet_bytes(images[i * SHEET**2 : (i + 1) * SHEET**2])
        (tmp_path / "images" / f"{i:05d}.webp").write_bytes(content)
    write_json(tmp_path / "pack.json", {"images": len(images)})
    assert torch.equal(read_sheets(tmp_path), images)
    (tmp_path / "images" / "00001.webp").unlink()
    with pytest.raises(ValueError, match=r"says 259 images and holds 256"):
        read_sheets(tmp_path)


def test_images_on_the_device_are_all_seen_once_an_epoch_and_mirrored_in_half() -> None:
    source = Resident(invented(16))
    batches = source.batches(4, seed=0)
    epoch = [next(batches) for _ in range(4)]
    rows = torch.cat([batch.rows for batch in epoch if batch.rows is not None])
    assert sorted(rows.tolist()) == list(range(16))
    raw = torch.cat([batch.raw for batch in epoch])
    plain, mirrored = ((raw == images[rows]).flatten(1).all(1) for images in (source.images, source.images.flip(-1)))
    assert bool((plain | mirrored).all())
    assert 0 < int(plain.sum()) < 16
    assert torch.equal(next(source.batches(4, seed=0, start=2)).raw, epoch[2].raw)


def test_a_pack_takes_as_many_pieces_as_fit() -> None:
    assert list(fitting([b"abc", b"de", b"f"], 5)) == [b"abc", b"de"]
    assert list(fitting([b"abc"], 2)) == []
    assert 2**20 < tree_bytes() < 2**26


def wheel(folder: Path, name: str, version: str, *requires: str) -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        lines = "".join(f"Requires-Dist: {text}\n" for text in requires)
        file.writestr(f"{name}-{version}.dist-info/METADATA", f"Name: {name}\nVersion: {version}\n{lines}")
    return path


def test_only_wheels_that_are_missing_or_too_old_here_are_unpacked(tmp_path: Path) -> None:
    wheels = {
        "not-here": wheel(tmp_path, "not_here", "1.0", "numpy>=999", 'absent; extra == "more"', "torch"),
        "numpy": wheel(tmp_path, "numpy", "999.0"),
        "torch": wheel(tmp_path, "torch", "999.0"),
    }
    unpacked_wheels, lacking = chosen(wheels, ("torch", "not-here", "nowhere"))
    assert unpacked_wheels == [wheels["not-here"], wheels["numpy"]]
    assert lacking == ["nowhere"]


def uncovered(packages: tuple[str, ...]) -> set[str]:
    """Return what the packages require that is neither among them nor expected of the machine."""
    needed = {canonical(Requirement(text).name) for name in packages for text in requires(name) or [] if plain(text)}
    return needed - set(packages) - set(EXPECTED)


def plain(text: str) -> bool:
    marker = Requirement(text).marker
    return marker is None or marker.evaluate({"extra": "", "python_version": "3.12", "python_full_version": "3.12.3"})


def test_the_pack_carries_all_that_its_packages_require() -> None:
    assert uncovered(PACKAGES) == set()
    assert uncovered(tuple(name for name in PACKAGES if name != "lazy-importer")) == {"lazy-importer"}


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "out")
    assert run_app(app, ["gpu", "--out", folder, "--dry-run", "--parts", "effects"]) == 2
    assert "no part named 'effects'" in capsys.readouterr().err
    assert run_app(app, ["gpu", "--out", folder]) == 2
    assert "make gpu-pack" in capsys.readouterr().err
    assert run_app(app, ["gpu", "--out", folder, "--pack", str(tmp_path)]) == 2
    assert "holds no pack" in capsys.readouterr().err


def test_the_real_run_is_as_large_as_it_says() -> None:
    assert set(REAL.limits) == set(PARTS)
    assert REAL.limits["effect"] == 300
    assert sum(REAL.limits.values()) <= 600
    assert (REAL.batch, REAL.samples, REAL.sampling) == (256, 5000, (2, 5, 10, 20, 50))
