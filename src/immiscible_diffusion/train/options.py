"""How long and how fast to train."""

import math
from dataclasses import dataclass, field
from typing import Literal

from immiscible_diffusion.checks import check_choice

__all__ = ["Train"]

_LATER = {"unless_default": True}
"""Marks options that a configuration is written without where they have their default: older runs lack them."""

Optimizer = Literal["adamw", "adam", "radam", "sgd"]
Decay = Literal["constant", "cosine", "linear"]
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Train:
    """How long and how fast to train.

    Args:
        steps: optimizer steps.
        batch: rows a step, which the coupling pairs as one pool; on several processes, the rows of all together.
        accumulate: in how many parts, one after the other, the net sees the batch. The gradient is that of the whole;
            memory is that of a part.
        lr: the optimizer's learning rate after the warm-up.
        warmup: steps over which the learning rate rises linearly from 0.
        weight_decay: the optimizer's weight decay.
        clip: the largest norm of the gradient; 0 clips none.
        ema: decay of the averaged weights, in [0, 1); early steps decay by at most (1 + i) / (10 + i).
        precision: ``bf16`` computes the nets' forward passes under autocast, and all else of the loss in float32. Where
            a loss is the small difference of two passes, their rounding is part of it: consistency training with 1,281
            levels ends at a loss that is 3 (l2) to 19 (pseudo-Huber) % higher. ``fp16`` does the same with the loss
            scaled, and leaves out the steps whose scaled gradients overflow.
        seed: names every random stream of the run.
        prefetch: prepare the next batch and its noise in a background thread while the net trains on this one.
            Results are the same; source, codec and coupling must not draw from torch's global generator.
        checkpoint: a run keeps its state every so many steps beside every evaluation, 0 for at those alone.
        keep_last: how many of the newest checkpoints stay.
        keep_every: checkpoints at multiples of this step stay too; 0 for none.
        keep_best: the checkpoint with the best value of this metric so far stays too, at the most sampling steps that
            are measured; empty for none.
        optimizer: ``adamw``, ``adam``, ``radam`` or ``sgd`` (with momentum ``beta1``, above 0).
        beta1: decay of the optimizer's first average, in [0, 1).
        beta2: decay of its average of squares, in [0, 1).
        decay: how the learning rate falls from the end of the warm-up to the last step: ``constant`` does not,
            ``cosine`` and ``linear`` end at 0.
        compile: train through ``torch.compile``.
        channels_last: keep weights and images with their channels last, which convolutions on a GPU are faster in.
        skip: how many bad steps may be left out before training stops: their loss or gradient is NaN or infinite, or
            the gradient's norm is above ``spike``. The data and noise of a step left out are not used again.
        spike: the largest gradient norm of a good step; 0 for any.

    Raises:
        ValueError: a value outside its range.
    """

    steps: int = 3000
    batch: int = 128
    accumulate: int = 1
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.995
    precision: Precision = "fp32"
    seed: int = 0
    prefetch: bool = False
    checkpoint: int = 0
    optimizer: Optimizer = field(default="adamw", metadata=_LATER)
    beta1: float = field(default=0.9, metadata=_LATER)
    beta2: float = field(default=0.999, metadata=_LATER)
    decay: Decay = field(default="constant", metadata=_LATER)
    compile: bool = field(default=False, metadata=_LATER)
    channels_last: bool = field(default=False, metadata=_LATER)
    skip: int = field(default=0, metadata=_LATER)
    spike: float = field(default=0.0, metadata=_LATER)
    keep_last: int = field(default=2, metadata=_LATER)
    keep_every: int = field(default=0, metadata=_LATER)
    keep_best: str = field(default="", metadata=_LATER)

    def __post_init__(self) -> None:
        for name, known in {"precision": Precision, "optimizer": Optimizer, "decay": Decay}.items():
            check_choice(name, getattr(self, name), known)
        limits = {
            "steps": self.steps >= 1,
            "batch": self.batch >= 1,
            "accumulate": 1 <= self.accumulate <= self.batch,
            "lr": 0 < self.lr < math.inf,
            "warmup": self.warmup >= 0,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "clip": 0 <= self.clip < math.inf,
            "ema": 0 <= self.ema < 1,
            "checkpoint": self.checkpoint >= 0,
            "beta1": (0 if self.optimizer != "sgd" else 1e-9) <= self.beta1 < 1,
            "beta2": 0 <= self.beta2 < 1,
            "skip": self.skip >= 0,
            "spike": 0 <= self.spike < math.inf,
            "keep_last": self.keep_last >= 1,
            "keep_every": self.keep_every >= 0,
        }
        for name, fits in limits.items():
            if not fits:
                raise ValueError(f"{name} = {getattr(self, name)!r} is out of range")

    def rate(self, step: int) -> float:
        """Return the learning rate of the step of this number, counted from 0.

        >>> [Train(steps=10, warmup=2, lr=1.0, decay="linear").rate(i) for i in (0, 1, 2, 6, 9)]
        [0.5, 1.0, 1.0, 0.5, 0.125]
        """
        if step < self.warmup or self.decay == "constant":
            return self.lr * min(1.0, (step + 1) / max(self.warmup, 1))
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.lr * (1 - done if self.decay == "linear" else (1 + math.cos(math.pi * done)) / 2)
