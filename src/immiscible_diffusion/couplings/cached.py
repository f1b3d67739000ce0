"""Assignment that goes on from the last epoch's pairs (LOOM-CFM, Davtyan et al., ICLR 2025, arXiv:2603.15279)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_whole
from immiscible_diffusion.couplings._cost import Cost, Precision, check_costs
from immiscible_diffusion.couplings._drop_in import DropIn, Rows
from immiscible_diffusion.couplings._seeded_noise import normal_rows
from immiscible_diffusion.couplings.assignment import pair_index
from immiscible_diffusion.registry import register
from immiscible_diffusion.tensors import batch_rows, normal_like
from immiscible_diffusion.types import Float, Int

__all__ = ["Cached", "rematch"]


@torch.no_grad()
def rematch(
    x: Float[Tensor, "b *dims"],
    seeds: Int[Tensor, " b"],
    *,
    cost: Cost = "l2",
    precision: Precision = "fp32",
    labels: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Float[Tensor, "b *dims"], Int[Tensor, " b"]]:
    """Return the noise of these seeds, assigned anew to the rows of x, (b, *dims), and its seeds, (b,).

    Args:
        x: data in model space.
        seeds: seed of each row's last noise, (b,), int64, on the device of x.
        cost: see ``assign``.
        precision: see ``assign``.
        labels: class of each row, (b,), integers; noise stays within its class.
        mask: see ``assign``.

    Marginal: unchanged: the seeds are permuted.
    Cost: b d draws from seeds, then the cost of ``assign``.

    Raises:
        ValueError: as ``assign``.

    >>> x = torch.tensor([[3.0], [-3.0]])
    >>> noise, seeds = rematch(x, torch.tensor([2, 5]))
    >>> bool(noise[0] > noise[1]), sorted(seeds.tolist())
    (True, [2, 5])
    """
    rows = batch_rows(x)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    noise = normal_rows(seeds, rows.shape[1], dtype=dtype).reshape(x.shape).to(x.dtype)
    match = pair_index(x, noise, cost=cost, precision=precision, labels=labels, mask=mask)
    return noise[match], seeds[match]


@register("coupling")
@dataclass(frozen=True)
class Cached(DropIn):
    """Keep a noise for every sample, and assign the noises of each batch anew (LOOM-CFM, arXiv:2603.15279).

    Noise is remembered as a seed, so that a million samples take 8 MB a cache. Over a fixed data set the total cost
    of a cache never rises, and it ends far below the cost of any single batch. The coupling needs ``index``, the number
    of each row in its data set; without it nothing can be remembered, and the call is plain assignment of fresh
    noise. A row that comes twice in a batch remembers its first noise; its second is fresh and not remembered.

    Marginal: standard normal, exactly, over the draw of the seeds: they are only ever permuted. A data set of n rows
        meets the same n noises (times ``caches``) in every epoch, not fresh ones: a model that sees few rows for many
        epochs can learn them by heart. More caches put that off; the paper takes four on CIFAR-10.
    Cost: as assignment, with noise drawn from seeds, about three times as slow as ``torch.randn`` on a CPU;
        memory 8 bytes times ``caches`` a row of the data set.

    Args:
        caches: how many noises a sample remembers; every batch uses one cache, drawn anew.
        cost: see ``assign``.
        precision: see ``assign``.

    Raises:
        ValueError: ``caches`` below 1, an unknown cost or precision.

    >>> couple, x = Cached(), torch.randn(8, 2)
    >>> first = couple(x, index=torch.arange(8))
    >>> torch.equal(couple(x, index=torch.arange(8)), first)
    True
    """

    caches: int = 1
    cost: Cost = "l2"
    precision: Precision = "fp32"
    _memory: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_costs(self.cost, self.precision)
        check_whole(caches=self.caches)

    def pair(self, x: Float[Tensor, "b *dims"], rows: Rows) -> Float[Tensor, "b *dims"]:
        """Return noise paired with x row by row, (b, *dims); without ``index``, fresh noise by plain assignment.

        Raises:
            ValueError: as ``assign``; a negative ``index``.
        """
        generator = rows.generator
        if rows.index is None:
            noise = normal_like(x, generator)
            return noise[pair_index(x, noise, cost=self.cost, precision=self.precision, mask=rows.mask)]
        if bool((rows.index < 0).any()):
            raise ValueError(f"index holds {int(rows.index.min())}; row numbers must be >= 0")
        index = rows.index.long().to(x.device)
        table = self._table(int(index.max()) + 1, generator, x.device)
        cache = _integers(0, self.caches, (1,), generator, x.device)
        again = _repeated(index)
        seeds, labels = table[cache, index], None
        if bool(again.any()):
            seeds, labels = torch.where(again, _fresh((len(x),), generator, x.device), seeds), again.long()
        options = {"labels": labels, "mask": rows.mask}
        noise, seeds = rematch(x, seeds, cost=self.cost, precision=self.precision, **options)
        table[cache, index[~again]] = seeds[~again]
        return noise

    def memory(self) -> dict[str, Tensor]:
        """Return the seeds of every row of the data set met so far, (caches, n), int64."""
        return dict(self._memory)

    def remember(self, memory: dict[str, Tensor]) -> None:
        """Restore the seeds; later calls change them in place.

        Raises:
            ValueError: they are not of the shape that ``memory`` returns, or of another number of caches.
        """
        seeds = memory.get("seeds")
        if set(memory) - {"seeds"} or (seeds is not None and (seeds.ndim != 2 or seeds.dtype != torch.int64)):
            shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in memory.items()}
            raise ValueError(f"cached noise is seeds (caches, n), int64; there came {shapes}")
        if seeds is not None and len(seeds) != self.caches:
            raise ValueError(f"there came {len(seeds)} caches; this coupling has caches = {self.caches}")
        self._memory.clear()
        self._memory.update(memory)

    def _table(self, rows: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Return the seeds, (caches, n), with n at least this many rows; new rows get fresh ones."""
        empty = torch.empty(self.caches, 0, dtype=torch.int64)
        table = self._memory.get("seeds", empty).to(device)
        if table.shape[1] < rows:
            table = torch.cat([table, _fresh((self.caches, rows - table.shape[1]), generator, device)], 1)
        self._memory["seeds"] = table
        return table


def _repeated(index: Tensor) -> Tensor:
    """Return where an entry stood before, (b,)."""
    order = index.argsort(stable=True)
    again = torch.zeros_like(index, dtype=torch.bool)
    again[order[1:]] = index[order[1:]] == index[order[:-1]]
    return again


def _fresh(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    return _integers(-(2**63), 2**63 - 1, shape, generator, device)


def _integers(
    low: int, high: int, shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Return whole numbers from low to high - 1, drawn on the generator's device."""
    source = device if generator is None else generator.device
    return torch.randint(low, high, shape, generator=generator, device=source).to(device)
