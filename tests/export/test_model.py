"""Exports: what they hold, how they are read, and that diffusers and the Python of model cards draw our images."""

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from immiscible_diffusion import (
    MLP,
    VAE,
    Betas,
    Denoising,
    Nearest,
    Pixels,
    Straight,
    Trained,
    UNet,
    generate,
    load_export,
    make,
    register,
    registry,
    save_export,
)
from immiscible_diffusion.methods import Consistency, Edm
from immiscible_diffusion.priors import Gaussian, StandardNormal
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Codec, Method, Net, StockSampling

pytestmark = [
    pytest.mark.medium,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers' own, under NumPy 2
]

CHANNELS = UNet(channels=(8, 16))


def exported(folder: Path, method: Denoising, *, prior: Gaussian | StandardNormal) -> Trained:
    torch.manual_seed(1)
    net = CHANNELS.build((1, 8, 8), None).eval()
    model = Trained(net, method, Pixels(), prior, (1, 8, 8))
    save_export(model, folder, net=CHANNELS, classes=None, about={"steps": 0})
    return model


def test_an_exported_model_samples_the_same_images(tmp_path: Path) -> None:
    prior = Nearest(8, "dot").prior([torch.randn(50, 1, 8, 8) + 1])
    assert isinstance(prior, Gaussian)
    model = exported(tmp_path / "model", Denoising(Straight(), "velocity"), prior=prior)
    loaded = load_export(tmp_path / "model")
    ours, reloaded = (torch.cat(list(generate(trained, 5, steps=3))) for trained in (model, loaded))
    assert torch.equal(ours, reloaded)
    plain = torch.cat(list(generate(loaded, 5, steps=3, start="normal")))
    assert not torch.equal(ours, plain)


def test_diffusers_loads_the_export_and_draws_the_same_image(tmp_path: Path) -> None:
    from diffusers import DDIMPipeline, DDPMPipeline, DiffusionPipeline

    model = exported(tmp_path / "model", Denoising(Betas(), "eps"), prior=StandardNormal())
    for kind, stock in ((DiffusionPipeline, DDPMPipeline), (DDIMPipeline, DDIMPipeline)):
        pipeline = kind.from_pretrained(tmp_path / "model")
        assert type(pipeline) is stock
        pipeline.set_progress_bar_config(disable=True)
        image = pipeline(generator=torch.Generator().manual_seed(3), num_inference_steps=5, output_type="np").images
        noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        ours = model.method.sample(model.net, noise, steps=5)
        expected = torch.from_numpy(image).permute(0, 3, 1, 2)
        torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), expected, atol=1e-3, rtol=1e-3)


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
        load_export(tmp_path)
    exported(tmp_path / "model", Denoising(), prior=StandardNormal())
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot read"):
        load_export(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")


def test_a_file_cannot_name_code_to_run(tmp_path: Path) -> None:
    exported(tmp_path / "model", Denoising(), prior=StandardNormal())
    index = tmp_path / "model" / "immiscible.json"
    index.write_text(index.read_text().replace('"use": "unet"', '"use": "subprocess:Popen"'))
    with pytest.raises(ValueError, match="is not registered"):
        load_export(tmp_path / "model")


def test_a_module_is_imported_by_its_user_not_by_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control is the same name made as a user's own: then the module's code does run."""
    exported(tmp_path / "model", Denoising(), prior=StandardNormal())
    (tmp_path / "payload.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    index = tmp_path / "model" / "immiscible.json"
    whole = index.read_text()
    outer = json.loads(whole)
    for kind in ("net", "method", "codec"):
        index.write_text(json.dumps(outer | {kind: {"use": "payload:Thing"}}))
        with pytest.raises(ValueError, match=r"'payload:Thing' names a module .*: import it first"):
            load_export(tmp_path / "model")
    index.write_text(json.dumps(outer | {"method": outer["method"] | {"schedule": {"use": "payload:Thing"}}}))
    with pytest.raises(ValueError, match="schedule 'payload:Thing' names a module"):
        load_export(tmp_path / "model")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="cannot import net 'payload:Thing'"):
        make("net", "payload:Thing")
    assert (tmp_path / "ran").exists()
    monkeypatch.delitem(sys.modules, "payload")


def rgb(
    folder: Path,
    method: Method,
    *,
    time: Any = "levels",
    about: dict[str, Any] | None = None,
    codec: Codec = Pixels(),  # noqa: B008
    shape: tuple[int, ...] = (3, 8, 8),
) -> Trained:
    """Export a U-Net of random weights, for 8 x 8 colour images unless told otherwise."""
    torch.manual_seed(1)
    described = UNet(channels=(8, 16), time=time)
    net = described.build(shape, None).eval().requires_grad_(False)
    model = Trained(net, method, codec, StandardNormal(), shape, "assignment")
    save_export(model, folder, net=described, classes=None, about=about or {"steps": 7})
    return model


def examples(folder: Path) -> dict[str, str]:
    """Return the README's Python, by the sentence that stands above it."""
    text = (folder / "README.md").read_text(encoding="utf-8").replace("FOLDER", str(folder))
    found = dict(re.findall(r"^(\S[^\n]*):\n\n```python\n(.*?)```", text, re.M | re.S))
    assert len(found) >= 2
    return found


def the_noise(code: dict[str, str]) -> str:
    """Return the lines that draw the start's noise, which need no package of ours."""
    (said,) = (each for each in code if each.startswith("The noise of that start"))
    assert "immiscible_diffusion" not in code[said]
    return code[said]


def ran(example: str, **given: Any) -> dict[str, Any]:
    scope = dict(given)
    with torch.no_grad():
        exec(compile(example, "README.md", "exec"), scope)  # noqa: S102
    return scope


def as_floats(images: Any) -> Tensor:
    """Return PIL images, (n, c, h, w) in [0, 1]."""
    import numpy as np

    return torch.stack([torch.from_numpy(np.array(each).copy()) for each in images]).permute(0, 3, 1, 2) / 255


NOISE = torch.randn(1, 3, 8, 8, generator=stream(0, 0, "sample"))


@pytest.mark.parametrize(
    "method",
    [
        Denoising(Betas(), "eps"),
        Denoising(Betas(), "eps", clip=1.0),
        Denoising(Betas(), "eps", "dpmpp"),
        Denoising(Betas("scaled_linear", 1000, 0.00085, 0.012), "v", "dpmpp"),
    ],
    ids=["ddim", "ddim clipped", "dpmpp eps", "dpmpp v"],
)
def test_the_readme_of_an_export_of_pixels_runs_with_the_stock_pipeline(tmp_path: Path, method: Denoising) -> None:
    model = rgb(tmp_path / "model", method)
    ours = (model.method.sample(model.net, NOISE, steps=10) / 2 + 0.5).clamp(0, 1)
    code = examples(tmp_path / "model")
    image = ran(code["With diffusers, from N(0, I)"])["image"]
    torch.testing.assert_close(as_floats([image]), ours, atol=0.6 / 255, rtol=0)  # it rounds to 8 bits
    given = code["With diffusers, from given noise, which the pipeline does not take"]
    torch.testing.assert_close(ran(given, noise=NOISE)["x"] / 2 + 0.5, model_space(model, 10), atol=1e-3, rtol=1e-3)
    other = ran(given, noise=NOISE.flip(3))["x"]
    assert float((other / 2 + 0.5 - model_space(model, 10)).abs().max()) > 0.1  # control
    noise = ran(the_noise(code))["noise"]
    assert torch.equal(noise, NOISE)
    images = ran(code["With immiscible-diffusion, from the start named above"])["images"]
    assert images.shape == (16, 3, 8, 8)


def model_space(model: Trained, steps: int) -> Tensor:
    return model.method.sample(model.net, NOISE, steps=steps) / 2 + 0.5


CLIPPED = Denoising(Betas(), "eps", clip=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("method", [CLIPPED, Denoising(Betas(), "v", eta=0.7)], ids=["clip", "eta"])
def test_the_readme_hands_over_clipping_and_eta(tmp_path: Path, method: Denoising) -> None:
    model = rgb(tmp_path / "model", method)
    generator = stream(0, 0, "sample")
    noise = torch.randn(1, 3, 8, 8, generator=generator)
    ours = model.method.sample(model.net, noise, steps=10, generator=generator)
    code = examples(tmp_path / "model")
    pipeline = code["With diffusers, from N(0, I)"]
    pixels = (ours / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(as_floats([ran(pipeline)["image"]]), pixels, atol=0.6 / 255, rtol=0)
    given = code["With diffusers, from given noise, which the pipeline does not take"]
    if method.eta:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            x = ran(given, noise=noise)["x"]
        ours = model.method.sample(model.net, noise, steps=10, generator=torch.Generator().manual_seed(5))
    else:
        x = ran(given, noise=noise)["x"]
    torch.testing.assert_close(x, ours, atol=1e-3, rtol=1e-3)
    plain = re.sub(r", (eta|use_clipped_model_output)=[\w.]+", "", pipeline)
    assert float((as_floats([ran(plain)["image"]]) - pixels).abs().max()) > 5 / 255  # control


@pytest.mark.parametrize("method", [Consistency(), Consistency(sigma_min=0.01, sigma_max=20.0, rho=5.0)], ids=str)
def test_diffusers_loads_a_consistency_model_and_draws_the_same_images(tmp_path: Path, method: Consistency) -> None:
    from diffusers import ConsistencyModelPipeline

    model = rgb(tmp_path / "model", method, time="log_sigma")
    pipeline = ConsistencyModelPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    for steps in (1, 2, 5):
        generator = torch.Generator().manual_seed(3)
        expected = pipeline(num_inference_steps=steps, latents=NOISE, generator=generator, output_type="pt").images
        ours = method.sample(model.net, NOISE, steps=steps, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), expected, atol=1e-4, rtol=1e-4)
    code = examples(tmp_path / "model")
    ours = (method.sample(model.net, NOISE, steps=1) / 2 + 0.5).clamp(0, 1)
    given = ran(code["With diffusers, from given noise; it takes RGB images alone"], noise=NOISE)["images"]
    plain = ran(code["With diffusers, from N(0, I)"])["image"]
    for images in (given, [plain]):
        torch.testing.assert_close(as_floats(images), ours, atol=0.6 / 255, rtol=0)
    # Control: a net that counts its time in levels.
    counted = UNet(channels=(8, 16)).build((3, 8, 8), None).eval().requires_grad_(False)
    counted.load_state_dict(model.net.state_dict())
    assert float((method.sample(counted, NOISE, steps=1) - method.sample(model.net, NOISE, steps=1)).abs().max()) > 1e-3


@pytest.mark.parametrize(
    "method",
    [
        Denoising(),
        Edm(sampler="ddim"),
        Edm(sampler="dpmpp"),
    ],
    ids=["flow", "edm", "edm dpmpp"],
)
def test_the_readme_runs_where_diffusers_has_no_pipeline(tmp_path: Path, method: Denoising | Edm) -> None:
    model = rgb(tmp_path / "model", method, time="log_sigma" if isinstance(method, Edm) else "levels")
    assert not (tmp_path / "model" / "model_index.json").exists()
    code = examples(tmp_path / "model")["With diffusers, from given noise"]
    steps = 18 if isinstance(method, Edm) else 10
    x = ran(code, noise=NOISE)["x"]
    torch.testing.assert_close(x, method.sample(model.net, NOISE, steps=steps), atol=1e-3, rtol=1e-4)
    assert "diffusers has no pipeline" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "scheduler", "reason"),
    [
        (Denoising(Betas(), "eps", "heun"), "DPMSolverMultistepScheduler", "this model's sampler is another, 'heun'"),
        (Denoising(sampler="dpmpp"), "FlowMatchEulerDiscreteScheduler", "another, 'dpmpp' with eta 0.0"),
        (Denoising(eta=0.5), "FlowMatchEulerDiscreteScheduler", "another, 'ddim' with eta 0.5"),
        (Edm(), "EDMEulerScheduler", "another, 'heun' with churn 0.0"),
        (Edm(sampler="ddim", churn=20.0), "EDMEulerScheduler", "another, 'ddim' with churn 20.0"),
    ],
    ids=["heun", "flow dpmpp", "flow eta", "edm heun", "churn"],
)
def test_the_readme_says_where_diffusers_has_another_sampler(
    tmp_path: Path, method: Denoising | Edm, scheduler: str, reason: str
) -> None:
    model = rgb(tmp_path / "model", method, time="log_sigma" if isinstance(method, Edm) else "levels")
    assert not (tmp_path / "model" / "model_index.json").exists()
    text = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert reason in text
    assert "Diffusers draws the images of" not in text
    code = examples(tmp_path / "model")[f"With diffusers, from given noise, by {scheduler} instead"]
    assert f"from diffusers import {scheduler}" in code
    x = ran(code, noise=NOISE)["x"]
    generator = torch.Generator().manual_seed(0)
    ours = method.sample(model.net, NOISE, steps=18 if isinstance(method, Edm) else 10, generator=generator)
    assert x.shape == ours.shape
    assert float((x - ours).abs().max()) > 1e-3  # it is another indeed


@pytest.mark.parametrize(
    ("method", "time"), [(Denoising(Betas(), "eps"), "levels"), (Consistency(), "log_sigma")], ids=["ddim", "cm"]
)
def test_a_pipeline_is_for_pixels_of_the_usual_range(tmp_path: Path, method: Method, time: str) -> None:
    model = rgb(tmp_path / "model", method, time=time, codec=Pixels(120.1, 29.6))
    assert not (tmp_path / "model" / "model_index.json").exists()
    assert "pixels in [-1, 1], and this model's codec is another" in (tmp_path / "model" / "README.md").read_text()
    x = ran(examples(tmp_path / "model")["With diffusers, from given noise"], noise=NOISE)["x"]
    steps = 1 if isinstance(method, Consistency) else 10
    torch.testing.assert_close(x, method.sample(model.net, NOISE, steps=steps), atol=1e-3, rtol=1e-3)
    rgb(tmp_path / "usual", method, time=time)
    assert (tmp_path / "usual" / "model_index.json").exists()  # control


def test_a_unet_on_latents_takes_its_autoencoder_along(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    shutil.copytree(shared_data("taesd"), tmp_path / "taesd")
    codec = VAE(str(tmp_path / "taesd"))
    rgb(tmp_path / "model", Denoising(Betas(), "eps"), codec=codec, shape=(4, 8, 8))
    assert not (tmp_path / "model" / "model_index.json").exists()
    kept = next(generate(load_export(tmp_path / "model"), 2, steps=2))
    assert kept.shape == (2, 3, 64, 64)
    (tmp_path / "model").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "taesd")
    moved = load_export(tmp_path / "moved")
    assert torch.equal(next(generate(moved, 2, steps=2)), kept)
    assert moved.codec == VAE(str(tmp_path / "moved"), "vae")


def test_images_that_are_not_square_have_ddims_pipeline_alone(tmp_path: Path) -> None:
    noise = torch.randn(1, 3, 8, 16, generator=stream(0, 0, "sample"))
    model = rgb(tmp_path / "ddim", Denoising(Betas(), "eps"), shape=(3, 8, 16))
    ours = (model.method.sample(model.net, noise, steps=10) / 2 + 0.5).clamp(0, 1)
    image = ran(examples(tmp_path / "ddim")["With diffusers, from N(0, I)"])["image"]
    torch.testing.assert_close(as_floats([image]), ours, atol=0.6 / 255, rtol=0)
    model = rgb(tmp_path / "cm", Consistency(), time="log_sigma", shape=(3, 8, 16))
    assert not (tmp_path / "cm" / "model_index.json").exists()
    assert "draws squares alone, and this model's images have sides 8 and 16" in (tmp_path / "cm/README.md").read_text()
    x = ran(examples(tmp_path / "cm")["With diffusers, from given noise"], noise=noise)["x"]
    torch.testing.assert_close(x, model.method.sample(model.net, noise, steps=1), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("method", "time", "reason"),
    [
        (
            Consistency(),
            "levels",
            "the net's time is 'levels', and diffusers' loops for this method need 'log_sigma'",
        ),
        (Denoising(Betas(), "eps"), "log_sigma", "need 'levels'"),
        (Denoising(Betas(levels=100), "eps"), "levels", "the schedule has 100"),
        (Denoising(Betas(), "velocity"), "levels", "no scheduler that predicts 'velocity'"),
    ],
)
def test_no_pipeline_is_promised_that_would_sample_wrongly(
    tmp_path: Path, method: Method, time: str, reason: str
) -> None:
    model = rgb(tmp_path / "model", method, time=time)
    assert not (tmp_path / "model" / "model_index.json").exists()
    assert not (tmp_path / "model" / "scheduler").exists()
    assert reason in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    loaded = load_export(tmp_path / "model")
    assert torch.equal(loaded.method.sample(loaded.net, NOISE, steps=1), model.method.sample(model.net, NOISE, steps=1))
    assert (loaded.coupling, loaded.method) == ("assignment", method)


def test_a_conditional_model_is_sampled_with_its_labels(tmp_path: Path) -> None:
    described = UNet(channels=(8, 16), conditional=True)
    net = described.build((3, 8, 8), 4).eval().requires_grad_(False)
    method = Denoising(Betas(), "v")
    model = Trained(net, method, Pixels(), StandardNormal(), (3, 8, 8))
    save_export(model, tmp_path / "model", net=described, classes=4, about={})
    assert not (tmp_path / "model" / "model_index.json").exists()
    code = examples(tmp_path / "model")["With diffusers, from given noise"]
    for label in (0, 2):
        x = ran(code.replace("torch.tensor([0])", f"torch.tensor([{label}])"), noise=NOISE)["x"]
        ours = method.sample(net, NOISE, torch.tensor([label]), steps=10)
        torch.testing.assert_close(x, ours, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("described", "classes", "cond"),
    [
        (UNet(channels=(8, 16), conditional=True), 4, torch.arange(16) % 4),
        (MLP(width=8, conditional=True), 4, torch.arange(16) % 4),
        (UNet(channels=(8, 16), beside=2), None, torch.zeros(16, 2, 8, 8)),
        (MLP(width=8, beside=2), None, torch.zeros(16, 2)),
    ],
    ids=["unet", "mlp", "unet beside", "mlp beside"],
)
def test_the_readme_gives_a_net_the_condition_it_needs(
    tmp_path: Path, described: UNet | MLP, classes: int | None, cond: Tensor
) -> None:
    net = described.build((3, 8, 8), classes).eval().requires_grad_(False)
    model = Trained(net, Denoising(), Pixels(), StandardNormal(), (3, 8, 8))
    save_export(model, tmp_path / "model", net=described, classes=classes, about={})
    images = ran(examples(tmp_path / "model")["With immiscible-diffusion, from the start named above"])["images"]
    assert torch.equal(images, next(generate(model, 16, steps=10, cond=cond)))
    with pytest.raises(ValueError, match="there came none"):
        next(generate(model, 16, steps=10))


def test_the_readme_says_what_the_model_is(tmp_path: Path) -> None:
    about = {"source": {"use": "digits"}, "steps": 7, "commit": "abc123", "metrics": {"frechet": 1.5}, "odd": "a\n# b"}
    rgb(tmp_path / "model", Denoising(Betas(), "eps"), about=about)
    lines = (tmp_path / "model" / "README.md").read_text(encoding="utf-8").splitlines()
    assert {
        '- source: `{"use": "digits"}`',
        "- steps: `7`",
        '- commit: `"abc123"`',
        '- metrics: `{"frechet": 1.5}`',
    } <= set(lines)
    assert '- odd: `"a\\n# b"`' in lines  # a value cannot begin a line of its own
    prior = Nearest(8, "dot").prior([torch.randn(50, 1, 8, 8) + 1])
    assert isinstance(prior, Gaussian)
    model = exported(tmp_path / "matched", Denoising(Betas(), "eps"), prior=prior)
    text = (tmp_path / "matched" / "README.md").read_text(encoding="utf-8")
    assert "the Gaussian in `prior.safetensors`" in text
    code = examples(tmp_path / "matched")
    noise = ran(the_noise(code))["noise"]
    torch.testing.assert_close(noise, prior.sample((1, *model.shape), stream(0, 0, "sample")))
    assert float((noise - torch.randn(noise.shape, generator=stream(0, 0, "sample"))).abs().max()) > 0.1


@dataclasses.dataclass(frozen=True)
class Halved:
    """A method of one's own, of which stock diffusers knows one scheduler."""

    scheduler: str = "FlowMatchEulerDiscreteScheduler"

    def loss(self, net: Net, x: Tensor, noise: Tensor, cond: Tensor | None = None, **rest: Any) -> Tensor:
        return x.new_zeros(len(x))

    def sample(
        self, net: Net, noise: Tensor, cond: Tensor | None = None, *, steps: int, generator: Any = None
    ) -> Tensor:
        return noise / 2

    def stock_sampling(self) -> StockSampling:
        return StockSampling(self.scheduler, steps=3, why_none="" if self.scheduler else "nobody halves but us")


@dataclasses.dataclass(frozen=True)
class Silent:
    """A method that does not speak of diffusers."""

    loss, sample = Halved.loss, Halved.sample


def test_a_method_of_ones_own_says_how_diffusers_samples_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._registered, "method", dict(registry._registered["method"]))
    for method in (Halved, Silent):
        register("method")(method)
    rgb(tmp_path / "known", Halved())
    known = (tmp_path / "known" / "README.md").read_text(encoding="utf-8")
    assert "scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained" in known
    assert "scheduler.set_timesteps(3)" in known
    assert (tmp_path / "known" / "scheduler").is_dir()
    for mine, reason in ((Halved(""), "nobody halves but us"), (Silent(), "diffusers knows no method Silent")):
        rgb(tmp_path / "unknown", mine)
        assert f"No `model_index.json`: {reason}." in (tmp_path / "unknown" / "README.md").read_text(encoding="utf-8")
        assert not (tmp_path / "unknown" / "scheduler").exists()
    assert isinstance(load_export(tmp_path / "unknown").method, Silent)


def test_a_model_that_clips_its_data_is_warned_of(tmp_path: Path) -> None:
    clipped = Denoising(Betas(), "eps", clip=1.0)
    rgb(tmp_path / "usual", clipped)
    load_export(tmp_path / "usual")  # control: warnings are errors
    rgb(tmp_path / "wide", clipped, codec=Pixels(120.7, 64.2))
    with pytest.warns(UserWarning, match=r"wide: method\.clip is 1; data in model space reach from -1\.88 to 2\.09"):
        load_export(tmp_path / "wide")


def test_an_export_of_a_net_that_cannot_load_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb(tmp_path / "model", Denoising())
    load_export(tmp_path / "model")  # control
    monkeypatch.delattr(UNet, "load")
    with pytest.raises(ValueError, match="holds no model that can be loaded: 'UNet' object has no attribute 'load'"):
        load_export(tmp_path / "model")


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [("net", "layers", 10**9), ("net", "channels", [10**9]), ("classes", "", 10**9), ("shape", "", [3, 10**9, 8])],
)
def test_a_damaged_size_is_refused_before_anything_of_that_size_is_made(
    kind: str, key: str, value: Any, tmp_path: Path
) -> None:
    rgb(tmp_path / "model", Denoising())
    path = tmp_path / "model" / "immiscible.json"
    index = json.loads(path.read_text())
    if key:
        index[kind][key] = value
    else:
        index[kind] = value
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"immiscible.json is damaged: {kind}.*1000000000"):
        load_export(tmp_path / "model")
