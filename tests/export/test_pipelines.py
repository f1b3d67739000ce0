"""Runs of Stable Diffusion and DiT on stored latents, and diffusers' own pipelines over what they leave."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import tiny_pipeline
from immiscible_diffusion import (
    VAE,
    Betas,
    Denoising,
    Images,
    Latents,
    Nearest,
    Straight,
    Trained,
    cli,
    generate,
)
from immiscible_diffusion.data.latent_files import encode
from immiscible_diffusion.experiments.config import Config, read_config
from immiscible_diffusion.experiments.experiment import read_experiment
from immiscible_diffusion.export.model import load_export, save_export
from immiscible_diffusion.files import read_lines
from immiscible_diffusion.nets import Dit, UNetCondition, guided
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.runs.evaluation import evaluate
from immiscible_diffusion.runs.run import execute
from immiscible_diffusion.sample import with_guidance
from immiscible_diffusion.types import Method
from sweeps import sweep

pytestmark = [
    pytest.mark.medium,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers' own, under NumPy 2
]

NAMES = ("church", "golf ball", "tench")
NOISE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
BETAS = {"use": "betas", "kind": "scaled_linear", "first": 0.00085, "last": 0.012}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, shared_data: Callable[[str], Path]) -> Path:
    return tiny_pipeline.pipeline(tmp_path_factory.mktemp("base"), shared_data)


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """Return latents of plain images in three named classes."""
    folder = tmp_path_factory.mktemp("classes")
    for label, name in enumerate(NAMES):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.full((64, 64, 3), [80 * label, 20 * i, 128], np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
    source = Images(str(folder / "images"), size=64, held_out_rows=6)
    list(encode(source, VAE(str(base), "vae"), folder / "latents"))
    return folder / "latents"


@pytest.fixture(scope="session")
def captions(tmp_path_factory: pytest.TempPathFactory, base: Path, shared_data: Callable[[str], Path]) -> Path:
    """Return latents of 40 photographs with five captions each."""
    folder = tmp_path_factory.mktemp("captions")
    source = Images(str(shared_data("flickr8k-400")), size=64, held_out_rows=8, limit=40, caption="captions")
    list(encode(source, VAE(str(base), "vae"), folder / "latents"))
    return folder / "latents"


def config(base: Path, latents: Path, net: dict[str, Any], **changes: Any) -> Config:
    values: dict[str, Any] = {
        "source": {"use": "latents", "path": str(latents)},
        "codec": {"use": "vae", "path": str(base), "subfolder": "vae"},
        "coupling": "assignment",
        "method": {"use": "denoising", "schedule": BETAS, "predict": "eps"},
        "net": net,
        "train": {"steps": 2, "batch": 6, "warmup": 0},
        "evaluate": {"every": 2, "steps": [2], "samples": 4, "metrics": ["kernel"]},
    }
    return read_config({**values, **changes})


def run(config: Config, folder: Path) -> Trained:
    list(execute(config, folder, torch.device("cpu")))
    return load_export(folder / "export")


def stable_diffusion(folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tuned(base: Path, **options: Any) -> dict[str, Any]:
    return {"use": "unet_condition", "pretrained": str(base), "text": str(base), "conditional": True, **options}


def test_the_stock_pipeline_draws_what_our_sampler_draws(base: Path, classes: Path, tmp_path: Path) -> None:
    model = run(config(base, classes, tuned(base), evaluate=EVALUATE), tmp_path)
    pipeline = stable_diffusion(tmp_path / "export")
    labels = torch.tensor([2, 0])
    prompts = [NAMES[label] for label in labels]
    for scale in (1.0, 3.0):
        options = {"latents": NOISE, "num_inference_steps": 7, "guidance_scale": scale}
        expected = pipeline(prompts, output_type="latent", **options).images
        ours = model.method.sample(guided(model.net, scale), NOISE, labels, steps=7)
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)
        images = torch.from_numpy(pipeline(prompts, output_type="np", **options).images).permute(0, 3, 1, 2)
        torch.testing.assert_close(model.codec.decode(ours).float() / 255, images, atol=1.5 / 255, rtol=0)
    below = pipeline(prompts, **{**options, "guidance_scale": 0.5}, output_type="latent").images  # it guides above 1
    torch.testing.assert_close(model.method.sample(model.net, NOISE, labels, steps=7), below, atol=1e-3, rtol=1e-3)
    # Control: other weights, another guidance, the classes exchanged.
    begun = stable_diffusion(base)
    begun.scheduler = pipeline.scheduler
    for other in (
        begun(prompts, output_type="latent", **options).images,
        pipeline(prompts, output_type="latent", **{**options, "guidance_scale": 2.0}).images,
        pipeline(prompts[::-1], output_type="latent", **options).images,
    ):
        assert float((ours - other).abs().max()) > 0.02
    (line,) = read_lines(tmp_path / "evaluations.jsonl")
    assert line["sampling_steps"] == 2


EVALUATE = {"every": 2, "steps": [2], "samples": 4, "metrics": ["kernel"], "guidance": 2.0}


@pytest.mark.slow
def test_an_export_moves_to_another_place_and_is_tuned_further(base: Path, classes: Path, tmp_path: Path) -> None:
    """Nothing of an export points at the folders that it was made from."""
    first = run(config(base, classes, tuned(base)), tmp_path / "first")
    labels = torch.tensor([2, 0])
    kept = next(generate(first, 2, steps=3, cond=labels))
    (tmp_path / "first" / "export").rename(tmp_path / "moved")
    index = tmp_path / "moved" / "immiscible.json"
    index.write_text(index.read_text().replace(str(base), "/nowhere"))
    moved = load_export(tmp_path / "moved")
    assert torch.equal(next(generate(moved, 2, steps=3, cond=labels)), kept)
    slowly = {"steps": 2, "batch": 6, "warmup": 0, "lr": 1e-6}
    further = run(config(tmp_path / "moved", classes, tuned(tmp_path / "moved"), train=slowly), tmp_path / "second")
    begun = tiny(base)
    ours, before, other = (net(NOISE, torch.full((2,), 0.5), labels) for net in (further.net, moved.net, begun))
    assert 0 < float((ours - before).abs().max()) < 0.1 * float((ours - other).abs().max())


def tiny(base: Path) -> nn.Module:
    net = UNetCondition(pretrained=str(base), text=str(base), prompts=NAMES, conditional=True)
    return net.build((4, 8, 8), 3).eval().requires_grad_(False)


def test_captions_train_and_the_pipeline_takes_any_text(base: Path, captions: Path, tmp_path: Path) -> None:
    given = config(
        base, captions, tuned(base), coupling="conditional", train={"steps": 2, "batch": 6, "prefetch": True}
    )
    model = run(given, tmp_path)
    pipeline = stable_diffusion(tmp_path / "export")
    source = given.source
    assert isinstance(source, Latents)
    numbers = source.held_out().cond
    assert numbers is not None
    texts = source.caption_texts(numbers[:2])
    assert len(set(texts)) == 2
    assert all(len(text) > 10 for text in texts)
    states, _ = pipeline.encode_prompt(texts, "cpu", 1, False)
    ours = model.method.sample(guided(model.net, 3.0), NOISE, states, steps=4)
    expected = pipeline(texts, latents=NOISE, num_inference_steps=4, guidance_scale=3.0, output_type="latent").images
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)
    drawn = next(generate(with_guidance(model, 3.0), 2, steps=2, cond=states))
    assert drawn.shape == (2, 3, 64, 64)


@pytest.mark.slow
def test_lora_is_loaded_by_the_stock_pipeline(base: Path, classes: Path, tmp_path: Path) -> None:
    given = config(base, classes, tuned(base, lora=2), train={"steps": 3, "batch": 6, "warmup": 0, "lr": 0.05})
    model = run(given, tmp_path)
    labels, prompts = torch.tensor([2, 0]), [NAMES[2], NAMES[0]]
    options = {"latents": NOISE, "num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    ours = model.method.sample(guided(model.net, 3.0), NOISE, labels, steps=4)
    merged = stable_diffusion(tmp_path / "export")
    torch.testing.assert_close(ours, merged(prompts, **options).images, atol=2e-3, rtol=1e-3)
    begun = stable_diffusion(base)
    begun.scheduler = merged.scheduler
    before = begun(prompts, **options).images
    begun.load_lora_weights(tmp_path / "export" / "lora")
    torch.testing.assert_close(ours, begun(prompts, **options).images, atol=2e-3, rtol=1e-3)
    assert float((ours - before).abs().max()) > 0.05
    text = (tmp_path / "export" / "README.md").read_text()
    assert 'pipeline.load_lora_weights("FOLDER/lora")' in text


def exported(folder: Path, net: UNetCondition | Dit, classes: int | None, method: Method, codec: VAE) -> Trained:
    torch.manual_seed(0)
    built = net.build((4, 8, 8), classes).eval().requires_grad_(False)
    model = Trained(built, method, codec, StandardNormal(), (4, 8, 8))
    save_export(model, folder, net=net, classes=classes, about={})
    return model


DDPM = Denoising(Betas("scaled_linear", 1000, 0.00085, 0.012), "eps")
CLIPPED = Denoising(DDPM.schedule, "eps", clip=0.7)


@pytest.mark.parametrize("labels", [3, None])
def test_diffusers_loads_a_dit_and_draws_the_same_latents(base: Path, tmp_path: Path, labels: int | None) -> None:
    from diffusers import DiTPipeline

    net = Dit(depth=2, conditional=labels is not None)
    model = exported(tmp_path / "model", net, labels, DDPM, VAE(str(base), "vae"))
    pipeline = DiTPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.decode = lambda latents: type("Kept", (), {"sample": latents})  # it hands out no latents
    class_labels, scale = ([2, 0], 4.0) if labels else ([1000, 1000], 1.0)
    expected = pipeline(
        class_labels,
        generator=torch.Generator().manual_seed(5),
        num_inference_steps=4,
        guidance_scale=scale,
        output_type="pt",
    ).images
    for trained in (model, load_export(tmp_path / "model")):
        ours = trained.method.sample(guided(trained.net, scale), NOISE, torch.tensor(class_labels), steps=4)
        torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), expected, atol=1e-3, rtol=1e-3)
    other = trained.method.sample(trained.net, NOISE, torch.tensor([1, 1]), steps=4)
    assert labels is None or float(((other / 2 + 0.5).clamp(0, 1) - expected).abs().max()) > 0.02


@pytest.mark.parametrize(
    ("net", "method", "codec", "reason"),
    [
        (
            Dit(depth=1, conditional=True),
            Denoising(),
            {},
            "over DiTTransformer2DModel that samples by FlowMatch",
        ),
        (Dit(depth=1), DDPM, {"shift": 0.5}, "one scale and no shift"),
        (UNetCondition(channels=(8, 16), conditional=True), DDPM, {}, "has learned class tokens"),
        (UNetCondition(channels=(8, 16)), Denoising(Betas(), "velocity"), {}, "no scheduler that predicts 'velocity'"),
        (Dit(depth=1), CLIPPED, {}, "DiTPipeline does not pass use_clipped_model_output on"),
        (UNetCondition(channels=(8, 16)), CLIPPED, {}, "StableDiffusionPipeline does not pass use_clipped"),
        (Dit(depth=1), Denoising(DDPM.schedule, "eps", eta=0.5), {}, "DiTPipeline does not pass eta on"),
        (Dit(depth=1), Denoising(DDPM.schedule, "eps", "heun"), {}, "this model's sampler is another, 'heun'"),
    ],
    ids=["flow", "shift", "tokens", "velocity", "clip", "unet clip", "eta", "heun"],
)
def test_no_pipeline_is_promised_that_would_sample_wrongly(
    base: Path, tmp_path: Path, net: UNetCondition | Dit, method: Denoising, codec: dict[str, Any], reason: str
) -> None:
    model = exported(tmp_path / "model", net, 3, method, VAE(str(base), "vae", **codec))
    assert not (tmp_path / "model" / "model_index.json").exists()
    assert reason in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    loaded = load_export(tmp_path / "model")
    labels = torch.tensor([2, 0]) if net.conditional else None
    assert torch.equal(*(next(generate(trained, 2, steps=2, cond=labels)) for trained in (model, loaded)))


@pytest.mark.parametrize(
    "method",
    sweep([Denoising(DDPM.schedule, "eps", "dpmpp"), Denoising(DDPM.schedule, "eps", eta=0.5)], 2),
    ids=["dpmpp", "eta"],
)
def test_the_readme_draws_by_the_methods_own_sampler(base: Path, tmp_path: Path, method: Denoising) -> None:
    net = UNetCondition(pretrained=str(base), text=str(base), prompts=NAMES, conditional=True)
    model = exported(tmp_path / "model", net, 3, method, VAE(str(base), "vae"))
    text = (tmp_path / "model" / "README.md").read_text().replace("FOLDER", str(tmp_path / "model"))
    (code,) = re.findall(r"^With diffusers[^\n]*\n\n```python\n(.*?)```", text, re.M | re.S)

    def drawn(lines: str) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            scope: dict[str, Any] = {"noise": NOISE[:1]}
            exec(compile(lines, "README.md", "exec"), scope)  # noqa: S102
        return torch.from_numpy(np.array(scope["images"][0])).permute(2, 0, 1).int()

    generator = torch.Generator().manual_seed(6)
    ours = model.method.sample(guided(model.net, 7.5), NOISE[:1], torch.tensor([0]), steps=20, generator=generator)
    image = model.codec.decode(ours)[0].int()
    assert int((image - drawn(code)).abs().max()) <= 2
    # Control: the scheduler of DDIM's steps without fresh noise.
    exported(tmp_path / "model", net, 3, DDPM, VAE(str(base), "vae"))
    assert int((image - drawn(code.replace(", eta=0.5", ""))).abs().max()) > 2


def test_the_codecs_scale_is_the_pipelines(base: Path, tmp_path: Path) -> None:
    net = UNetCondition(pretrained=str(base), text=str(base), prompts=NAMES, conditional=True)
    model = exported(tmp_path / "model", net, 3, DDPM, VAE(str(base), "vae", scale=0.5))
    pipeline = stable_diffusion(tmp_path / "model")
    images = pipeline(NAMES[0], latents=NOISE[:1], num_inference_steps=3, guidance_scale=1.0, output_type="np").images
    ours = model.codec.decode(model.method.sample(model.net, NOISE[:1], torch.tensor([0]), steps=3))
    torch.testing.assert_close(ours.float() / 255, torch.from_numpy(images).permute(0, 3, 1, 2), atol=1.5 / 255, rtol=0)
    code = re.findall(
        r"^With diffusers[^\n]*\n\n```python\n(.*?)```", (tmp_path / "model" / "README.md").read_text(), re.M | re.S
    )
    assert len(code) == 1
    scope: dict[str, Any] = {"noise": NOISE[:1]}
    exec(compile(code[0].replace("FOLDER", str(tmp_path / "model")), "README.md", "exec"), scope)  # noqa: S102
    ours = model.codec.decode(model.method.sample(guided(model.net, 7.5), NOISE[:1], torch.tensor([0]), steps=20))
    drawn = torch.from_numpy(np.array(scope["images"][0])).permute(2, 0, 1)
    assert int((ours[0].int() - drawn.int()).abs().max()) <= 2


@pytest.mark.parametrize("cut", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_an_interrupted_run_ends_like_an_uninterrupted_one(base: Path, classes: Path, tmp_path: Path, cut: int) -> None:
    given = config(base, classes, tuned(base, drop=0.5), train={"steps": 4, "batch": 6, "warmup": 0})
    whole = run(given, tmp_path / "whole")
    begun = execute(given, tmp_path / "cut", torch.device("cpu"))
    for step in begun:
        if step == cut:
            break
    begun.close()
    ended = run(given, tmp_path / "cut")
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, ended.net.state_dict()[name])


def test_class_names_travel_through_stored_latents(classes: Path) -> None:
    assert Latents(str(classes)).class_names == NAMES


def test_a_straight_flow_trains_a_dit_on_latents(base: Path, classes: Path, tmp_path: Path) -> None:
    """Smoke: the whole path of `dit-flow`."""
    given = config(
        base, classes, {"use": "dit", "depth": 1, "conditional": True}, method="denoising", evaluate=EVALUATE
    )
    model = run(given, tmp_path)
    assert isinstance(model.method, Denoising)
    assert isinstance(model.method.schedule, Straight)
    images: Tensor = next(generate(with_guidance(model, 2.0), 2, steps=2, cond=torch.tensor([0, 1])))
    assert images.shape == (2, 3, 64, 64)


@pytest.mark.parametrize(
    "name",
    [
        "sd-class-conditional",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("sd-unconditional", "sd-fine-tuning", "dit-flow")),
    ],
)
@pytest.mark.slow
def test_the_experiments_run_on_the_smallest_scale(name: str, tmp_path: Path) -> None:
    """Smoke: a run of every experiment with noise paired by assignment, which its export can sample."""
    cells = {cell.arm: cell for cell in read_experiment(name).cells("smoke")}
    assert {"independent", "assignment", "nearest"} <= set(cells)
    assert ("assignment-per-class" in cells) == (name != "sd-unconditional")
    model = run(cells.get("assignment-per-class", cells["assignment"]).config, tmp_path)
    assert [line["step"] for line in read_lines(tmp_path / "evaluations.jsonl")] == [2, 4]
    assert next(generate(model, 3, steps=2)).shape == (3, 1, 8, 8)


@pytest.mark.usefixtures("unchecked")  # the check of a protocol would ask the source for its rows
@pytest.mark.parametrize(
    ("name", "batch", "steps", "rate"),
    [
        ("sd-class-conditional", 2048, 20_000, 1e-4),
        ("sd-unconditional", 512, 70_000, 1e-4),
        ("sd-fine-tuning", 512, 5000, 1e-5),
    ],
)
def test_the_papers_set_ups_are_written_down(name: str, batch: int, steps: int, rate: float) -> None:
    """Table 1 of arXiv:2406.12303, Table 9 of arXiv:2505.18521 and the authors' scripts."""
    configs = {cell.arm: cell.config for cell in read_experiment(name).cells("paper")}
    for setup in configs.values():
        assert (setup.train.batch, setup.train.steps, setup.train.lr, setup.train.clip) == (batch, steps, rate, 1.0)
        assert setup.train.batch % setup.train.accumulate == 0
        assert setup.evaluate.steps == (20,)
        method = setup.method
        assert method == DDPM
    assert configs["nearest"].coupling == Nearest(64)
    published = read_experiment(name).published
    assert published["note"]
    for row in published.get("rows", []):
        assert (row["arm"] in configs, row["train_steps"], row["sampling_steps"]) == (True, steps, 20)


def test_guidance_reaches_the_evaluation(base: Path, classes: Path, tmp_path: Path) -> None:
    given = config(
        base, classes, {"use": "dit", "depth": 1, "conditional": True}, evaluate={**EVALUATE, "guidance": 1.0}
    )
    model = run(given, tmp_path)

    def images(guidance: float) -> Tensor:
        guided_config = dataclasses.replace(given, evaluate=dataclasses.replace(given.evaluate, guidance=guidance))
        list(evaluate(model, guided_config, tmp_path / str(guidance)))
        with Image.open(tmp_path / str(guidance) / "steps-2-matched.png") as grid:
            return torch.from_numpy(np.array(grid)).permute(2, 0, 1)[:, :64, :64]

    labels = torch.arange(4) % 3
    for scale in (1.0, 5.0):
        assert torch.equal(images(scale), next(generate(with_guidance(model, scale), 4, steps=2, cond=labels))[0])
    assert not torch.equal(images(1.0), images(5.0))
    arguments = ["sample", str(tmp_path), "--n", "4", "--steps", "2", "--guidance", "5", "--device", "cpu"]
    assert cli.run(arguments) == 0
    with np.load(tmp_path / "generated" / "samples.npz") as stored:
        assert np.array_equal(stored["arr_0"][0], images(5.0).permute(1, 2, 0).numpy())
    with pytest.raises(ValueError, match=r"guidance is -1\.0; it must be finite and at least 0"):
        dataclasses.replace(given.evaluate, guidance=-1.0)


PAGE = (Path(__file__).parents[2] / "docs" / "stable-diffusion.md").read_text(encoding="utf-8")


def test_the_page_loads_an_export_as_written(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = UNetCondition(pretrained=str(base), text=str(base), prompts=NAMES, conditional=True)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    (folder,) = re.findall(r'from_pretrained\("(.*)"\)', code)
    (tmp_path / folder).mkdir(parents=True)
    exported(tmp_path / folder, net, 3, DDPM, VAE(str(base), "vae"))
    exec(compile(code, "stable-diffusion.md", "exec"), {})  # noqa: S102
    with Image.open(tmp_path / "tench.png") as image:
        assert image.size == (64, 64)


@pytest.mark.usefixtures("unchecked")
def test_the_page_describes_a_run(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.M | re.S)
    (tmp_path / "mine.toml").write_text(text)
    (cell,) = read_experiment(str(tmp_path / "mine.toml")).cells()
    assert cell.config.method == DDPM
    assert isinstance(cell.config.net, UNetCondition)
