"""The loop: a generator that trains one step between two yields."""

import copy
import math
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from immiscible_diffusion.checks import NotFiniteError, check_mask
from immiscible_diffusion.prefetch import ahead
from immiscible_diffusion.streams import stream, stream_seed
from immiscible_diffusion.types import (
    Batch,
    Codec,
    Coupling,
    HasChoice,
    HasMemory,
    HasTeacher,
    HasTrainingRows,
    HasWindow,
    Method,
    Net,
    Source,
)

__all__ = ["NotFiniteError", "State", "Train", "fit", "new_state", "teacher_of"]


@dataclass(frozen=True)
class Train:
    """How long and how fast to train.

    Args:
        steps: optimizer steps.
        batch: rows a step, which the coupling pairs as one pool.
        accumulate: in how many parts, one after the other, the net sees the batch. The gradient is that of the whole;
            memory is that of a part. Times are drawn part by part.
        lr: AdamW's learning rate after the warm-up.
        warmup: steps over which the learning rate rises linearly from 0.
        weight_decay: AdamW's weight decay.
        clip: the largest norm of the gradient; 0 clips none.
        ema: decay of the averaged weights, in [0, 1); early steps decay by at most (1 + i) / (10 + i).
        precision: ``bf16`` computes the nets' forward passes under autocast, and all else of the loss in float32. Where
            a loss is the small difference of two passes, their rounding is part of it: consistency training with 1,281
            levels ends at a loss that is 3 (l2) to 19 (pseudo-Huber) % higher.
        seed: names every random stream of the run.
        prefetch: prepare the next batch and its noise in a background thread while the net trains on this one.
            Results are the same; source, codec and coupling must not draw from torch's global generator.
        checkpoint: a run keeps its state every so many steps beside every evaluation, 0 for at those alone.

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
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    prefetch: bool = False
    checkpoint: int = 0

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"no precision named {self.precision!r}; there are ['fp32', 'bf16']")
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
        }
        for name, fits in limits.items():
            if not fits:
                raise ValueError(f"{name} = {getattr(self, name)!r} is out of range")


_TIMED = "data", "coupling", "waiting", "step"


@dataclass
class State:
    """What training changes.

    ``step`` counts finished steps; ``memory`` is what the coupling remembers after them, if it is one that does, and
    ``teacher`` the average that the method compares the net with, if it asks for one.
    ``seconds`` sums wall time: ``step`` of all, of which ``waiting`` for the pairs to be ready; ``data`` and
    ``coupling`` are what it took to make them, by the side of the steps if they are prefetched.
    """

    net: nn.Module
    ema: nn.Module
    optimizer: torch.optim.AdamW
    teacher: nn.Module | None = None
    step: int = 0
    loss: float = math.nan
    grad_norm: float = math.nan
    memory: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_TIMED, 0.0))


def new_state(net: nn.Module, config: Train) -> State:
    """Return the state before the first step; the averaged weights start as a copy of the net's.

    Raises:
        ValueError: a trained parameter is float16 or bfloat16.
    """
    _check_precise(net, "the net", dict(net.named_parameters()))
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    # One call for all parameters gives the same bits as one for each, with less time between them; fused does not.
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay, foreach=True)
    return State(net.train(), ema, optimizer)


def teacher_of(net: nn.Module) -> nn.Module:
    """Return a copy of the net to be its teacher: without gradients, and with dropout like the net's own."""
    return copy.deepcopy(net).train().requires_grad_(False)


def fit(
    state: State, source: Source, codec: Codec, coupling: Coupling, method: Method, config: Train
) -> Iterator[State]:
    """Train from ``state.step`` to ``config.steps``, and yield the same state after every step.

    Step i draws from ``stream(seed, i, name)`` alone: a run resumed from a saved state equals one that was never cut,
    and two runs that differ in the coupling see the same batches, noise and times. The caller logs, saves and samples
    between steps; what it draws does not disturb training. A prefetched pair that cannot be made raises its error at
    the step that needs it; leaving the loop ends the thread.

    Args:
        state: from ``new_state`` or a checkpoint; changed in place.
        source: yields batches as stored.
        codec: takes them to model space.
        coupling: chooses each row's noise.
        method: makes a loss of them.
        config: see ``Train``.

    Raises:
        NotFiniteError: the loss or the gradient's norm is NaN or infinite; weights are those of the last good step.
        ValueError: the method asks for a teacher, and a state in mid-training has none; a trained or averaged parameter
            is float16 or bfloat16.

    >>> from immiscible_diffusion import Assignment, Denoising, Digits, MLP, Pixels
    >>> config = Train(steps=2)
    >>> state = new_state(MLP(width=8).build((1, 8, 8), None), config)
    >>> [s.step for s in fit(state, Digits(), Pixels(), Assignment(), Denoising(), config)]
    [1, 2]
    """
    if isinstance(method, HasTeacher) and state.teacher is None and method.teacher_decay(0.0) > 0:
        if state.step:
            raise ValueError(f"this state of step {state.step} has no teacher; another method trained it")
        state.teacher = teacher_of(state.net)
    _check_state(state)
    if isinstance(coupling, HasMemory):
        coupling.remember(_copied(state.memory))
    state.seconds = dict.fromkeys(_TIMED, 0.0) | state.seconds
    depth = coupling.window if isinstance(coupling, HasWindow) else 1
    pairs_of = _chosen_pairs if isinstance(coupling, HasChoice) else _pairs
    made, averages = pairs_of(state, source, codec, coupling, config), _Averages(state)  # type: ignore[arg-type]
    try:
        with closing(ahead(made, depth) if config.prefetch else made) as pairs:
            begun = time.perf_counter()
            for pair in pairs:
                waited = time.perf_counter() - begun
                _step(state, pair, method, config, averages)
                if pair.memory is not None:
                    state.memory = pair.memory
                spent = {**pair.seconds, "waiting": waited, "step": time.perf_counter() - begun}
                for part, value in spent.items():
                    state.seconds[part] += value
                state.step += 1
                yield state
                begun = time.perf_counter()
    finally:
        if isinstance(coupling, HasMemory):  # it may be one batch further than the state
            coupling.remember(_copied(state.memory))


def _check_state(state: State) -> None:
    trained = {name: parameter for name, parameter in state.net.named_parameters() if parameter.requires_grad}
    for module, what in ((state.net, "the net"), (state.ema, "the average"), (state.teacher, "the teacher")):
        if module is not None:
            _check_precise(module, what, trained)


def _check_precise(module: nn.Module, what: str, trained: Mapping[str, nn.Parameter]) -> None:
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


class _Pair(NamedTuple):
    """One step's batch in model space with its noise, what the coupling remembers after it, and what it took."""

    x: Tensor
    noise: Tensor
    cond: Tensor | None
    mask: Tensor | None
    memory: dict[str, Tensor] | None
    seconds: dict[str, float]


def _pairs(
    state: State, source: Source, codec: Codec, coupling: Coupling, config: Train
) -> Generator[_Pair, None, None]:
    """Yield the pairs of the steps that are left; they depend on the step and on what the coupling remembers alone.

    A coupling with a window pairs so many batches at once, with the noise of the first one's step. A run that was cut
    in mid-window pairs that window again: until its last batch, what the coupling remembers is what it did before it.
    """
    device, start = next(state.net.parameters()).device, state.step
    window = coupling.window if isinstance(coupling, HasWindow) else 1
    first = start - start % window
    batches = source.batches(config.batch, config.seed, start=first)
    for i in range(first, config.steps, window):
        begun = time.perf_counter()
        pool = [_encoded(next(batches), codec, device) for _ in range(window)]
        encoded = time.perf_counter()
        kept = _copied(coupling.memory()) if isinstance(coupling, HasMemory) and window > 1 else None
        x, cond, index, mask = pool[0] if window == 1 else Batch(*map(_joined, zip(*pool, strict=True)))  # type: ignore[arg-type]
        noise = coupling(x, cond, stream(config.seed, i, "noise", device), index=index, step=i, **_masked(mask))
        spent = {"data": encoded - begun, "coupling": time.perf_counter() - encoded}
        seconds = {part: value / window for part, value in spent.items()}
        for j, (batch, share) in enumerate(zip(pool, noise.split([len(batch.raw) for batch in pool]), strict=True), i):
            # The coupling may pair the next batch, or training on this one may fail, before it becomes the state's.
            if isinstance(coupling, HasMemory) and j == i + window - 1:
                kept = _copied(coupling.memory())
            if start <= j < config.steps:
                yield _Pair(batch.raw, share, batch.cond, batch.mask, kept, seconds)


def _chosen_pairs(
    state: State, source: Source, codec: Codec, coupling: HasChoice, config: Train
) -> Generator[_Pair, None, None]:
    """Yield the pairs of the steps that are left, of a coupling that chooses the rows; they depend on the step alone.

    Raises:
        ValueError: the source cannot give rows by number.
    """
    if not isinstance(source, HasTrainingRows):
        raise ValueError(f"the coupling chooses rows by number, and source {type(source).__name__} cannot give them so")
    device = next(state.net.parameters()).device
    for i in range(state.step, config.steps):
        begun = time.perf_counter()
        choice = coupling.choose(config.batch, stream(config.seed, i, "noise", device))
        chosen = time.perf_counter()
        rows = source.training_rows(choice.places.cpu(), choice.mirrored.cpu(), stream(config.seed, i, "data"))
        batch = _encoded(rows, codec, device)
        seconds = {"data": time.perf_counter() - chosen, "coupling": chosen - begun}
        memory = _copied(coupling.memory()) if isinstance(coupling, HasMemory) else None
        yield _Pair(batch.raw, choice.noise, batch.cond, batch.mask, memory, seconds)


def _encoded(batch: Batch, codec: Codec, device: torch.device) -> Batch:
    """Return the batch on the device, its data in model space."""
    batch = _moved(batch, device)
    x = codec.encode(batch.raw)
    check_mask(x, batch.mask)
    return batch._replace(raw=x)


def _joined(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    """Return one field of several batches as that of one batch."""
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if len(tensors) == len(parts) else None


def _moved(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on the device.

    Raises:
        ValueError: the source yields something else than tensors.
    """
    for name, value in zip(Batch._fields, batch, strict=False):
        if value is not None and not isinstance(value, Tensor):
            raise ValueError(f"the source yields a {type(value).__name__} as {name}; it must be a tensor, or None")
    return Batch(*(None if value is None else value.to(device) for value in batch))  # type: ignore[arg-type]


def _masked(mask: Tensor | None) -> dict[str, Tensor]:
    """Return the mask as a keyword; none without one, so that couplings and methods need not know of masks."""
    return {} if mask is None else {"mask": mask}


def _copied(memory: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in memory.items()}


class _Averages:
    """The averages of a net's weights. Parameters are listed once: to walk over a net takes as long as to average."""

    def __init__(self, state: State) -> None:
        self.net, self.weights = state.net, list[Tensor](state.net.parameters())
        self.has_buffers = any(True for _ in state.net.buffers())
        modules = {"ema": state.ema} | ({} if state.teacher is None else {"teacher": state.teacher})
        self.modules = {name: (module, list[Tensor](module.parameters())) for name, module in modules.items()}

    @torch.no_grad()
    def move(self, name: str, decay: float) -> None:
        """Move averaged weights towards the net's; buffers are copied."""
        module, parameters = self.modules[name]
        torch._foreach_lerp_(parameters, self.weights, 1 - decay)
        if self.has_buffers:
            for kept, buffer in zip(module.buffers(), self.net.buffers(), strict=True):
                kept.copy_(buffer)


def _step(state: State, pair: _Pair, method: Method, config: Train, averages: _Averages) -> None:
    i, device, rows = state.step, pair.x.device, len(pair.x)
    progress = i / config.steps
    averaged = state.teacher if isinstance(method, HasTeacher) else state.ema
    net = _called(state.net, device.type, config.precision)
    teacher = None if averaged is None else _called(averaged, device.type, config.precision)
    time_draws = stream(config.seed, i, "time", device)
    for parameter in averages.weights:
        parameter.grad = None
    total: Tensor | float = 0.0
    with _net_stream(config.seed, i, device):
        for x, noise, cond, mask in _parts(pair, config.accumulate):
            loss: Tensor = method.loss(
                net, x, noise, cond, teacher=teacher, progress=progress, generator=time_draws, **_masked(mask)
            ).mean()
            loss = loss * (len(x) / rows)
            loss.backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach()
    gradients = [parameter.grad for parameter in averages.weights if parameter.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))).cpu()
    state.loss, state.grad_norm = float(total), norm.item()
    if not (math.isfinite(state.loss) and math.isfinite(state.grad_norm)):
        raise NotFiniteError(
            f"step {i + 1}: the loss is {state.loss} and its gradient's norm {state.grad_norm}; "
            f"lower train.lr (it is {config.lr}) or look at the data of this step"
        )
    scale = float(config.clip / (norm + 1e-6)) if config.clip else 1.0  # as torch.nn.utils.clip_grad_norm_
    if scale < 1:
        torch._foreach_mul_(gradients, scale)
    for group in state.optimizer.param_groups:
        group["lr"] = config.lr * min(1.0, (i + 1) / max(config.warmup, 1))
    state.optimizer.step()
    averages.move("ema", min(config.ema, (1 + i) / (10 + i)))
    if isinstance(method, HasTeacher) and state.teacher is not None:
        averages.move("teacher", method.teacher_decay(progress))


def _called(module: nn.Module, device: str, precision: Literal["fp32", "bf16"]) -> Net:
    """Return the net as a method calls it: with bf16, under autocast, which ends with its prediction."""
    if precision == "fp32":
        return module

    def predicted(x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            prediction: Tensor = module(x_t, t, cond)
            return prediction

    return predicted


def _parts(pair: _Pair, count: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
    """Yield data, noise, condition and mask in this many parts; their sizes differ by one row at most."""
    cond, mask = ([None] * count if each is None else each.tensor_split(count) for each in (pair.cond, pair.mask))
    yield from zip(pair.x.tensor_split(count), pair.noise.tensor_split(count), cond, mask, strict=True)


@contextmanager
def _net_stream(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Draw dropout from this step's own stream, and leave the global generators as they were."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index])
    before = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(stream_seed(seed, step, "net"))
        yield
    finally:
        for generator, saved in zip(generators, before, strict=True):
            generator.set_state(saved)
