"""The linear assignment problem on the device: Bertsekas' auction, with a certificate of how good its answer is."""

import math

import torch
from torch import Tensor

from immiscible_diffusion.types import Float, Int

__all__ = ["auction"]

_FIRST = 1 / 16
"""The first eps, as a share of what pairing gains a row."""
_SHRINK = 5
"""By what eps falls from phase to phase."""
_LEFT = 20
"""Every phase but the last ends with one row in this many free: the last few take most rounds and teach little."""
_BURST = 8
"""The most rounds between two looks at the device."""


@torch.no_grad()
def auction(
    cost: Float[Tensor, "b m"], *, gap: float = 1e-6, steps: int | None = None
) -> tuple[Int[Tensor, " b"], Float[Tensor, ""], bool]:
    """Return each row's column, (b,), a bound on its cost above the optimum, (), and whether the bound is as asked.

    A free row bids for the column that is cheapest to it, cost and price together: it offers to raise its price to
    where the second cheapest is as good, and by eps more. The highest bid takes the column, and its owner is free
    again. All free rows bid at once, and eps falls from phase to phase (Bertsekas, Ann. Oper. Res. 14, 1988). Each
    time fewer rows are free, the sides change, and free columns bid for rows (forward and reverse auction: Bertsekas,
    Castanon and Tsaknakis, SIAM J. Optim. 3, 1993). Where that brings no progress, shortest paths do.

    The bound is the cost of the pairing less the dual value of the prices, sum_i min_j (c_ij + p_j) - sum_j p_j, below
    which no pairing's cost can be. It is computed in float64 from the cost as it came, with an allowance for rounding,
    and rests on nothing that the auction did.

    Departs: prices start from the least cost of each column; a phase keeps the pairs that its eps allows; shortest
        paths end what would be a war of small bids over the last columns, 14,247 rounds in one problem of b = 1024.

    Args:
        cost: (b, b), in float32 or float64, on a device that has float64.
        gap: the largest bound to be content with, as a share of what the pairing gains over a random one. The
            allowance for rounding is granted in any case.
        steps: give up after about so many rounds of bids and steps along paths, and pair what is left anyhow; None
            for 2000 + 4 b, some ten times what it takes.

    Cost: some 100 rounds and 130 steps along paths at b = 1024, 130 and 550 at 4,096, of 20 small operations each, over
        a row of the cost for each row that is free; memory of 12 b^2 bytes beside the cost. The host waits for the
        device once in 8 rounds and once a step.

    Raises:
        ValueError: a cost that is not square or not finite, or a gap that is not positive.

    >>> index, bound, met = auction(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    >>> index.tolist(), float(bound) < 1e-6, met
    ([1, 0], True, True)
    """
    b = len(cost)
    if cost.shape != (b, b):
        raise ValueError(f"an auction needs a square cost; there came {tuple(cost.shape)}")
    if not 0 < gap < math.inf:
        raise ValueError(f"gap is {gap}; it must be a positive number")
    random = cost.sum(dtype=torch.float64) / b
    if not math.isfinite(float(random)):
        raise ValueError("the assignment cost holds NaN or infinity")
    price, index = -cost.amin(0).double(), torch.arange(b, device=cost.device)
    owner = torch.full_like(index, -1)
    bound, met, gain = _certify(cost, index, price, random, gap)
    eps = _FIRST * gain / b
    left = 2000 + 4 * b if steps is None else steps
    while not met and left > 0:
        last = eps <= gap * gain / b
        price, owner, left = _phase(cost, price, owner, eps, 0 if last else b // _LEFT, left)
        for row in _free(owner) if last else ():
            price, owner, left = _augment(cost, price, owner, row, left)
        index = _complete(owner)
        bound, met, gain = _certify(cost, index, price, random, gap)
        eps = eps / _SHRINK if last else max(eps / _SHRINK, gap * gain / b)
        owner = _keep(cost, price, owner, eps)
    return index, bound, met


def _phase(cost: Tensor, price: Tensor, owner: Tensor, eps: float, stop: int, left: int) -> tuple[Tensor, Tensor, int]:
    """Return prices and owners of the columns once ``stop`` rows are free or bids have become idle; and steps left."""
    rows_bid, burst, before, free = True, 1, len(cost) + 1, _free(owner)
    while len(free) > stop and left > 0 and (burst < _BURST or len(free) < before):
        if burst == _BURST:
            price, owner = _turn(cost, price, owner)
            cost, rows_bid, free = cost.T, not rows_bid, _free(owner)
        before = len(free)
        for _ in range(burst):
            price, owner, free = _round(cost, price, owner, free, eps)
        free, left, burst = _free(owner), left - burst, min(2 * burst, _BURST)
    return (*((price, owner) if rows_bid else _turn(cost, price, owner)), left - 1)


def _round(cost: Tensor, price: Tensor, owner: Tensor, free: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return prices, owners and free rows after one round of bids. A place in ``free`` is -1 once it is empty.

    Each winner's place goes to the owner whom he drives out, so that no shape depends on the bids and nothing waits
    for the device. Of equal bids the first wins: the result depends on the input alone.
    """
    place, none = torch.arange(len(free), device=cost.device), len(free)
    value = cost[free] + price
    least, column = value.min(1)
    second = value.scatter_(1, column.unsqueeze(1), math.inf).amin(1)
    bid = torch.where(free >= 0, second - least + eps, -1)
    highest = torch.zeros_like(price).scatter_reduce_(0, column, bid, "amax")
    first = torch.where(bid == highest[column], place, none)
    winner = torch.full_like(owner, none).scatter_reduce_(0, column, first, "amin")
    heir = torch.where(winner < none, free[winner.clamp(max=none - 1)], owner)
    return price + highest, heir, torch.where(winner[column] == place, owner[column], free)


def _turn(cost: Tensor, price: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Return prices and owners of the rows, such that columns may bid on under the same eps.

    Cost and both prices add to zero for a pair, and to no less than -eps for any row and column.
    """
    column, free = _inverse(owner), _free(owner)
    theirs = -(_own(cost, column) + price[column])
    theirs[free] = -(cost[free] + price).amin(1)
    return theirs, column


def _augment(cost: Tensor, price: Tensor, owner: Tensor, row: Tensor, left: int) -> tuple[Tensor, Tensor, int]:
    """Return prices and owners after a free row got a column, others theirs in turn, by a shortest path; steps left.

    A path goes from a row to a column, at the price of what that column costs it above its own, and on to the column's
    owner. Whole sets of rows step at once, and no farther than the nearest free column (Bellman and Ford's search);
    prices then rise by what the path's end is farther off, which keeps every pair within eps (Gabow and Tarjan, SIAM
    J. Comput. 18, 1989).
    """
    column, vacant = _inverse(owner), owner < 0
    spent = _own(cost, column) + price[column]
    spent[row] = (cost[row] + price).min()
    distance, via = torch.full_like(price, math.inf), torch.full_like(owner, -1)
    rows, so_far, nearest = row.reshape(1), price.new_zeros(1), price.new_tensor(math.inf)
    while len(rows):
        if left <= 0:
            return price, owner, 0
        step = (cost[rows] + price - spent[rows].unsqueeze(1)).clamp_(min=0) + so_far.unsqueeze(1)
        shortest, which = step.min(0)
        nearer = shortest < distance
        distance, via = torch.where(nearer, shortest, distance), torch.where(nearer, rows[which], via)
        nearest = torch.where(vacant, distance, math.inf).min()
        reached = (nearer & ~vacant & (distance < nearest)).nonzero().squeeze(1)
        rows, so_far, left = owner[reached], distance[reached], left - 1
    end = int(torch.where(vacant, distance, math.inf).argmin())
    start, came, had, owners = int(row), via.tolist(), column.tolist(), owner.tolist()
    while True:
        owners[end] = came[end]
        if came[end] == start:
            break
        end = had[came[end]]
    return price + (nearest - distance).clamp(min=0), owner.new_tensor(owners), left


def _keep(cost: Tensor, price: Tensor, owner: Tensor, eps: float) -> Tensor:
    """Return the owners whose column is within eps of the cheapest to them, and -1 for the others."""
    column = _inverse(owner)
    kept = _own(cost, column) + price[column] <= (cost + price).amin(1) + eps
    return torch.where((owner >= 0) & kept[owner], owner, -1)


def _certify(cost: Tensor, index: Tensor, price: Tensor, random: Tensor, gap: float) -> tuple[Tensor, bool, float]:
    """Return the bound, whether it is small enough, and a bound on the gain of the best pairing over a random one.

    Sums of b terms are off by b 2^-53 of the terms' absolute sum at most; twice that is allowed for.
    """
    own, least = _own(cost, index), (cost + price).amin(1)
    total, dual = own.sum(), least.sum() - price.sum()
    rounding = len(cost) * 2**-52 * (own.abs().sum() + least.abs().sum() + price.abs().sum())
    bound = (total - dual).clamp(min=0) + rounding
    return bound, bool(bound <= torch.maximum(gap * (random - total), 2 * rounding)), float(random - dual)


def _own(cost: Tensor, index: Tensor) -> Tensor:
    return cost.gather(1, index.clamp(min=0).unsqueeze(1)).squeeze(1).double()


def _inverse(owner: Tensor) -> Tensor:
    """Return the column of each row, (b,), from the owner of each column; -1 is none."""
    b = len(owner)
    column = owner.new_full((b + 1,), -1)
    return column.scatter_(0, owner % (b + 1), torch.arange(b, device=owner.device))[:b]


def _free(owner: Tensor) -> Tensor:
    return (_inverse(owner) < 0).nonzero().squeeze(1)


def _complete(owner: Tensor) -> Tensor:
    """Return the column of each row, (b,), where free rows take the free columns in order."""
    column = _inverse(owner)
    column[column < 0] = (owner < 0).nonzero().squeeze(1)
    return column
