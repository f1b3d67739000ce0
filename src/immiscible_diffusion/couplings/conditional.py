"""Assignment that keeps the noise independent of the condition (C2OT, Cheng & Schwing, ICCV 2025, arXiv:2503.10636)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_finite, check_number
from immiscible_diffusion.couplings._cost import Cost, Precision, check_costs, check_rows, pairwise, real_part
from immiscible_diffusion.couplings._drop_in import DropIn, Rows
from immiscible_diffusion.couplings.assignment import pair_index
from immiscible_diffusion.couplings.solvers.solve import solve
from immiscible_diffusion.registry import register
from immiscible_diffusion.tensors import batch_rows, normal_like
from immiscible_diffusion.types import Float, Int

__all__ = ["Conditional", "assign_conditional", "condition_distance", "condition_weight"]

_ALIKE = 1e-6
"""The least cosine distance that float32 tells from rounding; conditions that differ are at least this far apart."""


@torch.no_grad()
def assign_conditional(
    x: Float[Tensor, "b *dims"],
    noise: Float[Tensor, "b *dims"],
    cond: Tensor,
    *,
    ratio: float = 0.01,
    cost: Cost = "dot",
    precision: Precision = "fp32",
    mask: Tensor | None = None,
) -> Int[Tensor, " b"]:
    """Return the index of the noise row for each row of x, paired within like conditions, (b,), on the device of x.

    Noise row j carries the condition of the row of x that it was drawn for, c_j. Labels pair within their class.
    Continuous conditions cost w (1 - cos(c_i, c_j)) on top of the noise's (arXiv:2503.10636), with w the least
    at which no more than a share ``ratio`` of the pairs of different rows cost a row less than its own noise. Where
    more pairs than that have equal conditions no weight is large enough, and equal conditions act as labels.

    Departs: the weight is exact, a quantile of the weights at which single pairs drop out, where the paper's code
        halves intervals ten times. It does not count a row's own noise, which alone is the share 0.01 at b = 100.
        Costs are compared less the mean of their noise: a constant for each noise changes no assignment, so it may not
        change the weight either.

    Args:
        x: data in model space.
        noise: one row for each row of x.
        cond: labels (b,), integers, or continuous conditions (b, f, ...), floating.
        ratio: the share of pairs that stay candidates, from 0 (nearly independent) to 1 (plain assignment).
        cost: see ``assign``.
        precision: see ``assign``.
        mask: see ``assign``.

    Marginal: standard normal, exactly: a permutation. Given a label too; given a continuous condition the less exactly
        the larger the ratio.
    Cost: as ``assign`` and, for continuous conditions, O(b^2 f) and a selection among b^2 weights; memory 4 b^2.

    Raises:
        ValueError: as ``assign``; conditions that fit neither form; a ratio outside 0..1.

    >>> x, cond = torch.tensor([[2.0], [1.0], [-1.0]]), torch.tensor([0, 1, 0])
    >>> assign_conditional(x, torch.tensor([[-1.0], [3.0], [1.0]]), cond).tolist()
    [2, 1, 0]
    """
    check_number(ratio=ratio, at_least=0, at_most=1)
    check_rows(x, noise)
    if not cond.is_floating_point():
        return pair_index(x, noise, cost=cost, precision=precision, labels=cond, mask=mask)
    x = real_part(x, mask)
    _check_condition(cond, x, noise)
    check_costs(cost, precision)
    check_finite(x=x, noise=noise, cond=cond)
    distance, label = condition_distance(cond.to(x.device))
    costs = pairwise(x, noise, cost, precision, mask)
    costs -= costs.mean(0)
    weight = condition_weight(costs, distance, ratio)
    if bool(weight.isinf()):
        return pair_index(x, noise, cost=cost, precision=precision, labels=label, mask=mask)
    return solve(costs.addcmul_(weight, distance))


def condition_distance(cond: Float[Tensor, "b *dims"]) -> tuple[Float[Tensor, "b b"], Int[Tensor, " b"]]:
    """Return 1 - cos of every two conditions, (b, b), float32, and a label for each, (b,): equal ones share it.

    A condition of zeros, as guidance has for "none", is at 1 from every other and at 0 from its like.

    >>> condition_distance(torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0], [2.0, 0.0]]))[0][0].tolist()
    [0.0, 1.0, 1.0, 0.0]
    """
    rows = batch_rows(cond, "cond").float()
    unit = torch.nn.functional.normalize(rows, eps=torch.finfo(torch.float32).tiny)
    distance = (1 - unit @ unit.T).clamp_(min=_ALIKE)
    label: Tensor = torch.unique(rows, dim=0, return_inverse=True)[1]
    return distance.masked_fill_(label.unsqueeze(1) == label, 0), label


def condition_weight(costs: Float[Tensor, "b b"], distance: Float[Tensor, "b b"], ratio: float) -> Float[Tensor, ""]:
    """Return the least w >= 0 at which a share ``ratio`` of pairs has costs + w distance below the row's own cost, ().

    Pair (i, j) costs more than the row's own pair from the weight w_ij = (C_ii - C_ij) / D_ij on, so w is a quantile of
    all w_ij. It is infinite if the pairs with D_ij = 0 that cost less than the row's own exceed the ratio already.

    >>> costs = torch.tensor([[0.0, -3.0], [-1.0, 0.0]])
    >>> [float(condition_weight(costs, 1 - torch.eye(2), ratio)) for ratio in (0.0, 0.5, 1.0)]
    [3.0, 1.0, 0.0]
    """
    b = len(costs)
    gain = costs.diagonal().unsqueeze(1) - costs
    at = torch.where(gain > 0, gain / distance, 0)
    stay = int(ratio * b * (b - 1))
    return at.flatten().kthvalue(b * b - stay).values


@register("coupling")
@dataclass(frozen=True)
class Conditional(DropIn):
    """Pair noise by exact assignment and keep it independent of the condition (C2OT, arXiv:2503.10636).

    Plain assignment gives noise near a class's data to that class, while sampling draws the noise of every class from
    the same normal. Labels are paired within their class; continuous conditions, such as text embeddings, add
    their cosine distance to the cost. Without a condition the call is plain assignment: there is nothing to leak.

    Marginal: standard normal, exactly. With labels it is so within each class; with a continuous condition, nearly so
        for each value of it.
    Cost: as assignment, less for labels; see ``assign_conditional``.

    Args:
        ratio: share of pairs that stay candidates under continuous conditions; 0.01 in the paper.
        cost: see ``assign``.
        precision: see ``assign``.

    Raises:
        ValueError: a ratio outside 0..1, an unknown cost or precision.

    >>> Conditional()(torch.randn(8, 3), cond=torch.arange(8) % 2).shape
    torch.Size([8, 3])
    """

    permutes: ClassVar[bool] = True

    ratio: float = 0.01
    cost: Cost = "dot"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        check_costs(self.cost, self.precision)
        check_number(ratio=self.ratio, at_least=0, at_most=1)

    def pair(self, x: Float[Tensor, "b *dims"], rows: Rows) -> Float[Tensor, "b *dims"]:
        """Return as many noises as data, assigned within like conditions, (b, *dims); without any, by plain assignment.

        Raises:
            ValueError: as ``assign_conditional``.
        """
        noise, cost, precision, mask = normal_like(x, rows.generator), self.cost, self.precision, rows.mask
        if rows.cond is None:
            return noise[pair_index(x, noise, cost=cost, precision=precision, mask=mask)]
        return noise[
            assign_conditional(x, noise, rows.cond, ratio=self.ratio, cost=cost, precision=precision, mask=mask)
        ]


def _check_condition(cond: Tensor, x: Tensor, noise: Tensor) -> None:
    if cond.ndim < 2 or len(cond) != len(x):
        raise ValueError(
            f"cond is {cond.dtype} of shape {tuple(cond.shape)}; "
            f"it must be labels ({len(x)},), integers, or conditions ({len(x)}, f), floating"
        )
    if len(noise) != len(x):
        raise ValueError(f"conditions need as many noise rows as rows of x; there are {len(noise)} for {len(x)}")
