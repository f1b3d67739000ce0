"""Assignment over the batches of all training processes.

The pairing over processes is a function of the joined batch alone, bit for bit, however its rows are spread: noise
comes from counters (see _seeded_noise.py), costs are exact (see _joint_costs.py), and one process solves.
"""

import hashlib
from collections import Counter
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from immiscible_diffusion.checks import (
    check_choice,
    check_finite,
)
from immiscible_diffusion.couplings._cost import Cost, real_part
from immiscible_diffusion.couplings._drop_in import DropIn, Rows
from immiscible_diffusion.couplings._joint_costs import Wire, cost_rows
from immiscible_diffusion.couplings._joint_ranks import Ranks
from immiscible_diffusion.couplings._misuse import warn_of, warn_once
from immiscible_diffusion.couplings._seeded_noise import normal_rows, row_seeds, signed
from immiscible_diffusion.couplings.solvers.solve import solve
from immiscible_diffusion.registry import register
from immiscible_diffusion.tensors import batch_rows
from immiscible_diffusion.types import Float

__all__ = ["Joint", "Wire", "assign_across"]


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
    agreed = _meet(ranks, x, mask, seed, step, f"{cost}, {precision}")
    return _across(ranks, agreed, x, mask, step, cost, precision)


@torch.no_grad()
def _across(
    ranks: Ranks, agreed: "_Agreed", x: Tensor, mask: Tensor | None, step: int, cost: Cost, precision: Wire
) -> Tensor:
    """Return the noise of this process's rows, (b, *dims), after the processes have met."""
    sizes, seed = agreed.sizes, agreed.seed
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


class _Agreed(NamedTuple):
    """What the processes found when they met: the rows of each, the seed of the noise, a digest of the data here."""

    sizes: list[int]
    seed: int
    data: int


def _meet(
    ranks: Ranks, x: Tensor, mask: Tensor | None, seed: int, step: int, options: str, *, drawn: bool = False
) -> _Agreed:
    """Return the settings on which all processes agree, after a check that all hold valid data of one problem.

    A seed that was ``drawn`` need not be equal everywhere: that of process 0 is used.
    """
    refused = None
    try:
        batch_rows(x)
        rows = batch_rows(real_part(x, mask))
        check_finite(x=rows)
        options = f"{options}, {'drawn' if drawn else 'given'}"
        told = [len(x), rows.shape[1], _digest(options.encode()), seed, step, _digest(_bytes(rows[[0, -1]]))]
    except ValueError as error:
        refused, told = error, [0] * 6
    said = ranks.exchange([int(refused is not None), *(signed(word) for word in told)])
    if refused is not None:
        raise refused
    for rank, words in enumerate(said):
        if words[0]:
            raise ValueError(f"process {rank} refused its data; its own error says why")
    for i, (what, why) in enumerate(_SAME.items(), 2):
        for rank, words in enumerate(said):
            if words[i] != said[0][i] and not (drawn and what == "seed"):
                raise ValueError(f"process {rank} has {what} {words[i]}, process 0 {said[0][i]}; {why}")
    data = [words[-1] for words in said]
    if len(set(data)) < len(data):
        warn_of("two processes hold the same data; each must read its own part of every batch")
    return _Agreed([words[1] for words in said], said[0][4], told[-1])


_SAME = {
    "row length": "rows must be alike everywhere",
    "a digest of cost and precision of": "the options, and whether a step is given, must be the same everywhere",
    "seed": "every process needs the same seed: it makes the noise of all",
    "step": "every process must call it once at every step; without step= process 0 draws the seed of every call",
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
        seed: of the noise, where a step is given and no generator. Without a step process 0 draws the seed of every
            call, whatever the seeds of the others.

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

        The noise is a function of the seed, the step and the row's number in the joined batch. A generator draws the
        seed; without generator and step, the global one does. Process 0 then tells the others its draw, so that the
        states of the generators may differ between processes.

        Raises:
            ValueError: as ``assign_across``.
        """
        seed, generator, step = self.seed, rows.generator, rows.step
        drawn = generator is not None or step is None
        if drawn:
            device = "cpu" if generator is None else generator.device
            seed = int(torch.randint(2**63 - 1, (1,), generator=generator, device=device))
        ranks = Ranks.of(self._group(), Counter())
        options = f"{self.cost}, {self.precision}"
        agreed = _meet(ranks, x, rows.mask, seed, step or 0, options, drawn=drawn)
        if not drawn:
            self._watch_step(step, agreed.data)
        return _across(ranks, agreed, x, rows.mask, step or 0, self.cost, self.precision)

    def _watch_step(self, step: int | None, data: int) -> None:
        """Warn where a step that stands still brings the noise of the call before to other data."""
        before, vars(self)["_before"] = vars(self).get("_before"), (step, data)
        if before is not None and before[0] == step and before[1] != data:
            warn_once(
                "step",
                f"joint was called at step {step} again, with other data: a seed and a step make one noise, so it came "
                f"again. A counter that stands still while gradients accumulate is no step: leave step= away, and "
                f"process 0 draws a seed for every call",
            )

    def _group(self) -> Any:
        """Return this coupling's separate group of all processes, made at the first call; None in one process."""
        if not (dist.is_available() and dist.is_initialized()):
            return None
        world = dist.group.WORLD
        if world not in self._groups:
            self._groups[world] = dist.new_group(backend="gloo")
        return self._groups[world]
