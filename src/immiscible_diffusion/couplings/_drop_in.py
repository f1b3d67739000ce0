"""The base of the built-in couplings: one signature, one place where arguments are checked, one default start."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_batch, check_integers, check_lengths, check_mask
from immiscible_diffusion.couplings._shared_noise import several_processes, warn_if_shared
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.tensors import normal_like
from immiscible_diffusion.types import Coupling, Float, HasMemory, HasWindow, Prior

__all__ = ["DropIn", "Rows", "check_coupling", "memory_of", "noise_from", "restore"]


class Rows(NamedTuple):
    """What a training loop knows about the rows of a batch, beside the data.

    ``cond`` is their condition, (b, ...), ``generator`` the source of randomness (the global one if None), ``index``
    the number of each row in its data set, (b,), and ``step`` the training step, None where the loop gives none.
    ``mask`` is True where the data are real, in a shape that broadcasts over them; None: everywhere.
    """

    cond: Tensor | None = None
    generator: torch.Generator | None = None
    index: Tensor | None = None  # type: ignore[assignment]  # it hides tuple.index, which nobody needs here
    step: int | None = None
    mask: Tensor | None = None


class DropIn(ABC):
    """A coupling with one method to write, ``pair``; called like ``torch.randn_like``.

    The default start of sampling is the standard normal. A coupling that changes the noise's distribution overrides
    ``prior``, for example with ``measured_prior``.
    """

    def __call__(
        self,
        x: Float[Tensor, "b *dims"],
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        index: Tensor | None = None,
        step: int | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "b *dims"]:
        """Return noise paired with x row by row, (b, *dims), with the dtype and device of x. x keeps its order.

        Args:
            x: data in model space, any floating dtype.
            cond: condition of each row: labels (b,), or floating values (b, ...).
            generator: where randomness comes from; the global one if None.
            index: number of each row in its data set, (b,).
            step: the training step.
            mask: True where x is real and False where it is padding, bool, in a shape that broadcasts over x, such as
                (b, horizon, 1); None: everywhere real. Padding has no say in the pairs, and its noise is standard
                normal and independent of all else.

        Raises:
            ValueError: x is no floating batch, cond has another number of rows, index does not hold an integer for each
                row, mask does not fit x, or the coupling cannot pair these rows; see its ``pair``.
        """
        rows = Rows(cond, generator, index, step, mask)
        self.check(x, rows)
        if mask is None:
            noise = self.pair(x, rows)
        else:
            noise = self.pair(torch.where(mask, x, 0), rows)
            noise = torch.where(mask, noise, normal_like(noise, generator))
        if not torch.compiler.is_compiling() and several_processes() and not vars(self).get("_compared"):
            vars(self)["_compared"] = True  # at the first call of this object, and never again
            warn_if_shared(noise)
        return noise

    def check(self, x: Tensor, rows: Rows) -> None:
        """Raise ValueError unless x is a floating batch, with a condition, an index and a mask of it where given."""
        check_batch(x)
        check_lengths(x, cond=rows.cond)
        check_integers(x, index=rows.index)
        check_mask(x, rows.mask)

    @abstractmethod
    def pair(self, x: Float[Tensor, "b *dims"], rows: Rows) -> Float[Tensor, "b *dims"]:
        """Return noise for each row of x, (b, *dims), with the dtype and device of x.

        Args:
            x: a floating batch with at least one row; it may hold NaN or infinity. Where it is padding it is 0.
            rows: what else is known about its rows. The noise that is returned at padding is replaced.
        """

    def prior(self, data: Iterable[Tensor]) -> Prior:
        """Return the distribution that sampling must start from: the standard normal.

        Args:
            data: batches of the training data in model space, (b, *dims); not read here.
        """
        return StandardNormal()


def check_coupling(coupling: object) -> None:
    """Raise ValueError unless a wrapper was given a coupling to wrap, and no window, which must be the outermost."""
    if not isinstance(coupling, Coupling):
        raise ValueError(f"coupling is {coupling!r}; it must be a coupling, such as Assignment()")
    if isinstance(coupling, HasWindow):
        raise ValueError(f"coupling is {coupling!r}; the loop asks the outermost coupling for a window: wrap it last")


def noise_from(coupling: Coupling, x: Tensor, rows: Rows) -> Tensor:
    """Return the noise that a wrapped coupling pairs with the same rows, (b, *dims)."""
    masked = {} if rows.mask is None else {"mask": rows.mask}
    return coupling(x, rows.cond, rows.generator, index=rows.index, step=rows.step or 0, **masked)


def memory_of(coupling: Coupling) -> dict[str, Tensor]:
    """Return the memory of a wrapped coupling; empty if it keeps none."""
    return coupling.memory() if isinstance(coupling, HasMemory) else {}


def restore(coupling: Coupling, memory: dict[str, Tensor]) -> None:
    """Restore the memory of a wrapped coupling, if it keeps one."""
    if isinstance(coupling, HasMemory):
        coupling.remember(memory)
