import shutil
from pathlib import Path

import pytest
import torch

from immiscible_diffusion import (
    MLP,
    Betas,
    Denoising,
    Digits,
    Independent,
    Nearest,
    Pixels,
    Straight,
    Train,
    Trained,
    UNet,
    checkpoint,
    fit,
    generate,
    new_state,
)
from immiscible_diffusion.priors import Gaussian, StandardNormal
from immiscible_diffusion.train import State

CONFIG = Train(steps=3)
CHANNELS = UNet(channels=(8, 16))


def trained_state() -> State:
    torch.manual_seed(0)
    state = new_state(MLP(width=8, depth=1).build((1, 8, 8), None), CONFIG)
    list(fit(state, Digits(), Pixels(), Independent(), Denoising(), CONFIG))
    return state


def empty_state() -> State:
    return new_state(MLP(width=8, depth=1).build((1, 8, 8), None), CONFIG)


def test_a_crash_in_mid_write_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = trained_state()
    checkpoint.save(state, tmp_path)
    state.step = 4

    def crash(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", crash)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(state, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000003"]
    loaded = empty_state()
    assert checkpoint.load_newest(loaded, tmp_path)
    assert loaded.step == 3


@pytest.mark.parametrize("damage", ["truncate", "remove", "not json"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path: Path, damage: str) -> None:
    state = trained_state()
    checkpoint.save(state, tmp_path)
    state.step = 4
    newest = checkpoint.save(state, tmp_path)
    file = newest / ("state.json" if damage == "not json" else "optimizer.safetensors")
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:20])
    loaded = empty_state()
    with pytest.warns(UserWarning, match="step-000000004 cannot be used"):
        assert checkpoint.load_newest(loaded, tmp_path)
    assert loaded.step == 3


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    state = trained_state()
    for step in range(3, 8):
        state.step = step
        checkpoint.save(state, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000006", "step-000000007"]


def test_an_empty_folder_holds_no_checkpoint(tmp_path: Path) -> None:
    assert not checkpoint.load_newest(empty_state(), tmp_path)


def exported(folder: Path, method: Denoising, *, prior: Gaussian | StandardNormal) -> Trained:
    torch.manual_seed(1)
    net = CHANNELS.build((1, 8, 8), None).eval()
    model = Trained(net, method, Pixels(), prior, (1, 8, 8))
    checkpoint.export(model, folder, net=CHANNELS, classes=None, about={"steps": 0})
    return model


def test_an_exported_model_samples_the_same_images(tmp_path: Path) -> None:
    prior = Nearest(8, "dot").prior([torch.randn(50, 1, 8, 8) + 1])
    assert isinstance(prior, Gaussian)
    model = exported(tmp_path / "model", Denoising(Straight(), "velocity"), prior=prior)
    loaded = checkpoint.load_export(tmp_path / "model")
    ours, theirs = (torch.cat(list(generate(each, 5, steps=3))) for each in (model, loaded))
    assert torch.equal(ours, theirs)
    plain = torch.cat(list(generate(loaded, 5, steps=3, start="normal")))
    assert not torch.equal(ours, plain)


def test_diffusers_loads_the_export_and_draws_the_same_image(tmp_path: Path) -> None:
    from diffusers import DDIMPipeline

    model = exported(tmp_path / "model", Denoising(Betas(), "eps"), prior=StandardNormal())
    pipeline = DDIMPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(generator=torch.Generator().manual_seed(3), num_inference_steps=5, output_type="np").images
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    ours = model.method.sample(model.net, noise, steps=5)
    theirs = torch.from_numpy(image).permute(0, 3, 1, 2)
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, atol=1e-3, rtol=1e-3)


def test_diffusers_loads_the_unet_and_the_scheduler_of_a_flow(tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel

    model = exported(tmp_path / "model", Denoising(Straight(), "velocity"), prior=StandardNormal())
    unet = UNet2DModel.from_pretrained(tmp_path / "model" / "unet")
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "model" / "scheduler")
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    scheduler.set_timesteps(sigmas=[1 - i / 4 for i in range(4)])
    x_t = noise
    with torch.no_grad():
        for t in scheduler.timesteps:
            x_t = scheduler.step(unet(x_t, t).sample, t, x_t).prev_sample
    torch.testing.assert_close(model.method.sample(model.net, noise, steps=4), x_t, atol=1e-4, rtol=1e-4)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        checkpoint.load_export(tmp_path)
    exported(tmp_path / "model", Denoising(), prior=StandardNormal())
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot read"):
        checkpoint.load_export(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")


def test_a_file_cannot_name_code_to_run(tmp_path: Path) -> None:
    exported(tmp_path / "model", Denoising(), prior=StandardNormal())
    index = tmp_path / "model" / "immiscible.json"
    index.write_text(index.read_text().replace('"use": "unet"', '"use": "subprocess:Popen"'))
    with pytest.raises(ValueError, match="is not registered"):
        checkpoint.load_export(tmp_path / "model")
