"""The base of couplings that wrap another one: its start of sampling, and its memory."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from torch import Tensor

from immiscible_diffusion.couplings._drop_in import DropIn, Rows
from immiscible_diffusion.priors import Gaussian, StandardNormal
from immiscible_diffusion.types import Coupling, HasChoice, HasMemory, HasPreparation, HasWindow, Prior

__all__ = ["Wrapper", "mapped_start", "noise_from"]


class Wrapper(DropIn):
    """A coupling around another one, ``coupling``, whose start of sampling and memory it hands on.

    Raises:
        ValueError: ``coupling`` is none that pairs the data of a batch.
    """

    by_class: ClassVar[bool] = True

    coupling: Coupling

    def __post_init__(self) -> None:
        if not isinstance(self.coupling, Coupling):
            raise ValueError(f"coupling is {self.coupling!r}; it must be a coupling, such as Assignment()")
        if isinstance(self.coupling, HasWindow):
            raise ValueError(
                f"coupling is {self.coupling!r}; the loop asks the outermost coupling for a window: wrap it last"
            )
        if isinstance(self.coupling, HasPreparation | HasChoice):
            raise ValueError(
                f"coupling is {self.coupling!r}, which chooses the data for its noise; it cannot be wrapped"
            )

    def prior(self, data: Iterable[Tensor]) -> Prior:
        """Return the start of the wrapped coupling."""
        return self.coupling.prior(data)

    def memory(self) -> dict[str, Tensor]:
        """Return the wrapped coupling's memory; empty if it keeps none."""
        return self.coupling.memory() if isinstance(self.coupling, HasMemory) else {}

    def remember(self, memory: dict[str, Tensor]) -> None:
        """Restore the wrapped coupling's memory, if it keeps one."""
        if isinstance(self.coupling, HasMemory):
            self.coupling.remember(memory)


def noise_from(coupling: Coupling, x: Tensor, rows: Rows) -> Tensor:
    """Return the noise that a wrapped coupling pairs with the same rows, (b, *dims)."""
    options = ("mask", rows.mask), ("labels", rows.labels), ("step", rows.step)
    given: dict[str, Any] = {name: value for name, value in options if value is not None}
    return coupling(x, cond=rows.cond, generator=rows.generator, index=rows.index, **given)


def mapped_start(start: Prior, mapped: str, apply: Callable[[Gaussian], Gaussian]) -> Prior:
    """Return a start of sampling under an orthogonal map, which leaves the standard normal as it is.

    Args:
        start: the start before the map.
        mapped: the word for it in an error, such as ``mirrored``.
        apply: maps a Gaussian.

    Raises:
        ValueError: the start is neither a standard normal nor a ``Gaussian``.
    """
    if isinstance(start, StandardNormal):
        return start
    if not isinstance(start, Gaussian):
        raise ValueError(f"a {type(start).__name__} cannot be {mapped}; StandardNormal and Gaussian can")
    return apply(start)
