"""One assignment for an accumulation window, whatever the batches are."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from immiscible_diffusion.couplings import Assignment, Conditional, Nearest, assign
from immiscible_diffusion.integrations.windows import windows


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


BATCHES = [{"pixels": randn(1, 3, 4, 4, seed=i), "label": torch.tensor([i % 2])} for i in range(10)]


def encode(batch: dict[str, Tensor]) -> Tensor:
    return 2 * batch["pixels"]


def test_batches_of_one_row_are_paired_as_a_window() -> None:
    torch.manual_seed(0)
    yielded = list(windows(BATCHES, 4, encode=encode))
    assert all(batch is expected for (batch, _, _), expected in zip(yielded, BATCHES, strict=True))
    assert all(torch.equal(x, encode(batch)) for batch, x, _ in yielded)
    torch.manual_seed(0)
    for start in (0, 4, 8):
        x = torch.cat([x for _, x, _ in yielded[start : start + 4]])
        assert torch.equal(
            torch.cat([noise for *_, noise in yielded[start : start + 4]]), assign(x, torch.randn_like(x))
        )


def test_a_window_brings_noise_nearer_than_its_batches_do() -> None:
    loader = [randn(2, 16, seed=i) for i in range(64)]

    def alignment(n: int) -> float:
        torch.manual_seed(0)
        return float(torch.stack([(x * noise).sum() for _, x, noise in windows(loader, n, encode=Tensor.clone)]).mean())

    one, eight = alignment(1), alignment(8)
    assert 0 < 1.5 * one < eight


def test_buckets_of_shapes_pair_among_themselves() -> None:
    loader = [randn(1, *(shape := (2, 4, 4) if i % 3 else (2, 2, 8)), seed=i) for i in range(6)]
    torch.manual_seed(0)
    yielded = list(windows(loader, 6, encode=lambda x: x))
    assert [noise.shape for *_, noise in yielded] == [x.shape for x in loader]
    torch.manual_seed(0)
    for numbers in ([0, 3], [1, 2, 4, 5]):
        x = torch.cat([loader[i] for i in numbers])
        assert torch.equal(torch.cat([yielded[i][2] for i in numbers]), assign(x, torch.randn_like(x)))
    assert shape == (2, 4, 4)


def test_the_condition_reaches_the_coupling() -> None:
    couple = Assignment(per_class=True)
    torch.manual_seed(0)
    yielded = list(windows(BATCHES[:8], 8, encode=encode, cond=lambda batch: batch["label"], couple=couple))
    torch.manual_seed(0)
    x, labels = torch.cat([x for _, x, _ in yielded]), torch.arange(8) % 2
    assert torch.equal(torch.cat([noise for *_, noise in yielded]), assign(x, torch.randn_like(x), labels=labels))
    for other in (Conditional(), Nearest(4)):
        assert len(list(windows(BATCHES, 5, encode=encode, cond=lambda batch: batch["label"], couple=other))) == 10


def test_no_more_than_a_window_is_read_ahead_and_nothing_has_a_gradient() -> None:
    read = []

    def loader() -> Iterator[Tensor]:
        for i in range(9):
            read.append(i)
            yield randn(1, 4, seed=i)

    weight = torch.ones(4, requires_grad=True)
    steps = windows(loader(), 3, encode=lambda x: weight * x)
    _, x, noise = next(steps)
    assert read == [0, 1, 2]
    assert not x.requires_grad
    assert not noise.requires_grad
    assert len(list(steps)) == 8


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("n", "options", "message"),
    [
        (0, {"encode": encode}, "n is 0; it must be a whole number >= 1"),
        (2, {"encode": lambda batch: batch}, "what encode returns is a dict; it must be a floating-point tensor"),
        (2, {"encode": encode, "cond": lambda batch: torch.arange(3)}, r"cond has shape \(3,\)"),
    ],
)
def test_wrong_use_is_told(n: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(windows(BATCHES, n, **options))
