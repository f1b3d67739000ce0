"""TorchCFM's sampler of optimal-transport plans, by this library's exact assignment.

Give it to a matcher in place of its own: ``FM.ot_sampler = OTPlanSampler()``. Where theirs draws pairs of the plan with
replacement, which leaves a third of a batch out, this one keeps every datum, once, in its place.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from immiscible_diffusion.couplings.assignment import pair_index
from immiscible_diffusion.extras import needs
from immiscible_diffusion.types import Float

__all__ = ["OTPlanSampler"]

Floats = NDArray[np.float64]
Index = NDArray[np.intp]
_METHODS = ["exact", "sinkhorn", "unbalanced", "partial"]


class OTPlanSampler:
    """Pair a batch of one distribution, x0 (noise), with one of another, x1 (data), by optimal transport.

    It has the methods of ``torchcfm.optimal_transport.OTPlanSampler`` and, with ``method="exact"``, its optimum: that
    of squared distance. x0 need not be noise.

    Departs: ``sample_plan`` of the exact plan is without replacement by default, and returns x1 and its labels in their
        own order. Plans of POT's methods are drawn from with replacement, as in TorchCFM.

    Args:
        method: ``exact``; or one of POT's, as in TorchCFM: ``sinkhorn``, ``unbalanced``, ``partial``.
        reg: entropic regularisation of POT's methods.
        reg_m: weight of the marginals for ``unbalanced``.
        normalize_cost: divide costs by the largest, for POT's methods; it changes no exact plan.
        num_threads: taken for compatibility; the solver here uses torch's threads.
        warn: warn where a plan of POT's fails and a uniform one takes its place.
        per_class: pair within classes where ``sample_plan_with_labels`` is given y1: x0 stays independent of the class.

    Raises:
        ValueError: an unknown method.

    >>> x0, x1 = OTPlanSampler().sample_plan(torch.tensor([[-1.0], [1.0]]), torch.tensor([[3.0], [-3.0]]))
    >>> x0.tolist(), x1.tolist()
    ([[1.0], [-1.0]], [[3.0], [-3.0]])
    """

    def __init__(
        self,
        method: str = "exact",
        reg: float = 0.05,
        reg_m: float = 1.0,
        normalize_cost: bool = False,
        num_threads: int | str = 1,
        warn: bool = True,
        *,
        per_class: bool = False,
    ) -> None:
        if method not in _METHODS:
            raise ValueError(f"no method named {method!r}; there are {_METHODS}")
        self.method, self.reg, self.reg_m = method, reg, reg_m
        self.normalize_cost, self.num_threads, self.warn = normalize_cost, num_threads, warn
        self.per_class = per_class

    def get_map(self, x0: Float[Tensor, "m *dims"], x1: Float[Tensor, "b *dims"]) -> Floats:
        """Return the plan, (m, b), float64, whose entries sum to 1."""
        if self.method != "exact" or len(x0) != len(x1):
            return self._plan_of_pot(x0, x1)
        plan = np.zeros((len(x0), len(x1)))
        plan[_partners(x0, x1, None).cpu().numpy(), np.arange(len(x1))] = 1 / len(x1)
        return plan

    def sample_map(self, pi: Floats, batch_size: int, replace: bool = False) -> tuple[Index, Index]:
        """Return rows of x0 and of x1, each (batch_size,): pairs drawn from a plan by NumPy's global generator."""
        flat = pi.flatten()
        chosen = np.random.choice(flat.size, p=flat / flat.sum(), size=batch_size, replace=replace)
        rows, columns = np.divmod(chosen, pi.shape[1])
        return rows, columns

    def sample_plan(self, x0: Tensor, x1: Tensor, replace: bool | None = None) -> tuple[Tensor, Tensor]:
        """Return paired rows of x0 and x1, each (m, *dims); x1 in its own order for the exact plan."""
        i, j = self._pairs(x0, x1, None, replace)
        return x0[i], x1[j]

    sample_plan_with_scipy = sample_plan
    """The name of TorchCFM's own assignment without replacement."""

    def sample_plan_with_labels(
        self, x0: Tensor, x1: Tensor, y0: Any = None, y1: Any = None, replace: bool | None = None
    ) -> tuple[Tensor, Tensor, Any, Any]:
        """Return paired rows as ``sample_plan``, and with them their labels y0 and y1, each None where not given."""
        i, j = self._pairs(x0, x1, y1 if self.per_class else None, replace)
        return x0[i], x1[j], None if y0 is None else y0[i], None if y1 is None else y1[j]

    def sample_trajectory(self, X: Float[Tensor, "b times *dims"]) -> NDArray[Any]:
        """Return rows that follow the plans from one time to the next, (b, times, *dims), in NumPy as TorchCFM does."""
        rows, paths = np.arange(len(X)), [X[:, 0]]
        for time in range(1, X.shape[1]):
            plan = self.get_map(X[:, time - 1], X[:, time])
            rows = np.array([np.random.choice(len(X), p=plan[row] / plan[row].sum()) for row in rows])
            paths.append(X[:, time][rows])
        return np.stack([path.cpu().numpy() for path in paths], 1)

    def _pairs(self, x0: Tensor, x1: Tensor, labels: Tensor | None, replace: bool | None) -> tuple[Any, Any]:
        """Return which rows of x0 and of x1 are paired."""
        if self.method == "exact" and not replace and len(x0) == len(x1):
            return _partners(x0, x1, labels), slice(None)
        if labels is not None:
            raise ValueError("per_class pairs by method = 'exact' and without replacement, batches of one size")
        return self.sample_map(self.get_map(x0, x1), len(x0), self.method != "exact" if replace is None else replace)

    def _plan_of_pot(self, x0: Tensor, x1: Tensor) -> Floats:
        with needs("hosts", f"method {self.method!r} with {len(x0)} rows for {len(x1)} needs POT"):
            import ot
        solvers: dict[str, Callable[[Floats, Floats, Any], Any]] = {
            "exact": ot.emd,
            "sinkhorn": lambda a, b, cost: ot.sinkhorn(a, b, cost, reg=self.reg),
            "unbalanced": lambda a, b, cost: ot.unbalanced.sinkhorn_knopp_unbalanced(a, b, cost, self.reg, self.reg_m),
            "partial": lambda a, b, cost: ot.partial.entropic_partial_wasserstein(a, b, cost, self.reg),
        }
        cost = torch.cdist(x0.detach().flatten(1), x1.detach().flatten(1)).square()
        cost = cost / cost.max() if self.normalize_cost else cost
        plan: Floats = np.asarray(solvers[self.method](ot.unif(len(x0)), ot.unif(len(x1)), cost.cpu().numpy()))
        if np.isfinite(plan).all() and abs(plan.sum()) >= 1e-8:
            return plan
        if self.warn:
            warnings.warn("POT found no plan; the uniform plan takes its place, so pairs are independent", stacklevel=3)
        return np.full_like(plan, 1 / plan.size)


def _partners(x0: Tensor, x1: Tensor, labels: Tensor | None) -> Tensor:
    """Return the row of x0 for each row of x1, (b,): inner products have the optimum of squared distance."""
    return pair_index(x1.detach(), x0.detach(), cost="dot", labels=labels)
