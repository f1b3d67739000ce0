"""Images generated into a folder: the same whatever cut the work or how many processes shared it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from immiscible_diffusion import MLP, Denoising, Pixels, Trained, generate, samples
from immiscible_diffusion.checkpoint import export, load_export
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.samples import Asked, write_samples

ASKED = Asked(steps=2, seed=3, labels=(1, 2, 0))


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
    export(trained, tmp_path / "export", net=described, classes=3, about={"coupling": "independent"})
    return tmp_path / "export"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def written(model: Path, folder: Path, n: int, asked: Asked = ASKED, workers: int = 1) -> list[int]:
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
    assert written(model, tmp_path / "cut", 10) == [0, 4, 8, 10]
    assert (tmp_path / "cut" / "000003.png").stat().st_mtime_ns > kept  # a part is made as a whole
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert written(model, tmp_path / "cut", 10) == [10]


def test_two_processes_write_the_same_bytes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(model, tmp_path / "one", 10)
    assert written(model, tmp_path / "two", 10, workers=2)[-1] == 10
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.usefixtures("unchecked")
def test_another_choice_or_model_is_refused(model: Path, tmp_path: Path) -> None:
    written(model, tmp_path / "out", 4)
    with pytest.raises(ValueError, match="another model or another choice"):
        written(model, tmp_path / "out", 4, Asked(steps=3, seed=3, labels=(1, 2, 0)))
    with pytest.raises(ValueError, match="no sampler"):
        written(model, tmp_path / "new", 4, Asked(steps=2, sampler="magic"))


def test_the_sampler_is_the_one_asked_for(model: Path, tmp_path: Path) -> None:
    written(model, tmp_path / "ddim", 4)
    written(model, tmp_path / "heun", 4, Asked(steps=2, seed=3, labels=(1, 2, 0), sampler="heun"))
    ddim, heun = files(tmp_path / "ddim"), files(tmp_path / "heun")
    assert ddim["000000.png"] != heun["000000.png"]
