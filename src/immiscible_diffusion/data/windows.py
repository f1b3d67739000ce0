"""Robot demonstrations as windows of (observation, action), for a diffusion policy."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from immiscible_diffusion.checks import check_choice
from immiscible_diffusion.data._changes import state_of
from immiscible_diffusion.data._demonstrations import read_demonstrations
from immiscible_diffusion.data._episodes import Pad, Windowed
from immiscible_diffusion.registry import register
from immiscible_diffusion.share import Share
from immiscible_diffusion.types import Batch, Int

__all__ = ["Windows"]


@register("source")
@dataclass(frozen=True)
class Windows:
    """Windows of (observation, action) from a local file, for policies such as Diffusion Policy's (arXiv:2303.04137).

    ``raw`` is actions (b, horizon, a), float32, as stored: the codec ``bounds`` scales them. ``cond`` is the last
    ``observed`` observations up to the present step, (b, observed o), in [-1, 1], for a net with ``beside`` =
    observed o. The first action belongs to the first observed step, and an episode's ends are repeated beyond them.
    Every step has a window; Diffusion Policy's code leaves out the last few of an episode, which repeat the most.

    Args:
        path: a zarr store as Push-T's (``data/state``, ``data/action``, ``meta/episode_ends``), a folder or its
            ``.zip``; or LeRobot's parquet (``observation.state``, ``action``, ``episode_index``), a file or a folder.
        observation: the name of the observations, if another.
        action: the name of the actions, if another.
        observed: how many observations a window has.
        horizon: how many actions, at least ``observed``.
        held_out_episodes: how many episodes training never sees, a fixed random choice.
        pad: what becomes of actions beyond an episode's ends, where its first or last one is repeated. ``mask`` keeps
            them out of the loss and of the pairing's distances; ``repeat`` trains on them as on real ones; ``drop``
            leaves out the windows that reach beyond the last action.

    Raises:
        ValueError: no path, or an unknown ``pad``; where used: a file that cannot be read, or sizes that do not fit it.
    """

    path: str = ""
    observation: str = ""
    action: str = ""
    observed: int = 2
    horizon: int = 16
    held_out_episodes: int = 10
    pad: Pad = "mask"

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("windows need path = a zarr store or parquet files of demonstrations")
        check_choice("pad", self.pad, Pad)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a window's actions, (horizon, a)."""
        return (self.horizon, self.windowed().episodes.actions.shape[1])

    @property
    def rows(self) -> int:
        """How many windows are trained on."""
        return len(self.windowed().rows[0])

    @property
    def classes(self) -> int | None:
        """None: the condition is the observation, not a class."""
        return None

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """Yield actions (size, horizon, a), observations (size, observed o) and numbers of steps for ever.

        Raises:
            ValueError: size is not within 1 and the number of windows; a file that cannot be read.
        """
        return self.share_batches(size, seed, start, Share())

    def share_batches(self, size: int, seed: int, start: int, share: Share) -> Iterator[Batch]:
        """Yield this share of each of these batches."""
        return self.windowed().batches(size, seed, start, share)

    def take(self, rows: Int[Tensor, " b"]) -> Batch:
        """Return the windows of these steps, in this order.

        Raises:
            ValueError: there is no such step.
        """
        return self.windowed().take(rows)

    def held_out(self) -> Batch:
        """Return the windows of the episodes that training never sees."""
        return self.take(self.windowed().rows[1])

    def listing_digest(self) -> str:
        """Return a SHA-256 of all episodes, held-out ones included."""
        return self.windowed().episodes.digest()

    def windowed(self) -> Windowed:
        """Return the episodes behind the windows."""
        return self._windowed

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle: the options and the state of the files, but not the episodes."""
        return {key: value for key, value in self.__dict__.items() if key != "_windowed"}

    @cached_property
    def _state(self) -> str:
        return state_of(self.path)

    @cached_property
    def _windowed(self) -> Windowed:
        return _read(self, self._state)


@lru_cache(maxsize=4)
def _read(source: Windows, state: str) -> Windowed:
    """Return the data that equal sources share, as long as their files have not changed."""
    episodes = read_demonstrations(Path(source.path).expanduser(), source.observation, source.action)
    return Windowed(episodes, source.observed, source.horizon, source.held_out_episodes, source.pad)
