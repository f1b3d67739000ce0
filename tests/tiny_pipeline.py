"""A Stable Diffusion pipeline of a few thousand random weights in the layout of the real one, for tests."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch


def text_parts(folder: Path, tokenizer: Path, *, width: int = 32, seed: int = 0) -> Path:
    """Write ``text_encoder/`` (CLIP, random weights) and ``tokenizer/`` (CLIP's own vocabulary)."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    vocabulary = CLIPTokenizer(str(tokenizer / "vocab.json"), str(tokenizer / "merges.txt"), model_max_length=77)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPTextModel(config)
        for weight in model.parameters():  # as they come, every text has nearly the same hidden states
            weight.data.mul_(3)
    model.save_pretrained(folder / "text_encoder")
    vocabulary.save_pretrained(folder / "tokenizer")
    return folder


def pipeline(folder: Path, shared_data: Callable[[str], Path], *, size: int = 8) -> Path:
    """Write a whole pipeline: random U-Net and text encoder, CLIP's tokenizer, the tiny autoencoder, a scheduler."""
    from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    text_parts(folder, shared_data("clip-tokenizer"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        unet = UNet2DConditionModel(
            sample_size=size,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=4,
            norm_num_groups=8,
            cross_attention_dim=32,
        )
    StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(shared_data("taesd")),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=unet,
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "whole")
    for part in (folder / "whole").iterdir():
        target = folder / part.name
        if target.is_dir():
            shutil.rmtree(target)
        part.rename(target)
    (folder / "whole").rmdir()
    return folder
