"""Several batches as one pool: nearer noise from the same batches, and exact on resume."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from immiscible_diffusion import MLP, Assignment, Denoising, Digits, Pixels, Train, fit, new_state
from immiscible_diffusion.couplings import Cached, Conditional, DropIn, Flipped, Rotated, Rows, Windowed, assign_window
from immiscible_diffusion.diagnostics.effect import effect
from immiscible_diffusion.diagnostics.idle import idle_reason
from immiscible_diffusion.registry import describe, make
from immiscible_diffusion.runs import checkpoint
from immiscible_diffusion.streams import stream
from immiscible_diffusion.train import State


class Counting(DropIn):
    """A coupling whose noise tells how often it was called before."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def pair(self, x: Tensor, rows: Rows) -> Tensor:
        calls = self.kept.get("calls", torch.zeros(1))
        self.kept["calls"] = calls + 1
        return torch.randn(x.shape, generator=rows.generator) + calls

    def memory(self) -> dict[str, Tensor]:
        return self.kept

    def remember(self, memory: dict[str, Tensor]) -> None:
        self.kept = dict(memory)


STEPS, BATCH = 11, 32
CONFIG = Train(steps=STEPS, batch=BATCH, lr=1e-2)


class Recording(Denoising):
    """A method that keeps what it sees."""

    def loss(self, net: Any, x: Tensor, noise: Tensor, cond: Tensor | None = None, **options: Any) -> Tensor:
        SEEN.append((x, noise))
        return super().loss(net, x, noise, cond, **options)


SEEN: list[tuple[Tensor, Tensor]] = []


def fresh() -> State:
    torch.manual_seed(0)
    return new_state(MLP(width=8, depth=1).build((1, 8, 8), None), CONFIG)


def pairs(coupling: Any, state: State | None = None, config: Train = CONFIG, stop: int = STEPS) -> Any:
    """Return the data and noise of each step, with the state after them."""
    SEEN.clear()
    state = state or fresh()
    for _ in fit(state, Digits(), Pixels(), coupling, Recording(), config):
        if state.step == stop:
            break
    return list(SEEN), state


def equal(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(*each) for one, other in zip(first, second, strict=True) for each in zip(one, other, strict=True)
    )


def test_the_batches_are_the_same_and_the_noise_is_assigned_over_the_window() -> None:
    """Window 4 of 11 steps: the pairs are those of ``assign_window``, with the stream of the window's first step."""
    seen, _ = pairs(Windowed(window=4))
    plain, _ = pairs(Assignment())
    assert all(torch.equal(x, other) for (x, _), (other, _) in zip(seen, plain, strict=True))
    for first in (0, 4):
        expected = assign_window([x for x, _ in seen[first : first + 4]], generator=stream(0, first, "noise"))
        assert all(
            torch.equal(noise, assigned) for (_, noise), assigned in zip(seen[first : first + 4], expected, strict=True)
        )
    distance = [sum(float((x - noise).norm()) for x, noise in batches[:8]) for batches in (seen, plain)]
    assert distance[0] < distance[1]


def test_a_window_of_one_is_the_coupling_bit_for_bit() -> None:
    assert equal(pairs(Windowed(window=1))[0], pairs(Assignment())[0])
    assert not equal(pairs(Windowed(window=2))[0], pairs(Assignment())[0])


def test_more_steps_begin_with_the_same_pairs() -> None:
    """The last window is paired whole, though 11 steps end in it."""
    longer, _ = pairs(Windowed(window=4), config=Train(steps=14, batch=BATCH, lr=1e-2), stop=14)
    assert equal(longer[:STEPS], pairs(Windowed(window=4))[0])


@pytest.mark.slow
@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("cut", [1, 4, 6, 8, 10])
@pytest.mark.parametrize("inner", [Assignment(), Cached(), Counting()], ids=["assignment", "cached", "counting"])
def test_a_run_cut_within_a_window_goes_on_exactly(inner: Any, cut: int, prefetch: bool, tmp_path: Path) -> None:
    config = Train(steps=STEPS, batch=BATCH, lr=1e-2, prefetch=prefetch)
    whole, ended = pairs(Windowed(copy.deepcopy(inner), window=4))
    _, state = pairs(Windowed(copy.deepcopy(inner), window=4), config=config, stop=cut)
    checkpoint.save(state, tmp_path)
    resumed = fresh()
    assert checkpoint.load_newest(resumed, tmp_path)
    rest, resumed = pairs(Windowed(copy.deepcopy(inner), window=4), resumed, config)
    assert equal(rest, whole[cut:])
    assert all(torch.equal(resumed.memory[key], value) for key, value in ended.memory.items())


def test_memory_of_the_window_s_end_would_not_do() -> None:
    """Control: a window that is paired again must begin with what was remembered before it."""
    whole, _ = pairs(Windowed(Counting(), window=4))
    _, ended = pairs(Windowed(Counting(), window=4), stop=8)
    _, state = pairs(Windowed(Counting(), window=4), stop=6)
    assert (int(state.memory["calls"]), int(ended.memory["calls"])) == (1, 2)
    state.memory = ended.memory
    assert not equal(pairs(Windowed(Counting(), window=4), state)[0], whole[6:])


def test_times_are_spread_over_the_window() -> None:
    state = fresh()
    spent = []
    for _ in itertools.islice(fit(state, Digits(), Pixels(), Windowed(window=4), Denoising(), CONFIG), 4):
        spent.append(state.seconds["coupling"])
    assert spent == pytest.approx([spent[0] * (i + 1) for i in range(4)])


def test_the_effect_is_that_of_the_window() -> None:
    batches = [(Pixels().encode(batch.raw), batch.cond) for batch in itertools.islice(Digits().batches(32, 0), 9)]
    joined = [(torch.cat([x for x, _ in batches[i : i + 4]]), None) for i in (0, 4)]
    window, plain = effect(Windowed(window=4), batches), effect(Assignment(), batches)
    assert window["batches"] == 8
    assert window["distance_reduction_percent"] == effect(Assignment(), joined)["distance_reduction_percent"]
    assert window["distance_reduction_percent"] > plain["distance_reduction_percent"]


def test_what_cannot_pair_is_judged_by_the_window() -> None:
    assert idle_reason(Windowed(window=1), 1).startswith("assignment permutes the noise")
    assert idle_reason(Windowed(window=4), 1) == ""
    labels = [torch.arange(16) + 16 * (i % 2) for i in range(8)]
    assert "0.0% of the rows" in idle_reason(Conditional(), 16, labels)
    assert idle_reason(Windowed(Conditional(), window=4), 16, labels) == ""


def test_it_is_made_from_a_file_and_wraps_last() -> None:
    couple = make("coupling", {"use": "windowed", "coupling": {"use": "assignment", "cost": "l1"}, "window": 16})
    assert couple == Windowed(Assignment("l1"), 16)
    assert make("coupling", describe("coupling", couple)) == couple
    assert isinstance(Windowed(Rotated()).coupling, Rotated)
    with pytest.raises(ValueError, match="asks the outermost coupling for a window: wrap it last"):
        Flipped(Windowed())
    with pytest.raises(ValueError, match="window is 0"):
        Windowed(window=0)
