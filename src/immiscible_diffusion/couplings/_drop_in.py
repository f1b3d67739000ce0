"""The base of the built-in couplings: one signature, one place where arguments are checked, one default start."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, overload

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_batch, check_generator, check_integers, check_lengths, check_mask
from immiscible_diffusion.couplings._misuse import watch_call, watch_partners, watch_processes
from immiscible_diffusion.couplings._several import Masks, as_one, classes, split
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.tensors import normal_like
from immiscible_diffusion.types import Float, Prior

__all__ = ["DropIn", "Rows"]


class Rows(NamedTuple):
    """What a training loop knows about the rows of a batch, beside the data.

    ``cond`` is their condition, (b, ...), ``generator`` the source of randomness (the global one if None), ``index``
    the number of each row in its data set, (b,), and ``step`` the training step, None where the loop gives none.
    ``mask`` is True where the data are real, in a shape that broadcasts over them; None: everywhere. ``labels`` is the
    class that a row may pair within, (b,); only a coupling with ``by_class`` meets it.
    """

    cond: Tensor | None = None
    generator: torch.Generator | None = None
    index: Tensor | None = None  # type: ignore[assignment]  # it hides tuple.index, which nobody needs here
    step: int | None = None
    mask: Tensor | None = None
    labels: Tensor | None = None


class DropIn(ABC):
    """A coupling with one method to write, ``pair``; called like ``torch.randn_like``.

    The default start of sampling is the standard normal. A coupling that changes the noise's distribution overrides
    ``prior``, for example with ``measured_prior``.

    ``permutes`` says that rows exchange noise among themselves, so that one row alone keeps what it drew. ``by_class``
    says that ``pair`` itself keeps to ``rows.labels``; without it each class is paired as a batch of its own.
    ``row_by_row`` says that a row's noise depends on that row alone: several processes then exchange no rows.
    """

    permutes: ClassVar[bool] = False
    by_class: ClassVar[bool] = False
    row_by_row: ClassVar[bool] = False

    @overload
    def __call__(
        self,
        x: Tensor,
        *,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        labels: Tensor | Sequence[Tensor] | None = None,
        index: Tensor | None = None,
        step: int | None = None,
        mask: Tensor | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        x: Sequence[Tensor],
        *,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        labels: Tensor | Sequence[Tensor] | None = None,
        index: Tensor | None = None,
        step: int | None = None,
        mask: Sequence[Tensor | None] | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> tuple[Tensor, ...]: ...

    def __call__(
        self,
        x: Float[Tensor, "b *dims"] | Sequence[Tensor],
        *others: Any,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        labels: Tensor | Sequence[Tensor] | None = None,
        index: Tensor | None = None,
        step: int | None = None,
        mask: Masks = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> Float[Tensor, "b *dims"] | tuple[Tensor, ...]:
        """Return noise paired with x row by row, (b, *dims), with the dtype and device of x. x keeps its order.

        Args:
            x: data in model space, any floating dtype; or several tensors of the same rows, such as latents of video
                and audio: they are paired by one index, and their noises are returned in a tuple.
            others: refused; all but x have names.
            cond: condition of each row: labels (b,), or floating values (b, ...).
            generator: where randomness comes from; the global one if None.
            labels: class of each row, (b,), integers: rows pair within their class, which keeps noise and class
                independent. Several labels a row, in a tuple, act as one for each combination.
            index: number of each row in its data set, (b,).
            step: the training step.
            mask: True where x is real and False where it is padding, bool, in a shape that broadcasts over x, such as
                (b, horizon, 1); None: everywhere real. Padding has no say in the pairs, and its noise is standard
                normal and independent of all else. For several tensors, a mask or None for each.
            device: as ``torch.randn_like`` takes it; must be the device of x.
            dtype: as ``torch.randn_like`` takes it; must be the dtype of x.
            memory_format: of the noise, as ``torch.randn_like`` takes it; contiguous if None.

        Raises:
            ValueError: x is no floating batch, generator is none of torch's, cond has another number of rows, labels or
                index do not hold an integer for each row, mask, device, dtype or memory format do not fit x, or the
                coupling cannot pair these rows; see its ``pair``.
            TypeError: a second argument without a name, which could mean labels, noise or a condition.
        """
        if others:
            raise TypeError(
                "a coupling takes the data alone without a name, couple(x): write couple(x, labels=y) for classes and "
                "couple(x, cond=c) for a condition; noise that is drawn already is paired by assign(x, noise)"
            )
        check_generator(generator)
        rows = Rows(cond, generator, index, step)
        if isinstance(x, Sequence):
            joined, joined_mask = as_one(x, mask)
            parts = split(self.draw(joined, rows._replace(mask=joined_mask), labels), x)
            return tuple(_wanted(*pair, device, dtype, memory_format) for pair in zip(parts, x, strict=True))
        rows = rows._replace(mask=mask)  # type: ignore[arg-type]  # check_mask refuses several
        noise = self.draw(x, rows, labels)
        return _wanted(noise, x, device, dtype, memory_format)

    def draw(self, x: Tensor, rows: Rows, labels: Tensor | Sequence[Tensor] | None) -> Tensor:
        """Return noise for each row of x after checking the arguments; what ``__call__`` is for one tensor."""
        self.check(x, rows)
        rows = rows if labels is None else rows._replace(labels=classes(x, labels))
        if rows.labels is None or self.by_class:
            noise = self._masked(x, rows)
        else:
            noise = self._within_classes(x, rows, rows.labels)
        if not torch.compiler.is_compiling():
            watch_call(x, mask=rows.mask)
            if self.permutes:
                watch_partners(x, self.classes(rows))
            if not vars(self).get("_compared"):
                vars(self)["_compared"] = watch_processes(noise)  # once, and never again
        return noise

    def _masked(self, x: Tensor, rows: Rows) -> Tensor:
        """Return the noise of ``pair``, with fresh noise at padding."""
        if rows.mask is None:
            return self.pair(x, rows)
        noise = self.pair(torch.where(rows.mask, x, 0), rows)
        return torch.where(rows.mask, noise, normal_like(noise, rows.generator))

    def _within_classes(self, x: Tensor, rows: Rows, labels: Tensor) -> Tensor:
        """Return noise for which each class was paired as a batch of its own."""
        noise = torch.empty_like(x, requires_grad=False)
        for label in torch.unique(labels):
            part = (labels == label).nonzero().squeeze(1)
            cond, index, mask = (
                None if values is None else values[part.to(values.device)]
                for values in (rows.cond, rows.index, rows.mask)
            )
            part = part.to(x.device)
            noise[part] = self._masked(x[part], Rows(cond, rows.generator, index, rows.step, mask))
        return noise

    def classes(self, rows: Rows) -> Tensor | None:
        """Return the class of each row that it may pair within, (b,), or None where all rows may pair."""
        return rows.labels

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


def _wanted(
    noise: Tensor,
    x: Tensor,
    device: torch.device | str | int | None,
    dtype: torch.dtype | None,
    memory_format: torch.memory_format | None,
) -> Tensor:
    """Return noise in a memory format; ValueError if the requested device or dtype differs from x's."""
    if dtype not in (None, x.dtype):
        raise ValueError(f"dtype is {dtype} and x is {x.dtype}; noise is paired in the dtype of x: convert x first")
    if device is not None:
        wanted = torch.device(device)
        if wanted.type != x.device.type or wanted.index not in (None, x.device.index):
            raise ValueError(f"device is {wanted} and x is on {x.device}; noise is paired where x is: move x first")
    if memory_format is None:
        return noise
    if x.ndim != {torch.channels_last: 4, torch.channels_last_3d: 5}.get(memory_format, x.ndim):
        raise ValueError(f"memory_format is {memory_format}, which no tensor of shape {tuple(x.shape)} can have")
    return torch.empty_like(x, memory_format=memory_format, requires_grad=False).copy_(noise)
