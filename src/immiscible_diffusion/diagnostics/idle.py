"""Why a coupling does next to nothing for a batch of this size and these labels, before any training."""

from collections.abc import Sequence

import torch
from torch import Tensor

from immiscible_diffusion.couplings import (
    Assignment,
    Cached,
    Conditional,
    DropIn,
    Flipped,
    Joint,
    Mixed,
    Nearest,
    Oversampled,
    Rotated,
    Warmup,
    Windowed,
)
from immiscible_diffusion.types import Coupling

__all__ = ["idle_reason", "share_with_partners"]

_FEW = 0.5
"""With fewer rows that have a partner, most pairs are independent."""


def idle_reason(coupling: Coupling, batch: int, labels: Sequence[Tensor] | None = ()) -> str:
    """Return why a coupling cannot pair most rows, with the remedy; empty if it can, or is meant not to.

    Args:
        coupling: any; a wrapper is judged by the coupling in it.
        batch: rows that are paired at once: ``train.batch``, and with ``joint`` the rows of all processes.
        labels: the conditions of some batches, such as classes, each (b,); None where the data have no condition.

    >>> from immiscible_diffusion import Assignment
    >>> print(idle_reason(Assignment(), 1))
    assignment permutes the noise of a batch, and a batch of one row has one order: raise train.batch, or choose \
nearest, which needs no partners
    >>> idle_reason(Assignment(), 2)
    ''
    """
    name = type(coupling).__name__.lower()
    if isinstance(coupling, Flipped | Joint | Mixed | Rotated | Warmup):
        return idle_reason(coupling.coupling, batch, labels)
    if isinstance(coupling, Windowed):
        return idle_reason(coupling.coupling, coupling.window * batch, labels and _joined(labels, coupling.window))
    within = isinstance(coupling, Conditional) or (isinstance(coupling, Assignment) and coupling.per_class)
    if within and labels is None:
        return f"{name} pairs by the data's condition, and these data have none: choose assignment"
    if isinstance(coupling, Nearest) and coupling.k == 1:
        return "nearest of k = 1 noise is independent noise: raise coupling.k"
    alone = round(coupling.times * batch) <= 1 if isinstance(coupling, Oversampled) else batch == 1
    if isinstance(coupling, Cached) and alone:
        return (
            "cached keeps one noise for each row and exchanges it within a batch; in a batch of one row that noise "
            "stays for ever: raise train.batch, or choose nearest, which draws fresh noise"
        )
    if alone and (isinstance(coupling, Oversampled) or (isinstance(coupling, DropIn) and coupling.permutes)):
        return (
            f"{name} permutes the noise of a batch, and a batch of one row has one order: raise train.batch, or choose "
            f"nearest, which needs no partners"
        )
    classes = [cond for cond in labels or () if cond.ndim == 1 and not cond.is_floating_point()]
    if not (within and classes) or (share := share_with_partners(classes)) >= _FEW:
        return ""
    return (
        f"{name} pairs within classes, and {share:.1%} of the rows have another of their class in a batch of {batch}: "
        f"raise train.batch, draw batches of fewer classes, or choose nearest, which needs no partners"
    )


def share_with_partners(labels: Sequence[Tensor]) -> float:
    """Return the share of rows that have another row of their class in their batch, over batches of labels (b,).

    >>> share_with_partners([torch.tensor([0, 0, 1, 2])])
    0.5
    """
    counts = [torch.unique(each, return_counts=True)[1] for each in labels]
    return sum(int(each[each > 1].sum()) for each in counts) / max(sum(map(len, labels)), 1)


def _joined(labels: Sequence[Tensor], window: int) -> list[Tensor]:
    """Return the labels of whole windows, or of the one window that is not whole."""
    windows = [torch.cat([*labels[i : i + window]]) for i in range(0, len(labels), window)]
    return windows[: max(1, len(labels) // window)]
