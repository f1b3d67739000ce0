"""Assignment over more than one batch: those of all training processes, or of an accumulation window.

The pairing over processes is a function of the joined batch alone, bit for bit, however its rows are spread: noise
comes from counters (see _seeded_noise.py), costs are exact (see _joint_costs.py), and one process solves.
"""

import hashlib
import warnings
from collections import Counter
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from immiscible_diffusion.checks import (
    check_choice,
    check_finite,
)
from immiscible_diffusion.couplings._cost import Cost, Precision, real_part
from immiscible_diffusion.couplings._drop_in import DropIn, Rows
from immiscible_diffusion.couplings._joint_costs import Wire, cost_rows
from immiscible_diffusion.couplings._joint_ranks import Ranks
from immiscible_diffusion.couplings._seeded_noise import normal_rows, row_seeds, signed
from immiscible_diffusion.couplings.assignment import assign
from immiscible_diffusion.couplings.solvers.solve import solve
from immiscible_diffusion.registry import register
from immiscible_diffusion.tensors import batch_rows, normal_like
from immiscible_diffusion.types import Float

__all__ = ["Joint", "Wire", "assign_across", "assign_window"]


@torch.no_grad()
def assign_across(
    x: Float[Tensor, "b *dims"],
    *,
    seed: int,
    step: int,
    group: Any = None,
    cost: Cost = "l2",
    precision: Wire = "fp16",
    traffic: MutableMapping[str, int] | None = None,
    mask: Tensor | None = None,
) -> Float[Tensor, "b *dims"]:
    """Return noise for this process's rows, (b, *dims), assigned over the rows of all processes of a group.

    Row j of the joined batch (the batches in the order of ranks; they may differ in size) brings noise that is a
    function of (seed, step, j). Each process makes all of it, a part at a time, and the costs of its own rows; rank 0
    gathers the costs, solves and tells each process which noise its rows get, which that process makes again. Noise
    never travels, and the pairs are, bit for bit, those of one process that holds the joined batch.

    Every process of the group must call it, at the same step. Beside other collectives, which must not overtake it
    from another thread, it needs a group of its own, as ``Joint`` makes.

    Args:
        x: this process's data in model space, any floating dtype.
        seed: of the noise, equal everywhere.
        step: the training step, equal everywhere; each has fresh noise.
        group: a process group; by default all processes, or this one alone where none are initialised.
        cost: see ``assign``.
        precision: of the costs, as they are computed and sent: ``fp16`` in 16 bits, ``fp32`` in 32.
        traffic: counts the bytes that this process sends, as ``header``, ``costs`` and ``result``.
        mask: of this process's rows, see ``assign``; at padding the noise is standard normal and independent of all
            else, and a function of (seed, step, j) like the other.

    Marginal: standard normal, exactly: the joined batch's noise is permuted.
    Cost: with n rows in all, (n + b) d normals and O(b n d) for the product on each process, O(n^3) at worst for the
        solver on rank 0. A process sends 2 b n bytes of costs (4 b n for ``fp32``), 8 b of units and 56 of agreement;
        rank 0 sends 4 n of result. Memory b (n + d), on rank 0 6 n^2 bytes beside.

    Raises:
        ValueError: on every process, if one refuses its data or they differ in seed, step, options or row length.

    >>> assign_across(torch.randn(8, 3), seed=0, step=0).shape
    torch.Size([8, 3])
    """
    check_choice("cost", cost, Cost)
    check_choice("precision", precision, Wire)
    ranks = Ranks.of(group, Counter() if traffic is None else traffic)
    sizes = _meet(ranks, x, mask, seed, step, f"{cost}, {precision}")
    x, n = real_part(x, mask), sum(sizes)
    costs, units = cost_rows(x, seed, step, n, cost, precision, mask)
    index = _solve_on_first(ranks, costs.cpu(), units.cpu(), sizes).to(x.device)
    noise = _drawn(x, seed, step, index)
    if mask is None:
        return noise
    # Numbers n .. 2 n - 1 of a step belong to no row's noise.
    rest = n + sum(sizes[: ranks.rank]) + torch.arange(len(x), device=x.device)
    return torch.where(mask, noise, _drawn(x, seed, step, rest))


def _drawn(x: Tensor, seed: int, step: int, numbers: Tensor) -> Tensor:
    """Return the noise of these numbers at a step, in the shape and dtype of x."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return normal_rows(row_seeds(seed, step, numbers), x[0].numel(), dtype=dtype).reshape(x.shape).to(x.dtype)


@torch.no_grad()
def assign_window(
    xs: Sequence[Tensor],
    *,
    cost: Cost = "l2",
    precision: Precision = "fp32",
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Return noise for each of several micro-batches, (b_i, *dims), assigned over all of them at once.

    For a loop that accumulates gradients: the larger the pool, the nearer the noise.

    Args:
        xs: micro-batches of one row shape, dtype and device; their sizes may differ.
        cost: see ``assign``.
        precision: see ``assign``.
        generator: where randomness comes from; the global one if None.

    Marginal: standard normal, exactly: the window's noise is permuted.
    Cost: that of ``assign`` on the joined window.

    Raises:
        ValueError: no micro-batches, or they differ in more than their sizes; otherwise as ``assign``.

    >>> [len(noise) for noise in assign_window([torch.randn(8, 3), torch.randn(5, 3)])]
    [8, 5]
    """
    if not xs:
        raise ValueError("xs holds no micro-batch; a window needs at least one")
    for i, x in enumerate(xs):
        batch_rows(x, f"xs[{i}]")
        kind, first = ((*each.shape[1:], each.dtype, each.device) for each in (x, xs[0]))
        if kind != first:
            raise ValueError(f"xs[{i}] has rows {kind}, xs[0] {first}; micro-batches may differ in size alone")
    joined = torch.cat(list(xs))
    noise = assign(joined, normal_like(joined, generator), cost=cost, precision=precision)
    return list(torch.split(noise, [len(x) for x in xs]))


def _meet(ranks: Ranks, x: Tensor, mask: Tensor | None, seed: int, step: int, options: str) -> list[int]:
    """Return the number of rows of every process, after checking that all hold valid data of the same problem."""
    refused = None
    try:
        batch_rows(x)
        rows = batch_rows(real_part(x, mask))
        check_finite(x=rows)
        told = [len(x), rows.shape[1], seed, step, _digest(options.encode()), _digest(_bytes(rows[[0, -1]]))]
    except ValueError as error:
        refused, told = error, [0] * 6
    said = ranks.exchange([int(refused is not None), *(signed(word) for word in told)])
    if refused is not None:
        raise refused
    for rank, words in enumerate(said):
        if words[0]:
            raise ValueError(f"process {rank} refused its data; its own error says why")
        for i, (what, why) in enumerate(_AGREED.items(), 2):
            if words[i] != said[0][i]:
                raise ValueError(f"process {rank} has {what} {words[i]}, process 0 {said[0][i]}; {why}")
    data = [words[-1] for words in said]
    if len(set(data)) < len(data):
        warnings.warn("two processes hold the same data; each must read its own part of every batch", stacklevel=4)
    return [words[1] for words in said]


_AGREED = {
    "row length": "rows must be alike everywhere",
    "seed": "every process needs the same seed, or a generator in the same state: it makes the noise of all",
    "step": "every process must call it once at every step",
    "a digest of cost and precision of": "the options must be the same everywhere",
}


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _bytes(rows: Tensor) -> bytes:
    return rows.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes()


def _solve_on_first(ranks: Ranks, costs: Tensor, units: Tensor, sizes: list[int]) -> Tensor:
    """Return which noise each row of this process gets, (b,), from the costs of all, which rank 0 solves.

    The units of rows reach from tiny to huge: they are made one there, where all are known.
    """
    if ranks.rank > 0:
        ranks.send(costs, 0, "costs")
        ranks.send(units, 0, "header")
        share = torch.empty(len(costs), dtype=torch.int32)
        ranks.receive(share, 0)
        return share.long()
    n = sum(sizes)
    if n == 1:
        return torch.zeros(1, dtype=torch.long)
    if ranks.world > 1:
        all_costs, all_units = costs.new_empty(n, n), units.new_empty(n)
        all_costs[: len(costs)], all_units[: len(units)] = costs, units
        parts = zip(torch.split(all_costs, sizes), torch.split(all_units, sizes), strict=True)
        for rank, (into_costs, into_units) in enumerate(parts):
            if rank > 0:
                ranks.receive(into_costs, rank)
                ranks.receive(into_units, rank)
        costs, units = all_costs, all_units
    relative = (units / units.max().clamp(min=1e-300)).float().unsqueeze(1)
    shares: Sequence[Tensor] = torch.split(solve(costs.float().mul_(relative)), sizes)
    for rank, share in enumerate(shares[1:], 1):
        ranks.send(share.int(), rank, "result")
    return shares[0]


@register("coupling")
@dataclass(frozen=True)
class Joint(DropIn):
    """Pair by exact linear assignment over the batches of all training processes.

    In one process it is ``Assignment`` with other noise. See ``assign_across``; costs are exchanged in a separate group
    on the host, so that a background thread may pair the next batch while gradients are exchanged. The condition is
    ignored.

    Marginal: standard normal, exactly: the joined batch's noise is permuted.
    Cost: with n rows in all, (n + b) d normals and O(b n d) on each process, O(n^3) at worst on one; each sends 2 b n
        bytes. Memory b (n + d), on one 6 n^2 bytes beside.

    Args:
        cost: see ``assign``.
        precision: of the costs, as they are computed and sent: ``fp16`` in 16 bits, ``fp32`` in 32.
        seed: of the noise, where no generator is given.

    Raises:
        ValueError: an unknown cost or precision.

    >>> Joint()(torch.randn(8, 3, 4, 4), step=7).shape
    torch.Size([8, 3, 4, 4])
    """

    permutes: ClassVar[bool] = True

    cost: Cost = "l2"
    precision: Wire = "fp16"
    seed: int = 0
    _groups: WeakKeyDictionary[Any, Any] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_choice("cost", self.cost, Cost)
        check_choice("precision", self.precision, Wire)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the options alone: a copy makes its own group at its first call, on every process."""
        return type(self), (self.cost, self.precision, self.seed)

    def draw(self, x: Tensor, rows: Rows, labels: Tensor | Sequence[Tensor] | None) -> Tensor:
        """Return noise assigned over all processes, (b, *dims); see ``pair``.

        Nothing else is checked here: ``assign_across`` checks, so that all processes refuse a bad batch together.

        Raises:
            ValueError: there are labels.
        """
        if labels is not None:
            raise ValueError(
                "joint pairs the rows of all processes and keeps no classes apart: leave labels away, or choose "
                "assignment, which pairs within the classes of each process"
            )
        return self.pair(x, rows)

    def pair(self, x: Float[Tensor, "b *dims"], rows: Rows) -> Float[Tensor, "b *dims"]:
        """Return noise assigned over all processes, (b, *dims).

        The noise is a function of the seed, the step and the row's number in the joined batch. A generator, which must
        be in the same state on every process, draws the seed; without generator and step, the global one does.

        Raises:
            ValueError: as ``assign_across``.
        """
        seed, generator, step = self.seed, rows.generator, rows.step
        if generator is not None or step is None:
            device = "cpu" if generator is None else generator.device
            seed = int(torch.randint(2**63 - 1, (1,), generator=generator, device=device))
        options: dict[str, Any] = {"cost": self.cost, "precision": self.precision, "mask": rows.mask}
        return assign_across(x, seed=seed, step=step or 0, group=self._group(), **options)

    def _group(self) -> Any:
        """Return this coupling's separate group of all processes, made at the first call; None in one process."""
        if not (dist.is_available() and dist.is_initialized()):
            return None
        world = dist.group.WORLD
        if world not in self._groups:
            self._groups[world] = dist.new_group(backend="gloo")
        return self._groups[world]
