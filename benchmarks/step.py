"""What a coupling adds to a training step: the same net, data and noise streams with and without it."""

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any, Literal

import torch

from benchmarks.measuring import now, quartiles, spread_ms
from immiscible_diffusion.registry import make
from immiscible_diffusion.streams import stream_seed
from immiscible_diffusion.train import State, Train, fit, new_state
from immiscible_diffusion.types import Codec, Method, Source

__all__ = ["ARMS", "bench_step", "step_line"]

ARMS: dict[str, tuple[str, bool]] = {
    "independent": ("independent", False),
    "assignment": ("assignment", False),
    "assignment, prefetched": ("assignment", True),
    "nearest": ("nearest", False),
    "independent, again": ("independent", False),
}
"""Name -> (coupling, prefetch). The last is the first once more: their difference is the measurement's own error."""


def bench_step(
    source: Source, codec: Codec, method: Method, net: Any, *, batch: int, steps: int, rounds: int, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Yield for every arm the milliseconds of a training step, and its overhead over independent noise.

    The arms take turns, some steps each, so that what else the machine does falls on all of them; an overhead is the
    median over rounds of the ratio within a round.

    Args:
        source: the data.
        codec: takes them to model space.
        method: the loss.
        net: the description of the net, with ``build``.
        batch: rows a step.
        steps: of each arm in a round, without a first one that is not counted.
        rounds: turns of every arm.
        device: where the net is; on a GPU it computes in bfloat16.
    """
    arms = {name: _stepping(source, codec, method, net, *arm, batch, device) for name, arm in ARMS.items()}
    spent: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, states in arms.items():
            next(states)
            begun = now(device)
            for _ in range(steps):
                next(states)
            spent[name].append((now(device) - begun) / steps)
    for name, (coupling, prefetch) in ARMS.items():
        ratios = [arm / base for arm, base in zip(spent[name], spent["independent"], strict=True)]
        yield {
            "arm": name,
            "coupling": coupling,
            "prefetch": prefetch,
            "batch": batch,
            "threads": torch.get_num_threads(),
            "steps": steps,
            "rounds": rounds,
            **spread_ms(spent[name]),
            "overhead_percent": 100 * (median(ratios) - 1),
            "overhead_quartiles": [100 * (ratio - 1) for ratio in quartiles(ratios)],
        }
    for states in arms.values():
        states.close()


def _stepping(
    source: Source, codec: Codec, method: Method, net: Any, coupling: str, prefetch: bool, batch: int, device: str
) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(0, 0, "net"))
        built = net.build(source.shape, source.classes).to(device)
    precision: Literal["fp32", "bf16"] = "fp32" if device == "cpu" else "bf16"
    config = Train(steps=10**9, batch=batch, prefetch=prefetch, precision=precision)
    state: State = new_state(built, config)
    return fit(state, source, codec, make("coupling", coupling), method, config)


def step_line(row: Mapping[str, Any]) -> str:
    """Return one measured row for the terminal."""
    low, high = row["overhead_quartiles"]
    return (
        f"{row['arm']:<24} {row['median_ms']:8.2f} ms a step ({row['min_ms']:.2f} to {row['max_ms']:.2f})  "
        f"{row['overhead_percent']:+.2f} % (quartiles {low:+.2f} to {high:+.2f})"
    )
