"""Fidelity and variety by nearest neighbours in feature space.

Precision and recall: Kynkäänniemi et al., arXiv:1904.06991. Density and coverage: Naeem et al., arXiv:2002.09797. A
sample's ball reaches to its k-th nearest neighbour in its own set. All are within 0..1 but density, which may exceed
1; higher is better. They depend on the number of rows and on k: compare equal numbers.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from immiscible_diffusion.checks import check_whole
from immiscible_diffusion.metrics._rows import comparable
from immiscible_diffusion.registry import register
from immiscible_diffusion.types import Float

__all__ = ["Coverage", "Density", "Neighbourhoods", "Precision", "Recall", "neighbourhoods"]

_PAIRS = 2**24
"""Distances held at once: 128 MiB in float64."""


class Neighbourhoods(NamedTuple):
    """The four measures of one comparison."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbourhoods(real: Float[Tensor, "n f"], generated: Float[Tensor, "m f"], *, k: int) -> Neighbourhoods:
    """Return precision, recall, density and coverage, from exact distances in float64.

    Precision: the share of generated rows inside a real row's ball. Recall: the share of real rows inside a generated
    row's ball. Density: real balls over each generated row, divided by k. Coverage: the share of real balls that hold a
    generated row. Costs (n + m)^2 f; memory does not grow with the number of pairs.

    Args:
        real: features.
        generated: features.
        k: which neighbour sets a ball's radius; the papers take 3 for precision and recall, 5 for density and coverage.

    Raises:
        ValueError: k is not within 1 and the rows less one; features of different length, or not finite.

    >>> import torch
    >>> real = torch.tensor([[0.0], [1.0], [2.0]])
    >>> neighbourhoods(real, torch.tensor([[0.5], [9.0]]), k=1)
    Neighbourhoods(precision=0.5, recall=1.0, density=1.0, coverage=0.6666666666666666)
    """
    real, generated = comparable(real, generated)
    if not 1 <= k < min(len(real), len(generated)):
        raise ValueError(
            f"k is {k}; with {len(real)} and {len(generated)} rows it must be within 1 and the fewer less 1"
        )
    centre = real.double().mean(0)  # shorter rows lose less in the differences of their squares
    reach_real, reach_generated = _reaches(real, centre, k), _reaches(generated, centre, k)
    inside, recalled, covered = torch.zeros(len(generated)), torch.zeros(len(real)), torch.zeros(len(real))
    at = 0
    for rows in torch.split(generated, max(1, _PAIRS // len(real))):
        squared = _squared(rows, real, centre)
        here = slice(at, at + len(rows))
        holds = squared <= reach_real
        inside[here] = holds.sum(1).float().cpu()
        covered += holds.any(0).float().cpu()
        recalled += (squared <= reach_generated[here, None]).any(0).float().cpu()
        at += len(rows)
    return Neighbourhoods(
        precision=_share(inside > 0), recall=_share(recalled > 0),
        density=float(inside.double().mean() / k), coverage=_share(covered > 0),
    )  # fmt: skip


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())


def _reaches(x: Tensor, centre: Tensor, k: int) -> Tensor:
    """Return the squared distance of every row to its k-th nearest other row, (n,)."""
    radii, at = [], 0
    for rows in torch.split(x, max(1, _PAIRS // len(x))):
        squared = _squared(rows, x, centre)
        index = torch.arange(len(rows), device=x.device)
        squared[index, index + at] = torch.inf
        radii.append(squared.kthvalue(k, dim=1).values)
        at += len(rows)
    return torch.cat(radii)


def _squared(x: Tensor, y: Tensor, centre: Tensor) -> Tensor:
    """Return squared distances, (n, m); those below rounding are 0, so that copies of a row lie at distance 0."""
    x, y = x.double() - centre, y.double() - centre
    lengths = x.square().sum(1)[:, None] + y.square().sum(1)
    squared = lengths - 2 * x @ y.T
    return squared.masked_fill_(squared < 1e-13 * lengths, 0)


@dataclass(frozen=True)
class _ByNeighbours:
    """One of the four measures; ``k`` says which neighbour sets a ball's radius."""

    k: int
    better: ClassVar[Literal["lower", "higher"]] = "higher"

    def __post_init__(self) -> None:
        check_whole(k=self.k)

    @property
    def least(self) -> int:
        """The fewest rows a side that can be compared."""
        return self.k + 1

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        """Return the measure for real features (n, f) and generated ones (m, f)."""
        measures = neighbourhoods(real, generated, k=self.k)
        return float(getattr(measures, type(self).__name__.lower()))


@register("metric")
@dataclass(frozen=True)
class Precision(_ByNeighbours):
    """The share of generated rows that lie among the real ones, 0..1; see ``neighbourhoods`` for ``k``, at least 1."""

    k: int = 3


@register("metric")
@dataclass(frozen=True)
class Recall(_ByNeighbours):
    """The share of real rows that lie among the generated ones, 0..1; see ``neighbourhoods`` for ``k``, at least 1."""

    k: int = 3


@register("metric")
@dataclass(frozen=True)
class Density(_ByNeighbours):
    """How many real balls a generated row lies in, relative to ``k`` (at least 1): about 1 where distributions agree.

    Outliers among the real rows count little.
    """

    k: int = 5


@register("metric")
@dataclass(frozen=True)
class Coverage(_ByNeighbours):
    """The share of real rows that have a generated row in their ball, 0..1; see ``neighbourhoods`` for ``k``."""

    k: int = 5
