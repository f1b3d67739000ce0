"""Several tensors of the same rows are paired by one index; any shape and dtype of rows, padded or not."""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from immiscible_diffusion.couplings import Assignment, assign, assign_index, couple, nearest
from immiscible_diffusion.registry import make
from immiscible_diffusion.streams import stream
from pairing import PAIRING


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


VIDEO, AUDIO = randn(6, 2, 3, 4, 4), randn(6, 2, 5, seed=1)
NOISES = randn(6, 2, 3, 4, 4, seed=2), randn(6, 2, 5, seed=3)


def test_one_index_for_several_tensors_is_the_cheapest_of_all() -> None:
    video, audio = (-(x.flatten(1) @ noise.flatten(1).T) for x, noise in zip((VIDEO, AUDIO), NOISES, strict=True))
    cheapest = min(permutations(range(6)), key=lambda order: float((video + audio)[range(6), order].sum()))
    index = assign_index((VIDEO, AUDIO), NOISES, cost="dot")
    assert tuple(index.tolist()) == cheapest
    assert not torch.equal(index, assign_index(AUDIO, NOISES[1], cost="dot"))  # control: the other tensor counts
    paired = assign((VIDEO, AUDIO), NOISES, cost="dot")
    assert all(torch.equal(one, noise[index]) for one, noise in zip(paired, NOISES, strict=True))


@pytest.mark.parametrize("name", PAIRING)
def test_a_coupling_of_several_tensors_is_that_of_their_coordinates(name: str) -> None:
    joined = torch.cat([VIDEO.flatten(1), AUDIO.flatten(1)], 1)
    whole = make("coupling", name)(joined, generator=stream(0, 0, "noise"), step=1)
    video, audio = make("coupling", name)((VIDEO, AUDIO), generator=stream(0, 0, "noise"), step=1)
    assert (video.shape, audio.shape) == (VIDEO.shape, AUDIO.shape)
    assert torch.equal(torch.cat([video.flatten(1), audio.flatten(1)], 1), whole)


def test_each_noise_has_the_dtype_of_its_tensor() -> None:
    video, audio = couple([VIDEO.bfloat16(), AUDIO], device="cpu", generator=stream(0, 0, "noise"))
    assert (video.dtype, audio.dtype) == (torch.bfloat16, torch.float32)
    with pytest.raises(ValueError, match=r"dtype is torch.bfloat16 and x is torch.float32"):
        couple((VIDEO, AUDIO), dtype=torch.bfloat16)


def test_padding_of_one_tensor_has_no_say() -> None:
    """Molecules of 2 to 7 atoms with positions and features; the mask of both is that of the atoms."""
    atoms = (torch.arange(7) < torch.arange(2, 8)[:, None]).unsqueeze(2)
    positions, features = randn(6, 7, 3), randn(6, 7, 4, seed=1)

    def draw(value: float) -> tuple[Tensor, ...]:
        x = tuple(torch.where(atoms, tensor, value) for tensor in (positions, features))
        return Assignment()(x, generator=stream(0, 0, "noise"), mask=(atoms, atoms))

    assert all(torch.equal(one, other) for one, other in zip(draw(0.0), draw(9.0), strict=True))
    half = Assignment()((positions, features), generator=stream(0, 0, "noise"), mask=(atoms, None))
    assert not torch.equal(half[1], draw(0.0)[1])  # control: without its mask the second tensor's padding counts


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "none": (lambda: couple(()), "there must be at least one, with equal rows on one device"),
    "rows": (lambda: couple((VIDEO, AUDIO[:5])), r"x has tensors .*\(5, 2, 5\).* equal rows"),
    "integers": (lambda: couple((VIDEO, AUDIO.long())), r"x\[1\] is a torch.int64 tensor"),
    "one mask": (lambda: couple((VIDEO, AUDIO), mask=VIDEO > 0), "mask has one tensor; x is 2 tensors"),  # type: ignore[call-overload]
    "masks": (lambda: couple((VIDEO, AUDIO), mask=(None,)), "mask has 1 entries; x is 2 tensors"),
    "a mask": (lambda: couple((VIDEO, AUDIO), mask=(None, AUDIO)), r"mask is a torch.float32 tensor \(6, 2, 5\)"),
    "noise of one": (lambda: assign((VIDEO, AUDIO), NOISES[0]), "each tensor needs noise of its shape"),  # type: ignore[call-overload]
    "noise of the other": (lambda: assign((VIDEO, AUDIO), NOISES[::-1]), "each needs noise of its shape"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_belong_together_is_refused(case: str) -> None:
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call()


ROWS = {
    "packed tokens": ((24, 8, 4), (24, 8, 1)),
    "video": ((24, 2, 4, 3, 3), (24, 1, 4, 1, 1)),
    "audio": ((24, 3, 16), (24, 1, 16)),
    "a mask of every place": ((24, 8, 4), (24, 8, 4)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", ROWS)
def test_padding_of_rows_of_any_shape_has_no_say_and_keeps_its_noise(rows: str, dtype: torch.dtype) -> None:
    shape, mask_shape = ROWS[rows]
    x, noise, mask = randn(*shape).to(dtype), randn(*shape, seed=1).to(dtype), randn(*mask_shape, seed=2) < 0.5
    fives, zeros = torch.where(mask, x, 5), torch.where(mask, x, 0)
    paired = assign(fives, noise, mask=mask)
    assert torch.equal(paired, assign(zeros, noise, mask=mask))
    wide = mask.expand(shape)
    assert torch.equal(paired[~wide], noise[~wide])
    assert torch.equal(paired[wide], noise[assign_index(zeros, noise, mask=mask)][wide])
    assert paired.dtype == dtype
    assert not torch.equal(paired, assign(fives, noise))  # control: without the mask the fives decide
    draws: list[Callable[[Tensor, int], Tensor]] = [
        lambda x, seed: nearest(x, 16, generator=stream(seed, 0, "noise"), mask=mask),
        lambda x, seed: couple(x, generator=stream(seed, 0, "noise"), mask=mask),
    ]
    for draw in draws:
        assert torch.equal(draw(fives, 0), draw(zeros, 0))
        padding = torch.cat([draw(fives, seed)[~wide].float() for seed in range(30)])
        assert abs(float(padding.mean())) < 5 * len(padding) ** -0.5
        assert abs(float(padding.square().mean()) - 1) < 5 * (2 / len(padding)) ** 0.5
        real = torch.stack([(draw(fives, seed) * x)[wide].float().mean() for seed in range(30)]).mean()
        assert float(real) > 0.02  # control: at real places noise is on the side of the data
