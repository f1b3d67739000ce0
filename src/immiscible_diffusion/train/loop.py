"""The loop: a generator that trains one step between two yields."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from immiscible_diffusion.checks import NotFiniteError
from immiscible_diffusion.prefetch import ahead
from immiscible_diffusion.share import Share
from immiscible_diffusion.streams import stream, stream_seed
from immiscible_diffusion.train.options import Precision, Train
from immiscible_diffusion.train.pairs import Pair, chosen_pairs, copied, masked, pairs
from immiscible_diffusion.train.shards import local_part
from immiscible_diffusion.train.state import TIMED, Averages, State, check_state, teacher_of
from immiscible_diffusion.types import (
    Codec,
    Coupling,
    HasChoice,
    HasMemory,
    HasTeacher,
    HasTimes,
    HasWindow,
    Method,
    Net,
    Source,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["fit"]

_CHECK_EVERY = 50
"""Steps between two looks at whether the device met NaN or infinity."""
_LOOK_EVERY = 10
"""Steps between two looks at whether another process on a GPU wants to stop."""
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def fit(
    state: State,
    source: Source,
    codec: Codec,
    coupling: Coupling,
    method: Method,
    config: Train,
    *,
    accelerator: "Accelerator | None" = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[State]:
    """Train from ``state.step`` to ``config.steps``, and yield the same state after every step.

    Step i draws from ``stream(seed, i, name)`` alone: a run resumed from a saved state equals one that was never cut,
    and two runs that differ in the coupling see the same batches, noise and times. The caller logs, saves and samples
    between steps; what it draws does not disturb training. A prefetched pair that cannot be made raises its error at
    the step that needs it; leaving the loop ends the thread.

    With an accelerator, every process calls this with the same arguments and trains on its share of each batch. The
    batch of all is paired as one: batches, noise, times and pairs are the same as in one process.

    Args:
        state: from ``new_state`` or a checkpoint; changed in place.
        source: yields batches as stored.
        codec: takes them to model space.
        coupling: chooses each row's noise.
        method: makes a loss of them.
        config: see ``Train``.
        accelerator: of Hugging Face's accelerate, the one that ``new_state`` had; None in one process.
        stop: asked after every step; the loop ends after the step where it says so in any of the processes.

    Raises:
        NotFiniteError: the loss or the gradient's norm is NaN or infinite, more often than ``config.skip``; weights are
            those of the last good step. On a GPU this is looked at every 50 steps.
        MemoryError: a step ran out of memory; says which options to change.
        ValueError: the method asks for a teacher, and a state in mid-training has none; a trained or averaged parameter
            is float16 or bfloat16.

    >>> from immiscible_diffusion import Assignment, Denoising, Digits, MLP, Pixels, new_state
    >>> config = Train(steps=2)
    >>> state = new_state(MLP(width=8).build((1, 8, 8), None), config)
    >>> [s.step for s in fit(state, Digits(), Pixels(), Assignment(), Denoising(), config)]
    [1, 2]
    """
    if isinstance(method, HasTeacher) and state.teacher is None and method.teacher_decay(0.0) > 0:
        if state.step:
            raise ValueError(f"this state of step {state.step} has no teacher; another method trained it")
        state.teacher = teacher_of(state)
    check_state(state)
    if isinstance(coupling, HasMemory):
        coupling.remember(copied(state.memory))
    state.seconds = dict.fromkeys(TIMED, 0.0) | state.seconds
    share = Share() if accelerator is None else Share(accelerator.process_index, accelerator.num_processes)
    device = next(state.net.parameters()).device
    pairs_of: Any = chosen_pairs if isinstance(coupling, HasChoice) else pairs
    made = pairs_of(source, codec, coupling, config, device, state.step, share)
    depth = coupling.window if isinstance(coupling, HasWindow) else 1
    step = _Step(state, method, config, share, accelerator)
    try:
        with closing(ahead(made, depth) if config.prefetch else made) as all_pairs:
            begun = time.perf_counter()
            for pair in all_pairs:
                waited = time.perf_counter() - begun
                stopped = step(pair, stop is not None and stop())
                if pair.memory is not None:
                    state.memory = pair.memory
                spent = {**pair.seconds, "waiting": waited, "step": time.perf_counter() - begun}
                for part, value in spent.items():
                    state.seconds[part] += value
                state.step += 1
                if state.step % _CHECK_EVERY == 0 or state.step == config.steps:
                    state.check()
                yield state
                if stopped:
                    return
                begun = time.perf_counter()
    finally:
        if isinstance(coupling, HasMemory):  # it may be one batch further than the state
            coupling.remember(copied(state.memory))


class _Step:
    """One optimizer step, with all that does not change between two of them."""

    def __init__(
        self, state: State, method: Method, config: Train, share: Share, accelerator: "Accelerator | None"
    ) -> None:
        self.state, self.method, self.config, self.share, self.accelerator = state, method, config, share, accelerator
        self.averages = Averages(state)
        self.device = next(state.net.parameters()).device
        self.model = state.net if state.model is None else state.model
        averaged = state.teacher if isinstance(method, HasTeacher) else state.ema
        self.net = _called(self.model, self.device.type, config.precision)
        self.teacher = None if averaged is None else _called(averaged, self.device.type, config.precision)

    def __call__(self, pair: Pair, wants_to_stop: bool) -> bool:
        """Train on a pair; return whether a process wants to stop.

        Raises:
            NotFiniteError: a bad step too many.
        """
        state, config, progress = self.state, self.config, self.state.step / self.config.steps
        for parameter in self.averages.weights:
            parameter.grad = None
        with _net_stream(config.seed, state.step, self.share.rank, self.device), self._enough_memory(pair):
            total = self._backward(pair, progress)
        stopped = wants_to_stop
        if self.accelerator is not None and self.share.world > 1:
            sums = self.accelerator.reduce(torch.stack([total, total.new_tensor(float(wants_to_stop))]), "sum")
            looks = self.device.type == "cpu" or state.step % _LOOK_EVERY == 0  # to look waits for the device
            total, stopped = sums[0], looks and bool(sums[1])
        if state.scaler is not None:
            state.scaler.unscale_(state.optimizer)
        gradients = [local_part(weight.grad) for weight in self.averages.weights if weight.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if state.shards is not None and self.accelerator is not None:
            norm = self.accelerator.reduce(norm.square(), "sum").sqrt()
        state.measured = torch.stack([total.float(), norm.float()])
        if self._is_good():
            self._clip(gradients, norm)
            self._update(progress)
        return stopped

    def _backward(self, pair: Pair, progress: float) -> Tensor:
        """Leave the gradient of the batch's mean loss, and return this process's part of that loss."""
        state, config, method = self.state, self.config, self.method
        draws = stream(config.seed, state.step, "time", self.device)
        count, whole = max(1, min(config.accumulate, pair.rows // self.share.world)), None
        if isinstance(method, HasTimes) and (count > 1 or self.share.world > 1):
            drawn = method.draw_times(pair.rows, progress=progress, generator=draws, device=self.device)
            whole = self.share.of(drawn)
        total = torch.zeros((), device=self.device)
        for k, (x, noise, cond, mask, times) in enumerate(_parts(pair, whole, count)):
            given = masked(mask) | ({} if times is None else {"times": times})
            with nullcontext() if k == count - 1 else self._alone():
                loss: Tensor = method.loss(
                    self.net, x, noise, cond, teacher=self.teacher, progress=progress, generator=draws, **given
                ).mean()
                loss = loss * (len(x) / pair.rows)
                scaled = loss if self.share.world == 1 else loss * self.share.world  # their mean is taken
                (scaled if state.scaler is None else state.scaler.scale(scaled)).backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach()
        return total

    @contextmanager
    def _enough_memory(self, pair: Pair) -> Iterator[None]:
        """Say which options need less memory, where there is not enough.

        Raises:
            MemoryError: the net's forward or backward pass ran out of memory.
        """
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, torch.cuda.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
            config, rows = self.config, -(-len(pair.x) // self.config.accumulate)
            raise MemoryError(
                f"step {self.state.step + 1} ran out of memory on {self.device} with {rows} rows in the net at a time: "
                f"raise train.accumulate (it is {config.accumulate}; results stay), lower train.batch (it is "
                f"{config.batch}), or set train.precision = 'bf16' (it is {config.precision!r})"
            ) from error

    def _alone(self) -> AbstractContextManager[None]:
        """Leave the gradients of all parts but the last to this process."""
        return nullcontext() if self.accelerator is None else self.accelerator.no_sync(self.model)

    def _is_good(self) -> bool:
        """Return whether the step may be taken; where the device is not waited for, it is decided there.

        Raises:
            NotFiniteError: a bad step more than may be left out.
        """
        state, config = self.state, self.config
        if state.bad_step is not None:
            bad = ~(state.measured if state.scaler is None else state.measured[:1]).isfinite().all()
            state.bad_step = torch.where(bad & (state.bad_step < 0), state.step + 1, state.bad_step)
            state.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # fused optimizers then do nothing
            return True
        if state.scaler is not None and math.isfinite(state.loss) and not math.isfinite(state.grad_norm):
            return True  # the scaler leaves this step out, and scales less
        finite = math.isfinite(state.loss) and math.isfinite(state.grad_norm)
        if finite and not (config.spike and state.grad_norm > config.spike):
            return True
        state.skipped += 1
        if state.skipped <= config.skip:
            if state.scaler is not None:
                state.scaler.update()
            return False
        ended = f" after {config.skip} that were left out" if config.skip else ""
        why = f"; train.spike is {config.spike:g}" if finite else ""
        raise NotFiniteError(
            f"step {state.step + 1}: the loss is {state.loss} and its gradient's norm {state.grad_norm}{ended}{why}; "
            f"lower train.lr (it is {config.lr}) or look at the data of this step"
        )

    def _clip(self, gradients: list[Tensor], norm: Tensor) -> None:
        """Shorten the gradient as ``torch.nn.utils.clip_grad_norm_`` does."""
        scale = self.config.clip / (norm + 1e-6) if self.config.clip else torch.ones(())
        if self.device.type != "cpu":
            torch._foreach_mul_(gradients, scale.clamp(max=1.0))
        elif float(scale) < 1:
            torch._foreach_mul_(gradients, float(scale))

    def _update(self, progress: float) -> None:
        state, config, method = self.state, self.config, self.method
        for group in state.optimizer.param_groups:
            group["lr"] = config.rate(state.step)
        if state.scaler is None:
            state.optimizer.step()
        else:
            state.scaler.step(state.optimizer)
            state.scaler.update()
        self.averages.move("ema", min(config.ema, (1 + state.step) / (10 + state.step)))
        if isinstance(method, HasTeacher) and state.teacher is not None:
            self.averages.move("teacher", method.teacher_decay(progress))


def _called(module: nn.Module, device: str, precision: Precision) -> Net:
    """Return the net as a method calls it: in half precision, under autocast, which ends with its prediction."""
    if precision == "fp32":
        return module

    def predicted(x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        with torch.autocast(device, _HALF[precision]):
            prediction: Tensor = module(x_t, t, cond)
            return prediction

    return predicted


def _parts(pair: Pair, times: Tensor | None, count: int) -> Iterator[tuple[Any, ...]]:
    """Yield data, noise, condition, mask and times in this many parts; their sizes differ by one row at most."""
    whole = pair.x, pair.noise, pair.cond, pair.mask, times
    yield from zip(*([None] * count if each is None else each.tensor_split(count) for each in whole), strict=True)


@contextmanager
def _net_stream(seed: int, step: int, rank: int, device: torch.device) -> Iterator[None]:
    """Draw dropout from this step's and process's own stream, and leave the global generators as they were."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index])
    before = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed((stream_seed(seed, step, "net") + rank) % 2**63)
        yield
    finally:
        for generator, saved in zip(generators, before, strict=True):
            generator.set_state(saved)
