"""The nouns of this library as protocols, and the legend of shapes and of time.

Shapes: ``b`` batch rows, ``m`` noise rows, ``n`` images, ``c h w`` image axes, ``d`` coordinates of a row,
``k`` candidates, ``f`` features; ``*dims`` stands for any number of axes.

Time: ``t`` lies in [0, 1]; 0 is data, 1 is noise. ``x`` is data in model space, ``raw`` data as stored
(images: uint8, 0..255), ``x_t`` the noisy input of a net.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    # The tests load jaxtyping first, and every call is checked; a user's import needs torch alone.
    from jaxtyping import Float, Int, UInt8
else:

    class _Unchecked:
        def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
            return item[0]

    Float = Int = UInt8 = _Unchecked

__all__ = [
    "Batch",
    "Codec",
    "Coupling",
    "Features",
    "Float",
    "HasMemory",
    "Int",
    "Method",
    "Metric",
    "Net",
    "Prior",
    "Source",
    "UInt8",
]

Net = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A net maps (x_t (b, *dims), t (b,), cond) to its prediction, (b, *dims)."""


class Batch(NamedTuple):
    """What a source yields: the data as stored, their condition (labels, (b,)) or None, and their row numbers, (b,)."""

    raw: Tensor
    cond: Tensor | None
    rows: Tensor | None = None


@runtime_checkable
class Prior(Protocol):
    """The distribution that sampling starts from."""

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return starting noise of this shape, (n, *dims), float32, on the generator's device."""
        ...


@runtime_checkable
class Coupling(Protocol):
    """A drop-in for ``torch.randn_like`` that pairs each datum with a nearby noise."""

    def __call__(
        self,
        x: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        index: Tensor | None = None,
        step: int = 0,
    ) -> Tensor:
        """Return noise paired with x row by row, (b, *dims); the rows of x keep their order.

        ``cond`` is the data's condition, ``index`` the number of each row in its data set, ``step`` the training
        step; most couplings need none of them.
        """
        ...

    def prior(self, data: Iterable[Tensor]) -> Prior:
        """Return the distribution that sampling must start from, given batches (b, *dims) of the data."""
        ...


@runtime_checkable
class HasMemory(Protocol):
    """A coupling that keeps tensors between batches. The loop saves them with the training state and restores them."""

    def memory(self) -> dict[str, Tensor]:
        """Return the tensors that the coupling keeps, without a copy; empty before the first batch."""
        ...

    def remember(self, memory: dict[str, Tensor]) -> None:
        """Restore the tensors of ``memory()``; an empty dict makes the coupling forget."""
        ...


@runtime_checkable
class Method(Protocol):
    """Loss and sampling of one family of models, which must agree on time, prediction and scale."""

    def loss(
        self,
        net: Net,
        x: Tensor,
        noise: Tensor,
        cond: Tensor | None = None,
        *,
        teacher: Net | None = None,
        progress: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss of each row, (b,)."""
        ...

    def sample(
        self,
        net: Net,
        noise: Tensor,
        cond: Tensor | None = None,
        *,
        steps: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return data generated from the noise in this many steps, (n, *dims)."""
        ...


@runtime_checkable
class Codec(Protocol):
    """The way between data as stored and model space."""

    def encode(self, raw: Tensor) -> Tensor:
        """Return raw data in model space, (b, *dims), float32."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Return model-space data as stored, uint8 for images."""
        ...


@runtime_checkable
class Source(Protocol):
    """Where data come from. Batches depend on the arguments alone, so that resuming is exact."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one raw datum, (c, h, w) for images."""
        ...

    @property
    def rows(self) -> int:
        """How many rows training sees in an epoch."""
        ...

    @property
    def classes(self) -> int | None:
        """How many classes the labels have, or None without labels."""
        ...

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """Yield training batches for ever, from batch number ``start`` on."""
        ...

    def held_out(self) -> Batch:
        """Return real data that training never sees, to measure samples against."""
        ...


@runtime_checkable
class Features(Protocol):
    """The network whose features a metric compares."""

    def __call__(self, raw: Tensor) -> Tensor:
        """Return the features of images, (n, f), float32."""
        ...


@runtime_checkable
class Metric(Protocol):
    """A distance between real and generated data in feature space."""

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        """Return one number for features (n, f) and (m, f)."""
        ...
