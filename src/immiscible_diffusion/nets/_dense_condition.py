"""A dense condition that enters a net beside x_t."""

import torch
from torch import Tensor

__all__ = ["joined"]


def joined(x_t: Tensor, cond: Tensor | None, width: int) -> Tensor:
    """Return x_t, (b, c, *dims), with the condition, (b, width, *dims), behind its channels.

    Raises:
        ValueError: no condition, or one of another shape.
    """
    want = (len(x_t), width, *x_t.shape[2:])
    if cond is None or tuple(cond.shape) != want:
        came = "none" if cond is None else f"{tuple(cond.shape)}"
        raise ValueError(
            f"this net needs a condition {want} beside its input (net.beside = {width}); there came {came}"
        )
    return torch.cat([x_t, cond.to(x_t.dtype)], 1)
