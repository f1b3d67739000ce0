"""Linear assignment: the pairing of paper 1 (Li et al., arXiv:2406.12303, Alg. 1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, overload

import torch
from torch import Tensor

from immiscible_diffusion.couplings._arrays import NumpyIndex, tensor_of
from immiscible_diffusion.couplings._cost import (
    Cost,
    Precision,
    bounded,
    check_costs,
    check_rows,
    pairwise,
    real_part,
    total_norm,
)
from immiscible_diffusion.couplings._drop_in import DropIn, Rows
from immiscible_diffusion.couplings._misuse import watch_call, watch_noise, watch_partners
from immiscible_diffusion.couplings._several import Masks, classes, pair_as_one
from immiscible_diffusion.couplings.solvers.solve import solve
from immiscible_diffusion.registry import register
from immiscible_diffusion.tensors import normal_like
from immiscible_diffusion.types import Float, Int

__all__ = ["Assignment", "assign", "assign_index", "couple", "pair_index"]


@overload
def assign(
    x: Tensor,
    noise: Tensor,
    *,
    cost: Cost = "l2",
    precision: Precision = "fp32",
    labels: Tensor | Sequence[Tensor] | None = None,
    mask: Tensor | None = None,
) -> Tensor: ...


@overload
def assign(
    x: Sequence[Tensor],
    noise: Sequence[Tensor],
    *,
    cost: Cost = "l2",
    precision: Precision = "fp32",
    labels: Tensor | Sequence[Tensor] | None = None,
    mask: Sequence[Tensor | None] | None = None,
) -> tuple[Tensor, ...]: ...


def assign(
    x: Float[Tensor, "b *dims"] | Sequence[Tensor],
    noise: Float[Tensor, "m *dims"] | Sequence[Tensor],
    *,
    cost: Cost = "l2",
    precision: Precision = "fp32",
    labels: Tensor | Sequence[Tensor] | None = None,
    mask: Masks = None,
) -> Float[Tensor, "b *dims"] | tuple[Tensor, ...]:
    """Return the noise rows that an exact linear assignment gives to the rows of x, (b, *dims).

    One line in a training loop: ``noise = assign(x, noise)``, before x_t and the target are formed. x keeps
    its order, so labels, captions and masks stay with their rows. A ``MisuseWarning`` tells of noise that is not of
    unit variance, of data that are still 0 to 255, and of batches in which nothing can be paired.

    Args:
        x: data in model space, any floating dtype; one row is returned its own noise. Several tensors of the same
            rows, such as latents of video and audio, are paired by one index.
        noise: at least as many rows as x, standard normal; as many tensors as x. With more rows, the cheapest b are
            used, which changes their distribution.
        cost: ``l2`` the distance, as in the paper; ``dot`` the negative inner product, which for m = b has the
            optimum of squared L2; ``l1``; ``cosine`` one minus the cosine.
        precision: of the cost alone. ``fp16`` is the paper's quantised assignment; low precision sees rows
            centred and scaled so that no cost can overflow.
        labels: class of each row, (b,), integers. Pairs then stay within a class, which keeps noise and class
            independent; needs m = b. Several labels a row, in a tuple, act as one for each combination.
        mask: True where x is real and False where it is padding, bool, in a shape that broadcasts over x, such as
            (b, horizon, 1). The cost of a pair counts the real places of its datum alone. None: everywhere. For
            several tensors, a mask or None for each.

    Marginal: standard normal, exactly, for m = b: the batch's noise is permuted. With a mask, row i keeps the noise of
        row i at its padding, which is independent of the data; at real places the rows that are real there choose
        before the others, and ``l2`` gives the rows with most real places the shortest noises.
    Cost: O(b m d) for the product, O(b^2 m) at worst for the solver; memory b (m + d).

    Raises:
        ValueError: shapes, devices or dtypes that do not fit, NaN or infinity, unknown cost or precision.

    >>> x = torch.tensor([[2.0, 0.0], [-2.0, 0.0]])
    >>> assign(x, torch.tensor([[-1.0, 0.5], [1.0, -0.5]])).tolist()
    [[1.0, -0.5], [-1.0, 0.5]]
    """
    index = pair_index(x, noise, cost, precision, labels, mask, watch=True)
    if isinstance(noise, Tensor):
        return _taken(noise, index, mask)
    masks = [None] * len(noise) if mask is None else mask
    return tuple(_taken(*each) for each in zip(noise, [index] * len(noise), masks, strict=True))


def _taken(noise: Tensor, index: Tensor, mask: Any) -> Tensor:
    """Return the noise of these rows at real places, and each row's own at padding."""
    return noise[index] if mask is None else torch.where(mask, noise[index], noise[: len(index)])


@overload
def assign_index(
    x: Tensor | Sequence[Tensor],
    noise: Tensor | Sequence[Tensor],
    *,
    cost: Cost = "l2",
    precision: Precision = "fp32",
    labels: Tensor | Sequence[Tensor] | None = None,
    mask: Masks = None,
) -> Tensor: ...


@overload
def assign_index(
    x: Any,
    noise: Any,
    *,
    cost: Cost = "l2",
    precision: Precision = "fp32",
    labels: Any = None,
    mask: Any = None,
) -> NumpyIndex: ...


def assign_index(
    x: Any,
    noise: Any,
    *,
    cost: Cost = "l2",
    precision: Precision = "fp32",
    labels: Any = None,
    mask: Any = None,
) -> Any:
    """Return the index of the noise row that ``assign`` gives to each row of x, (b,), on the device of x.

    x, noise, labels and mask may also be arrays of NumPy, JAX or any other library with ``__dlpack__``; the index is
    then an int64 array of NumPy, and ``noise[index]`` the paired noise. A ``MisuseWarning`` tells what it tells of
    ``assign``.

    Raises:
        ValueError: as ``assign``.

    >>> assign_index(torch.tensor([[3.0], [-3.0]]), torch.tensor([[-1.0], [1.0]])).tolist()
    [1, 0]
    """
    if isinstance(x, Tensor | Sequence):
        return pair_index(x, noise, cost, precision, labels, mask, watch=True)
    x, noise, labels, mask = (tensor_of(array) for array in (x, noise, labels, mask))
    return pair_index(x, noise, cost, precision, labels, mask, watch=True).cpu().numpy()


@torch.no_grad()
def pair_index(
    x: Tensor | Sequence[Tensor],
    noise: Tensor | Sequence[Tensor],
    cost: Cost = "l2",
    precision: Precision = "fp32",
    labels: Tensor | Sequence[Tensor] | None = None,
    mask: Masks = None,
    *,
    watch: bool = False,
) -> Int[Tensor, " b"]:
    """Return the index that ``assign_index`` is for, (b,); with ``watch``, warn of misuse.

    Couplings call it, which draw their noise themselves; also where ``noise`` is none, such as other data.

    Raises:
        ValueError: as ``assign``.
    """
    if torch.compiler.is_compiling():  # one break of the graph and not one at every check
        whole = torch.compiler.disable(pair_index)  # type: ignore[no-untyped-call]
        return whole(x, noise, cost, precision, labels, mask, watch=watch)  # type: ignore[no-any-return]
    check_costs(cost, precision)
    x, noise, mask = pair_as_one(x, noise, mask)
    check_rows(x, noise)
    if labels is not None:
        labels = classes(x, labels)
        if len(noise) != len(x):
            raise ValueError(f"labels need as many noise rows as rows of x; there are {len(noise)} for {len(x)}")
    x = real_part(x, mask)
    norm = total_norm(noise)
    if watch:
        watch_noise(noise, norm, mask)
        watch_call(x, noise)
        if len(noise) == len(x):
            watch_partners(x, labels)
    x, noise = bounded(x, noise, cost, norm)
    mask = None if mask is None or bool(mask.all()) else mask
    if labels is None:
        return _match(x, noise, cost, precision, mask)
    index = torch.empty(len(x), dtype=torch.long, device=x.device)
    for label in torch.unique(labels):
        rows = (labels == label).nonzero().squeeze(1).to(x.device)
        part = None if mask is None else mask[rows]
        index[rows] = rows[_match(x[rows], noise[rows], cost, precision, part)]
    return index


def _match(x: Tensor, noise: Tensor, cost: Cost, precision: Precision, mask: Tensor | None) -> Tensor:
    if len(x) == len(noise) == 1:
        return torch.zeros(1, dtype=torch.long, device=x.device)
    return solve(pairwise(x, noise, cost, precision, mask))


@register("coupling")
@dataclass(frozen=True)
class Assignment(DropIn):
    """Draw as many noises as data and pair them by exact linear assignment (arXiv:2406.12303, Alg. 1).

    ``couple`` is one with the default options: ``couple(x)``, and ``couple(x, labels=y)`` where rows have classes.

    Marginal: standard normal, exactly: a permutation keeps the batch's noise. Within one class it is not, unless labels
        are given: plain assignment makes noise depend on the class, while sampling draws it independently.
    Cost: b d normals, O(b^2 d) for the product and O(b^3) at worst for the solver; memory b (b + d).

    Args:
        cost: see ``assign``.
        precision: see ``assign``.
        per_class: pair within each class without being given ``labels``: the condition holds them, (b,). It is for
            experiment files, whose loop hands every coupling the condition.

    Raises:
        ValueError: an unknown cost or precision.

    >>> couple = Assignment()
    >>> couple(torch.randn(8, 3, 4, 4)).shape
    torch.Size([8, 3, 4, 4])
    """

    permutes: ClassVar[bool] = True
    by_class: ClassVar[bool] = True

    cost: Cost = "l2"
    precision: Precision = "fp32"
    per_class: bool = False

    def __post_init__(self) -> None:
        check_costs(self.cost, self.precision)

    def pair(self, x: Float[Tensor, "b *dims"], rows: Rows) -> Float[Tensor, "b *dims"]:
        """Return as many noises as data, assigned to the rows of x, (b, *dims).

        Raises:
            ValueError: as ``assign``; ``per_class`` without labels.
        """
        if self.per_class and rows.cond is None and rows.labels is None:
            raise ValueError("per_class assignment needs labels as condition; there came None")
        noise, labels = normal_like(x, rows.generator), self.classes(rows)
        return noise[pair_index(x, noise, cost=self.cost, precision=self.precision, labels=labels, mask=rows.mask)]

    def classes(self, rows: Rows) -> Tensor | None:
        """Return the labels; with ``per_class`` and without labels, the condition."""
        return rows.cond if self.per_class and rows.labels is None else rows.labels


couple = Assignment()
"""The coupling to start with: ``noise = couple(x)`` in place of ``noise = torch.randn_like(x)``."""
