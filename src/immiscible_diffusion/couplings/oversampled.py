"""Exact linear assignment among m > b noises, at a cost that does not grow with m d.

A standard normal noise n enters any inner product with b rows of data through w = Q^T n ~ N(0, I_r) alone, Q being
an orthonormal basis of the rows' span and r <= b its dimension, and their distances through w and the independent
|n|^2 - |w|^2 ~ chi^2(d - r). So the m candidates are drawn as m such (w, chi^2), and only the b noises that the
assignment chooses are ever built: Q w + (I - Q Q^T) g, the second part scaled to its drawn length. b = 1 is nearest
of m, which has its own O(d + m) file; m = b is plain assignment.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_choice, check_finite, check_number, check_whole
from immiscible_diffusion.couplings._cost import real_part
from immiscible_diffusion.couplings._drop_in import DropIn, Rows
from immiscible_diffusion.couplings._measured_start import measured_prior
from immiscible_diffusion.couplings.assignment import pair_index
from immiscible_diffusion.couplings.solvers.solve import solve
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.registry import register
from immiscible_diffusion.tensors import batch_rows, full_precision, normal, normal_like
from immiscible_diffusion.types import Float, Prior

__all__ = ["Oversampled", "SpanCost", "oversample"]

SpanCost = Literal["l2", "dot"]
"""The costs that depend only on a noise's length and on its part in the data's span."""

_FIRM = 1e-4
"""Squared sine of a row with the span of those before it, above which a Gram matrix in float32 (error 1e-7) will do."""
_FLAT = 1e-8
"""Directions with less of the unit rows' energy than this are no part of the span: 1e-4 of a row's length, and
float32 inner products would give the noise along them to three digits only."""
_CHUNK = 4096


@torch.no_grad()
@full_precision
def oversample(
    x: Float[Tensor, "b *dims"],
    m: int,
    *,
    cost: SpanCost = "l2",
    generator: torch.Generator | None = None,
    mask: Tensor | None = None,
) -> Float[Tensor, "b *dims"]:
    """Return noise for x, the b of m fresh standard normal noises that an exact assignment chooses, (b, *dims).

    The noise is distributed exactly as if m noises were drawn and b of them assigned, for any rows of x.

    Args:
        x: data in model space, any floating dtype.
        m: how many noises compete, a whole number >= b.
        cost: ``l2`` the distance, as in the papers; ``dot`` the negative inner product, which leaves lengths alone.
        generator: where randomness comes from; the global one if None.
        mask: see ``assign``. With one, ``l2`` draws all m candidates in full: a noise's length at the real places of
            each row does not follow from its part in the rows' span.

    Marginal: not standard normal for m > b. See ``Oversampled``.
    Cost: b (d + m) draws, three b^2 d products, one of b^2 m, the assignment of b rows to m columns on the host;
        memory b (2 d + 3 m), where m candidates in full take m d.

    Raises:
        ValueError: m < b or not whole, an unknown cost, no floating batch, NaN or infinity.

    >>> x = torch.ones(16, 3072)
    >>> bool((oversample(x, 256) - x).norm(dim=1).mean() < 78)
    True
    """
    check_choice("cost", cost, SpanCost)
    batch_rows(x)
    x = real_part(x, mask)
    rows = batch_rows(x)
    check_whole(m=m, at_least=len(rows))
    rows = rows if rows.dtype == torch.float64 else rows.float()
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if not bool(norm.isfinite().all()):
        check_finite(x=x)
        raise ValueError("x holds rows whose norm is beyond float32; scale the data")
    b, d = rows.shape
    if d <= 2 * b or (mask is not None and cost == "l2"):
        # Up to d = 2 b, candidates in full are hardly larger than their parts in the span.
        candidates = normal_like(rows[:1].expand(m, d), generator).reshape(m, *x.shape[1:])
        noise = candidates[pair_index(rows.reshape(x.shape), candidates, cost=cost, mask=mask)]
    else:
        noise = _build(rows, norm, m, cost, generator)
    return noise.reshape(x.shape).to(x.dtype)


def _build(rows: Tensor, norm: Tensor, m: int, cost: SpanCost, generator: torch.Generator | None) -> Tensor:
    """Return the chosen noises, (b, d), for d > 2 b."""
    root, inverse = _factor(rows, norm)
    rank, d = root.shape[1], rows.shape[1]
    within = normal((m, rank), generator, rows.device).to(rows)
    product = norm * (root.to(rows) @ within.T)
    if cost == "dot":
        chosen, square = solve(product.neg_()), None
    else:
        device = rows.device if generator is None else generator.device
        freedom = torch.full((m,), (d - rank) / 2, device=device, dtype=torch.float32)
        square = 2 * torch._standard_gamma(freedom, generator).to(rows)
        change = product.mul_(-2).add_(within.square().sum(1) + square)
        distance = (norm.square() + change).clamp_(min=0).sqrt_().add_(norm)
        chosen = solve(change.div_(distance.clamp_(min=torch.finfo(rows.dtype).tiny)))
        square = square[chosen].double()
    noise = normal_like(rows, generator)
    per_norm = torch.where(norm > 0, 1 / norm, 0).double()
    present = (noise @ rows.T).double() * per_norm.T @ inverse.T
    wanted = within[chosen].double()
    if square is not None:
        length = torch.linalg.vector_norm(noise, dim=1).double().square()
        rest = torch.maximum(length - present.square().sum(1), torch.finfo(rows.dtype).eps * length)
        stretch = (square / rest).sqrt().unsqueeze(1)
        noise, present = noise.mul_(stretch.to(noise)), present * stretch
    return noise.addmm_((((wanted - present) @ inverse) * per_norm.T).to(rows), rows)


def _factor(rows: Tensor, norm: Tensor) -> tuple[Float[Tensor, "b r"], Float[Tensor, "r b"]]:
    """Return R and a left inverse L with U = R Q^T and Q^T = L U, for U the rows scaled to length 1, in float64.

    Cholesky where the rows are well apart, 10 times faster than eigenvectors; these where some are zero, equal or
    dependent, and from a Gram matrix in float64, as a small eigenvalue is divided by.
    """
    per_norm = torch.where(norm > 0, 1 / norm, 0).double()
    gram = (rows @ rows.T).double() * per_norm * per_norm.T
    root, failed = torch.linalg.cholesky_ex(gram)
    if not bool(failed) and bool(root.diagonal().min().square() > _FIRM):
        return root, torch.linalg.solve_triangular(root, torch.eye(len(gram)).to(root), upper=False)
    gram = torch.zeros_like(gram)
    for start in range(0, rows.shape[1], _CHUNK):
        part = rows[:, start : start + _CHUNK].double()
        gram.addmm_(part, part.T)
    values, vectors = torch.linalg.eigh(gram * per_norm * per_norm.T)
    scale, vectors = values[values > _FLAT].sqrt(), vectors[:, values > _FLAT]
    return vectors * scale, vectors.T / scale.unsqueeze(1)


@register("coupling")
@dataclass(frozen=True)
class Oversampled(DropIn):
    """Draw several noises for every datum and assign the cheapest set exactly: assignment and nearest in one.

    Marginal: not standard normal, unless ``times`` is 1. The mean moves along the data's strong directions, and the
        variance grows there; ``l2`` also shortens the noise in all directions. ``prior`` is the Gaussian with the
        moments measured on the data, at the batch size that they come in.
    Cost: b (d + m) draws for m = ``times`` b, three b^2 d products, one of b^2 m, and the solver; memory b (2 d + 3 m).

    Args:
        times: how many noises are drawn for each datum, a number >= 1; 1 is plain assignment.
        cost: see ``oversample``.

    Raises:
        ValueError: times < 1, or an unknown cost.

    >>> Oversampled(times=4)(torch.randn(8, 3, 4, 4)).shape
    torch.Size([8, 3, 4, 4])
    """

    times: float = 8
    cost: SpanCost = "l2"

    def __post_init__(self) -> None:
        check_choice("cost", self.cost, SpanCost)
        check_number(times=self.times, at_least=1)

    def pair(self, x: Float[Tensor, "b *dims"], rows: Rows) -> Float[Tensor, "b *dims"]:
        """Return the assigned noise among ``times`` b, (b, *dims).

        Raises:
            ValueError: as ``oversample``.
        """
        m = round(self.times * len(x))
        return oversample(x, m, cost=self.cost, generator=rows.generator, mask=rows.mask)

    def prior(self, data: Iterable[Tensor]) -> Prior:
        """Return the Gaussian with the measured moments of the assigned noise, the standard normal if ``times`` is 1.

        Args:
            data: batches of the training data in model space, (b, *dims), in the size that training uses, read once.

        Raises:
            ValueError: no data.
        """
        return StandardNormal() if self.times == 1 else measured_prior(self, data)
