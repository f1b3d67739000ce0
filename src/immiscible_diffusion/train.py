"""The loop: a generator that trains one step between two yields."""

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from immiscible_diffusion.streams import stream, stream_seed
from immiscible_diffusion.types import Batch, Codec, Coupling, Method, Remembering, Source

__all__ = ["NotFiniteError", "State", "Train", "fit", "new_state"]


class NotFiniteError(ArithmeticError):
    """The loss or its gradient is NaN or infinite; the state is that of the last good step."""


@dataclass(frozen=True)
class Train:
    """How long and how fast to train.

    Args:
        steps: optimizer steps.
        batch: rows a step.
        lr: AdamW's learning rate after the warm-up.
        warmup: steps over which the learning rate rises linearly from 0.
        weight_decay: AdamW's weight decay.
        clip: the largest norm of the gradient.
        ema: decay of the averaged weights, in [0, 1); early steps decay by at most (1 + i) / (10 + i).
        precision: ``bf16`` computes the net's forward pass under autocast.
        seed: names every random stream of the run.

    Raises:
        ValueError: a value outside its range.
    """

    steps: int = 3000
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.995
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"no precision named {self.precision!r}; there are ['fp32', 'bf16']")
        limits = {
            "steps": self.steps >= 1,
            "batch": self.batch >= 1,
            "lr": 0 < self.lr < math.inf,
            "warmup": self.warmup >= 0,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "clip": self.clip > 0,
            "ema": 0 <= self.ema < 1,
        }
        for name, fits in limits.items():
            if not fits:
                raise ValueError(f"{name} = {getattr(self, name)!r} is out of range")


@dataclass
class State:
    """What training changes.

    ``step`` counts finished steps; ``memory`` is what the coupling remembers, if it is one that does; ``seconds`` sums
    wall time by part of the step.
    """

    net: nn.Module
    ema: nn.Module
    optimizer: torch.optim.AdamW
    step: int = 0
    loss: float = math.nan
    grad_norm: float = math.nan
    memory: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: {"data": 0.0, "coupling": 0.0, "step": 0.0})


def new_state(net: nn.Module, config: Train) -> State:
    """Return the state before the first step; the averaged weights start as a copy of the net's."""
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    return State(net.train(), ema, optimizer)


def fit(
    state: State, source: Source, codec: Codec, coupling: Coupling, method: Method, config: Train
) -> Iterator[State]:
    """Train from ``state.step`` to ``config.steps``, and yield the same state after every step.

    Step i draws from ``stream(seed, i, name)`` alone: a run resumed from a saved state equals one that was never cut,
    and two runs that differ in the coupling see the same batches, noise and times. The caller logs, saves and samples
    between steps; what it draws does not disturb training.

    Args:
        state: from ``new_state`` or a checkpoint; changed in place.
        source: yields batches as stored.
        codec: takes them to model space.
        coupling: chooses each row's noise.
        method: makes a loss of them.
        config: see ``Train``.

    Raises:
        NotFiniteError: the loss or the gradient's norm is NaN or infinite; weights are those of the last good step.

    >>> from immiscible_diffusion import Assignment, Denoising, Digits, MLP, Pixels
    >>> config = Train(steps=2)
    >>> state = new_state(MLP(width=8).build((1, 8, 8), None), config)
    >>> [s.step for s in fit(state, Digits(), Pixels(), Assignment(), Denoising(), config)]
    [1, 2]
    """
    device = next(state.net.parameters()).device
    if isinstance(coupling, Remembering):
        coupling.remember(state.memory)
    batches = source.batches(config.batch, config.seed, start=state.step)
    while state.step < config.steps:
        begun = time.perf_counter()
        batch = next(batches)
        batch = Batch(*(None if each is None else each.to(device) for each in batch))  # type: ignore[arg-type]
        state.seconds["data"] += time.perf_counter() - begun
        _step(state, batch, codec, coupling, method, config)
        if isinstance(coupling, Remembering):
            state.memory = coupling.memory()
        state.seconds["step"] += time.perf_counter() - begun
        state.step += 1
        yield state


def _step(state: State, batch: Batch, codec: Codec, coupling: Coupling, method: Method, config: Train) -> None:
    i, device = state.step, batch.raw.device
    x = codec.encode(batch.raw)
    begun = time.perf_counter()
    noise = coupling(x, batch.cond, stream(config.seed, i, "noise", device), index=batch.rows, step=i)
    state.seconds["coupling"] += time.perf_counter() - begun
    time_draws = stream(config.seed, i, "time", device)
    with _net_stream(config.seed, i, device), torch.autocast(device.type, torch.bfloat16, config.precision == "bf16"):
        loss: Tensor = method.loss(
            state.net, x, noise, batch.cond, teacher=state.ema, progress=i / config.steps, generator=time_draws
        ).mean()
        state.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(state.net.parameters(), config.clip)
    state.loss, state.grad_norm = loss.item(), norm.item()
    if not (math.isfinite(state.loss) and math.isfinite(state.grad_norm)):
        raise NotFiniteError(
            f"step {i + 1}: the loss is {state.loss} and its gradient's norm {state.grad_norm}; "
            f"lower train.lr (it is {config.lr}) or look at the data of this step"
        )
    for group in state.optimizer.param_groups:
        group["lr"] = config.lr * min(1.0, (i + 1) / max(config.warmup, 1))
    state.optimizer.step()
    _average(state, min(config.ema, (1 + i) / (10 + i)))


@torch.no_grad()
def _average(state: State, decay: float) -> None:
    """Move the averaged weights towards the net's; buffers are copied."""
    torch._foreach_lerp_(list(state.ema.parameters()), list(state.net.parameters()), 1 - decay)
    for kept, buffer in zip(state.ema.buffers(), state.net.buffers(), strict=True):
        kept.copy_(buffer)


@contextmanager
def _net_stream(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Draw dropout from this step's own stream, and leave the global generators as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(stream_seed(seed, step, "net"))
        yield
