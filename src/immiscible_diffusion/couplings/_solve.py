"""The linear assignment problem, solved exactly on the host."""

import warnings

import lap
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from immiscible_diffusion.types import Float, Int

__all__ = ["solve"]


def solve(cost: Float[Tensor, "b m"]) -> Int[Tensor, " b"]:
    """Return for each row the column that the cheapest assignment gives it, (b,), on the cost's device.

    Square problems go to lapx's float32 Jonker-Volgenant solver, 1.5 to 20 times faster than scipy and equal in
    cost; rectangular ones go to scipy, where lapx must pad. Time grows as b^2 m at worst.

    Raises:
        ValueError: the cost is not finite: lapx would answer with garbage.

    >>> solve(torch.tensor([[1.0, 0.0], [0.0, 3.0]])).tolist()
    [1, 0]
    """
    host = cost.detach().float().cpu().numpy()
    if not np.isfinite(host).all():
        raise ValueError("the assignment cost holds NaN or infinity")
    columns = _lapx(host) if host.shape[0] == host.shape[1] else linear_sum_assignment(host)[1]
    return torch.from_numpy(columns.astype(np.int64)).to(cost.device)


def _lapx(
    host: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]",
) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    columns = np.asarray(lap.lapjvs(host, return_cost=False, jvx_like=False)[0])
    if not np.array_equal(np.sort(columns), np.arange(len(host))):
        warnings.warn("lapx returned no permutation; scipy solved this batch", stacklevel=4)
        columns = linear_sum_assignment(host)[1]
    return columns
