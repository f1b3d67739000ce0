"""A small multilayer perceptron, for toy data and quick checks."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from immiscible_diffusion.checks import check_number, check_whole
from immiscible_diffusion.files import read_tensors, write_tensors
from immiscible_diffusion.nets._dense_condition import joined
from immiscible_diffusion.registry import register
from immiscible_diffusion.types import Condition

__all__ = ["MLP"]


@register("net")
@dataclass(frozen=True)
class MLP:
    """Describe a residual perceptron over flattened data with 32 Fourier features of the time.

    Args:
        width: hidden units.
        depth: residual blocks.
        dropout: probability of dropping a hidden unit in training, in [0, 1).
        conditional: take class labels as condition; else the condition is ignored.
        beside: numbers of a condition (b, beside) that enters the net beside x_t, as an observation does; 0 for none.

    Raises:
        ValueError: sizes below 1, a dropout outside [0, 1), or ``beside`` together with labels.
    """

    width: int = 256
    depth: int = 3
    dropout: float = 0.0
    conditional: bool = False
    beside: int = 0

    def __post_init__(self) -> None:
        if self.beside < 0 or (self.beside and self.conditional):
            raise ValueError(f"beside is {self.beside}; it must be at least 0, and 0 where labels are the condition")
        check_whole(width=self.width, depth=self.depth)
        check_number(dropout=self.dropout, at_least=0, below=1)

    def condition(self, classes: int | None) -> Condition:
        """Return the kind of condition of the net: nothing, labels or a dense condition."""
        return "dense" if self.beside else "labels" if self.conditional else "nothing"

    def condition_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a dense condition, (beside,)."""
        return (self.beside,)

    def build(self, shape: tuple[int, ...], classes: int | None) -> nn.Module:
        """Return the net for data of this shape, with weights from the global generator.

        Raises:
            ValueError: ``conditional`` where the data have no labels.
        """
        if self.conditional and classes is None:
            raise ValueError("a conditional MLP needs labels; this source has none")
        return _MLP(self, math.prod(shape), classes if self.conditional else None)

    def save(self, net: nn.Module, folder: Path) -> None:
        """Write ``net.safetensors``."""
        write_tensors(folder / "net.safetensors", net.state_dict())

    def load(self, folder: Path, shape: tuple[int, ...], classes: int | None) -> nn.Module:
        """Return the net that ``save`` wrote.

        Raises:
            ValueError: the file is missing or damaged.
        """
        net = self.build(shape, classes)
        net.load_state_dict(read_tensors(folder / "net.safetensors"))
        return net


class _MLP(nn.Module):
    def __init__(self, config: MLP, d: int, classes: int | None) -> None:
        super().__init__()
        w = config.width
        self.beside = config.beside
        self.enter = nn.Linear(d + config.beside + 32, w)
        self.label = None if classes is None else nn.Embedding(classes, w)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(w), nn.Linear(w, w), nn.SiLU(), nn.Dropout(config.dropout), nn.Linear(w, w))
            for _ in range(config.depth)
        )
        self.leave = nn.Linear(w, d)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the prediction, (b, *dims).

        Raises:
            ValueError: a condition of other width than the net has a place for, or no labels for a conditional net.
        """
        if self.label is not None and cond is None:
            raise ValueError(
                "this net was built with conditional = true: cond must be labels (b,), and there came none"
            )
        flat = joined(x_t.flatten(1), cond, self.beside) if self.beside else x_t.flatten(1)
        frequency = torch.arange(1, 17, device=t.device) * (math.pi / 2)
        angle = t.unsqueeze(1) * frequency
        hidden = self.enter(torch.cat([flat, angle.sin(), angle.cos()], 1))
        if self.label is not None:
            hidden = hidden + self.label(cond)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        out: Tensor = self.leave(hidden)
        return out.reshape(x_t.shape)
