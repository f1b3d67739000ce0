"""diffusers' U-Net with cross-attention, the net of Stable Diffusion: captions, class names or learned class tokens."""

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from immiscible_diffusion.checks import check_number, check_whole
from immiscible_diffusion.extras import needs, read_model
from immiscible_diffusion.files import read_json, read_tensors, write_tensors
from immiscible_diffusion.nets._levels import check_attention, check_sides, sample_size
from immiscible_diffusion.nets.text_encoder import pipeline_folder, text_encoder
from immiscible_diffusion.registry import register
from immiscible_diffusion.types import Condition, TimeScale

__all__ = ["UNetCondition"]

_ARCHITECTURE = "channels", "layers", "attention", "heads", "groups", "width"
_TOKENS = "class-tokens.safetensors"


@register("net")
@dataclass(frozen=True)
class UNetCondition:
    """Describe a ``diffusers.UNet2DConditionModel`` and the condition that it attends to.

    With ``text``, the condition is the last hidden states of that pipeline's frozen text encoder: of the caption, or of
    the class's prompt for labels. Without, each class has learned tokens. In training a row's condition gives way to
    the null condition (the empty caption, or a learned one) with probability ``drop``, so that ``guided`` can compare
    the two; the draw is the training step's own. A net that is not ``conditional`` always sees the null condition.

    With ``lora`` only low-rank updates of the attention's four projections are trained (Hu et al., arXiv:2106.09685),
    scaled by 1; the rest of the model stays as ``pretrained``.

    Args:
        channels: channels of each level; the data are halved between levels. Stable Diffusion 1: 320, 640, 1280, 1280.
        layers: residual blocks a level; Stable Diffusion 1: 2.
        attention: at which levels attention stands, counted from 0; the innermost block always has it.
        heads: attention heads; every level's channels are a multiple.
        groups: of the group norms; every level's channels are a multiple. Stable Diffusion: 32.
        tokens: learned tokens a class, without ``text``.
        width: of a learned token, without ``text``; a text encoder has its own.
        conditional: take labels or captions as condition; else the condition is ignored.
        drop: the probability of the null condition in training, in [0, 1).
        text: a folder in Stable Diffusion's layout, or a name on the hub, whose text encoder makes the condition.
        prompts: one text a class; empty takes the source's class names.
        pretrained: a folder in Stable Diffusion's layout, or a name on the hub, whose ``unet/`` is trained further; it
            brings its own architecture, and the class tokens of an export without text encoder.
        revision: of ``text`` and ``pretrained`` on the hub; its main branch if empty.
        lora: the rank of the updates, 0 trains all weights.
        checkpointing: compute activations again in the backward pass, which saves memory and costs time.

    Raises:
        ValueError: channels that are not multiples of heads and groups; an attention level that does not exist; a value
            out of its range; options of the architecture beside ``pretrained``.
    """

    channels: tuple[int, ...] = (32, 64)
    layers: int = 1
    attention: tuple[int, ...] = (1,)
    heads: int = 8
    groups: int = 8
    tokens: int = 4
    width: int = 64
    conditional: bool = False
    drop: float = 0.1
    text: str = ""
    prompts: tuple[str, ...] = ()
    pretrained: str = ""
    revision: str = ""
    lora: int = 0
    checkpointing: bool = False
    time: ClassVar[TimeScale] = "levels"

    def __post_init__(self) -> None:
        check_whole(layers=self.layers, heads=self.heads, groups=self.groups, tokens=self.tokens, width=self.width)
        check_whole(lora=self.lora, at_least=0)
        if not self.channels or any(c < 1 or c % self.heads or c % self.groups for c in self.channels):
            raise ValueError(
                f"channels are {self.channels}; they must be positive multiples of heads {self.heads} "
                f"and groups {self.groups}"
            )
        check_attention(self.attention, self.channels)
        check_number(drop=self.drop, at_least=0, below=1)
        if self.prompts and not self.text:
            raise ValueError("prompts need text = a folder with a text encoder")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        if self.pretrained and (changed := [n for n in _ARCHITECTURE if getattr(self, n) != defaults[n]]):
            raise ValueError(f"pretrained = {self.pretrained!r} brings its own architecture: leave out {changed[0]}")

    def condition(self, classes: int | None) -> Condition:
        """Return the kind of condition of the net: nothing; labels, each with a prompt or tokens; or captions."""
        if not self.conditional:
            return "nothing"
        return "text" if self.text and classes is None else "labels"

    def build(self, shape: tuple[int, ...], classes: int | None) -> nn.Module:
        """Return the net for data of this shape, (c, h, w), with weights from the global generator or ``pretrained``.

        Raises:
            ValueError: data that cannot be halved often enough; ``conditional`` without labels and without ``text``;
                prompts that are not one a class; a pretrained model, class tokens or a text encoder that are missing,
                damaged or of other sizes.
        """
        if self.conditional and classes is None and not self.text:
            raise ValueError(
                "a conditional U-Net needs labels; this source has none: set net.conditional = false, "
                "or for captions give net.text"
            )
        known = classes if self.conditional and classes is not None else 0
        if self.text and len(self.prompts) != known and known:
            raise ValueError(f"prompts are {len(self.prompts)}; there must be one for each of {known} classes")
        states = text_encoder(self.text, self.revision)([*self.prompts[:known], ""]) if self.text else None
        model = self._pretrained(shape) if self.pretrained else self._fresh(shape, states)
        if states is not None and states.shape[2] != model.config.cross_attention_dim:
            raise ValueError(
                f"the U-Net attends to states of width {model.config.cross_attention_dim}, "
                f"and the text encoder in {self.text} makes {states.shape[2]}"
            )
        if self.checkpointing:
            model.enable_gradient_checkpointing()
        if self.lora:
            _add_lora(model, self.lora)
        net = _UNetCondition(self, model, states, known)
        if net.table is not None and self.pretrained:
            _load_tokens(net.table, Path(self.pretrained) / _TOKENS)
        return net

    def save(self, net: nn.Module, folder: Path) -> None:
        """Write ``unet/``, and ``text_encoder/`` and ``tokenizer/`` or ``class-tokens.safetensors``.

        Updates of LoRA are merged into ``unet/``, and alone in ``lora/``.
        """
        model: Any = net.get_submodule("model")
        if self.lora and hasattr(model, "peft_config"):
            _save_lora(model, folder / "lora")
            model = copy.deepcopy(model)
            model.fuse_lora()
            model.unload_lora()
        model.save_pretrained(folder / "unet")
        if self.text:
            text_encoder(self.text, self.revision).save(folder)
        else:
            write_tensors(folder / _TOKENS, net.get_submodule("table").state_dict())

    def load(self, folder: Path, shape: tuple[int, ...], classes: int | None) -> nn.Module:
        """Return the net that ``save`` wrote, with every part read from the folder.

        Raises:
            ValueError: a file is missing, damaged or does not fit the others.
        """
        parts: dict[str, Any] = {"pretrained": str(folder), "text": str(folder) if self.text else "", "revision": ""}
        parts |= {field.name: field.default for field in dataclasses.fields(self) if field.name in _ARCHITECTURE}
        net = dataclasses.replace(self, lora=0, **parts).build(shape, classes)
        if not self.text and not (folder / _TOKENS).is_file():
            raise ValueError(f"{folder} has no {_TOKENS}, and without net.text the condition is made from it")
        return net

    def stock_parts(self) -> dict[str, tuple[str, str]]:
        """Return the folders that ``save`` writes, with their classes in diffusers and transformers."""
        text = {"text_encoder": ("transformers", "CLIPTextModel"), "tokenizer": ("transformers", "CLIPTokenizer")}
        return {"unet": ("diffusers", "UNet2DConditionModel"), **(text if self.text else {})}

    def _fresh(self, shape: tuple[int, ...], states: Tensor | None) -> Any:
        check_sides(shape, self.channels)
        levels = range(len(self.channels))
        return _diffusers().UNet2DConditionModel(
            sample_size=sample_size(shape),
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=self.channels,
            layers_per_block=self.layers,
            down_block_types=tuple("CrossAttnDownBlock2D" if i in self.attention else "DownBlock2D" for i in levels),
            up_block_types=tuple(
                "CrossAttnUpBlock2D" if i in self.attention else "UpBlock2D" for i in reversed(levels)
            ),
            attention_head_dim=self.heads,  # diffusers' name for their number
            norm_num_groups=self.groups,
            cross_attention_dim=self.width if states is None else states.shape[2],
        )

    def _pretrained(self, shape: tuple[int, ...]) -> Any:
        folder = pipeline_folder(self.pretrained, self.revision, "unet") / "unet"
        name = read_json(folder / "config.json").get("_class_name")
        if name != "UNet2DConditionModel":
            raise ValueError(f"{folder} holds a {name}; it must be a UNet2DConditionModel")
        loader = _diffusers().UNet2DConditionModel
        model = read_model(loader, folder, "the U-Net", low_cpu_mem_usage=False, torch_dtype=torch.float32)
        if len(shape) != 3 or model.config.in_channels != shape[0] or model.config.out_channels != shape[0]:
            raise ValueError(f"the U-Net in {folder} takes {model.config.in_channels} channels; the data are {shape}")
        model.register_to_config(sample_size=sample_size(shape))  # a pipeline takes its image size from here
        return model


class _UNetCondition(nn.Module):
    """The model behind the net's own signature."""

    states: Tensor

    def __init__(self, config: UNetCondition, model: Any, states: Tensor | None, classes: int) -> None:
        super().__init__()
        self.conditional, self.drop, self.classes = config.conditional, config.drop, classes
        self.model = model
        width = int(model.config.cross_attention_dim)
        self.table = nn.Embedding(classes + 1, config.tokens * width) if states is None else None
        self.shape = (config.tokens, width) if states is None else tuple(states.shape[1:])
        self.register_buffer("states", states, persistent=False)  # the text encoder makes them again

    def null(self, cond: Tensor) -> Tensor:
        """Return the null condition in the form of this one: labels (b,), or hidden states (b, l, f)."""
        if cond.is_floating_point():
            return self._rows(cond.new_full((len(cond),), self.classes, dtype=torch.long)).to(cond.dtype)
        return torch.full_like(cond, self.classes)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the prediction, (b, c, h, w).

        Raises:
            ValueError: hidden states of another length or width than the net's.
        """
        if cond is None or not self.conditional:
            cond = torch.full((len(x_t),), self.classes, device=x_t.device)
        elif cond.is_floating_point() and cond.shape[1:] != self.shape:
            length, width = self.shape
            raise ValueError(f"cond has shape {tuple(cond.shape)}; hidden states are (b, {length}, {width})")
        if self.training and self.drop and self.conditional:
            dropped = torch.rand(len(x_t), device=x_t.device) < self.drop
            cond = torch.where(dropped.reshape(-1, *[1] * (cond.ndim - 1)), self.null(cond), cond)
        states = cond if cond.is_floating_point() else self._rows(cond)
        out: Tensor = self.model(x_t, 1000 * t, encoder_hidden_states=states).sample
        return out

    def _rows(self, index: Tensor) -> Tensor:
        if self.table is None:
            return self.states[index]
        rows: Tensor = self.table(index)
        return rows.reshape(-1, *self.shape)


def _load_tokens(table: nn.Embedding, file: Path) -> None:
    """Take the class tokens that another run exported; a folder without them leaves the fresh ones."""
    if not file.is_file():
        return
    weight = read_tensors(file).get("weight", torch.empty(0))
    if weight.shape != table.weight.shape:
        raise ValueError(
            f"{file} holds tokens of shape {tuple(weight.shape)}; this net has {tuple(table.weight.shape)}: "
            "(classes + 1, numbers a class). Set net.tokens as in that run, or remove the file for fresh tokens"
        )
    table.load_state_dict({"weight": weight})


def _add_lora(model: Any, rank: int) -> None:
    with needs("lora", "LoRA needs peft"):
        from peft import LoraConfig
    projections = ["to_q", "to_k", "to_v", "to_out.0"]
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=projections))


def _save_lora(model: Any, folder: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    updates = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=updates)


def _diffusers() -> Any:
    with needs("nets", "the U-Net needs diffusers"):
        import diffusers
    return diffusers
