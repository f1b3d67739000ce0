"""Images generated into a folder: the same whatever cut the work or how many processes shared it."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from immiscible_diffusion import MLP, Denoising, Pixels, Trained, generate, registry
from immiscible_diffusion.export.model import load_export, save_export
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.runs import write_samples as samples
from immiscible_diffusion.runs.write_samples import SamplingOptions, write_samples

pytestmark = pytest.mark.medium

ASKED = SamplingOptions(steps=2, seed=3, labels=(1, 2, 0))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_PART", 4)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    described = MLP(width=16, conditional=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = described.build((3, 4, 4), 3)
        for weight in net.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    trained = Trained(net.eval(), Denoising(), Pixels(), StandardNormal(), (3, 4, 4))
    save_export(trained, tmp_path / "export", net=described, classes=3, about={"coupling": "independent"})
    return tmp_path / "export"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def written(model: Path, folder: Path, n: int, asked: SamplingOptions = ASKED, workers: int = 1) -> list[int]:
    return list(write_samples(model, folder, n, asked, workers=workers, device="cpu"))


def test_png_and_npz_hold_the_images_that_generate_yields(model: Path, tmp_path: Path) -> None:
    assert written(model, tmp_path / "out", 10) == [0, 4, 8, 10]
    cond = torch.tensor([1, 2, 0] * 4)[:10]
    expected = torch.cat(list(generate(load_export(model), 10, steps=2, seed=3, cond=cond, batch=4)))
    with np.load(tmp_path / "out" / "samples.npz") as stored:
        assert np.array_equal(stored["arr_0"], expected.permute(0, 2, 3, 1).numpy())
    with Image.open(tmp_path / "out" / "000007.png") as image:
        assert np.array_equal(np.asarray(image), expected[7].permute(1, 2, 0).numpy())
    assert len({expected[i].numpy().tobytes() for i in range(10)}) == 10
    assert not torch.equal(next(generate(load_export(model), 10, steps=2, seed=3, cond=cond.roll(1))), expected)


def test_what_was_cut_goes_on_and_ends_with_the_same_bytes(model: Path, tmp_path: Path) -> None:
    written(model, tmp_path / "whole", 10)
    cut = write_samples(model, tmp_path / "cut", 10, ASKED, workers=1, device="cpu")
    assert [next(cut), next(cut)] == [0, 4]
    cut.close()  # type: ignore[attr-defined]
    (tmp_path / "cut" / "000001.png").unlink()
    kept = (tmp_path / "cut" / "000003.png").stat().st_mtime_ns
    assert written(model, tmp_path / "cut", 10) == [3, 4, 8, 10]
    assert (tmp_path / "cut" / "000003.png").stat().st_mtime_ns == kept
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert written(model, tmp_path / "cut", 10) == [10]


def test_a_damaged_image_is_named_and_made_again_once_removed(model: Path, tmp_path: Path) -> None:
    written(model, tmp_path / "whole", 6)
    written(model, tmp_path / "out", 6)
    image = tmp_path / "out" / "000002.png"
    for content in (image.read_bytes()[:40], b"", b"text", (tmp_path / "whole" / "grid.png").read_bytes()):
        image.write_bytes(content)
        with pytest.raises(ValueError, match=r"000002\.png.*the same command makes it again"):
            written(model, tmp_path / "out", 6)
        image.unlink()
        written(model, tmp_path / "out", 6)
        assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_images_of_anyone_else_are_not_taken_for_ones_own(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "out" / "000000.png")
    with pytest.raises(ValueError, match="images that no call of this made"):
        written(model, tmp_path / "out", 6)


def test_a_refused_call_does_not_claim_its_folder(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing"):
        written(model, tmp_path / "out", 6, SamplingOptions(steps=2, labels=(0,), sampler="nothing"))
    written(model, tmp_path / "out", 6)
    with pytest.raises(ValueError, match="another choice"):  # control: images do claim it
        written(model, tmp_path / "out", 6, SamplingOptions(steps=3, labels=(0,)))


class Watched:
    """Generates as it should, and notes how many at once."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def generate(self, trained: Trained, n: int, **options: Any) -> Iterator[Tensor]:
        self.seen.append(n)
        return generate(trained, n, **options)


def test_a_larger_n_adds_images_and_changes_none(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    monkeypatch.setattr(samples, "generate", watched.generate)
    written(model, tmp_path / "out", 6)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("0*.png")}
    assert len(before) == 6
    assert written(model, tmp_path / "out", 9) == [6, 8, 9]
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before} == before
    assert watched.seen == [4, 2, 4, 1]  # what was begun is computed whole, and what lacked is written
    written(model, tmp_path / "at once", 9)
    assert files(tmp_path / "out") == files(tmp_path / "at once")


OWN = """
from dataclasses import dataclass
from immiscible_diffusion import MLP
from immiscible_diffusion.registry import register

@register("net")
@dataclass(frozen=True)
class NetOfOnesOwn:
    width: int = 8
    def condition(self, classes):
        return "nothing"
    def build(self, shape, classes):
        return MLP(width=self.width).build(shape, classes)
    def save(self, net, folder):
        MLP(width=self.width).save(net, folder)
    def load(self, folder, shape, classes):
        return MLP(width=self.width).load(folder, shape, classes)
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a net whose module has to be imported in each."""
    (tmp_path / "own_module.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry._registered, "net", dict(registry._registered["net"]))
    described = importlib.import_module("own_module").NetOfOnesOwn()
    trained = Trained(described.build((1, 4, 4), None).eval(), Denoising(), Pixels(), StandardNormal(), (1, 4, 4))
    save_export(trained, tmp_path / "own", net=described, classes=None, about={})
    for name, folder, choice in (("a", model, ASKED), ("b", tmp_path / "own", SamplingOptions(steps=2))):
        written(folder, tmp_path / f"{name} one", 10, choice)
        assert written(folder, tmp_path / f"{name} two", 10, choice, workers=2)[-1] == 10
        assert files(tmp_path / f"{name} one") == files(tmp_path / f"{name} two")


def test_a_process_loads_the_model_once(model: Path, tmp_path: Path) -> None:
    samples._loaded.cache_clear()
    for first in (0, 4):
        samples._work(model, tmp_path, samples._Part(first, 4, [first]), ASKED, "cpu", [])
    assert (samples._loaded.cache_info().misses, samples._loaded.cache_info().hits) == (1, 1)
    samples._loaded.cache_clear()


@pytest.mark.usefixtures("unchecked")
def test_another_choice_or_model_is_refused(model: Path, tmp_path: Path) -> None:
    written(model, tmp_path / "out", 4)
    with pytest.raises(ValueError, match="another model or another choice"):
        written(model, tmp_path / "out", 4, SamplingOptions(steps=3, seed=3, labels=(1, 2, 0)))
    with pytest.raises(ValueError, match=r"method\.sampler is 'magic'; it must be one of"):
        written(model, tmp_path / "new", 4, SamplingOptions(steps=2, sampler="magic"))


@pytest.mark.usefixtures("unchecked")
def test_other_weights_under_the_same_index_are_another_model(model: Path, tmp_path: Path) -> None:
    index = (model / "immiscible.json").read_bytes()
    written(model, tmp_path / "out", 4)
    trained = load_export(model)
    with torch.no_grad():
        next(trained.net.parameters()).add_(1.0)
    other = MLP(width=16, conditional=True)
    save_export(trained, model, net=other, classes=3, about={"coupling": "independent"})
    assert (model / "immiscible.json").read_bytes() == index
    with pytest.raises(ValueError, match="another model or another choice"):
        written(model, tmp_path / "out", 8)
    assert written(model, tmp_path / "new", 4) == [0, 4]  # control: another folder


def test_the_sampler_is_the_one_asked_for(model: Path, tmp_path: Path) -> None:
    written(model, tmp_path / "ddim", 4)
    written(model, tmp_path / "heun", 4, SamplingOptions(steps=2, seed=3, labels=(1, 2, 0), sampler="heun"))
    ddim, heun = files(tmp_path / "ddim"), files(tmp_path / "heun")
    assert ddim["000000.png"] != heun["000000.png"]
