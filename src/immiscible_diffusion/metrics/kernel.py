"""The kernel distance between features (Binkowski et al., arXiv:1801.01401)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from immiscible_diffusion.metrics._rows import Estimate, comparable, pair_sum
from immiscible_diffusion.registry import register
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Float

__all__ = ["Kernel", "kernel_distance", "kernel_subsets"]


def kernel_distance(real: Float[Tensor, "n f"], generated: Float[Tensor, "m f"]) -> float:
    """Return the unbiased squared MMD under the kernel (x . y / f + 1)^3, in float64.

    Unbiased at any number of samples, hence slightly negative at times where the two distributions agree. Costs n m f;
    memory does not grow with the number of pairs. The kernel is not invariant to a shift: features far from 0 give
    values of the order of their sixth power, whose sign says nothing.

    Raises:
        ValueError: fewer than two rows, features of different length, or not finite.

    >>> import torch
    >>> kernel_distance(torch.tensor([[0.0], [0.0]]), torch.tensor([[0.0], [0.0]]))
    0.0
    """
    real, generated = comparable(real, generated)
    across = pair_sum(real, generated, _kernel) / (len(real) * len(generated))
    return float(_within(real) + _within(generated) - 2 * across)


def kernel_subsets(
    real: Float[Tensor, "n f"], generated: Float[Tensor, "m f"], *, subsets: int, size: int, seed: int = 0
) -> Estimate:
    """Return mean and standard deviation of the kernel distance over random subsets: KID as it is reported.

    The mean estimates what ``kernel_distance`` of all rows estimates, with more noise; the deviation is of one
    subset.

    Args:
        real: features.
        generated: features.
        subsets: how many pairs of subsets are compared, 100 in published code.
        size: rows of a subset, drawn without replacement, 1000 in published code.
        seed: names the draw.

    Raises:
        ValueError: a subset is larger than the data, or there are no subsets.

    >>> import torch
    >>> kernel_subsets(torch.zeros(4, 1), torch.ones(4, 1), subsets=3, size=2)
    Estimate(mean=7.0, sd=0.0)
    """
    real, generated = comparable(real, generated)
    rows = min(len(real), len(generated))
    if subsets < 1 or not 2 <= size <= rows:
        raise ValueError(f"{subsets} subsets of {size} rows: there must be one or more, of 2..{rows} rows each")
    distances = []
    for i in range(subsets):
        generator = stream(seed, i, "sample")
        first = torch.randperm(len(real), generator=generator)[:size].to(real.device)
        second = torch.randperm(len(generated), generator=generator)[:size].to(generated.device)
        distances.append(kernel_distance(real[first], generated[second]))
    values = torch.tensor(distances, dtype=torch.float64)
    return Estimate(float(values.mean()), float(values.std()) if subsets > 1 else 0.0)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _within(x: Tensor) -> Tensor:
    n, f = x.shape
    lengths = x.double().square().sum(1)
    return (pair_sum(x, x, _kernel) - ((lengths / f + 1) ** 3).sum()) / (n * (n - 1))


@register("metric")
@dataclass(frozen=True)
class Kernel:
    """The kernel distance. It is KID only in the features of the 2015 Inception network.

    Args:
        subsets: average over this many random subsets; 0 compares all rows at once, which is as unbiased and less
            noisy.
        size: rows of a subset.
        seed: names the draw of the subsets.

    Raises:
        ValueError: negative subsets, or a size below 2.
    """

    subsets: int = 0
    size: int = 1000
    seed: int = 0
    better: ClassVar[Literal["lower", "higher"]] = "lower"

    def __post_init__(self) -> None:
        if self.subsets < 0 or self.size < 2:
            raise ValueError(f"{self} needs subsets >= 0 and size >= 2")

    @property
    def least(self) -> int:
        """The fewest rows a side that can be compared."""
        return self.size if self.subsets else 2

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        """Return the unbiased squared MMD of features (n, f) and (m, f), over subsets if those are asked for."""
        if self.subsets == 0:
            return kernel_distance(real, generated)
        return kernel_subsets(real, generated, subsets=self.subsets, size=self.size, seed=self.seed).mean
