"""Arrays of NumPy, JAX and others are paired as tensors are."""

from typing import Any

import numpy as np
import pytest
import torch

from immiscible_diffusion import assign_index

RANDOM = np.random.default_rng(0)
X, NOISE = RANDOM.normal(size=(2, 16, 3, 4)).astype(np.float32)
EXPECTED = assign_index(torch.from_numpy(X), torch.from_numpy(NOISE))
LABELS, MASK = np.arange(16) % 3, RANDOM.random((16, 3, 1)) < 0.7


class Exporting:
    """An array of a library that offers DLPack and nothing else."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def unwritable(array: Any) -> Any:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


@pytest.mark.parametrize(
    "library",
    [
        np.asarray,
        Exporting,
        unwritable,
        lambda array: array[::-1].copy()[::-1],
        np.asfortranarray,
        lambda array: array.astype(array.dtype.newbyteorder(">")),
    ],
    ids=["NumPy", "DLPack", "unwritable", "backwards in memory", "Fortran", "other byte order"],
)
def test_the_index_is_that_of_tensors_in_numpy(library: Any) -> None:
    index = assign_index(library(X), library(NOISE))
    assert type(index) is np.ndarray
    assert index.dtype == np.int64
    assert np.array_equal(index, EXPECTED.numpy())
    options = {"labels": LABELS, "mask": MASK}
    tensors = {name: torch.from_numpy(value) for name, value in options.items()}
    expected = assign_index(torch.from_numpy(X), torch.from_numpy(NOISE), **tensors)  # type: ignore[call-overload]
    masked = assign_index(library(X), library(NOISE), **{name: library(value) for name, value in options.items()})
    assert np.array_equal(masked, expected.numpy())
    assert not np.array_equal(masked, index)


def test_a_tensor_stays_a_tensor() -> None:
    assert isinstance(EXPECTED, torch.Tensor)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("bad", [X.astype(object), X.tolist(), "abc", X.astype(np.int64), object()])
def test_what_is_no_floating_array_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"there came a|x is a|x is several"):
        assign_index(bad, NOISE)


def test_a_traced_array_is_told_the_callback() -> None:
    class DynamicTracer:
        dtype = "float32"

    with pytest.raises(ValueError, match=r"inside jax\.jit call this by jax\.pure_callback"):
        assign_index(DynamicTracer(), NOISE)


@pytest.mark.medium
def test_jax_arrays_are_paired_inside_a_compiled_function() -> None:
    jax = pytest.importorskip("jax", reason="needs JAX: pip install 'immiscible-diffusion[hosts]'")
    jnp = jax.numpy
    assert np.array_equal(assign_index(jnp.asarray(X), jnp.asarray(NOISE)), EXPECTED.numpy())
    half = assign_index(jnp.asarray(X, jnp.bfloat16), jnp.asarray(NOISE, jnp.bfloat16))
    tensors = torch.from_numpy(X).bfloat16(), torch.from_numpy(NOISE).bfloat16()
    assert np.array_equal(half, assign_index(*tensors).numpy())
