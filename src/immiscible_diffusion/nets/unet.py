"""diffusers' unconditional or class-conditional U-Net."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from immiscible_diffusion.checks import check_choice, check_number, check_whole
from immiscible_diffusion.extras import needs
from immiscible_diffusion.files import read_tensors
from immiscible_diffusion.nets._dense_condition import joined
from immiscible_diffusion.nets._levels import check_attention, check_sides, sample_size
from immiscible_diffusion.registry import register
from immiscible_diffusion.schedules import log_sigma
from immiscible_diffusion.types import Condition, TimeScale

__all__ = ["UNet"]


@register("net")
@dataclass(frozen=True)
class UNet:
    """Describe a ``diffusers.UNet2DModel``.

    Args:
        channels: channels of each level; the image is halved between levels.
        layers: residual blocks a level.
        attention: at which levels self-attention stands, counted from 0.
        dropout: probability of dropping a channel in training, in [0, 1).
        conditional: take class labels as condition; else the condition is ignored.
        time: what diffusers' model gets for t: ``levels`` 1000 t, as the schedulers of ``denoising`` count;
            ``log_sigma`` 250 ln(sigma), as those of ``consistency`` and ``edm`` do. Training goes well with either;
            only the right one makes an export that diffusers' own loops sample from.
        beside: channels of a condition of the image's height and width, (b, beside, h, w), that enters the net beside
            x_t, as the known part of a picture does; 0 for none.

    Raises:
        ValueError: channels that are not multiples of 8, no layers, levels that do not exist, a dropout
            outside [0, 1), or an unknown time.
    """

    channels: tuple[int, ...] = (32, 64)
    layers: int = 1
    attention: tuple[int, ...] = ()
    dropout: float = 0.0
    conditional: bool = False
    time: TimeScale = "levels"
    beside: int = 0

    def __post_init__(self) -> None:
        if not self.channels or any(c < 8 or c % 8 for c in self.channels):
            raise ValueError(f"channels are {self.channels}; they must be positive multiples of 8")
        check_whole(layers=self.layers)
        check_number(dropout=self.dropout, at_least=0, below=1)
        check_attention(self.attention, self.channels)
        if self.beside < 0 or (self.beside and self.conditional):
            raise ValueError(f"beside is {self.beside}; it must be at least 0, and 0 where labels are the condition")
        check_choice("time", self.time, TimeScale)

    def condition(self, classes: int | None) -> Condition:
        """Return the kind of condition of the net: nothing, labels or a dense condition."""
        return "dense" if self.beside else "labels" if self.conditional else "nothing"

    def condition_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a dense condition of images of shape (c, h, w): (beside, h, w)."""
        return (self.beside, *shape[1:])

    def build(self, shape: tuple[int, ...], classes: int | None) -> nn.Module:
        """Return the net for images of this shape, (c, h, w), with weights from the global generator.

        Raises:
            ValueError: images that cannot be halved often enough; ``conditional`` where there are no labels.
        """
        if self.conditional and classes is None:
            raise ValueError("a conditional U-Net needs labels; this source has none: set net.conditional = false")
        check_sides(shape, self.channels)
        return _UNet(self, shape, classes if self.conditional else None)

    def save(self, net: nn.Module, folder: Path) -> None:
        """Write ``unet/`` as diffusers does."""
        model: Any = net.get_submodule("model")
        model.save_pretrained(folder / "unet")

    def load(self, folder: Path, shape: tuple[int, ...], classes: int | None) -> nn.Module:
        """Return the net that ``save`` wrote.

        Raises:
            ValueError: the file is missing or damaged.
        """
        net, path = self.build(shape, classes), folder / "unet" / "diffusion_pytorch_model.safetensors"
        net.get_submodule("model").load_state_dict(read_tensors(path))
        return net

    def stock_parts(self) -> dict[str, tuple[str, str]]:
        """Return the folder that ``save`` writes, with its class in diffusers."""
        return {"unet": ("diffusers", "UNet2DModel")}


class _UNet(nn.Module):
    """The model behind the net's own signature."""

    def __init__(self, config: UNet, shape: tuple[int, ...], classes: int | None) -> None:
        super().__init__()
        with needs("nets", "the U-Net needs diffusers"):
            from diffusers import UNet2DModel
        levels = range(len(config.channels))
        self.time = config.time
        self.conditional = classes is not None
        self.beside = config.beside
        self.model: Any = UNet2DModel(
            sample_size=sample_size(shape),
            in_channels=shape[0] + config.beside,
            out_channels=shape[0],
            block_out_channels=config.channels,
            layers_per_block=config.layers,
            down_block_types=tuple("AttnDownBlock2D" if i in config.attention else "DownBlock2D" for i in levels),
            up_block_types=tuple("AttnUpBlock2D" if i in config.attention else "UpBlock2D" for i in reversed(levels)),
            attention_head_dim=8,
            norm_num_groups=8,
            dropout=config.dropout,
            add_attention=bool(config.attention),
            num_class_embeds=classes,
        )

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the prediction, (b, c, h, w).

        Raises:
            ValueError: a condition of other channels, height or width than the net has a place for, or no labels for a
                conditional net.
        """
        if self.conditional and cond is None:
            raise ValueError(
                "this net was built with conditional = true: cond must be labels (b,), and there came none"
            )
        if self.beside:
            x_t = joined(x_t, cond, self.beside)
        labels = {"class_labels": cond} if self.conditional else {}
        step = 1000 * t if self.time == "levels" else 250 * log_sigma(t)
        out: Tensor = self.model(x_t, step, **labels).sample
        return out
