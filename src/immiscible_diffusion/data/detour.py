"""A task with two ways: a point walks around a round obstacle. Its demonstrations, and the rules to try a policy by."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_choice
from immiscible_diffusion.data._episodes import Episodes, Pad, Windowed
from immiscible_diffusion.registry import register
from immiscible_diffusion.share import Share
from immiscible_diffusion.types import Batch, Float, Int

__all__ = ["Detour"]

GOAL = (1.0, 0.0)
NEAR, RADIUS, REACH = 0.1, 0.35, 0.15


@register("source")
@dataclass(frozen=True)
class Detour:
    """Windows of demonstrations in the plane, from the left to the goal (1, 0) around a disc of radius 0.35 at (0, 0).

    Observed is the place; an action is the place to go to next, at most 0.15 away (as in Push-T, whose actions are
    target places). Most demonstrations pass above the disc, a ``minority`` of them below: a policy that keeps both ways
    has learned the distribution of the demonstrations, one that has only the common way has dropped a mode.

    Args:
        episodes: how many demonstrations.
        minority: the share of them that pass below, in (0, 1).
        observed: how many observations a window has.
        horizon: how many actions, at least ``observed``.
        held_out_episodes: how many of the episodes training never sees.
        seed: names the demonstrations.
        pad: what becomes of actions beyond an episode's ends, where its first or last one is repeated. ``mask`` keeps
            them out of the loss and of the pairing's distances; ``repeat`` trains on them as on real ones; ``drop``
            leaves out the windows that reach beyond the last action.

    Raises:
        ValueError: fewer than two episodes, a share out of range or an unknown ``pad``; where used: sizes that do not
            fit.
    """

    episodes: int = 200
    minority: float = 0.2
    observed: int = 2
    horizon: int = 16
    held_out_episodes: int = 40
    seed: int = 0
    pad: Pad = "mask"

    def __post_init__(self) -> None:
        if self.episodes < 2 or not 0 < self.minority < 1:
            raise ValueError(f"{self} needs episodes >= 2 and 0 < minority < 1")
        check_choice("pad", self.pad, Pad)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a window's actions, (horizon, 2)."""
        return (self.horizon, 2)

    @property
    def rows(self) -> int:
        """How many windows are trained on."""
        return len(self.windowed().rows[0])

    @property
    def classes(self) -> int | None:
        """None: the condition is the observation, not a class."""
        return None

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """Yield actions (size, horizon, 2), observations (size, observed 2) and numbers of steps for ever.

        Raises:
            ValueError: size is not within 1 and the number of windows.
        """
        return self.windowed().batches(size, seed, start, Share())

    def take(self, rows: Int[Tensor, " b"]) -> Batch:
        """Return the windows of these steps, in this order.

        Raises:
            ValueError: there is no such step.
        """
        return self.windowed().take(rows)

    def held_out(self) -> Batch:
        """Return the windows of the episodes that training never sees."""
        return self.take(self.windowed().rows[1])

    def windowed(self) -> Windowed:
        """Return the episodes behind the windows."""
        return _drawn(self)

    @staticmethod
    def begin(generator: torch.Generator) -> Float[Tensor, " 2"]:
        """Return where an episode starts."""
        return torch.tensor([-1.0, 0.3 * float(torch.rand((), generator=generator)) - 0.15])

    @staticmethod
    def step(place: Float[Tensor, "b 2"], action: Float[Tensor, "b 2"]) -> Float[Tensor, "b 2"]:
        """Return where actions lead: towards them, 0.15 at most."""
        way = action - place
        length = way.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)
        return place + way * (REACH / length).clamp(max=1)

    @staticmethod
    def touches(place: Float[Tensor, "b 2"]) -> Tensor:
        """Return which places lie in the obstacle, (b,)."""
        return place.square().sum(1) < RADIUS**2

    @staticmethod
    def arrived(place: Float[Tensor, "b 2"]) -> Tensor:
        """Return which places are within 0.1 of the goal, (b,)."""
        return (place - torch.tensor(GOAL)).square().sum(1) < NEAR**2


@lru_cache(maxsize=4)
def _drawn(source: Detour) -> Windowed:
    observations, actions, ends = [], [], []
    for i in range(source.episodes):
        generator = torch.Generator().manual_seed(1_000_003 * source.seed + i)
        path = _path(Detour.begin(generator), generator, below=i < round(source.minority * source.episodes))
        observations.append(path[:-1])
        actions.append(path[1:])
        ends.append(len(path) - 1)
    episodes = Episodes(torch.cat(observations), torch.cat(actions), torch.tensor(ends).cumsum(0))
    return Windowed(episodes, source.observed, source.horizon, source.held_out_episodes, source.pad)


def _path(begin: Tensor, generator: torch.Generator, *, below: bool) -> Float[Tensor, "n 2"]:
    """Return the places of a demonstration, begin and end included: an arch of its own height and number of steps."""
    height, steps = torch.rand(2, generator=generator).tolist()
    count = 24 + int(9 * steps)
    s = torch.linspace(0, 1, count + 1)
    x = begin[0] + (GOAL[0] - begin[0]) * s
    y = begin[1] * (1 - s) ** 2 + (0.55 + 0.2 * height) * torch.sin(math.pi * s) * (-1 if below else 1)
    return torch.stack([x, y], 1)
