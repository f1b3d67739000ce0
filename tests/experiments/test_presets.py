"""Presets: the data of the papers by name, run end to end on real images of the same sets."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from immiscible_diffusion import VAE, Images
from immiscible_diffusion.data.latent_files import encode
from immiscible_diffusion.experiments.config import Config
from immiscible_diffusion.experiments.experiment import read_experiment
from immiscible_diffusion.experiments.values import presets, with_preset
from immiscible_diffusion.files import read_lines
from immiscible_diffusion.runs.run import execute

pytestmark = pytest.mark.medium

EXPERIMENT = """
title = "x"
[base]
preset = "NAME"
coupling = "assignment"
method = "denoising"
net = { use = "mlp", width = 8 }
train = { steps = 2, batch = 100 }
evaluate = { every = 2, steps = [1], samples = 4 }
"""
LOCAL: dict[str, tuple[str, dict[str, Any], tuple[int | None, float, float]]] = {
    # preset -> folder, what differs from the hub's copy, and the local images' classes (if any), mean and deviation
    "cifar10": ("cifar10", {"held_out_rows": 64}, (10, 120.7, 64.2)),
    "celeba64": (
        "celeba64",
        {"crop": 0, "held_out_split": "", "held_out_rows": 100},
        (None, 109.6, 72.2),
    ),
    "tiny_imagenet": (
        "tiny-imagenet",
        {"split": "valid", "held_out_split": "", "held_out_rows": 100},
        (200, 112.9, 71.0),
    ),
    "imagenet256": (
        "imagenette",
        {"split": "validation", "held_out_split": "", "held_out_rows": 64, "workers": 0},
        (10, 112.4, 73.0),
    ),
}


def configured(tmp_path: Path, name: str, *overrides: tuple[str, Any]) -> Config:
    path = tmp_path / "mine.toml"
    path.write_text(EXPERIMENT.replace("NAME", name))
    (cell,) = read_experiment(str(path)).cells(overrides=overrides)
    return cell.config


def test_the_papers_data_are_presets() -> None:
    assert set(LOCAL) <= set(presets())


@pytest.mark.usefixtures("unchecked")  # the check of a protocol would ask the source for its rows
@pytest.mark.parametrize("name", presets())
def test_a_preset_resolves_to_the_hubs_data(tmp_path: Path, name: str) -> None:
    source, codec = (configured(tmp_path, name).plain()[key] for key in ("source", "codec"))
    assert source["use"] == "images"
    assert source["path"].count("/") == 1
    assert source["held_out_split"] or source["held_out_rows"]
    assert source["split"] != source["held_out_split"]
    if name in LOCAL:
        assert source["flip"] is True
        assert codec == {"use": "pixels", "mean": 127.5, "std": 127.5}


@pytest.mark.filterwarnings("ignore:.* classes of .* have no training row")  # the local copies are parts
@pytest.mark.parametrize("name", LOCAL)
def test_a_preset_runs_on_real_images(tmp_path: Path, shared_data: Callable[[str], Path], name: str) -> None:
    folder, changes, (classes, mean, deviation) = LOCAL[name]
    options = {"path": str(shared_data(folder)), "memory": False, **changes}
    overrides = [(f"source.{key}", value) for key, value in options.items()]
    unit = [("codec.mean", mean), ("codec.std", deviation)]
    config = configured(tmp_path, name, *overrides, *unit)
    source = config.source
    assert isinstance(source, Images)
    size = {"cifar10": 32, "imagenet256": 256}.get(name, 64)
    batch = next(source.batches(100, seed=0))
    assert batch.raw.shape == (100, 3, size, size)
    assert batch.rows is not None
    if classes is None:
        assert source.classes is None
        assert batch.cond is None
    else:
        assert batch.cond is not None
        assert source.classes is not None
        assert source.classes <= classes
        assert 0 <= int(batch.cond.min()) <= int(batch.cond.max()) < classes
        assert len(set(batch.cond.tolist())) >= min(10, classes)
    x = config.codec.encode(batch.raw)
    assert abs(float(x.mean())) < 0.2  # 100 images; the mean of one has a deviation of about half
    assert abs(float(x.std()) - 1) < 0.15
    assert source.held_out().raw.shape == (source.held_out_rows, 3, size, size)

    stored = source.take(batch.rows).raw
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(batch.raw, stored, strict=True)]
    assert 30 <= sum(mirrored) <= 70  # four deviations of a fair coin
    assert all(flip or torch.equal(a, b) for flip, a, b in zip(mirrored, batch.raw, stored, strict=True))
    still = configured(tmp_path, name, *overrides, ("source.flip", False)).source
    assert torch.equal(next(still.batches(100, seed=0)).raw, stored)


@pytest.mark.filterwarnings("ignore:.* classes of .* have no training row")  # the local copies are parts
@pytest.mark.parametrize("name", ["cifar10", "celeba64", "tiny_imagenet"])
def test_a_preset_trains_samples_and_is_measured(tmp_path: Path, shared_data: Callable[[str], Path], name: str) -> None:
    folder, changes, _ = LOCAL[name]
    options = {"path": str(shared_data(folder)), "memory": False, **changes, "limit": 400}
    config = configured(tmp_path, name, *[(f"source.{key}", value) for key, value in options.items()])
    assert list(execute(config, tmp_path / "run", torch.device("cpu"))) == [0, 1, 2, 2]
    (line,) = read_lines(tmp_path / "run" / "evaluations.jsonl")
    assert line["samples"] == 4
    assert line["frechet"] > 0
    with PIL.Image.open(tmp_path / "run" / "samples" / "steps-1-matched.png") as grid:
        assert grid.height == config.source.shape[1]


@pytest.mark.filterwarnings("ignore:.* classes of .* have no training row")  # the local copies are parts
@pytest.mark.slow
def test_imagenet_at_256_pixels_runs_through_latents(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    """Encode once, train on the latents, decode the samples, compare them with the held-out images."""
    folder, changes, _ = LOCAL["imagenet256"]
    options = {"path": str(shared_data(folder)), **changes, "held_out_rows": 4, "limit": 12, "flip": False}
    images = configured(tmp_path, "imagenet256", *[(f"source.{key}", value) for key, value in options.items()]).source
    vae = VAE(str(shared_data("taesd")))
    assert isinstance(images, Images)
    assert [done.rows for done in encode(images, vae, tmp_path / "latents")][-1] == 8
    latents = ("source", {"use": "latents", "path": str(tmp_path / "latents")})
    codec = ("codec", {"use": "vae", "path": str(shared_data("taesd"))})
    config = configured(tmp_path, "imagenet256", latents, codec, ("train.batch", 8))
    assert list(execute(config, tmp_path / "run", torch.device("cpu"))) == [0, 1, 2, 2]
    with PIL.Image.open(tmp_path / "run" / "samples" / "steps-1-matched.png") as grid:
        assert grid.height == 256
    random = tmp_path / "random"
    write_tiny_vae(random)
    other = configured(tmp_path, "imagenet256", latents, ("codec", {"use": "vae", "path": str(random)}))
    with pytest.raises(ValueError, match="which cannot decode them"):
        next(execute(other, tmp_path / "other", torch.device("cpu")))


def write_tiny_vae(folder: Path) -> None:
    """Save an autoencoder of random weights, with the taste of no one's latents."""
    from diffusers import AutoencoderTiny

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
        blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
        AutoencoderTiny(**small, **blocks).save_pretrained(folder)


def test_the_held_out_images_of_cifar10_are_its_test_images(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    path = ("source.path", str(shared_data("cifar10")))
    source = configured(tmp_path, "cifar10", path, ("source.memory", False), ("source.limit", 300)).source
    alone = (("source.split", "test"), ("source.held_out_split", ""), ("source.held_out_rows", 1))
    other = configured(tmp_path, "cifar10", path, *alone, ("source.memory", False))
    assert isinstance(source, Images)
    assert isinstance(other.source, Images)
    some = torch.tensor([0, 17, 9999])
    assert torch.equal(source.take(some + 300).raw, other.source.take(some).raw)
    assert source.rows == 300
    trained = torch.cat([b.rows for b in itertools.islice(source.batches(100, 0), 3) if b.rows is not None])
    assert sorted(trained.tolist()) == list(range(300))


@pytest.mark.usefixtures("unchecked")  # the check of a protocol would ask the source for its rows
def test_own_keys_win(tmp_path: Path) -> None:
    assert with_preset({"train": {}}) == {"train": {}}
    values = with_preset({"preset": "celeba64", "source": {"crop": 0, "path": "here"}, "codec": {"std": 64.2}})
    assert values["source"]["crop"] == 0
    assert values["source"]["path"] == "here"
    assert values["source"]["size"] == 64
    assert values["codec"] == {"use": "pixels", "std": 64.2}
    assert with_preset({"preset": "cifar10", "source": "digits"})["source"] == "digits"
    other = with_preset({"preset": "cifar10", "source": {"use": "digits", "held_out_rows": 9}})
    assert other["source"] == {"use": "digits", "held_out_rows": 9}
    config = configured(tmp_path, "cifar10", ("source.path", "some/where"), ("codec.std", 31.9))
    assert config.plain()["source"]["path"] == "some/where"
    assert config.plain()["codec"]["std"] == 31.9


@pytest.mark.usefixtures("unchecked")  # the check of a protocol would ask the source for its rows
def test_presets_can_be_varied(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(EXPERIMENT.replace("NAME", "cifar10") + '\n[grid]\npreset = ["cifar10", "tiny_imagenet"]\n')
    cells = read_experiment(str(path)).cells()
    assert [cell.arm for cell in cells] == ["cifar10", "tiny_imagenet"]
    assert [cell.config.source.shape[1] for cell in cells] == [32, 64]


@pytest.mark.parametrize("name", ["cifar", "../experiments/demo", ["cifar10"], 3])
def test_an_unknown_preset_is_one_error(name: Any) -> None:
    with pytest.raises(ValueError, match=rf"no preset .*; there are {re.escape(str(list(presets())))}"):
        with_preset({"preset": name})
