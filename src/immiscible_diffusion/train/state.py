"""What training changes: weights, their averages, the optimizer's, and the times it took."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from immiscible_diffusion.checks import NotFiniteError
from immiscible_diffusion.train.options import Train
from immiscible_diffusion.train.shards import Shards, local_part, shards_of

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["TIMED", "Averages", "State", "check_precise", "check_state", "new_state", "teacher_of"]

TIMED = "data", "coupling", "waiting", "step"


@dataclass
class State:
    """What training changes.

    ``step`` counts finished steps, ``skipped`` the bad ones among them that were left out; ``memory`` is what the
    coupling remembers after them, if it is one that does, and ``teacher`` the average that the method compares the net
    with, if it asks for one. ``model`` is what training calls: the net, or the net as wrapped for several processes or
    compiled; they share their weights. ``scaler`` scales the loss of half-precision training. Where several processes
    share the weights out, ``shards`` puts them together.
    ``seconds`` sums wall time: ``step`` of all, of which ``waiting`` for the pairs to be ready; ``data`` and
    ``coupling`` are what it took to make them, by the side of the steps if they are prefetched.
    """

    net: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    teacher: nn.Module | None = None
    step: int = 0
    skipped: int = 0
    memory: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TIMED, 0.0))
    model: nn.Module | None = None
    scaler: torch.amp.GradScaler | None = None
    measured: Tensor = field(default_factory=lambda: torch.full((2,), math.nan))
    """Loss and gradient norm of the last step, (2,), on the net's device."""
    bad_step: Tensor | None = None
    """On a device that is not waited for: the first step whose loss or gradient was not finite, or -1."""
    shards: Shards | None = None

    @property
    def loss(self) -> float:
        """The loss of the last step; to read it waits for the device."""
        return float(self.measured[0])

    @property
    def grad_norm(self) -> float:
        """The norm of its gradient before clipping; to read it waits for the device."""
        return float(self.measured[1])

    def averaged(self) -> nn.Module:
        """Return the net with averaged weights, whole; where they are sharded, all processes must call this."""
        return self.ema if self.shards is None else self.shards.whole(self.ema)

    def check(self) -> None:
        """Wait for the device, and raise NotFiniteError if a loss or gradient was not finite since the last check."""
        if self.bad_step is not None and (step := int(self.bad_step)) >= 0:
            raise NotFiniteError(
                f"step {step}: the loss or its gradient is NaN or infinite, and no step since has changed the weights; "
                "lower train.lr, allow train.skip bad steps, or look at the data of this step"
            )


def new_state(net: nn.Module, config: Train, accelerator: "Accelerator | None" = None) -> State:
    """Return the state before the first step; the averaged weights start as a copy of the net's.

    Args:
        net: on its device; with an accelerator it is moved to that of this process.
        config: says the optimizer, and whether to compile.
        accelerator: of Hugging Face's accelerate, where several processes train together.

    Raises:
        ValueError: a trained parameter is float16 or bfloat16; sharded weights by FSDP of version 1, by a torch that is
            too old, or with their channels last.
    """
    check_precise(net, "the net", dict(net.named_parameters()))
    if accelerator is not None:
        net = net.to(accelerator.device)
    device = next(net.parameters()).device
    shards = shards_of(net, accelerator)
    if config.channels_last and shards is not None:
        raise ValueError("train.channels_last is true, and FSDP cuts contiguous weights alone: leave one of them away")
    if config.channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    if shards is not None:
        net, ema = shards.cut(net), shards.cut(ema)
    state = State(net.train(), ema, _optimizer(net, config, device), shards=shards)
    state.model = net if accelerator is None or shards is not None else accelerator.prepare_model(net)
    if config.compile:
        state.model = torch.compile(state.model)  # type: ignore[assignment]
    if config.precision == "fp16":
        state.scaler = torch.amp.GradScaler(device.type)
    waits = device.type == "cpu" or shards is not None or config.skip or config.spike or config.optimizer == "radam"
    if not waits:
        state.bad_step = torch.full((), -1, device=device)
    return state


def _optimizer(net: nn.Module, config: Train, device: torch.device) -> torch.optim.Optimizer:
    parameters, lr, weight_decay = list(net.parameters()), config.lr, config.weight_decay
    # On the CPU one call for all parameters gives the same bits as one for each; fused does not.
    fast = {"foreach": True} if device.type == "cpu" else {"fused": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=config.beta1, weight_decay=weight_decay, **fast)
    betas = config.beta1, config.beta2
    if config.optimizer == "radam":
        return torch.optim.RAdam(parameters, lr=lr, betas=betas, weight_decay=weight_decay, foreach=True)
    cls = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return cls(parameters, lr=lr, betas=betas, weight_decay=weight_decay, **fast)


def teacher_of(state: State) -> nn.Module:
    """Return a copy of the net to be its teacher: without gradients, and with dropout like the net's own."""
    teacher = copy.deepcopy(state.net) if state.shards is None else state.shards.copied(state.net)
    return teacher.train().requires_grad_(False)


class Averages:
    """The averages of a net's weights. Parameters are listed once: to walk over a net takes as long as to average."""

    def __init__(self, state: State) -> None:
        self.net, self.weights = state.net, list[Tensor](state.net.parameters())
        self.sharded = state.shards is not None
        self.has_buffers = any(True for _ in state.net.buffers())
        modules = {"ema": state.ema} | ({} if state.teacher is None else {"teacher": state.teacher})
        self.modules = {name: (module, list[Tensor](module.parameters())) for name, module in modules.items()}

    @torch.no_grad()
    def move(self, name: Literal["ema", "teacher"], decay: float) -> None:
        """Move averaged weights towards the net's; buffers are copied."""
        module, parameters = self.modules[name]
        weights = self.weights
        if self.sharded:
            parameters, weights = ([local_part(tensor) for tensor in tensors] for tensors in (parameters, weights))
            for part in module.modules():  # a forward pass may have left it whole, which would not be averaged
                if callable(reshard := getattr(part, "reshard", None)):
                    reshard()
        torch._foreach_lerp_(parameters, weights, 1 - decay)
        if self.has_buffers:
            for kept, buffer in zip(module.buffers(), self.net.buffers(), strict=True):
                kept.copy_(buffer)


def check_state(state: State) -> None:
    """Raise ValueError where trained or averaged weights have 16 bits."""
    trained = {name: parameter for name, parameter in state.net.named_parameters() if parameter.requires_grad}
    for module, what in ((state.net, "the net"), (state.ema, "the average"), (state.teacher, "the teacher")):
        if module is not None:
            check_precise(module, what, trained)


def check_precise(module: nn.Module, what: str, trained: Mapping[str, nn.Parameter]) -> None:
    """Refuse parameters of 16 bits among those trained: a step or an average of theirs is mostly rounded to nothing.

    Raises:
        ValueError: there is one.
    """
    coarse = [
        (name, parameter.dtype)
        for name, parameter in module.named_parameters()
        if name in trained and trained[name].requires_grad and parameter.dtype.itemsize < torch.float32.itemsize
    ]
    if coarse:
        name, dtype = coarse[0]
        raise ValueError(
            f"{len(coarse)} trained parameters of {what} have 16 bits or less, first {name!r} ({dtype}): small steps "
            "and averages would be rounded away. Hand over net.float(), and set train.precision = 'bf16' for speed"
        )
