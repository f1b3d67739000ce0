"""A policy tried: closed-loop episodes of the task that its demonstrations are of."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.data import Detour
from immiscible_diffusion.experiments.config import Config
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.sample import Start, Trained, draw, warn_if_fresh
from immiscible_diffusion.streams import stream

__all__ = ["by_arm", "rollout"]

EXECUTED, LIMIT = 8, 64


@torch.no_grad()
def rollout(
    trained: Trained, config: Config, *, episodes: int, steps: int, seed: int = 0, start: Start = "matched"
) -> dict[str, float]:
    """Return how a policy fares: shares of episodes, each begun at a place of its own.

    It observes, draws ``horizon`` actions, carries out 8 from the present one on, and observes again, for 64 steps at
    most (Diffusion Policy's receding horizon, arXiv:2303.04137). ``success``: the goal was reached and the obstacle
    never touched; ``touched``: it was; ``minority``: of the successes, those that passed below the obstacle, to be
    compared with the demonstrations' share. Episode i's beginning and noise, a stochastic sampler's own too, are
    named by (seed, i): two policies meet the same. A sampler that adds noise after coupled training warns, as
    ``generate`` does.

    Args:
        trained: the model.
        config: its run.
        episodes: how many.
        steps: sampling steps.
        seed: names the episodes.
        start: ``matched`` draws from the coupling's prior, ``normal`` from N(0, I).

    Raises:
        ValueError: the run's data are not of a task that can be carried out here.
    """
    source = config.source
    if not isinstance(source, Detour):
        raise ValueError(f"the run's source is {type(source).__name__}; `detour` alone can be carried out here")
    warn_if_fresh(trained, steps)
    prior = trained.prior if start == "matched" else StandardNormal()
    streams = [stream(seed, i, "sample") for i in range(episodes)]
    place = torch.stack([source.begin(generator) for generator in streams])
    seen = place.unsqueeze(1).repeat(1, source.observed, 1)
    touched, arrived = (torch.zeros(episodes, dtype=torch.bool) for _ in range(2))
    side = torch.zeros(episodes)
    device = next(trained.net.parameters()).device
    for _ in range(LIMIT // EXECUTED):
        noise = torch.cat([prior.sample((1, *trained.shape), generator) for generator in streams]).to(device)
        cond = source.windowed().scaled(seen).to(device)
        actions = trained.codec.decode(draw(trained, noise, cond, steps=steps, streams=streams)).cpu()
        first = source.observed - 1
        for action in actions[:, first : first + EXECUTED].unbind(1):
            before = place
            place = torch.where(arrived.unsqueeze(1), place, source.step(place, action))
            seen = torch.cat([seen[:, 1:], place.unsqueeze(1)], 1)
            touched |= source.touches(place) & ~arrived
            side = torch.where((before[:, 0] < 0) & (place[:, 0] >= 0), place[:, 1].sign(), side)
            arrived |= source.arrived(place)
        if bool(arrived.all()):
            break
    return _shares(arrived & ~touched, touched, side)


def by_arm(lines: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, int], dict[int, Mapping[str, Any]]]:
    """Return the lines of a ``rollout.json`` by (arm, start, sampling steps), and each of these by its run's seed."""
    groups: dict[tuple[str, str, int], dict[int, Mapping[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["arm"], line["start"], line["sampling_steps"]), {})[line["seed"]] = line
    return groups


def _shares(success: Tensor, touched: Tensor, side: Tensor) -> dict[str, float]:
    below = (side[success] < 0).double().mean() if bool(success.any()) else torch.zeros(())
    return {
        "episodes": len(success),
        "success": float(success.double().mean()),
        "touched": float(touched.double().mean()),
        "minority": float(below),
    }
