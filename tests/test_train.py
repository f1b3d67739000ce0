import copy
import itertools
import math
from pathlib import Path

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
    checkpoint,
    fit,
    new_state,
)
from immiscible_diffusion.train import NotFiniteError, State

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


def test_training_learns() -> None:
    losses = train(fresh(Train(steps=150, lr=3e-3), 0.0), Train(steps=150, lr=3e-3), Assignment())
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


def test_arms_differ_in_the_coupling_alone() -> None:
    """Record what a method sees under two couplings: the same data and times, noise of the same draws."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    class Recording(Denoising):
        def loss(self, net, x, noise, cond=None, *, teacher=None, progress=0.0, generator=None):  # type: ignore[no-untyped-def]
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


@pytest.mark.parametrize("option", [{"steps": 0}, {"lr": 0.0}, {"ema": 1.0}, {"clip": 0.0}, {"lr": math.nan}])
def test_values_out_of_range_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(option))} = .* is out of range"):
        Train(**option)  # type: ignore[arg-type]


def test_a_batch_larger_than_the_data_is_refused() -> None:
    config = Train(steps=1, batch=5000)
    with pytest.raises(ValueError, match="batch is 5000; these data have 1297 training rows"):
        train(fresh(config), config)
