"""Optimal transport from all noise to a whole data set (Mousavi-Hosseini et al., arXiv:2509.25519).

One number for each datum, its potential g_k, splits noise space into cells: noise z belongs to the datum of largest
g_k + <z, x_k>. With the right potentials every cell has mass 1 / n, and the map is the optimal one for squared
distance. Training can draw noise and take the datum that it falls on, which needs no coupling: potentials once, and two
lines in every step.

>>> data, generator = torch.randn(64, 3), torch.Generator().manual_seed(0)
>>> dual = fit_dual(data, generator=generator)
>>> noise = torch.randn(16, 3, generator=generator)
>>> x = data[assign_data(noise, data, dual)]  # and labels by the same index

``Semidiscrete`` is for a loop that draws its data first: it keeps noise for every datum's cell. It is not registered,
because it needs a data set, which an experiment file cannot hold.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from immiscible_diffusion.checks import (
    check_finite,
    check_number,
    check_whole,
)
from immiscible_diffusion.couplings._drop_in import DropIn, Rows
from immiscible_diffusion.couplings._seeded_noise import normal_rows
from immiscible_diffusion.tensors import batch_rows, full_precision, normal
from immiscible_diffusion.types import Float, Int

__all__ = ["Semidiscrete", "assign_data", "fit_dual", "unevenness"]

_LAST = 1e-3
"""The last step's length as a share of the first's."""
_CHUNK = 1 << 16
_DRAW = 1024
_PATIENCE = 50
"""Draws, in units of n, after which a cell without noise is given up: one of mass 1 / n is missed with e^-50."""


@torch.no_grad()
@full_precision
def assign_data(
    noise: Float[Tensor, "b *dims"], data: Float[Tensor, "n *dims"], dual: Float[Tensor, " n"]
) -> Int[Tensor, " b"]:
    """Return the index of the datum that each noise falls on, argmax over k of g_k + <z, x_k>, (b,).

    Cost: O(b n d); memory b times 65,536 and no copy of the data.

    Raises:
        ValueError: shapes that do not fit; NaN or infinity on the CPU.

    >>> assign_data(torch.tensor([[-1.0], [0.4]]), torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, -0.5])).tolist()
    [0, 0]
    """
    rows, data = batch_rows(noise, "noise").float(), batch_rows(data, "data")
    if rows.shape[1] != data.shape[1] or dual.shape != (len(data),):
        shapes = [tuple(each.shape) for each in (noise, data, dual)]
        raise ValueError(f"noise (b, *dims), data (n, *dims) and potentials (n,) do not fit: there came {shapes}")
    best = torch.full((len(rows),), -math.inf, device=rows.device, dtype=torch.float32)
    index = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    for i in range(0, len(data), _CHUNK):
        score = torch.addmm(dual[i : i + _CHUNK].float(), rows, data[i : i + _CHUNK].float().T)
        value, k = score.max(1)
        index = torch.where(value > best, k + i, index)
        best = torch.maximum(value, best)
    if rows.device.type == "cpu" and not bool(best.isfinite().all()):
        check_finite(noise=noise, data=data, dual=dual)
    return index


@torch.no_grad()
def fit_dual(
    data: Float[Tensor, "n *dims"],
    *,
    steps: int = 1000,
    batch: int = 256,
    rate: float = 0.3,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " n"]:
    """Return the potentials of the data, (n,), float32, of mean 0, by stochastic descent.

    The potentials minimise E[max_k (g_k + <z, x_k>)] - mean(g), which is convex; the gradient at k is the mass of cell
    k less 1 / n (arXiv:2509.25519). A batch of noises estimates it with standard error sqrt(1 / (n batch)), and a step
    is ``rate`` times the spread of the data times the gradient in these units. Steps shrink geometrically to a
    thousandth; then the mean of late iterates leaves the cells no more even than the last (seen, 32 to 20,000 points).

    Args:
        data: the data set in model space, on the device that is to do the work.
        steps: how many batches of noise; ``unevenness`` tells whether they were enough. 1,000 of 256 left 0.015
            for 1,000 random points in 64 dimensions and 0.05 for 5,000 (seen).
        batch: noises in a step; the more data, the more of them.
        rate: length of the first step.
        generator: where noise comes from; the global one if None.

    Cost: steps times O(batch n d); memory of the data and batch times 65,536.

    Raises:
        ValueError: no floating data, NaN or infinity, or options that are not positive.

    >>> data = torch.tensor([[0.0], [1.0]])
    >>> dual = fit_dual(data, generator=torch.Generator().manual_seed(0))
    >>> bool((dual[0] - dual[1]).abs() < 0.05)
    True
    """
    check_whole(steps=steps, batch=batch)
    check_number(rate=rate, above=0)
    rows = batch_rows(data, "data").float()
    check_finite(data=rows)
    n, d = rows.shape
    spread = float((rows - rows.mean(0)).square().sum(1).mean().sqrt())
    dual = rows.new_zeros(n)
    for i in range(steps):
        owner = assign_data(normal((batch, d), generator, rows.device), rows, dual)
        length = rate * _LAST ** (i / steps) * spread * math.sqrt(batch / n)
        dual -= length * (torch.bincount(owner, minlength=n).to(dual) * (n / batch) - 1)
    return dual - dual.mean()


@torch.no_grad()
def unevenness(
    data: Float[Tensor, "n *dims"],
    dual: Float[Tensor, " n"],
    *,
    draws: int,
    generator: torch.Generator | None = None,
) -> float:
    """Return the chi^2 distance of the cells' masses from 1 / n, n sum_k p_k^2 - 1, without bias.

    The paper stops at 0.05. The noise's distribution under ``Semidiscrete`` is off the normal by at most half its
    square root in total variation. The estimate's own standard error is about sqrt(2 n) / draws at 0.

    Args:
        data: as in ``fit_dual``.
        dual: the potentials.
        draws: how many noises to count, at least 2; 20 n tells 0.05 from 0.
        generator: where noise comes from; the global one if None.

    >>> data, dual = torch.tensor([[0.0], [1.0]]), torch.zeros(2)
    >>> bool(unevenness(data, dual, draws=1000, generator=torch.Generator().manual_seed(0)) < 0.1)
    True
    """
    check_whole(draws=draws, at_least=2)
    rows = batch_rows(data, "data").float()
    n, d = rows.shape
    count = torch.zeros(n, dtype=torch.long, device=rows.device)
    for i in range(0, draws, _DRAW):
        noise = normal((min(_DRAW, draws - i), d), generator, rows.device)
        count += torch.bincount(assign_data(noise, rows, dual), minlength=n)
    pairs = (count * (count - 1)).sum().double() / (draws * (draws - 1))
    return float(n * pairs - 1)


@dataclass(frozen=True, eq=False)
class Semidiscrete(DropIn):
    """Give each datum noise from its own cell of the optimal map (arXiv:2509.25519); batch size plays no part.

    Noise is drawn in bulk and kept, as a seed, for the datum that it falls on, until a batch has that datum. Whether a
    noise is kept depends on counts alone, so the distribution in a cell is exact. ``index``, the row of each datum in
    ``data``, decides; augmented data get noise of the row that they came from.

    Marginal: standard normal up to the fit of the potentials: every cell has weight 1 / n where its mass is p_k. See
        ``unevenness``.
    Cost: O(n d) for each noise drawn: in the first epoch about ln(n) of them for each one used, then about two; memory
        8 bytes times ``keep`` a row of the data set, and the data.

    Args:
        data: the data set in model space, (n, *dims), on the device that is to do the work.
        dual: its potentials, from ``fit_dual``, (n,).
        keep: how many noises wait for a datum at most.

    Raises:
        ValueError: potentials that do not fit the data, or ``keep`` below 1.

    >>> data = torch.tensor([[-1.0], [1.0]])
    >>> couple = Semidiscrete(data, torch.zeros(2))
    >>> (couple(data, index=torch.tensor([0, 1])) * data > 0).tolist()
    [[True], [True]]
    """

    data: Float[Tensor, "n *dims"]
    dual: Float[Tensor, " n"]
    keep: int = 8
    _memory: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_finite(data=batch_rows(self.data, "data"))
        if self.dual.shape != (len(self.data),) or self.dual.device != self.data.device:
            raise ValueError(
                f"{len(self.data)} rows of data on {self.data.device} need as many potentials there; "
                f"there came {tuple(self.dual.shape)} on {self.dual.device}"
            )
        check_whole(keep=self.keep)

    @torch.no_grad()
    def pair(self, x: Float[Tensor, "b *dims"], rows: Rows) -> Float[Tensor, "b *dims"]:
        """Return noise from the cell of each row, (b, *dims).

        Raises:
            ValueError: a mask; no ``index``, or rows that ``data`` has not; a row more than ``keep`` times in a batch;
                NaN or infinity in x on the CPU; a cell that no noise falls on.
        """
        if rows.mask is not None:
            raise ValueError("semidiscrete noise belongs to whole rows of its data and takes no mask")
        if x.device.type == "cpu":
            check_finite(x=x)
        index = self._checked(rows.index, x)
        table, count = self._filled(torch.bincount(index, minlength=len(self.data)), rows.generator)
        seeds = table[index, count[index] - 1 - _ranks(index)]
        count -= torch.bincount(index, minlength=len(count))
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return normal_rows(seeds, x[0].numel(), x.device, dtype).reshape(x.shape).to(x.dtype)

    def memory(self) -> dict[str, Tensor]:
        """Return the potentials (n,), the kept seeds (n, keep), and how many are kept for each datum, (n,)."""
        return dict(self._memory)

    def remember(self, memory: dict[str, Tensor]) -> None:
        """Restore potentials and seeds; an empty dict forgets the seeds and goes back to ``dual``.

        Raises:
            ValueError: they belong to other data or another ``keep``.
        """
        n = len(self.data)
        expected = {"dual": (n,), "seeds": (n, self.keep), "count": (n,)}
        shapes = {name: tuple(tensor.shape) for name, tensor in memory.items()}
        if memory and shapes != expected:
            raise ValueError(f"this coupling remembers {expected}; there came {shapes}")
        self._memory.clear()
        self._memory.update({name: tensor.to(self.data.device) for name, tensor in memory.items()})

    def _checked(self, index: Tensor | None, x: Tensor) -> Tensor:
        if index is None:
            raise ValueError("semidiscrete noise belongs to rows of the data set: pass their numbers as index")
        n, shape = len(self.data), tuple(self.data.shape[1:])
        if x.shape[1:] != shape or not bool(((index >= 0) & (index < n)).all()):
            came = f"{tuple(x.shape[1:])}, {int(index.min())}..{int(index.max())}"
            raise ValueError(f"rows {came}, are not all among the {n} of data, {shape}")
        return index.long().to(self.data.device)

    def _filled(self, needed: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return the seeds that wait, (n, keep), and their number, (n,), with at least as many as are needed."""
        if bool((needed > self.keep).any()):
            raise ValueError(f"a row comes {int(needed.max())} times in a batch; keep is {self.keep}")
        data = batch_rows(self.data)
        if not self._memory:
            self._memory["dual"] = self.dual.float()
            self._memory["seeds"] = torch.zeros(len(data), self.keep, dtype=torch.int64, device=data.device)
            self._memory["count"] = torch.zeros(len(data), dtype=torch.int64, device=data.device)
        dual, table, count = (self._memory[name] for name in ("dual", "seeds", "count"))
        source, drawn = data.device if generator is None else generator.device, 0
        many = max(1, min(_DRAW, (1 << 24) // data.shape[1]))
        while bool((count < needed).any()):
            if drawn > _PATIENCE * len(data) + _DRAW:
                row = int((count < needed).nonzero()[0])
                raise ValueError(f"no noise fell on row {row} in {drawn} draws; fit the potentials with more steps")
            seeds = torch.randint(-(2**63), 2**63 - 1, (many,), generator=generator, device=source).to(data.device)
            owner = assign_data(normal_rows(seeds, data.shape[1]), data, dual)
            slot = count[owner] + _ranks(owner)
            kept = slot < self.keep
            table[owner[kept], slot[kept]] = seeds[kept]
            count.add_(torch.bincount(owner, minlength=len(data))).clamp_(max=self.keep)
            drawn += many
        return table, count


def _ranks(index: Tensor) -> Tensor:
    """Return how many equal entries stand before each one, (b,)."""
    values, order = index.sort(stable=True)
    ranks = torch.empty_like(index)
    ranks[order] = torch.arange(len(index), device=index.device) - torch.searchsorted(values, values)
    return ranks
