"""What an experiment records of its measuring instrument."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from immiscible_diffusion import Digits, Pixels, registry
from immiscible_diffusion.experiments.experiment import Cell, read_experiment
from immiscible_diffusion.features import Classifier, PooledPixels
from immiscible_diffusion.features.training_images import training_images
from immiscible_diffusion.files import read_json
from immiscible_diffusion.metrics import Frechet, noise_floor
from immiscible_diffusion.registry import register
from immiscible_diffusion.runs.evaluation import held_out_features
from immiscible_diffusion.runs.folder import INSTRUMENT
from immiscible_diffusion.runs.instrument import write_instrument
from immiscible_diffusion.runs.launch import launch

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Coarse(Pixels):
    """A codec that loses detail, as autoencoders do."""

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        return super().decode(x) // 64 * 64


def cells(*overrides: tuple[str, Any]) -> list[Cell]:
    return read_experiment("demo").cells("smoke", list(overrides))


def written(folder: Path, *overrides: tuple[str, Any]) -> Any:
    write_instrument(cells(*overrides), folder, CPU)
    return read_json(folder / "instrument.json", INSTRUMENT)


def test_it_holds_the_noise_floor_of_every_metric(tmp_path: Path) -> None:
    first, second = written(tmp_path, ("evaluate.also", ["pooled_pixels"]))
    assert first["arms"] == second["arms"] == ["assignment", "independent", "nearest"]
    assert (first["features"]["use"], first["task"], first["held_out_rows"]) == ("classifier", "labels", 500)
    assert first["accuracy"] > 0.96
    assert (first["samples"], first["drawn"], first["training_rows"], first["draws"]) == (40, 40, 160, 8)
    assert set(first["floor"]) == {"frechet", "kernel"}
    assert set(second["floor"]) == {"frechet-pooled_pixels", "kernel-pooled_pixels"}
    images, _ = training_images(Digits(), Pixels(), 160)
    for entry, features in ((first, Classifier().fitted(Digits(), Pixels())), (second, PooledPixels())):
        expected = noise_floor(features(images), features(Digits().held_out().raw), Frechet(), 40)
        (name, *_) = sorted(entry["floor"])
        assert entry["floor"][name] == {"mean": pytest.approx(expected.mean), "sd": pytest.approx(expected.sd)}


def test_it_is_kept_while_it_fits(tmp_path: Path) -> None:
    plain = ("evaluate.features", "pooled_pixels")
    (first,) = written(tmp_path, plain)
    path = tmp_path / "instrument.json"
    path.write_text(json.dumps([first | {"seconds": -1.0}]))
    assert written(tmp_path, plain)[0]["seconds"] == -1.0
    (other,) = written(tmp_path, plain, ("evaluate.samples", 30))
    assert other["seconds"] >= 0
    assert other["samples"] == 30


def test_held_out_images_are_encoded_and_decoded_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._registered, "codec", dict(registry._registered["codec"]))
    register("codec")(Coarse)
    plain = [("evaluate.features", "pooled_pixels"), ("evaluate.metrics", ["frechet"])]
    raw = Digits().held_out().raw
    for reference, real in (("stored", raw), ("decoded", raw // 64 * 64)):
        (cell, *_) = cells(*plain, ("evaluate.reference", reference))
        lossy = replace(cell.config, codec=Coarse())
        expected = PooledPixels()(real)
        assert torch.equal(held_out_features(lossy, PooledPixels(), CPU), expected)
        write_instrument([replace(cell, config=lossy)], tmp_path / reference, CPU)
        (entry,) = read_json(tmp_path / reference / "instrument.json", INSTRUMENT)
        assert entry["reference"] == reference
        images, _ = training_images(Digits(), Pixels(), 160)
        floor = noise_floor(PooledPixels()(images), expected, Frechet(), 40)
        assert entry["floor"]["frechet"]["mean"] == pytest.approx(floor.mean)


def test_fewer_training_rows_than_samples(tmp_path: Path) -> None:
    few = [("evaluate.features", "pooled_pixels"), ("source.held_out_rows", 1770), ("evaluate.samples", 100)]
    (entry,) = written(tmp_path, *few, ("evaluate.metrics", ["frechet", {"use": "coverage", "k": 60}]))
    assert (entry["samples"], entry["drawn"]) == (100, 27)
    assert set(entry["floor"]) == {"frechet"}  # 27 rows are too few for 60 neighbours


def test_arms_on_other_data_have_entries_of_their_own(tmp_path: Path) -> None:
    plain = ("evaluate.features", "pooled_pixels")
    both = [Cell(f"{rows} rows", 0, cells(plain, ("source.held_out_rows", rows))[0].config) for rows in (300, 400)]
    write_instrument(both, tmp_path, CPU)
    entries = read_json(tmp_path / "instrument.json", INSTRUMENT)
    assert [(entry["arms"], entry["held_out_rows"]) for entry in entries] == [(["300 rows"], 300), (["400 rows"], 400)]


def test_a_source_that_adds_a_condition_is_measured_as_its_original(tmp_path: Path) -> None:
    (entry,) = written(tmp_path, ("source", "digits"))
    painting = read_experiment("painting").cells("smoke", [("evaluate.samples", 40), ("evaluate.also", [])])
    write_instrument(painting, tmp_path / "painting", CPU)
    (painted,) = read_json(tmp_path / "painting" / "instrument.json", INSTRUMENT)
    assert len(painted["arms"]) == 6
    assert (entry["same_conditions"], painted["same_conditions"]) == (False, True)
    keys = ("arms", "same_conditions", "seconds")
    assert painted | dict.fromkeys(keys) == entry | dict.fromkeys(keys)


@pytest.mark.medium
def test_launch_writes_it_beside_the_pairs(tmp_path: Path) -> None:
    small = [("grid.coupling", ["independent"]), ("train.seed", 0), ("train.steps", 1), ("evaluate.steps", [1])]
    runs = launch(
        read_experiment("demo"), cells(*small), tmp_path, workers=1, device="cpu", console=Console(quiet=True)
    )
    assert [error for _, error in runs] == [None]
    assert (tmp_path / "pairs.json").exists()
    (entry,) = read_json(tmp_path / "instrument.json", INSTRUMENT)
    assert entry["features"] == {"use": "classifier", "task": "auto", "seed": 0, "size": 0}
