"""Arrays of NumPy, JAX and other libraries as tensors."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["NumpyIndex", "tensor_of"]

NumpyIndex = np.ndarray[tuple[int], np.dtype[np.int64]]
"""One int64 for each row, (b,)."""


def tensor_of(array: Any) -> Tensor | None:
    """Return an array of any library as a tensor, without a copy where its memory may be shared; None for None.

    Raises:
        ValueError: it is no array, or of numbers that torch does not have.

    >>> tensor_of(np.arange(3)).tolist()
    [0, 1, 2]
    """
    if array is None or isinstance(array, Tensor):
        return array
    if any(stride < 0 for stride in getattr(array, "strides", None) or ()):
        array = array.copy()  # torch knows no such strides: its import by dlpack ends the process
    if isinstance(array, np.ndarray) and not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    try:
        tensor: Tensor = torch.utils.dlpack.from_dlpack(array)
    except (AttributeError, BufferError, RuntimeError, TypeError):  # memory of another device, or not to be written to
        try:
            return torch.from_numpy(np.array(array))
        except (TypeError, ValueError) as error:
            came = f"{type(array).__module__}.{type(array).__name__} of {getattr(array, 'dtype', 'no dtype')}"
            hint = "; inside jax.jit call this by jax.pure_callback" if "Tracer" in came else ""
            raise ValueError(f"there came a {came}; it must be a tensor, or an array with __dlpack__{hint}") from error
    return tensor
