"""Nearest of k noises (Improved Immiscible Diffusion, arXiv:2505.18521, Alg. 1), exactly, in O(d + k) a row.

A standard normal noise is n = a u + r v, with u = x / |x|, a ~ N(0, 1), v uniform on the unit sphere orthogonal
to u and r^2 ~ chi^2(d - 1), all independent. Distance, inner product and cosine depend on (a, r) alone, so the k
candidates are k pairs of numbers; only the chosen noise is ever built.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_choice, check_finite, check_generator, check_number
from immiscible_diffusion.couplings._cost import Cost, real_part
from immiscible_diffusion.couplings._drop_in import DropIn, Rows
from immiscible_diffusion.couplings._measured_start import measured_prior
from immiscible_diffusion.couplings._misuse import watch_call
from immiscible_diffusion.couplings._nearest_start import kept_prior, max_normal_moments
from immiscible_diffusion.registry import register
from immiscible_diffusion.tensors import batch_rows, normal, normal_like
from immiscible_diffusion.types import Float, Prior

__all__ = ["Nearest", "max_normal_moments", "nearest"]


def nearest(
    x: Float[Tensor, "b *dims"],
    k: float,
    *,
    cost: Cost = "l2",
    generator: torch.Generator | None = None,
    mask: Tensor | None = None,
) -> Float[Tensor, "b *dims"]:
    """Return for each row of x the nearest of k fresh standard normal noises, (b, *dims).

    The noise is distributed exactly as the nearest of k drawn noises, for every cost. With ``l2``, ``dot``
    and ``cosine`` the host never waits for the device, and ``torch.compile`` makes one graph. On CUDA and in a compiled
    step a row of x that is not finite therefore gets noise that is not finite.

    Args:
        x: data in model space, any floating dtype. A batch of one works as well as any.
        k: how many noises compete, a whole number >= 1. With ``dot`` any real number >= 1: 1 is independent noise.
        cost: ``l2`` as in the paper, ``dot`` (largest inner product), ``cosine``, or ``l1``. Where sampling starts from
            N(0, I), ``dot`` is the safe one: ``l2`` ended far worse there with DDIM on images, better in latents.
        generator: where randomness comes from; the global one if None.
        mask: True where x is real and False where it is padding, bool, in a shape that broadcasts over x, such as
            (b, horizon, 1). A row's noises compete by its real places alone; at padding the noise is standard normal
            and independent of all else. None: everywhere.

    Marginal: not standard normal. See ``Nearest``.
    Cost: b (d + k) draws and twice the memory of x; ``l1`` draws all b k d, one candidate at a time.

    Raises:
        ValueError: k < 1 or not whole where it must be, an unknown cost, no floating batch, a mask that does not fit,
            NaN or infinity on the CPU.

    >>> x = torch.ones(1, 3072)
    >>> bool((nearest(x, 64) - x).norm() < 78)
    True
    """
    check_generator(generator)
    noise = _nearest(x, k, cost, generator, mask)
    if not torch.compiler.is_compiling():
        watch_call(x, noise, mask)
    return noise


@torch.no_grad()
def _nearest(x: Tensor, k: float, cost: Cost, generator: torch.Generator | None, mask: Tensor | None) -> Tensor:
    """Return what ``nearest`` is for, without a warning."""
    check_choice("cost", cost, Cost)
    check_number(k=k, at_least=1, whole=cost != "dot")
    batch_rows(x)
    x = real_part(x, mask)
    rows = batch_rows(x)
    if cost == "l1":
        _check_on_cpu(x, torch.linalg.vector_norm(rows.float(), dim=1))
        return _streamed(x, int(k), generator, mask)
    real = None if mask is None else mask.expand_as(x).reshape(rows.shape)
    rows = rows if rows.dtype == torch.float64 else rows.float()
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    _check_on_cpu(x, norm)
    with torch.autocast(x.device.type, enabled=False):
        return _built(rows, norm, k, cost, generator, real).reshape(x.shape).to(x.dtype)


def _built(
    rows: Tensor, norm: Tensor, k: float, cost: Cost, generator: torch.Generator | None, real: Tensor | None
) -> Tensor:
    """Return the nearest noise of each row, (b, d), built from its chosen parts in its real places, (b, d) or None."""
    along, across = _choose(norm, rows.shape[1] if real is None else real.sum(1, keepdim=True), k, cost, generator)
    per_norm = torch.where(norm > 0, 1 / norm, 0)
    noise = normal_like(rows, generator)
    noise.addcmul_(torch.einsum("bd,bd->b", noise, rows).unsqueeze(1) * per_norm * per_norm, rows, value=-1)
    if across is not None:
        rest = torch.linalg.vector_norm(noise if real is None else noise * real, dim=1, keepdim=True)
        stretch = across / rest.clamp(min=torch.finfo(rest.dtype).tiny)
        noise.mul_(stretch if real is None else torch.where(real, stretch, 1))
    return noise.addcmul_(along * per_norm, rows)


def _choose(
    norm: Tensor, d: int | Tensor, k: float, cost: Cost, generator: torch.Generator | None
) -> tuple[Tensor, Tensor | None]:
    """Return the nearest noise's coordinate along u, (b, 1), and the length of the rest; None if any length will do.

    ``d`` is the number of coordinates, of all rows or of each one, (b, 1). A row of zeros has no direction: all of its
    noise is rest, chosen by length for ``l2`` and at random otherwise.
    """
    b, device = len(norm), norm.device if generator is None else generator.device
    if cost == "dot":
        uniform = torch.empty(b, 1, device=device, dtype=torch.float64).uniform_(generator=generator)
        return _max_of_normals(k, uniform).to(norm), None
    along = normal((b, int(k)), generator, norm.device).to(norm.dtype)
    if isinstance(d, int):
        freedom = torch.full((b, int(k)), (d - 1) / 2, device=device, dtype=torch.float32)
        square = 2 * torch._standard_gamma(freedom, generator).to(norm) if d > 1 else torch.zeros_like(along)
    else:
        freedom = ((d - 1).float() / 2).clamp(min=0.5).expand(b, int(k)).to(device)
        square = torch.where(d > 1, 2 * torch._standard_gamma(freedom, generator).to(norm), 0)
    if cost == "l2":  # |x - n|^2 less |x|^2, which would swallow the digits of the rest
        score = 2 * along * norm - along.square() - square
    else:
        score = along / (along.square() + square).sqrt().clamp(min=1e-30) * (norm > 0)
    best = score.argmax(1, keepdim=True)
    along, square = along.gather(1, best), square.gather(1, best)
    return along, torch.where(norm > 0, square, square + along.square()).sqrt()


def _max_of_normals(k: float, uniform: Tensor) -> Tensor:
    """Return the maximum of k standard normals from uniform draws; k need not be whole.

    It is Phi^-1(U^(1/k)), written with the upper tail so that no digits are lost at large k.
    """
    tail = -torch.expm1(uniform.clamp(min=1e-300).log() / k)
    quantile: Tensor = torch.special.ndtri(tail.clamp(max=1 - 2**-53))
    return -quantile


def _streamed(x: Tensor, k: int, generator: torch.Generator | None, mask: Tensor | None) -> Tensor:
    """Return the nearest of k explicit candidates by L1, keeping one at a time."""
    kept = normal_like(x, generator)
    least = _l1(x, kept, mask)
    for _ in range(k - 1):
        candidate = normal_like(x, generator)
        distance = _l1(x, candidate, mask)
        nearer = (distance < least).reshape(-1, *[1] * (x.ndim - 1))
        kept, least = torch.where(nearer, candidate, kept), torch.minimum(distance, least)
    return kept


def _l1(x: Tensor, noise: Tensor, mask: Tensor | None) -> Tensor:
    return batch_rows(real_part(noise.float() - x.float(), mask)).abs_().sum(1)


def _check_on_cpu(x: Tensor, norm: Tensor) -> None:
    """Raise ValueError where a row is not finite; checked on the CPU alone, and not in a compiled graph."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(norm.isfinite().all()):
        check_finite(x=x)
        raise ValueError("x holds rows whose norm is beyond float32; scale the data")


@register("coupling")
@dataclass(frozen=True)
class Nearest(DropIn):
    """Draw k noises for each datum and keep the nearest (arXiv:2505.18521, Alg. 1), in O(d + k) a row.

    Marginal: not standard normal. ``dot`` moves the mean along the data's unit directions u and stretches the
        variance there; it does not prefer short noises. ``cosine`` does nearly the same in many dimensions. ``l2`` also
        shortens the noise, by 1 - 2 c_k / sqrt((2 + 4 s^2) d) in variance, s^2 being the data's mean square.
        ``prior`` is the Gaussian with these moments; for ``l1`` they are measured.
    Cost: b (d + k) draws, twice the memory of x; ``l1`` draws b k d.

    Args:
        k: how many noises compete; see ``nearest``.
        cost: see ``nearest``.

    Raises:
        ValueError: k < 1 or not whole where it must be, or an unknown cost.

    >>> Nearest(k=8)(torch.randn(1, 3, 4, 4)).shape
    torch.Size([1, 3, 4, 4])
    """

    by_class: ClassVar[bool] = True
    row_by_row: ClassVar[bool] = True
    k: float = 8
    cost: Cost = "l2"

    def __post_init__(self) -> None:
        check_choice("cost", self.cost, Cost)
        check_number(k=self.k, at_least=1, whole=self.cost != "dot")

    def pair(self, x: Float[Tensor, "b *dims"], rows: Rows) -> Float[Tensor, "b *dims"]:
        """Return the nearest of k noises for each row of x, (b, *dims).

        Raises:
            ValueError: as ``nearest``.
        """
        return _nearest(x, self.k, self.cost, rows.generator, rows.mask)

    def prior(self, data: Iterable[Tensor]) -> Prior:
        """Return the Gaussian with the moments of the kept noise.

        With u = x / |x|, and the kept noise's part a along u and squared length r^2 across, its mean is E[a u] and its
        second moment E[a^2 u u^T + r^2 / (d - 1) (I - u u^T)]. Given |x|, the moments of a and r are computed.

        Args:
            data: batches of the training data in model space, (b, *dims), read once; for ``l1`` in random order.

        Raises:
            ValueError: no data.
        """
        if self.cost == "l1":
            return measured_prior(self, data)
        return kept_prior(data, self.k, self.cost)
