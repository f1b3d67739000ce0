"""Several batches paired as one pool, and cut again."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from immiscible_diffusion.checks import check_whole
from immiscible_diffusion.couplings._drop_in import DropIn, Rows, check_coupling, memory_of, noise_from, restore
from immiscible_diffusion.couplings.assignment import Assignment
from immiscible_diffusion.registry import register
from immiscible_diffusion.types import Coupling, Float, Prior

__all__ = ["Windowed"]


@register("coupling")
@dataclass(frozen=True)
class Windowed(DropIn):
    """Let another coupling pair several batches as one pool: the larger the pool, the nearer the noise.

    The training loop reads ``window`` batches ahead, has them paired at once at the step of the first, and trains on
    one after the other (``HasWindow``). Batches, their order and the size of a step stay as they are. In a loop of
    one's own ``assign_window`` does the same; a call pairs the batch that it is given.

    Marginal: the coupling's.
    Cost: the coupling's, in batches ``window`` times as large, at every ``window``-th step; memory of these batches.

    Args:
        coupling: pairs the joined batches.
        window: how many batches are one pool.

    Raises:
        ValueError: ``coupling`` is no coupling, or ``window`` is no whole number >= 1.

    >>> Windowed(window=8).window
    8
    """

    by_class: ClassVar[bool] = True

    coupling: Coupling = field(default_factory=Assignment)
    window: int = 8

    def __post_init__(self) -> None:
        check_coupling(self.coupling)
        check_whole(window=self.window)

    def pair(self, x: Float[Tensor, "b *dims"], rows: Rows) -> Float[Tensor, "b *dims"]:
        """Return the coupling's noise for these rows, (b, *dims).

        Raises:
            ValueError: as the coupling.
        """
        return noise_from(self.coupling, x, rows)

    def prior(self, data: Iterable[Tensor]) -> Prior:
        """Return the start of the wrapped coupling."""
        return self.coupling.prior(data)

    def memory(self) -> dict[str, Tensor]:
        """Return the wrapped coupling's memory."""
        return memory_of(self.coupling)

    def remember(self, memory: dict[str, Tensor]) -> None:
        """Restore the wrapped coupling's memory."""
        restore(self.coupling, memory)
