"""Optimizers, schedules, half precision, bad steps and memory: what each option of training does."""

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from immiscible_diffusion import MLP, Denoising, Digits, Independent, Pixels, Train, fit, new_state
from immiscible_diffusion.registry import written
from immiscible_diffusion.train import NotFiniteError, State


def trained(method: Any = None, **options: Any) -> tuple[State, list[float]]:
    """Return the state after a few steps, and the learning rate of each."""
    config = Train(**{"steps": 6, "batch": 32, "warmup": 2, **options})
    torch.manual_seed(0)
    state, rates = new_state(MLP(width=16, depth=1).build((1, 8, 8), None), config), []
    for current in fit(state, Digits(), Pixels(), Independent(), method or Denoising(), config):
        rates.append(current.optimizer.param_groups[0]["lr"])
    return state, rates


def weights(state: State) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in state.net.parameters()])


@pytest.mark.parametrize(
    ("name", "stock"),
    [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("radam", torch.optim.RAdam), ("sgd", torch.optim.SGD)],
)
def test_the_optimizer_is_pytorchs(name: Any, stock: Any) -> None:
    state, _ = trained(optimizer=name, beta1=0.8, beta2=0.99, weight_decay=0.1)
    assert type(state.optimizer) is stock
    group = state.optimizer.param_groups[0]
    assert group["weight_decay"] == 0.1
    assert (group["momentum"] == 0.8) if name == "sgd" else (group["betas"] == (0.8, 0.99))


def test_the_learning_rate_follows_its_schedule() -> None:
    assert trained(lr=1.0, decay="linear", optimizer="sgd")[1] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    cosine = [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]
    assert trained(lr=1.0, decay="cosine", optimizer="sgd")[1] == pytest.approx(cosine, abs=1e-6)
    assert trained(lr=1.0, optimizer="sgd")[1] == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_options_that_came_later_are_not_written_where_they_have_their_default() -> None:
    assert "decay" not in written(Train())
    assert "lr" in written(Train())
    assert written(Train(decay="cosine"))["decay"] == "cosine"


@pytest.mark.parametrize(
    "option",
    [{"decay": "step"}, {"optimizer": "lion"}, {"beta1": 1.0}, {"skip": -1}, {"spike": -1.0}, {"keep_last": 0},
     {"optimizer": "sgd", "beta1": 0.0}, {"precision": "int8"}],
    ids=str,
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_a_value_out_of_range_is_named(option: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(reversed(option)))):
        Train(**option)


def test_half_precision_with_a_scaled_loss_trains_alike() -> None:
    half, _ = trained(precision="fp16")
    assert half.scaler is not None
    assert half.scaler.get_scale() > 1
    torch.testing.assert_close(weights(half), weights(trained()[0]), rtol=0.05, atol=2e-3)


class BadAt(Denoising):
    """A loss that is not finite in one step."""

    step: int = 0

    def loss(self, *args: Any, progress: float = 0.0, **options: Any) -> Tensor:
        loss = super().loss(*args, progress=progress, **options)
        return loss * float("nan") if round(progress * 6) == 3 else loss


def test_a_bad_step_is_left_out_and_counted_as_often_as_allowed() -> None:
    with pytest.raises(NotFiniteError, match="step 4: the loss is nan"):
        trained(BadAt())
    state, _ = trained(BadAt(), skip=1)
    assert (state.step, state.skipped) == (6, 1)
    assert bool(weights(state).isfinite().all())


def test_a_spike_of_the_gradient_is_a_bad_step() -> None:
    whole, _ = trained()
    with pytest.raises(NotFiniteError, match=r"after 2 that were left out; train.spike is 1e-09"):
        trained(spike=1e-9, skip=2)
    torch.testing.assert_close(weights(trained(spike=1e9)[0]), weights(whole), rtol=0, atol=0)


class Large(Denoising):
    """A loss for which there is no memory."""

    def loss(self, *args: Any, **options: Any) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_no_memory_names_the_options_to_change() -> None:
    with pytest.raises(MemoryError, match=r"step 1 ran out of memory on cpu with 32 rows .* raise train.accumulate"):
        trained(Large())


def test_another_error_stays_itself() -> None:
    class Wrong(Denoising):
        def loss(self, *args: Any, **options: Any) -> Tensor:
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        trained(Wrong())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_net_with_its_channels_last_trains_alike() -> None:
    compiled, _ = trained(compile=True, channels_last=True)
    torch.testing.assert_close(weights(compiled), weights(trained()[0]), rtol=1e-4, atol=1e-5)
