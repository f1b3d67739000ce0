"""Demonstrations cut into windows of (observation, action), nearly as Diffusion Policy does (arXiv:2303.04137)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_choice
from immiscible_diffusion.data._batch_order import orders
from immiscible_diffusion.files import digest_of
from immiscible_diffusion.share import Share
from immiscible_diffusion.types import Batch, Float, Int

__all__ = ["Episodes", "Pad", "Windowed"]

Pad = Literal["mask", "repeat", "drop"]
"""What becomes of windows that reach beyond their episode: see ``Windowed``."""
_CONSTANT = 1e-6
"""A smaller range, as a share of the values' size, is noise of float32 arithmetic."""


@dataclass(frozen=True, eq=False)
class Episodes:
    """Demonstrations end to end: observations (n, o) and actions (n, a), float32, and where each episode ends, (e,).

    Raises:
        ValueError: lengths differ, ends do not rise to n, or a value is not finite.
    """

    observations: Float[Tensor, "n o"]
    actions: Float[Tensor, "n a"]
    ends: Int[Tensor, " e"]

    def __post_init__(self) -> None:
        n = len(self.actions)
        if len(self.observations) != n:
            raise ValueError(f"there are {len(self.observations)} observations and {n} actions; each step has both")
        rising = len(self.ends) > 0 and bool((self.ends.diff(prepend=torch.zeros(1, dtype=torch.long)) > 0).all())
        if not rising or int(self.ends[-1]) != n:
            raise ValueError(
                f"episodes must end at rising steps, the last at {n}; there came {self.ends.tolist()[-3:]}"
            )
        for name, values in (("observations", self.observations), ("actions", self.actions)):
            if not bool(values.isfinite().all()):
                raise ValueError(f"{name} hold values that are not finite, first at step {_first_bad(values)}")

    def digest(self) -> str:
        """Return a SHA-256 of all observations, actions and ends."""
        tensors = (self.observations, self.actions, self.ends)
        return digest_of("".join(digest_of(part.contiguous().numpy().tobytes()) for part in tensors).encode())


@dataclass(frozen=True, eq=False)
class Windowed:
    """Every step of some episodes as a window, the last ``held_out`` of a fixed random order of episodes kept apart.

    The window of step i: observations i - observed + 1 .. i and ``horizon`` actions from i - observed + 1 on. Beyond an
    episode's ends its first or last step is repeated. With ``pad`` = ``mask`` the batch's mask says where; ``repeat``
    has the repeated actions trained on as real ones; ``drop`` leaves out the windows that reach beyond the last step,
    while those before the first are repeated. Observations are scaled to [-1, 1] by the range of the training
    episodes; one that changes by less than 1e-6 of its size becomes 0.

    Departs: Diffusion Policy's code, which executes so many actions of a window, leaves out the windows that would
    repeat as many or more: those of the last horizon - observed - executed + 1 steps of an episode. It trains on the
    repeated actions of the others as on real ones, as ``repeat`` does.

    Raises:
        ValueError: sizes below 1, an unknown ``pad``, or no episode is left on either side.
    """

    episodes: Episodes
    observed: int
    horizon: int
    held_out: int
    pad: Pad = "mask"

    def __post_init__(self) -> None:
        check_choice("pad", self.pad, Pad)
        if self.observed < 1 or self.horizon < self.observed:
            raise ValueError(f"a window needs 1 <= observed <= horizon; there came {self.observed} and {self.horizon}")
        count = len(self.episodes.ends)
        if not 1 <= self.held_out < count:
            raise ValueError(f"held_out_episodes is {self.held_out}; of {count} episodes it must be 1 .. {count - 1}")

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        """The steps that are trained on, and those kept apart, rising."""
        count = len(self.episodes.ends)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        kept = torch.zeros(count, dtype=torch.bool)
        kept[order[: self.held_out]] = True
        apart = kept[self._episode]
        last = torch.arange(len(apart)) - self.observed + self.horizon  # the last action's step
        whole = (last < self.episodes.ends[self._episode]) | (self.pad != "drop")
        train, rest = (~apart & whole).nonzero()[:, 0], (apart & whole).nonzero()[:, 0]
        if not (len(train) and len(rest)):
            side = "training" if not len(train) else "held-out"
            raise ValueError(
                f"source.pad = 'drop' leaves no {side} window: its episodes end within source.horizon = {self.horizon} "
                f"actions; shorten the horizon or choose 'mask'"
            )
        return train, rest

    def batches(self, size: int, seed: int, start: int, share: Share) -> Iterator[Batch]:
        """Yield this share of every batch: actions (b, horizon, a), observations (b, observed o), steps, mask."""
        train, _ = self.rows
        why = f"source.held_out_episodes = {self.held_out} of {len(self.episodes.ends)} are held out"
        for order in orders(len(train), size, seed, start, why):
            yield self.take(train[share.of(order)])

    def take(self, steps: Int[Tensor, " b"]) -> Batch:
        """Return the windows of these steps; with ``pad`` = ``mask`` the batch has a mask, (b, horizon, 1).

        Raises:
            ValueError: there is no such step.
        """
        if len(steps) and not 0 <= int(steps.min()) <= int(steps.max()) < len(self._episode):
            raise ValueError(f"demonstrations have steps 0 .. {len(self._episode) - 1}; there came {steps.tolist()}")
        episode = self._episode[steps].unsqueeze(1)
        begin, end = self._begins[episode], self.episodes.ends[episode]
        planned = steps.unsqueeze(1) - self.observed + 1 + torch.arange(self.horizon)
        at = planned.clamp(min=begin, max=end - 1)
        mask = (at == planned).unsqueeze(2) if self.pad == "mask" else None
        observations = self.episodes.observations[at[:, : self.observed]]
        return Batch(self.episodes.actions[at], self.scaled(observations), steps, mask)

    def scaled(self, observations: Float[Tensor, "b t o"]) -> Float[Tensor, "b _"]:
        """Return observations as a net sees them, (b, t o), in [-1, 1] over the training episodes."""
        low, high = self._range
        constant = high - low <= _CONSTANT * torch.maximum(low.abs(), high.abs())
        width = torch.where(constant, 1, high - low)
        return torch.where(constant, 0, 2 * (observations - low) / width - 1).flatten(1)

    @cached_property
    def _episode(self) -> Tensor:
        """The episode of every step."""
        return torch.repeat_interleave(torch.arange(len(self.episodes.ends)), self.episodes.ends - self._begins)

    @cached_property
    def _begins(self) -> Tensor:
        return torch.cat([torch.zeros(1, dtype=torch.long), self.episodes.ends[:-1]])

    @cached_property
    def _range(self) -> tuple[Tensor, Tensor]:
        seen = self.episodes.observations[self.rows[0]]
        return seen.amin(0), seen.amax(0)


def _first_bad(values: Tensor) -> int:
    return int((~values.isfinite()).any(1).nonzero()[0, 0])
