"""Sharded weights (FSDP2) on several processes: what is trained is what one process trains, to the order of sums."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from immiscible_diffusion import MLP, Assignment, Consistency, Denoising, Digits, Pixels, Train, fit, new_state
from immiscible_diffusion.couplings import Cached
from several import SHARDED, several

pytestmark = pytest.mark.slow

STEPS, BATCH = 3, 37
NET = MLP(width=15, depth=2, conditional=True)  # 15 units have no half
CASES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adam": {"optimizer": "adam"},
    "radam": {"optimizer": "radam"},
    "sgd": {"optimizer": "sgd"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "two parts": {"accumulate": 2},
    "clipped": {"clip": 0.1},
    "a teacher": {"method": Consistency()},
    "a memory": {"coupling": Cached()},
}
UNITS = {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_TRANSFORMER_CLS_TO_WRAP": "Sequential"}
"""Every layer of the net is gathered by itself."""


def trained(accelerator: Any = None, *, coupling: Any = None, method: Any = None, **options: Any) -> dict[str, Any]:
    """Train a few steps and return what came of it."""
    config = Train(steps=STEPS, batch=BATCH, warmup=0, **options)
    torch.manual_seed(0 if accelerator is None else accelerator.process_index)  # the first one's weights are taken
    state = new_state(NET.build((1, 8, 8), 10), config, accelerator)
    parts = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in state.net.parameters()]
    steps = fit(
        state, Digits(), Pixels(), coupling or Assignment(), method or Denoising(), config, accelerator=accelerator
    )
    measured = [(step.loss, step.grad_norm) for step in steps]
    whole = (lambda net: net) if state.shards is None else state.shards.whole
    nets = [state.net, state.ema, *([] if state.teacher is None else [state.teacher])]
    return {
        "measured": torch.tensor(measured),
        "weights": [parameter.detach() for net in nets for parameter in whole(net).parameters()],
        "memory": state.memory,
        "numbers": sum(part.numel() for part in parts),
    }


class Doubled(nn.Module):
    """Two layers with one weight in a block, with a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(64, 64), nn.Linear(64, 64)
        self.leave.weight = self.enter.weight
        self.between = nn.Sequential(nn.Linear(64, 64), nn.SiLU())
        self.register_buffer("scale", torch.full((64,), 0.5), persistent=False)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        made: Tensor = self.leave(self.between(self.enter(x.flatten(1)) * self.scale))
        return made.view_as(x)


def doubled(accelerator: Any = None) -> dict[str, Any]:
    config = Train(steps=STEPS, batch=BATCH, warmup=0)
    torch.manual_seed(0)
    state = new_state(Doubled(), config, accelerator)
    losses = [
        s.loss for s in fit(state, Digits(), Pixels(), Assignment(), Denoising(), config, accelerator=accelerator)
    ]
    whole = state.averaged()
    return {"measured": torch.tensor(losses), "weights": [p.detach() for p in whole.parameters()]}


def process(rank: int, folder: str) -> None:
    from accelerate import Accelerator

    warnings.simplefilter("error", UserWarning)
    accelerator = Accelerator(cpu=True)
    made: dict[str, Any] = {name: trained(accelerator, **options) for name, options in CASES.items()}
    made["tied"] = doubled(accelerator)
    try:
        trained(accelerator, channels_last=True)
    except ValueError as error:
        made["channels last"] = str(error)
    torch.save(made, Path(folder) / f"{rank}.pt")


@pytest.fixture(scope="module", params=["whole", "units"])
def sharded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each of two processes came to, with all weights gathered at once or unit by unit."""
    folder = tmp_path_factory.mktemp("sharded")
    several(process, 2, str(folder), **SHARDED, **(UNITS if request.param == "units" else {}))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_shards_are_trained_as_one_process_trains_all(name: str, sharded: list[dict[str, Any]]) -> None:
    alone = trained(**CASES[name])
    coarse: dict[str, Any] = {"rtol": 2e-2, "atol": 2e-2} if name in ("bf16", "fp16") else {"rtol": 1e-3, "atol": 1e-4}
    for outcome in sharded:
        torch.testing.assert_close(outcome[name]["measured"], alone["measured"], **coarse)
        torch.testing.assert_close(outcome[name]["weights"], alone["weights"], **coarse)
        assert all(torch.equal(value, alone["memory"][key]) for key, value in outcome[name]["memory"].items())
    assert sum(outcome[name]["numbers"] for outcome in sharded) == alone["numbers"]  # nobody has all


def test_another_number_of_parts_or_rate_would_be_seen() -> None:
    """Control of the equality above."""
    alone, other = trained(), trained(lr=2e-3)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(alone["weights"], other["weights"], rtol=1e-3, atol=1e-4)


def test_tied_weights_and_buffers_come_along(sharded: list[dict[str, Any]]) -> None:
    alone = doubled()
    for each in sharded:
        torch.testing.assert_close(each["tied"], alone, rtol=1e-3, atol=1e-4)


def test_weights_with_their_channels_last_are_refused(sharded: list[dict[str, Any]]) -> None:
    for each in sharded:
        assert "leave one of them away" in each["channels last"]
