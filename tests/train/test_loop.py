import copy
import itertools
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from immiscible_diffusion import (
    MLP,
    Assignment,
    Denoising,
    Digits,
    Independent,
    Nearest,
    Pixels,
    Train,
    fit,
    new_state,
)
from immiscible_diffusion.couplings import Rows
from immiscible_diffusion.methods import Consistency, improved
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.runs import checkpoint
from immiscible_diffusion.streams import stream
from immiscible_diffusion.train import NotFiniteError, State
from immiscible_diffusion.types import Batch, Net
from sweeps import sweep

CONFIG = Train(steps=12, warmup=4, lr=1e-2)


def fresh(config: Train = CONFIG, dropout: float = 0.3) -> State:
    torch.manual_seed(0)
    return new_state(MLP(width=16, depth=2, dropout=dropout).build((1, 8, 8), None), config)


def train(state: State, config: Train = CONFIG, coupling: object = None) -> list[float]:
    couple = Nearest(4, "dot") if coupling is None else coupling
    return [s.loss for s in fit(state, Digits(), Pixels(), couple, Denoising(), config)]  # type: ignore[arg-type]


def same(first: State, second: State) -> bool:
    pairs = zip(
        [*first.net.state_dict().values(), *first.ema.state_dict().values()],
        [*second.net.state_dict().values(), *second.ema.state_dict().values()],
        strict=True,
    )
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    whole = fresh()
    losses = train(whole)
    cut = fresh()
    for state in fit(cut, Digits(), Pixels(), Nearest(4, "dot"), Denoising(), CONFIG):
        torch.rand(3)  # what the caller draws does no harm
        if state.step == 5:
            break
    checkpoint.save(cut, tmp_path)
    resumed = fresh()
    assert checkpoint.load_newest(resumed, tmp_path)
    assert train(resumed) == losses[5:]
    assert same(resumed, whole)


def test_a_resumed_run_without_its_optimizer_differs(tmp_path: Path) -> None:
    """Control of the test above."""
    whole, cut = fresh(), fresh()
    train(whole)
    next(itertools.islice(fit(cut, Digits(), Pixels(), Nearest(4, "dot"), Denoising(), CONFIG), 4, None))
    forgetful = new_state(cut.net, CONFIG)
    forgetful.ema, forgetful.step = cut.ema, cut.step
    train(forgetful)
    assert not same(forgetful, whole)


@pytest.mark.medium
def test_training_learns() -> None:
    losses = train(fresh(Train(steps=150, lr=3e-3), 0.0), Train(steps=150, lr=3e-3), Assignment())
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


def test_arms_differ_in_the_coupling_alone() -> None:
    """Record what a method sees under two couplings: the same data and times, noise of the same draws."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    class Recording(Denoising):
        def loss(self, net, x, noise, cond=None, *, teacher=None, progress=0.0, generator=None, mask=None, times=None):  # type: ignore[no-untyped-def]
            state = generator.get_state()
            seen.append((x, noise, torch.rand(3, generator=generator)))
            generator.set_state(state)
            return super().loss(net, x, noise, cond, teacher=teacher, progress=progress, generator=generator)

    config = Train(steps=3)
    for coupling in (Independent(), Assignment()):
        list(fit(fresh(config), Digits(), Pixels(), coupling, Recording(), config))
    for (x, noise, t), (other_x, other_noise, other_t) in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(t, other_t)
        assert not torch.equal(noise, other_noise)
        assert torch.equal(noise.flatten().sort().values, other_noise.flatten().sort().values)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    class Breaking(Pixels):
        calls = 0

        def encode(self, raw: Tensor) -> Tensor:
            Breaking.calls += 1
            return super().encode(raw) * (math.nan if Breaking.calls > 3 else 1)

    state = fresh()
    steps = fit(state, Digits(), Breaking(), Independent(), Denoising(), CONFIG)
    for _ in range(3):
        good = copy.deepcopy(next(steps))
    with pytest.raises(NotFiniteError, match="step 4: the loss is nan"):
        next(steps)
    assert same(state, good)
    assert state.step == 3


def test_the_averaged_weights_follow_their_formula() -> None:
    config = Train(steps=4, ema=0.25)
    state = fresh(config)
    expected = {name: value.clone() for name, value in state.ema.state_dict().items()}
    for i, _ in enumerate(fit(state, Digits(), Pixels(), Independent(), Denoising(), config)):
        decay = min(0.25, (1 + i) / (10 + i))
        for name, value in state.net.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    for name, value in state.ema.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_warmup_and_clipping() -> None:
    config = Train(steps=6, warmup=4, lr=1e-3, clip=1e-9)
    state = fresh(config)
    rates = []
    for _ in fit(state, Digits(), Pixels(), Independent(), Denoising(), config):
        rates.append(state.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])
    assert state.grad_norm > 1e-3  # reported before clipping


def test_a_clip_of_0_clips_nothing() -> None:
    free, wide, narrow = (fresh(Train(steps=1, clip=clip)) for clip in (0.0, 1e30, 1e-3))
    for state, clip in ((free, 0.0), (wide, 1e30), (narrow, 1e-3)):
        train(state, Train(steps=1, clip=clip))
    gradients = [[weight.grad for weight in state.net.parameters()] for state in (free, wide, narrow)]
    assert all(torch.equal(*pair) for pair in zip(gradients[0], gradients[1], strict=True))  # type: ignore[arg-type]
    assert not any(torch.equal(*pair) for pair in zip(gradients[0], gradients[2], strict=True))  # type: ignore[arg-type]
    assert free.grad_norm == narrow.grad_norm > 1e-3


def test_the_global_generator_is_left_alone() -> None:
    state = fresh()
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    next(fit(state, Digits(), Pixels(), Assignment(), Denoising(), CONFIG))
    assert torch.equal(torch.rand(2), expected)


def test_bfloat16_trains() -> None:
    config = Train(steps=3, precision="bf16")
    losses = train(fresh(config, 0.0), config)
    exact = train(fresh(Train(steps=3), 0.0), Train(steps=3))
    assert losses != exact
    assert losses == pytest.approx(exact, rel=0.02)


class Product(Denoising):
    """A method whose loss is a matrix product, which autocast would round."""

    seen: ClassVar[list[bool]] = []

    def loss(self, net: Net, x: Tensor, noise: Tensor, cond: Tensor | None = None, **options: Any) -> Tensor:
        self.seen.append(torch.is_autocast_enabled("cpu"))
        error = (net(x, x.new_full((len(x),), 0.5), cond) - noise).flatten(1)
        return (error @ error.T).diagonal() / error.shape[1]


def test_only_the_net_is_under_autocast() -> None:
    config = Train(steps=1, precision="bf16")
    inside: list[bool] = []
    state = fresh(config, 0.0)
    state.net.register_forward_hook(lambda *_: inside.append(torch.is_autocast_enabled("cpu")))
    list(fit(state, Digits(), Pixels(), Independent(), Product(), config))
    assert inside == [True]
    assert Product.seen == [False]


HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_net_of_16_bits_is_refused(dtype: torch.dtype) -> None:
    net = MLP(width=8).build((1, 8, 8), None)
    whole = len(list(net.parameters()))
    with pytest.raises(ValueError, match=rf"{whole} trained parameters of the net have 16 bits or less, first"):
        new_state(copy.deepcopy(net).to(dtype), CONFIG)
    first, *_, last = net.parameters()
    last.data = last.data.to(dtype)
    with pytest.raises(
        ValueError, match=rf"^1 trained .*\({dtype}\).*net\.float\(\), and set train\.precision = 'bf16'"
    ):
        new_state(net, CONFIG)
    last.data, first.data = last.data.float(), first.data.to(dtype)
    new_state(first_frozen := copy.deepcopy(net).requires_grad_(False), CONFIG)  # frozen ones are never averaged
    assert next(first_frozen.parameters()).dtype == dtype


@pytest.mark.parametrize("part", ["net", "ema", "teacher"])
def test_a_state_that_was_rounded_is_refused(part: str) -> None:
    config = Train(steps=2)
    state = fresh(config)
    for _ in fit(state, Digits(), Pixels(), Independent(), Consistency(), config):
        break
    getattr(state, part).bfloat16()
    what = {"net": "the net", "ema": "the average", "teacher": "the teacher"}[part]
    with pytest.raises(ValueError, match=f"trained parameters of {what} have 16 bits"):
        next(fit(state, Digits(), Pixels(), Independent(), Consistency(), config))


@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
def test_why_16_bits_are_refused(dtype: torch.dtype) -> None:
    """Control: an average from 1 towards 1.1, of decay .9999, stays where it is in 16 bits."""
    average, weight = torch.ones(1, dtype=dtype), torch.full((1,), 1.1, dtype=dtype)
    for _ in range(1000):
        average.lerp_(weight, 1e-4)
    expected = 1.1 - 0.1 * 0.9999**1000
    assert float(average) == (pytest.approx(expected, abs=1e-4) if dtype == torch.float32 else 1.0)


@pytest.mark.parametrize(
    "option",
    [
        {"steps": 0},
        {"accumulate": 0},
        {"accumulate": 129},
        {"lr": 0.0},
        {"ema": 1.0},
        {"clip": -1.0},
        {"clip": math.inf},
        {"clip": math.nan},
        {"lr": math.nan},
    ],
)
def test_values_out_of_range_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(option))} = .* is out of range"):
        Train(**option)  # type: ignore[arg-type]


def test_a_batch_larger_than_the_data_is_refused() -> None:
    config = Train(steps=1, batch=5000)
    with pytest.raises(ValueError, match="batch is 5000; these data have 1297 training rows"):
        train(fresh(config), config)


@dataclass(frozen=True, eq=False)
class Drifting:
    """A coupling whose noise depends on all the batches before, and that changes its memory in place."""

    kept: dict[str, Tensor] = field(default_factory=dict)
    calls: list[int] = field(default_factory=list)
    fails_at: int = -1
    seconds: float = 0.0

    def __call__(
        self,
        x: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        index: Tensor | None = None,
        step: int = 0,
        mask: Tensor | None = None,
    ) -> Tensor:
        if step == self.fails_at:
            raise ValueError(f"no noise for step {step}")
        time.sleep(self.seconds)
        self.kept.setdefault("mean", torch.zeros(x.shape[1:])).lerp_(x.mean(0), 0.5)
        self.calls.append(step)
        return torch.randn(x.shape, generator=generator) + self.kept["mean"]

    def prior(self, data: Any) -> StandardNormal:
        return StandardNormal()

    def memory(self) -> dict[str, Tensor]:
        return self.kept

    def remember(self, memory: dict[str, Tensor]) -> None:
        self.kept.clear()
        self.kept.update(memory)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def made(coupling: Drifting, count: int) -> bool:
    """Wait until a coupling has made so many batches; return whether it has within ten seconds."""
    end = time.monotonic() + 10
    while len(coupling.calls) < count and time.monotonic() < end:
        time.sleep(0.001)
    return len(coupling.calls) >= count


@pytest.mark.parametrize("make", [Independent, Assignment, lambda: Nearest(4, "dot"), Drifting])
def test_prefetching_changes_no_bit(make: Any) -> None:
    outcomes = []
    for prefetch in (True, False):
        config = replace(CONFIG, prefetch=prefetch)
        state, losses, memories = fresh(config), [], []
        for _ in fit(state, Digits(), Pixels(), make(), Denoising(), config):
            torch.rand(3)  # what the caller draws does no harm
            losses.append((state.loss, state.grad_norm))
            memories += [value.clone() for value in state.memory.values()]
        outcomes.append((state, losses, memories))
    (one, losses, memories), (other, other_losses, other_memories) = outcomes
    assert losses == other_losses
    assert len(losses) == CONFIG.steps
    assert same(one, other)
    assert len(memories) == len(other_memories) == (CONFIG.steps if make is Drifting else 0)
    assert all(map(torch.equal, memories, other_memories))


def test_a_step_is_yielded_with_the_memory_as_of_that_step(tmp_path: Path) -> None:
    whole, alone = fresh(), Drifting()
    losses = train(whole, coupling=alone)
    cut, coupling, ahead = fresh(), Drifting(), replace(CONFIG, prefetch=True)
    for state in fit(cut, Digits(), Pixels(), coupling, Denoising(), ahead):
        assert made(coupling, min(state.step + 1, CONFIG.steps))
        if state.step == 5:
            assert not torch.equal(coupling.memory()["mean"], state.memory["mean"])  # it is a batch further
            checkpoint.save(state, tmp_path)
            break
    assert coupling.calls == list(range(6))
    resumed = fresh()
    assert checkpoint.load_newest(resumed, tmp_path)
    assert train(resumed, coupling=Drifting()) == losses[5:]
    assert same(resumed, whole)
    assert torch.equal(resumed.memory["mean"], alone.memory()["mean"])


@pytest.mark.parametrize("prefetch", [True, False])
def test_a_run_that_is_cut_goes_on_with_the_same_state_and_coupling(prefetch: bool) -> None:
    config = replace(CONFIG, prefetch=prefetch)
    whole = fresh(config)
    losses = train(whole, config, Drifting())
    cut, coupling = fresh(config), Drifting()
    steps = fit(cut, Digits(), Pixels(), coupling, Denoising(), config)
    next(itertools.islice(steps, 4, None))
    assert made(coupling, 6 if prefetch else 5)
    steps.close()  # type: ignore[attr-defined]
    assert workers() == []
    assert torch.equal(coupling.memory()["mean"], cut.memory["mean"])
    assert train(cut, config, coupling) == losses[5:]
    assert same(cut, whole)


@pytest.mark.parametrize("prefetch", [True, False])
def test_a_failed_step_leaves_the_memory_of_the_last_good_one(prefetch: bool) -> None:
    class Breaking(Denoising):
        def loss(self, *args: Any, progress: float = 0.0, **options: Any) -> Tensor:
            return super().loss(*args, **options) * (math.nan if progress == 3 / CONFIG.steps else 1)

    config = replace(CONFIG, prefetch=prefetch)
    state, coupling = fresh(config), Drifting()
    steps = fit(state, Digits(), Pixels(), coupling, Breaking(), config)
    for _ in range(3):
        good = copy.deepcopy(next(steps).memory)
    with pytest.raises(NotFiniteError, match="step 4"):
        next(steps)
    again = fit(state, Digits(), Pixels(), coupling, Breaking(), config)
    for _ in range(2):
        assert torch.equal(state.memory["mean"], good["mean"])
        assert torch.equal(coupling.memory()["mean"], good["mean"])
        assert workers() == []
        with pytest.raises((NotFiniteError, StopIteration)):
            next(again)


@pytest.mark.parametrize("prefetch", [True, False])
def test_an_error_of_the_coupling_comes_at_its_step(prefetch: bool) -> None:
    config = replace(CONFIG, prefetch=prefetch)
    state = fresh(config)
    steps = fit(state, Digits(), Pixels(), Drifting(fails_at=3), Denoising(), config)
    for _ in range(3):
        good = copy.deepcopy(next(steps))
    with pytest.raises(ValueError, match="no noise for step 3"):
        next(steps)
    assert same(state, good)
    assert state.step == 3
    assert workers() == []


@pytest.mark.medium
def test_prefetching_hides_the_coupling() -> None:
    """It takes 20 ms and the method 40; what is waited for with prefetching is the first batch alone."""

    class Slow(Denoising):
        def loss(self, *args: Any, **options: Any) -> Tensor:
            time.sleep(0.04)
            return super().loss(*args, **options)

    seconds = {}
    for prefetch in (True, False):
        config = Train(steps=8, prefetch=prefetch)
        state = fresh(config)
        state.seconds = {"data": 0.0, "coupling": 0.0, "step": 0.0}  # as older checkpoints have it
        list(fit(state, Digits(), Pixels(), Drifting(seconds=0.02), Slow(), config))
        assert set(state.seconds) == {"data", "coupling", "waiting", "step"}
        assert state.seconds["coupling"] > 8 * 0.02
        seconds[prefetch] = state.seconds
    assert seconds[False]["waiting"] >= seconds[False]["coupling"] + seconds[False]["data"]
    assert seconds[True]["waiting"] < 0.75 * seconds[False]["waiting"]
    assert all(spent["step"] > spent["waiting"] + 8 * 0.04 for spent in seconds.values())


class Recording(Denoising):
    """Keep what each call of the loss was given and what it returned."""

    seen: list[tuple[Tensor, Tensor, Tensor | None, Tensor]]

    def loss(self, net, x, noise, cond=None, **options):  # type: ignore[no-untyped-def]
        losses = super().loss(net, x, noise, cond, **options)
        self.__dict__.setdefault("seen", []).append((x, noise, cond, losses.detach()))
        return losses


@dataclass(frozen=True)
class Padded(Digits):
    """Digits whose rows of pixels end early, by one, two, three ... from the top of a batch."""

    padding: float = 0.0

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        real = torch.arange(8) < 8 - torch.arange(size)[:, None] % 8
        for batch in super().batches(size, seed, start):
            mask = real.reshape(size, 1, 8, 1)
            yield batch._replace(raw=torch.where(mask, batch.raw, int(self.padding)), mask=mask)


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_mask_reaches_the_coupling_and_every_part_of_the_loss(prefetch: bool) -> None:
    masks: list[Tensor] = []

    class Keeping(Assignment):
        def pair(self, x: Tensor, rows: Rows) -> Tensor:
            assert rows.mask is not None
            assert not x[~rows.mask.expand_as(x)].any()
            masks.append(rows.mask)
            return super().pair(x, rows)

    class Masked(Denoising):
        def loss(self, net, x, noise, cond=None, *, mask=None, **options):  # type: ignore[no-untyped-def]
            masks.append(mask)
            return super().loss(net, x, noise, cond, mask=mask, **options)

    config = Train(steps=1, batch=10, accumulate=2, prefetch=prefetch)
    state = fresh(config, 0.0)
    list(fit(state, Padded(), Pixels(), Keeping(), Masked(), config))
    expected = next(Padded().batches(10, 0)).mask
    assert expected is not None
    assert [len(mask) for mask in masks] == [10, 5, 5]
    assert torch.equal(masks[0], expected)
    assert torch.equal(torch.cat(masks[1:]), expected)


def test_a_mask_that_does_not_fit_the_encoded_data_is_refused() -> None:
    class Flat(Padded):
        def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
            for batch in super().batches(size, seed, start):
                assert batch.mask is not None
                yield batch._replace(mask=batch.mask.flatten(1))

    with pytest.raises(ValueError, match=r"mask is a torch.bool tensor \(128, 8\) on cpu; for x \(128, 1, 8, 8\)"):
        list(fit(fresh(), Flat(), Pixels(), Assignment(), Denoising(), CONFIG))


@pytest.mark.parametrize("batch", [128, 30])
def test_accumulating_changes_a_step_by_rounding_alone(batch: int) -> None:
    config = Train(steps=5, batch=batch)
    whole, parts = fresh(config, 0.0), fresh(config, 0.0)
    losses = train(whole, config, Assignment())
    accumulated = train(parts, replace(config, accumulate=4), Assignment())
    assert accumulated != losses  # the sums are taken in another order
    assert accumulated == pytest.approx(losses, rel=1e-5)
    start = fresh(config, 0.0)
    for name, value in whole.net.state_dict().items():
        # Adam divides by the gradient's size, so that rounding shows where a gradient is next to nothing.
        moved = (value - start.net.state_dict()[name]).abs().max()
        torch.testing.assert_close(parts.net.state_dict()[name], value, rtol=0, atol=0.02 * float(moved))


def test_parts_are_one_pool_and_weigh_as_many_rows_as_they_have() -> None:
    method, config = Recording(), Train(steps=1, batch=30, accumulate=4)
    state = fresh(config, 0.0)
    list(fit(state, Digits(), Pixels(), Assignment(), method, config))
    assert [len(x) for x, *_ in method.seen] == [8, 8, 7, 7]
    x, noise, cond, losses = (torch.cat(parts) for parts in zip(*method.seen, strict=True))
    batch = next(Digits().batches(30, 0))
    assert torch.equal(x, Pixels().encode(batch.raw))
    assert torch.equal(noise, Assignment()(x, generator=stream(0, 0, "noise")))
    assert batch.cond is not None
    assert torch.equal(cond, batch.cond)
    assert state.loss == pytest.approx(float(losses.mean()), rel=1e-6)
    unweighted = torch.stack([loss.mean() for *_, loss in method.seen]).mean()
    assert state.loss != pytest.approx(float(unweighted), rel=1e-4)


def test_one_part_a_row_is_the_most() -> None:
    config = Train(steps=2, batch=6, accumulate=6)
    method = Recording()
    list(fit(fresh(config), Digits(), Pixels(), Independent(), method, config))
    assert [len(x) for x, *_ in method.seen] == [1] * 12


def taught(state: State, config: Train = CONFIG, method: Consistency | None = None) -> list[float]:
    return [s.loss for s in fit(state, Digits(), Pixels(), Nearest(4, "dot"), method or Consistency(), config)]


def test_a_resumed_run_with_a_teacher_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    whole = fresh()
    losses = taught(whole)
    cut = fresh()
    next(itertools.islice(fit(cut, Digits(), Pixels(), Nearest(4, "dot"), Consistency(), CONFIG), 4, None))
    checkpoint.save(cut, tmp_path)
    resumed = fresh()
    assert checkpoint.load_newest(resumed, tmp_path)
    assert taught(resumed) == losses[5:]
    assert same(resumed, whole)
    for state in (whole, resumed):
        assert state.teacher is not None
    pairs = zip(whole.teacher.parameters(), resumed.teacher.parameters(), strict=True)  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in pairs)
    # Control: with the net for a teacher the run goes on otherwise.
    forgetful = fresh()
    assert checkpoint.load_newest(forgetful, tmp_path)
    forgetful.teacher.load_state_dict(forgetful.net.state_dict())  # type: ignore[union-attr]
    assert taught(forgetful) != losses[5:]


def test_a_teacher_is_not_made_up_in_mid_training(tmp_path: Path) -> None:
    cut = fresh()
    next(itertools.islice(fit(cut, Digits(), Pixels(), Nearest(4, "dot"), Consistency(), CONFIG), 1, None))
    path = checkpoint.save(cut, tmp_path)
    resumed = fresh()
    assert checkpoint.load_newest(resumed, tmp_path)
    resumed.teacher = None
    with pytest.raises(ValueError, match="this state of step 2 has no teacher"):
        taught(resumed)
    assert taught(resumed, method=improved())  # which needs none
    (path / "teacher.safetensors").unlink()
    with pytest.raises(ValueError, match=r"teacher\.safetensors is missing"):
        checkpoint.load_newest(fresh(), tmp_path)


def test_the_teacher_follows_its_formula_and_is_not_the_average_to_sample_from() -> None:
    method, config = Consistency(), Train(steps=6, lr=1e-2)
    state = fresh(config)
    expected = {name: value.clone() for name, value in state.net.state_dict().items()}
    for i, _ in enumerate(fit(state, Digits(), Pixels(), Independent(), method, config)):
        decay = method.teacher_decay(i / 6)
        for name, value in state.net.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    assert state.teacher is not None
    assert state.teacher.training  # its dropout is the net's
    for name, value in state.teacher.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert not torch.equal(next(state.teacher.parameters()), next(state.ema.parameters()))


def test_a_method_is_given_its_teacher() -> None:
    seen: list[object] = []

    class Watched(Consistency):
        def loss(self, *args: Any, teacher: Any = None, **options: Any) -> Tensor:
            seen.append(teacher)
            return super().loss(*args, teacher=teacher, **options)

    config = Train(steps=2)
    for method in (Watched(), Watched(teacher=0.0)):
        state = fresh(config)
        list(fit(state, Digits(), Pixels(), Independent(), method, config))
        assert (state.teacher is None) == (method.teacher == 0)
        assert all(teacher is state.teacher for teacher in seen)
        assert len(seen) == 2
        seen.clear()


@pytest.mark.parametrize("method", sweep([Consistency(last=8, distance="pseudo_huber"), improved(last=20)], 2))
@pytest.mark.medium
@pytest.mark.slow
def test_consistency_training_learns(method: Consistency) -> None:
    """One step of it makes images whose mean comes near that of real digits."""
    config = Train(steps=200, lr=3e-3, ema=0.9)
    state = fresh(config, 0.0)
    real = Pixels().encode(Digits().held_out().raw).mean(0)
    noise = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = (method.sample(state.ema, noise, steps=1).mean(0) - real).square().mean()
    taught(state, config, method)
    after = (method.sample(state.ema, noise, steps=1).mean(0) - real).square().mean()
    assert float(after) < 0.4 * float(before)


@pytest.mark.usefixtures("unchecked")
def test_a_source_of_conditions_that_are_no_tensor_is_named() -> None:
    class Paired(Digits):
        def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Any]:
            for batch in super().batches(size, seed, start):
                yield batch._replace(cond=(batch.cond, batch.cond))  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="the source yields a tuple as cond; it must be a tensor"):
        next(fit(fresh(), Paired(), Pixels(), Independent(), Denoising(), CONFIG))
