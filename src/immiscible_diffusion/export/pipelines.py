"""Exports as whole pipelines: Stable Diffusion's and DiT's folders, which diffusers loads, and the way back."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from immiscible_diffusion.codecs import VAE, _autoencoder
from immiscible_diffusion.export.schedulers import FIRST_SEED, Layout, scheduler_of, scheduler_options
from immiscible_diffusion.files import read_json, read_tensors, write_json, write_tensors
from immiscible_diffusion.methods.denoising import Denoising
from immiscible_diffusion.nets import Dit, UNetCondition
from immiscible_diffusion.nets.text_encoder import text_encoder
from immiscible_diffusion.sample import Trained
from immiscible_diffusion.types import Codec

__all__ = ["load_pipeline_codec", "load_pipeline_net", "save_pipeline", "save_vae"]

_LEARNED = "class-tokens.safetensors"
_WEIGHTS = "diffusion_pytorch_model"

_STABLE_DIFFUSION = """\
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("FOLDER")
images = pipeline({prompt}, latents=noise, num_inference_steps=20, guidance_scale={guidance}{options}).images
"""
_LORA = """\
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained({base})
pipeline.load_lora_weights("FOLDER/lora")
images = pipeline({prompt}, latents=noise, num_inference_steps=20, guidance_scale={guidance}{options}).images
"""
_DIT = """\
import torch
from diffusers import DiTPipeline

pipeline = DiTPipeline.from_pretrained("FOLDER")
generator = torch.Generator().manual_seed({seed})
images = pipeline([{label}], num_inference_steps=20, guidance_scale={guidance}, generator=generator).images
"""


def save_pipeline(trained: Trained, net: UNetCondition | Dit, folder: Path) -> Layout:
    """Write the parts of a pipeline into a folder, and return what diffusers can do with them.

    Stable Diffusion: ``unet/`` (updates of LoRA merged in, and by themselves in ``lora/``), ``text_encoder/``,
    ``tokenizer/``, ``vae/``, ``scheduler/`` and ``model_index.json``, without a safety checker. DiT: ``transformer/``,
    ``vae/``, ``scheduler/`` and ``model_index.json``. The index is left out where a pipeline would sample wrongly.
    """
    (scheduler, other), why_not = scheduler_of(trained.method, time="levels"), ""
    model = _model(trained.net)
    if isinstance(net, Dit):
        model.save_pretrained(folder / "transformer")
    else:
        _save_unet(model, trained.net, folder, lora=net.lora)
        if net.text:
            text_encoder(net.text, net.revision).save(folder)
    if scheduler is not None:
        if "steps_offset" in scheduler.config:
            scheduler.register_to_config(steps_offset=1)  # without effect here, but the pipeline warns of another
        scheduler.save_pretrained(folder / "scheduler")
    if isinstance(trained.codec, VAE):
        why_not = save_vae(trained.codec, folder)
    why_not = _obstacle(trained, net, scheduler, other) or why_not
    if why_not:
        return Layout(scheduler, None, (), why_not)
    autoencoder = read_json(folder / "vae" / "config.json")["_class_name"]
    parts = {"scheduler": ["diffusers", type(scheduler).__name__], "vae": ["diffusers", autoencoder]}
    if isinstance(net, Dit):
        label, guidance = (0, 4.0) if net.conditional else (1000, 1.0)
        write_json(
            folder / "model_index.json",
            {"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"], **parts},
        )
        example = "from N(0, I)", _DIT.format(label=label, guidance=guidance, seed=FIRST_SEED)
        return Layout(scheduler, "DiTPipeline", (example,))
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            **parts,
        },
    )
    texts = net.prompts or ("a photograph",)
    told = {
        "prompt": json.dumps(texts[0] if net.conditional else ""),
        "guidance": 7.5 if net.conditional else 1.0,
        "options": scheduler_options(trained.method),
    }
    examples = [("from given noise", _STABLE_DIFFUSION.format(**told))]
    if (folder / "lora").exists():
        examples.append(("as LoRA on the model it began with", _LORA.format(base=json.dumps(net.pretrained), **told)))
    return Layout(scheduler, "StableDiffusionPipeline", tuple(examples))


def load_pipeline_net(net: UNetCondition | Dit, folder: Path, shape: tuple[int, ...], classes: int | None) -> nn.Module:
    """Return the net that ``save_pipeline`` wrote, with every part read from the folder.

    Raises:
        ValueError: a file is missing, damaged or does not fit the others.
    """
    if isinstance(net, UNetCondition):
        built = net.at(folder).build(shape, classes)
        if (folder / _LEARNED).exists():
            built.get_submodule("table").load_state_dict(read_tensors(folder / _LEARNED))
        return built
    built = net.build(shape, classes)
    _model(built).load_state_dict(read_tensors(folder / "transformer" / f"{_WEIGHTS}.safetensors"))
    return built


def load_pipeline_codec(codec: Codec, folder: Path) -> Codec:
    """Return the codec, with the autoencoder of the folder where it has one."""
    if isinstance(codec, VAE) and (folder / "vae" / "config.json").is_file():
        return replace(codec, path=str(folder), subfolder="vae", revision="")
    return codec


def _obstacle(trained: Trained, net: UNetCondition | Dit, scheduler: Any, other: str) -> str:
    """Return what stands in the way of a pipeline, or nothing."""
    name = "DiTPipeline" if isinstance(net, Dit) else "StableDiffusionPipeline"
    if not isinstance(trained.codec, VAE):
        return f"{name} needs the codec vae"
    if type(scheduler).__name__ not in ("DDIMScheduler", "DPMSolverMultistepScheduler"):
        return f"{name} samples none that this method trains; DDPM's (betas; eps, v or x0) it does"
    if other:
        return other
    if isinstance(trained.method, Denoising) and trained.method.clip:
        return f"{name} cannot tell the scheduler to clip as this model does"
    if isinstance(trained.method, Denoising) and trained.method.eta and isinstance(net, Dit):
        return f"{name} cannot tell the scheduler of eta"
    if isinstance(net, UNetCondition) and not net.text:
        return f"{name} needs a text encoder, and this net has learned class tokens"
    if isinstance(net, Dit) and net.conditional and getattr(trained.net, "classes", 0) > 1000:
        return f"{name} takes label 1000 for no label, and this net has more classes"
    return ""


def _model(net: nn.Module) -> Any:
    return net.get_submodule("model")


def _save_unet(model: Any, net: nn.Module, folder: Path, *, lora: int) -> None:
    if lora and hasattr(model, "peft_config"):
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft import get_peft_model_state_dict

        updates = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
        StableDiffusionPipeline.save_lora_weights(folder / "lora", unet_lora_layers=updates)
        model = copy.deepcopy(model)
        model.fuse_lora()
        model.unload_lora()
    model.save_pretrained(folder / "unet")
    if getattr(net, "table", None) is not None:
        table = net.get_submodule("table").state_dict()
        write_tensors(folder / _LEARNED, table)


def save_vae(codec: VAE, folder: Path) -> str:
    """Copy the autoencoder, with the codec's scale in its configuration; return why a pipeline cannot use it."""
    source = _autoencoder.folder(codec.path, codec.subfolder, codec.revision)
    target = folder / "vae"
    target.mkdir()
    files = [*source.glob(f"{_WEIGHTS}.safetensors*"), *source.glob(f"{_WEIGHTS}-*.safetensors")]
    for file in files:
        shutil.copyfile(file, target / file.name)
    config = _autoencoder.config(source)
    scale, shift = (
        own if asked is None else asked if isinstance(asked, tuple) else (asked,)
        for asked, own in zip((codec.scale, codec.shift), _autoencoder.factors(config), strict=True)
    )
    if len(scale) > 1 or any(shift):
        write_json(target / "config.json", config)
        return "the pipeline knows one scale and no shift of latents, and this model has others"
    write_json(target / "config.json", config | {"scaling_factor": scale[0]})
    return ""
