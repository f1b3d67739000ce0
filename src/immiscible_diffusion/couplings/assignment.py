"""Linear assignment: the pairing of paper 1 (Li et al., arXiv:2406.12303, Alg. 1)."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.couplings._cost import (
    Cost,
    Precision,
    check_choice,
    check_finite,
    check_rows,
    pairwise,
)
from immiscible_diffusion.couplings.solvers.solve import solve
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.registry import register
from immiscible_diffusion.tensors import batch_rows, normal_like
from immiscible_diffusion.types import Float, Int, Prior

__all__ = ["Assignment", "assign", "assign_index"]

_LARGE = 1e15
"""Above it, the square of a norm comes near the end of float32."""
_FAR = 1e9
"""Data this many times as long as the noise are paired by direction, to the last digit of float32."""


def assign(
    x: Float[Tensor, "b *dims"],
    noise: Float[Tensor, "m *dims"],
    *,
    cost: Cost = "l2",
    precision: Precision = "fp32",
    labels: Tensor | None = None,
) -> Float[Tensor, "b *dims"]:
    """Return the noise rows that an exact linear assignment gives to the rows of x, (b, *dims).

    The one line for a training loop: ``noise = assign(x, noise)``, before x_t and the target are formed. x keeps
    its order, so labels, captions and masks stay with their rows.

    Args:
        x: data in model space, any floating dtype; one row is returned its own noise.
        noise: at least as many rows as x. With more, the cheapest b of them are used (which changes their law).
        cost: ``l2`` the distance, as in the paper; ``dot`` the negative inner product, which for m = b has the
            optimum of squared L2; ``l1``; ``cosine`` one minus the cosine.
        precision: of the cost alone. ``fp16`` is the paper's quantised assignment; low precision sees rows
            centred and scaled so that no cost can overflow.
        labels: class of each row, (b,), integers. Pairs then stay within a class, which keeps noise and class
            independent; needs m = b.

    Marginal: standard normal, exactly, for m = b: the batch's noise is permuted.
    Cost: O(b m d) for the product, O(b^2 m) at worst for the solver; memory b (m + d).

    Raises:
        ValueError: shapes, devices or dtypes that do not fit, NaN or infinity, unknown cost or precision.

    >>> x = torch.tensor([[2.0, 0.0], [-2.0, 0.0]])
    >>> assign(x, torch.tensor([[-1.0, 0.5], [1.0, -0.5]])).tolist()
    [[1.0, -0.5], [-1.0, 0.5]]
    """
    return noise[assign_index(x, noise, cost=cost, precision=precision, labels=labels)]


@torch.no_grad()
def assign_index(
    x: Float[Tensor, "b *dims"],
    noise: Float[Tensor, "m *dims"],
    *,
    cost: Cost = "l2",
    precision: Precision = "fp32",
    labels: Tensor | None = None,
) -> Int[Tensor, " b"]:
    """Return the index of the noise row that ``assign`` gives to each row of x, (b,), on the device of x.

    Raises:
        ValueError: as ``assign``.

    >>> assign_index(torch.tensor([[3.0], [-3.0]]), torch.tensor([[-1.0], [1.0]])).tolist()
    [1, 0]
    """
    if torch.compiler.is_compiling():  # one break of the graph and not one at every check
        whole = torch.compiler.disable(assign_index)  # type: ignore[no-untyped-call]
        return whole(x, noise, cost=cost, precision=precision, labels=labels)  # type: ignore[no-any-return]
    check_choice("cost", cost, Cost)
    check_choice("precision", precision, Precision)
    check_rows(x, noise)
    if labels is not None:
        _check_labels(labels, x, noise)
    x, noise = _bounded(x, noise, cost)
    if labels is None:
        return _match(x, noise, cost, precision)
    index = torch.empty(len(x), dtype=torch.long, device=x.device)
    for label in torch.unique(labels):
        rows = (labels == label).nonzero().squeeze(1).to(x.device)
        index[rows] = rows[_match(x[rows], noise[rows], cost, precision)]
    return index


def _match(x: Tensor, noise: Tensor, cost: Cost, precision: Precision) -> Tensor:
    if len(x) == len(noise) == 1:
        return torch.zeros(1, dtype=torch.long, device=x.device)
    return solve(pairwise(x, noise, cost, precision))


def _bounded(x: Tensor, noise: Tensor, cost: Cost) -> tuple[Tensor, Tensor]:
    """Return rows whose squares stay within float32 and that pair alike, or raise ValueError if one is not finite.

    A factor of all data or all noise changes no assignment by ``dot`` and ``cosine``, a common one none by ``l2`` and
    ``l1``; nor does by ``l2`` the length of a datum far beyond the noise's, which is then paired by its direction.
    """
    if all(_norm(each) < _LARGE for each in (x, noise)):
        return x, noise
    check_finite(x=x, noise=noise)
    largest = [float(each.abs().max()) for each in (x, noise)]
    unit = largest[1] or 1.0
    if cost in ("dot", "cosine"):
        return x / (largest[0] or 1.0), noise / unit
    rows = batch_rows(x) / unit
    if cost == "l1":
        return rows.clamp(-1, 1).reshape(x.shape), noise / unit  # see pairwise
    reach = rows.abs().amax(1, keepdim=True).clamp(min=1)
    return (rows * (_FAR / reach).clamp(max=1)).reshape(x.shape), noise / unit


def _norm(rows: Tensor) -> float:
    """Return the norm of all rows together: a tenth of the time that a maximum takes, and not finite if any is not."""
    return float(torch.linalg.vector_norm(rows, dtype=torch.promote_types(rows.dtype, torch.float32)))


def _check_labels(labels: Tensor, x: Tensor, noise: Tensor) -> None:
    if labels.shape != (len(x),) or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; they must be integers, ({len(x)},)"
        )
    if len(noise) != len(x):
        raise ValueError(f"labels need one noise row a datum; there are {len(noise)} for {len(x)}")


@register("coupling")
@dataclass(frozen=True)
class Assignment:
    """Draw as many noises as data and pair them by exact linear assignment (arXiv:2406.12303, Alg. 1).

    Marginal: standard normal, exactly: a permutation keeps the batch's noise. Given a class it is not, unless
        ``per_class``: with conditions, plain assignment lets the noise tell the class.
    Cost: b d normals, O(b^2 d) for the product and O(b^3) at worst for the solver; memory b (b + d).

    Args:
        cost: see ``assign``.
        precision: see ``assign``.
        per_class: pair within the classes that the condition names; it must then be labels, (b,).

    Raises:
        ValueError: an unknown cost or precision.

    >>> couple = Assignment()
    >>> couple(torch.randn(8, 3, 4, 4)).shape
    torch.Size([8, 3, 4, 4])
    """

    cost: Cost = "l2"
    precision: Precision = "fp32"
    per_class: bool = False

    def __post_init__(self) -> None:
        check_choice("cost", self.cost, Cost)
        check_choice("precision", self.precision, Precision)

    def __call__(
        self,
        x: Float[Tensor, "b *dims"],
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        index: Tensor | None = None,
        step: int = 0,
    ) -> Float[Tensor, "b *dims"]:
        """Return noise paired with x row by row, (b, *dims).

        Raises:
            ValueError: as ``assign``; ``per_class`` without labels.
        """
        batch_rows(x)
        if self.per_class and cond is None:
            raise ValueError("per_class assignment needs labels as condition; there came None")
        labels = cond if self.per_class else None
        return assign(x, normal_like(x, generator), cost=self.cost, precision=self.precision, labels=labels)

    def prior(self, data: Iterable[Tensor]) -> Prior:
        """Return the standard normal."""
        return StandardNormal()
