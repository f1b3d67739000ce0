"""diffusers' diffusion transformer with class labels (Peebles and Xie, arXiv:2212.09748)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from immiscible_diffusion.checks import check_number, check_whole
from immiscible_diffusion.extras import needs
from immiscible_diffusion.files import read_tensors
from immiscible_diffusion.registry import register
from immiscible_diffusion.types import Condition, TimeScale

__all__ = ["Dit"]

_NULL = 1000
"""The null class of diffusers' DiTPipeline, whatever the number of classes."""


@register("net")
@dataclass(frozen=True)
class Dit:
    """Describe a ``diffusers.DiTTransformer2DModel``.

    In training a row's label gives way to the null class with probability ``drop``, so that ``guided`` can compare the
    two. The null class is number 1000 (the number of classes where there are more), since diffusers' pipeline has it
    there: rows of the label tables between the classes and it are never used.

    Departs: diffusers drops labels within each block, independently; here a row's label is dropped everywhere or
        nowhere, as in the paper's code. The last layer begins at random values, as diffusers has it, not at zero. The
        prediction has the data's channels: no learned variance.

    Args:
        depth: transformer blocks; DiT-S/B 12, L 24, XL 28.
        heads: attention heads; S 6, B 12, L and XL 16.
        head_width: coordinates of a head; 64, XL 72.
        patch: side of the square of data that becomes a token.
        conditional: take class labels as condition; else the condition is ignored.
        drop: the probability of the null class in training, in [0, 1).
        checkpointing: compute activations again in the backward pass, which saves memory and costs time.

    Raises:
        ValueError: sizes below 1, a head's width that is odd, or a drop outside [0, 1).
    """

    depth: int = 4
    heads: int = 4
    head_width: int = 16
    patch: int = 2
    conditional: bool = False
    drop: float = 0.1
    checkpointing: bool = False
    time: ClassVar[TimeScale] = "levels"

    def __post_init__(self) -> None:
        check_whole(depth=self.depth, heads=self.heads, head_width=self.head_width, patch=self.patch)
        check_number(drop=self.drop, at_least=0, below=1)
        if self.heads * self.head_width % 4:
            raise ValueError(f"heads * head_width is {self.heads * self.head_width}; it must be a multiple of 4")

    def condition(self, classes: int | None) -> Condition:
        """Return the kind of condition of the net: nothing or labels."""
        return "labels" if self.conditional else "nothing"

    def build(self, shape: tuple[int, ...], classes: int | None) -> nn.Module:
        """Return the net for square data of this shape, (c, h, h), with weights from the global generator.

        Raises:
            ValueError: data that are not square or not a multiple of the patch; ``conditional`` without labels.
        """
        if self.conditional and classes is None:
            raise ValueError("a conditional DiT needs labels; this source has none")
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] % self.patch:
            raise ValueError(
                f"a DiT needs (c, h, h) with sides of multiples of {self.patch}: {shape}; change net.patch, or the "
                "data's size (source.size)"
            )
        return _Dit(self, shape, classes or 0)

    def save(self, net: nn.Module, folder: Path) -> None:
        """Write ``transformer/`` as diffusers does."""
        model: Any = net.get_submodule("model")
        model.save_pretrained(folder / "transformer")

    def load(self, folder: Path, shape: tuple[int, ...], classes: int | None) -> nn.Module:
        """Return the net that ``save`` wrote.

        Raises:
            ValueError: the file is missing or damaged.
        """
        net, path = self.build(shape, classes), folder / "transformer" / "diffusion_pytorch_model.safetensors"
        net.get_submodule("model").load_state_dict(read_tensors(path))
        return net

    def stock_parts(self) -> dict[str, tuple[str, str]]:
        """Return the folder that ``save`` writes, with its class in diffusers."""
        return {"transformer": ("diffusers", "DiTTransformer2DModel")}


class _Dit(nn.Module):
    """The model behind the net's own signature."""

    def __init__(self, config: Dit, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        with needs("nets", "DiT needs diffusers"):
            from diffusers import DiTTransformer2DModel
            from diffusers.models.embeddings import LabelEmbedding
        self.conditional, self.drop = config.conditional, config.drop
        self.classes = max(classes, _NULL) if config.conditional else _NULL
        self.model: Any = DiTTransformer2DModel(
            num_attention_heads=config.heads,
            attention_head_dim=config.head_width,
            in_channels=shape[0],
            out_channels=shape[0],  # the pipeline takes no None
            num_layers=config.depth,
            sample_size=shape[1],
            patch_size=config.patch,
            num_embeds_ada_norm=self.classes,
        )
        for module in self.model.modules():
            if isinstance(module, LabelEmbedding):
                module.dropout_prob = 0.0
        if config.checkpointing:
            self.model.enable_gradient_checkpointing()

    def null(self, cond: Tensor) -> Tensor:
        """Return the null class in place of every label, (b,)."""
        return torch.full_like(cond, self.classes)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the prediction, (b, c, h, h)."""
        if cond is None or not self.conditional:
            cond = torch.full((len(x_t),), self.classes, device=x_t.device)
        elif self.training and self.drop:
            dropped = torch.rand(len(x_t), device=x_t.device) < self.drop
            cond = torch.where(dropped, self.null(cond), cond)
        out: Tensor = self.model(x_t, 1000 * t, class_labels=cond).sample
        return out
