"""Several batches paired as one pool, and cut again."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_whole
from immiscible_diffusion.couplings._cost import Cost, Precision
from immiscible_diffusion.couplings._drop_in import Rows
from immiscible_diffusion.couplings._wrapper import Wrapper, noise_from
from immiscible_diffusion.couplings.assignment import Assignment, assign
from immiscible_diffusion.registry import register
from immiscible_diffusion.tensors import batch_rows, normal_like
from immiscible_diffusion.types import Coupling, Float

__all__ = ["Windowed", "assign_window"]


@torch.no_grad()
def assign_window(
    xs: Sequence[Tensor],
    *,
    cost: Cost = "l2",
    precision: Precision = "fp32",
    generator: torch.Generator | None = None,
    labels: Sequence[Tensor] | None = None,
    mask: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Return noise for each of several micro-batches, (b_i, *dims), assigned over all of them at once.

    For a loop that accumulates gradients: the larger the pool, the nearer the noise.

    Args:
        xs: micro-batches of one row shape, dtype and device; their sizes may differ.
        cost: see ``assign``.
        precision: see ``assign``.
        generator: where randomness comes from; the global one if None.
        labels: of each micro-batch, (b_i,), see ``assign``.
        mask: of each micro-batch, see ``assign``; at padding the noise is independent of the data.

    Marginal: standard normal, exactly: the window's noise is permuted.
    Cost: as ``assign`` on the joined window.

    Raises:
        ValueError: no micro-batches, or they differ in more than their sizes; otherwise as ``assign``.

    >>> [len(noise) for noise in assign_window([torch.randn(8, 3), torch.randn(5, 3)])]
    [8, 5]
    """
    if not xs:
        raise ValueError("xs holds no micro-batch; a window needs at least one")
    for i, x in enumerate(xs):
        batch_rows(x, f"xs[{i}]")
        kind, first = ((*batch.shape[1:], batch.dtype, batch.device) for batch in (x, xs[0]))
        if kind != first:
            raise ValueError(f"xs[{i}] has rows {kind}, xs[0] {first}; micro-batches may differ in size alone")
    joined = torch.cat(list(xs))
    whole_labels, whole_mask = (None if parts is None else torch.cat(list(parts)) for parts in (labels, mask))
    noise = normal_like(joined, generator)
    noise = assign(joined, noise, cost=cost, precision=precision, labels=whole_labels, mask=whole_mask)
    return list(torch.split(noise, [len(x) for x in xs]))


@register("coupling")
@dataclass(frozen=True)
class Windowed(Wrapper):
    """Let another coupling pair several batches as one pool: the larger the pool, the nearer the noise.

    The training loop reads ``window`` batches ahead, has them paired at once at the step of the first, and trains on
    one after the other (``HasWindow``). Batches, their order and the size of a step stay as they are. In a loop of
    one's own ``assign_window`` does the same; a call pairs the batch that it is given.

    Marginal: the coupling's.
    Cost: the coupling's, in batches ``window`` times as large, at every ``window``-th step; memory of these batches.

    Args:
        coupling: pairs the joined batches.
        window: how many batches are one pool.

    Raises:
        ValueError: ``coupling`` is no coupling, or ``window`` is no whole number >= 1.

    >>> Windowed(window=8).window
    8
    """

    coupling: Coupling = field(default_factory=Assignment)
    window: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(window=self.window)

    def pair(self, x: Float[Tensor, "b *dims"], rows: Rows) -> Float[Tensor, "b *dims"]:
        """Return the coupling's noise for these rows, (b, *dims).

        Raises:
            ValueError: as the coupling.
        """
        return noise_from(self.coupling, x, rows)
