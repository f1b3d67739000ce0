"""Linear assignment: the pairing of paper 1 (Li et al., arXiv:2406.12303, Alg. 1)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_finite, check_integers
from immiscible_diffusion.couplings._cost import Cost, Precision, check_costs, check_rows, pairwise, real_part
from immiscible_diffusion.couplings._drop_in import DropIn, Rows
from immiscible_diffusion.couplings.solvers.solve import solve
from immiscible_diffusion.registry import register
from immiscible_diffusion.tensors import batch_rows, normal_like
from immiscible_diffusion.types import Float, Int

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
    mask: Tensor | None = None,
) -> Float[Tensor, "b *dims"]:
    """Return the noise rows that an exact linear assignment gives to the rows of x, (b, *dims).

    One line in a training loop: ``noise = assign(x, noise)``, before x_t and the target are formed. x keeps
    its order, so labels, captions and masks stay with their rows.

    Args:
        x: data in model space, any floating dtype; one row is returned its own noise.
        noise: at least as many rows as x. With more, the cheapest b are used, which changes their distribution.
        cost: ``l2`` the distance, as in the paper; ``dot`` the negative inner product, which for m = b has the
            optimum of squared L2; ``l1``; ``cosine`` one minus the cosine.
        precision: of the cost alone. ``fp16`` is the paper's quantised assignment; low precision sees rows
            centred and scaled so that no cost can overflow.
        labels: class of each row, (b,), integers. Pairs then stay within a class, which keeps noise and class
            independent; needs m = b.
        mask: True where x is real and False where it is padding, bool, in a shape that broadcasts over x, such as
            (b, horizon, 1). The cost of a pair counts the real places of its datum alone. None: everywhere.

    Marginal: standard normal, exactly, for m = b: the batch's noise is permuted. With a mask this holds over the batch,
        not at a place among the rows that are real there: they choose before the others, and ``l2`` gives the rows
        with most real places the shortest noises. Padding gets what is left; a coupling's own call replaces it.
    Cost: O(b m d) for the product, O(b^2 m) at worst for the solver; memory b (m + d).

    Raises:
        ValueError: shapes, devices or dtypes that do not fit, NaN or infinity, unknown cost or precision.

    >>> x = torch.tensor([[2.0, 0.0], [-2.0, 0.0]])
    >>> assign(x, torch.tensor([[-1.0, 0.5], [1.0, -0.5]])).tolist()
    [[1.0, -0.5], [-1.0, 0.5]]
    """
    return noise[assign_index(x, noise, cost=cost, precision=precision, labels=labels, mask=mask)]


@torch.no_grad()
def assign_index(
    x: Float[Tensor, "b *dims"],
    noise: Float[Tensor, "m *dims"],
    *,
    cost: Cost = "l2",
    precision: Precision = "fp32",
    labels: Tensor | None = None,
    mask: Tensor | None = None,
) -> Int[Tensor, " b"]:
    """Return the index of the noise row that ``assign`` gives to each row of x, (b,), on the device of x.

    Raises:
        ValueError: as ``assign``.

    >>> assign_index(torch.tensor([[3.0], [-3.0]]), torch.tensor([[-1.0], [1.0]])).tolist()
    [1, 0]
    """
    if torch.compiler.is_compiling():  # one break of the graph and not one at every check
        whole = torch.compiler.disable(assign_index)  # type: ignore[no-untyped-call]
        return whole(x, noise, cost=cost, precision=precision, labels=labels, mask=mask)  # type: ignore[no-any-return]
    check_costs(cost, precision)
    check_rows(x, noise)
    if labels is not None:
        check_integers(x, labels=labels)
        if len(noise) != len(x):
            raise ValueError(f"labels need as many noise rows as rows of x; there are {len(noise)} for {len(x)}")
    x, noise = _bounded(real_part(x, mask), noise, cost)
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


def _bounded(x: Tensor, noise: Tensor, cost: Cost) -> tuple[Tensor, Tensor]:
    """Return rows whose squares stay within float32 and that pair alike, or raise ValueError if one is not finite.

    Scaling is harmless: ``dot`` and ``cosine`` allow a separate factor for data and noise, ``l2`` and ``l1`` a common
    one. By ``l2``, a datum much longer than the noise is paired by its direction.
    """
    if all(_norm(rows) < _LARGE for rows in (x, noise)):
        return x, noise
    check_finite(x=x, noise=noise)
    unit = float(noise.abs().max()) or 1.0
    if cost in ("dot", "cosine"):
        return x / (float(x.abs().max()) or 1.0), noise / unit
    rows = batch_rows(x) / unit
    if cost == "l1":
        return rows.clamp(-1, 1).reshape(x.shape), noise / unit  # see pairwise
    reach = rows.abs().amax(1, keepdim=True).clamp(min=1)
    return (rows * (_FAR / reach).clamp(max=1)).reshape(x.shape), noise / unit


def _norm(rows: Tensor) -> float:
    """Return the norm of all rows together; NaN or infinity if a value is. Ten times as fast as a maximum."""
    return float(torch.linalg.vector_norm(rows, dtype=torch.promote_types(rows.dtype, torch.float32)))


@register("coupling")
@dataclass(frozen=True)
class Assignment(DropIn):
    """Draw as many noises as data and pair them by exact linear assignment (arXiv:2406.12303, Alg. 1).

    Marginal: standard normal, exactly: a permutation keeps the batch's noise. Given a class it is not, unless
        ``per_class``: plain assignment makes noise depend on the class, while sampling draws it independently.
    Cost: b d normals, O(b^2 d) for the product and O(b^3) at worst for the solver; memory b (b + d).

    Args:
        cost: see ``assign``.
        precision: see ``assign``.
        per_class: pair within each class; the condition must then be labels, (b,).

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
        check_costs(self.cost, self.precision)

    def pair(self, x: Float[Tensor, "b *dims"], rows: Rows) -> Float[Tensor, "b *dims"]:
        """Return as many noises as data, assigned to the rows of x, (b, *dims).

        Raises:
            ValueError: as ``assign``; ``per_class`` without labels.
        """
        if self.per_class and rows.cond is None:
            raise ValueError("per_class assignment needs labels as condition; there came None")
        labels = rows.cond if self.per_class else None
        noise = normal_like(x, rows.generator)
        return assign(x, noise, cost=self.cost, precision=self.precision, labels=labels, mask=rows.mask)
