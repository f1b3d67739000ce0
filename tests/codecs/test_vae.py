import hashlib
import io
import json
import math
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from immiscible_diffusion.codecs import _autoencoder
from immiscible_diffusion.codecs.vae import VAE
from immiscible_diffusion.registry import describe, make

pytestmark = pytest.mark.medium

Shared = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _nothing_cached() -> None:
    for cached in (_autoencoder.folder, _autoencoder.config, _autoencoder._load):
        cached.cache_clear()


@pytest.fixture(scope="module")
def kl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small AutoencoderKL with random weights that halves the sides once."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=3,
            scaling_factor=0.5,
            shift_factor=0.25,
        )
    folder = tmp_path_factory.mktemp("kl")
    model.save_pretrained(folder)
    return folder


def photographs(folder: Path, count: int, side: int) -> Tensor:
    """Return images of imagenette, central squares resized to this side, (count, 3, side, side), uint8."""
    parquet = pytest.importorskip("pyarrow.parquet")
    cells = next(parquet.ParquetFile(next(folder.glob("*.parquet"))).iter_batches(count, columns=["image"]))
    opened = [Image.open(io.BytesIO(cell["bytes"])).convert("RGB") for cell in cells["image"].to_pylist()]
    images = [np.array(each.resize((side, side), Image.Resampling.LANCZOS)) for each in opened]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the mean over images of the peak signal-to-noise ratio, in dB."""
    return float((10 * torch.log10(255**2 / (a.float() - b.float()).square().mean((1, 2, 3)))).mean())


@pytest.mark.parametrize(
    ("side", "count", "bound"),
    # measured 20.07 and 22.77 dB; smaller images lose more: 23.9 dB at 256 pixels
    [(64, 8, 19.5), pytest.param(224, 4, 22.2, marks=pytest.mark.slow)],
)
def test_photographs_come_back(shared_data: Shared, side: int, count: int, bound: float) -> None:
    codec = VAE(str(shared_data("taesd")))
    images = photographs(shared_data("imagenette"), count, side)
    x = codec.encode(images)
    assert x.shape == (count, 4, side // 8, side // 8)
    assert psnr(codec.decode(x), images) > bound
    # controls: the means of 8 x 8 pixels, a wrong scale, another image's latent, and a turned sign
    pooled = torch.nn.functional.avg_pool2d(images.float(), 8)
    assert psnr(torch.nn.functional.interpolate(pooled, scale_factor=8.0), images) < bound
    assert psnr(codec.decode(1.3 * x), images) < bound
    assert psnr(codec.decode(x.roll(1, 0)), images) < 12
    assert psnr(codec.decode(-x), images) < 12


def test_the_posterior_and_its_scale_are_diffusers_own(kl: Path) -> None:
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(kl, low_cpu_mem_usage=False)
    codec, images = VAE(str(kl), batch=2), noise(5, 3, 8, 12)
    with torch.no_grad():
        posterior = model.encode(images / 127.5 - 1).latent_dist
        decoded = model.decode(posterior.mean).sample
    mean, std = codec.moments(images)
    assert std is not None
    torch.testing.assert_close(mean, posterior.mean)
    torch.testing.assert_close(std, posterior.std)
    x = codec.encode(images)
    torch.testing.assert_close(x, (posterior.mean - 0.25) * 0.5)
    assert x.dtype == torch.float32
    ours, expected = codec.decode(x), ((decoded / 2 + 0.5).clamp(0, 1) * 255).round()
    assert (ours.float() - expected).abs().max() <= 1  # a half rounds either way


def test_images_are_encoded_and_latents_only_scaled(kl: Path) -> None:
    codec, images = VAE(str(kl)), noise(4, 3, 8, 8)
    mean, _ = codec.moments(images)
    torch.testing.assert_close(codec.encode(mean), codec.encode(images))
    assert torch.equal(codec.encode(mean.double()).double(), codec.encode(mean).double())


def test_latents_need_no_weights(kl: Path, tmp_path: Path) -> None:
    shutil.copy(kl / "config.json", tmp_path)
    latents = torch.randn(2, 3, 4, 4)
    assert torch.equal(VAE(str(tmp_path)).encode(latents), (latents - 0.25) * 0.5)
    with pytest.raises(ValueError, match=r"no diffusion_pytorch_model\.safetensors"):
        VAE(str(tmp_path)).encode(noise(2, 3, 8, 8))


def test_scale_and_shift_can_be_overridden_by_channel(kl: Path) -> None:
    images = noise(4, 3, 8, 8)
    mean, _ = VAE(str(kl)).moments(images)
    torch.testing.assert_close(VAE(str(kl), scale=2.0).encode(images), (mean - 0.25) * 2)
    torch.testing.assert_close(VAE(str(kl), shift=-1.0).encode(images), (mean + 1) * 0.5)
    codec = VAE(str(kl), scale=(1.0, 2.0, 3.0), shift=(0.0, 1.0, 2.0))
    factors = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)
    torch.testing.assert_close(codec.encode(images), (mean - (factors - 1)) * factors)
    torch.testing.assert_close(codec.decode(codec.encode(images)), VAE(str(kl)).decode(VAE(str(kl)).encode(images)))
    with pytest.raises(ValueError, match="scale has 2 values; it must have 1 or 3"):
        VAE(str(kl), scale=(1.0, 2.0)).encode(images)


@pytest.mark.parametrize(
    ("config", "scale", "shift"),
    [
        ({"_class_name": "AutoencoderKL"}, (0.18215,), (0.0,)),  # as older folders are
        ({"_class_name": "AutoencoderTiny"}, (1.0,), (0.0,)),
        ({"_class_name": "AutoencoderKL", "scaling_factor": 0.3611, "shift_factor": 0.1159}, (0.3611,), (0.1159,)),
        (
            {"_class_name": "AutoencoderKL", "scaling_factor": 0.5, "latents_mean": [1, 2], "latents_std": [2.0, 4.0]},
            (0.25, 0.125),
            (1, 2),
        ),
    ],
)
def test_factors_are_read_as_diffusers_pipelines_read_them(
    config: dict[str, Any], scale: tuple[float, ...], shift: tuple[float, ...]
) -> None:
    assert _autoencoder.factors(config) == (scale, shift)


def test_batches_change_nothing_but_last_bits(kl: Path) -> None:
    images = noise(7, 3, 8, 8)
    one, many = VAE(str(kl), batch=1), VAE(str(kl), batch=7)
    torch.testing.assert_close(one.encode(images), many.encode(images))
    assert (one.decode(many.encode(images)).int() - many.decode(many.encode(images)).int()).abs().max() <= 1


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 0.005), ("bf16", 0.05)])
def test_half_precision_is_near(kl: Path, dtype: Any, tolerance: float) -> None:
    images = noise(4, 3, 8, 8)
    exact, near = VAE(str(kl)).encode(images), VAE(str(kl), dtype=dtype).encode(images)
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, exact, rtol=0, atol=tolerance)
    assert not torch.equal(near, exact)


def test_channels_last_computes_the_same(kl: Path) -> None:
    plain, last = VAE(str(kl)), VAE(str(kl), channels_last=True)
    images = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    latents = plain.encode(images)
    torch.testing.assert_close(last.encode(images), latents)
    assert (last.decode(latents).int() - plain.decode(latents).int()).abs().max() <= 1
    models = [codec._model(images) for codec in (plain, last)]
    assert [model.encoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last) for model in models] == [
        False,
        True,
    ]


def test_an_overflow_is_an_error(kl: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(kl, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    save_file({k: v * (1e6 if k.startswith("quant_conv") else 1) for k, v in weights.items()},
              tmp_path / "diffusion_pytorch_model.safetensors")  # fmt: skip
    assert bool(VAE(str(tmp_path)).encode(noise(1, 3, 8, 8)).isfinite().all())
    message = r"gives NaN or infinity in fp16 for image 0 and 1 more of its batch, counted from 0; try codec.dtype fp32"
    with pytest.raises(ValueError, match=message):
        VAE(str(tmp_path), dtype="fp16").encode(noise(2, 3, 8, 8))


def test_an_overflow_names_the_image(kl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = VAE(str(kl), batch=2)
    model = codec._model(noise(1, 3, 8, 8))
    encode = model.encode

    def overflowing(images: torch.Tensor) -> Any:
        """Give infinity for white images, as a deeper encoder in fp16 may."""
        encoded = encode(images)
        encoded.latent_dist.mean[images.flatten(1).min(1).values == 1] = torch.inf
        return encoded

    monkeypatch.setattr(model, "encode", overflowing)
    images = noise(5, 3, 8, 8)
    assert codec.encode(images).isfinite().all()
    images[3] = 255
    with pytest.raises(ValueError, match=r"for image 3 of its batch, counted from 0"):
        codec.encode(images)


def test_weights_are_read_once_and_the_global_generator_is_left_alone(
    kl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    calls, load = [], diffusers.AutoencoderKL.from_pretrained

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(options)
        return load(*args, **options)

    monkeypatch.setattr(diffusers.AutoencoderKL, "from_pretrained", counted)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    codec = VAE(str(kl))
    assert not calls
    threads = [threading.Thread(target=codec.encode, args=(noise(2, 3, 8, 8),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    VAE(str(kl), batch=1).decode(codec.encode(noise(2, 3, 8, 8)))
    assert len(calls) == 1
    assert calls[0]["use_safetensors"] is True
    assert torch.equal(torch.get_rng_state(), before)


def test_the_fingerprint_is_the_weights_own(kl: Path, shared_data: Shared) -> None:
    digest = hashlib.sha256((kl / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
    about = VAE(str(kl), scale=3.0).fingerprint()
    assert about == {
        "class": "AutoencoderKL",
        "weights_sha256": digest,
        "dtype": "fp32",
        "scale": [0.5],
        "shift": [0.25],
    }
    assert VAE(str(shared_data("taesd"))).fingerprint()["weights_sha256"] != digest


def test_a_tiny_autoencoder_has_no_posterior(shared_data: Shared) -> None:
    mean, std = VAE(str(shared_data("taesd"))).moments(noise(2, 3, 16, 16))
    assert std is None
    assert mean.shape == (2, 4, 2, 2)


def test_a_whole_pipeline_and_a_sharded_checkpoint(kl: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    images = noise(2, 3, 8, 8)
    (tmp_path / "model_index.json").write_text("{}")
    AutoencoderKL.from_pretrained(kl, low_cpu_mem_usage=False).save_pretrained(tmp_path / "vae", max_shard_size="20KB")
    assert len(list((tmp_path / "vae").glob("*.safetensors"))) > 1
    codec = VAE(str(tmp_path), subfolder="vae")
    torch.testing.assert_close(codec.encode(images), VAE(str(kl)).encode(images))
    assert codec.fingerprint()["weights_sha256"] != VAE(str(kl)).fingerprint()["weights_sha256"]
    with pytest.raises(ValueError, match="a whole pipeline needs subfolder = 'vae'"):
        VAE(str(tmp_path)).encode(images)


def test_a_name_on_the_hub_is_found_in_its_cache(kl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "models--somebody--kl"
    shutil.copytree(kl, cache / "snapshots" / commit / "vae")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_OFFLINE", True)
    codec, images = VAE("somebody/kl", subfolder="vae"), noise(2, 3, 8, 8)
    assert torch.equal(codec.encode(images), VAE(str(kl)).encode(images))
    assert torch.equal(VAE("somebody/kl", subfolder="vae", revision=commit).encode(images), codec.encode(images))
    with pytest.raises(ValueError, match="there is no folder nobody/kl, and the hub does not give it"):
        VAE("nobody/kl").encode(images)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "a vae needs path"),
        ({"dtype": "int8"}, "no dtype named 'int8'"),
        ({"batch": 0}, "batch is 0"),
        ({"scale": 0.0}, "scale is 0.0; it must be finite and not zero"),
        ({"scale": (1.0, math.nan)}, "scale is"),
        ({"shift": math.inf}, "shift is inf"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VAE(**{"path": "x/y", **options})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (noise(2, 1, 8, 8), r"images are \(1, 8, 8\); .* takes 3 channels"),
        (noise(2, 3, 8, 9), "sides that are multiples of 2"),
        (torch.zeros(2, 4, 8, 8), r"latents have shape \(2, 4, 8, 8\); .* has \(b, 3, h, w\)"),
        (torch.zeros(2, 3), r"latents have shape \(2, 3\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.long), "it must be uint8 images or floating latents"),
    ],
)
def test_data_that_do_not_fit_are_named(kl: Path, raw: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VAE(str(kl)).encode(raw)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncate", "cannot load the AutoencoderKL"),
        ("lack", "lacks 1 tensors"),
        ("pickle", r"has no diffusion_pytorch_model\.safetensors; other formats are not loaded"),
        ("class", "describes a Popen; a vae is one of"),
        ("json", r"cannot read .*config\.json"),
        ("config", r"no config\.json"),
        ("folder", "is no name on the hub"),
    ],
)
def test_damaged_folders_are_named(kl: Path, tmp_path: Path, damage: str, message: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "vae"
    shutil.copytree(kl, folder)
    weights, config = folder / "diffusion_pytorch_model.safetensors", folder / "config.json"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "lack":
        tensors = load_file(weights)
        del tensors["quant_conv.bias"]
        save_file(tensors, weights)
    elif damage == "pickle":
        torch.save(load_file(weights), weights.with_suffix(".bin"))
        weights.unlink()
    elif damage == "class":
        config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "Popen"}))
    elif damage == "json":
        config.write_text("{")
    elif damage == "config":
        config.unlink()
    else:
        shutil.rmtree(folder)
    with pytest.raises(ValueError, match=message):
        VAE(str(folder)).encode(noise(2, 3, 8, 8))


def test_a_missing_package_names_its_extra(kl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'immiscible-diffusion\[nets\]'"):
        VAE(str(kl)).encode(noise(2, 3, 8, 8))
    VAE(str(kl)).encode(torch.zeros(2, 3, 4, 4))  # stored latents need no diffusers


def test_an_experiment_file_can_name_it(kl: Path) -> None:
    codec = make("codec", {"use": "vae", "path": str(kl), "scale": [1.0, 2.0, 3.0], "dtype": "bf16"})
    assert codec == VAE(str(kl), scale=(1.0, 2.0, 3.0), dtype="bf16")
    assert make("codec", json.loads(json.dumps(describe("codec", codec)))) == codec
