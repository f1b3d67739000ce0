"""What stands in the place of a script's draws behaves as ``torch.randn_like`` and ``torch.randn`` do."""

import itertools
from collections.abc import Iterator

import pytest
import torch

from immiscible_diffusion.couplings import Assignment, Cached, Conditional, Independent, Warmup
from immiscible_diffusion.scripts.noise import PairedNoise, check_usable
from immiscible_diffusion.types import Coupling

SAID: list[str] = []


@pytest.fixture
def noise() -> Iterator[PairedNoise]:
    SAID.clear()
    paired = PairedNoise(Assignment(), "train.py:3", SAID.append)
    yield paired
    paired.close()


def gain(x: torch.Tensor, noise: torch.Tensor) -> float:
    """Return how much farther the best other order of a few rows of noise is: 0 or more where they are paired."""
    orders = itertools.permutations(range(len(x)))
    distance = [float((x - noise[list(order)]).flatten(1).norm(dim=1).sum()) for order in orders]
    return min(distance) - distance[0]


def test_noise_is_paired_and_counted(noise: PairedNoise) -> None:
    x = torch.randn(5, 2, 3)
    assert gain(x, noise.like(x)) > -1e-4
    assert gain(x, noise.randn(x)) > -1e-4
    assert gain(x, torch.randn_like(x)) < -1e-4  # the control
    assert noise.drawn == 2
    assert len(SAID) == 1
    assert "5 rows of (2, 3)" in SAID[0]


def test_dtype_is_what_the_script_wants(noise: PairedNoise) -> None:
    x = torch.randn(4, 3).bfloat16()
    assert noise.like(x).dtype == torch.bfloat16
    assert noise.like(x, dtype=torch.float64).dtype == torch.float64
    wide = noise.randn(x)
    assert wide.dtype == torch.get_default_dtype()
    assert not torch.equal(wide, wide.bfloat16().float()), "noise of the data's precision, in a wider type"
    assert noise.randn(x, None, None, torch.float16).dtype == torch.float16


def test_options_of_torch(noise: PairedNoise) -> None:
    x = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    drawn = noise.like(x, memory_format=torch.contiguous_format, requires_grad=True)
    assert drawn.is_contiguous()
    assert drawn.requires_grad
    assert drawn.is_leaf
    first, second = (noise.like(x, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


def test_independent_noise_is_torch_s_own() -> None:
    x = torch.randn(4, 3)
    paired = PairedNoise(Independent(), "", SAID.append)
    torch.manual_seed(0)
    drawn = paired.like(x)
    paired.close()
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.randn_like(x))


def step_of(parameter: torch.nn.Parameter) -> None:
    parameter.grad = torch.zeros_like(parameter)
    torch.optim.SGD([parameter]).step()


def test_a_first_step_without_a_draw_stops_the_script(noise: PairedNoise) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(RuntimeError, match=r"train.py:3 had drawn no noise.*--at LINE"):
        step_of(parameter)
    step_of(parameter)  # told once


def test_a_first_step_after_a_draw_passes(noise: PairedNoise) -> None:
    noise.like(torch.randn(4, 3))
    step_of(torch.nn.Parameter(torch.zeros(1)))


def test_a_draw_inside_the_step_counts_as_lightning_makes_it(noise: PairedNoise) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))

    def closure() -> float:
        parameter.grad = torch.zeros_like(parameter)
        return float(noise.like(torch.randn(4, 3)).sum())

    torch.optim.SGD([parameter]).step(closure)
    assert noise.drawn == 1


@pytest.mark.parametrize(
    ("coupling", "lacking"),
    [
        (Assignment(per_class=True), "needs labels"),
        (Conditional(), "the conditions"),
        (Cached(), "the rows' numbers"),
        (Warmup(), "depends on the training step"),
    ],
)
def test_a_coupling_that_needs_more_than_data_is_refused(coupling: Coupling, lacking: str) -> None:
    with pytest.raises(ValueError, match=f"--coupling: .* this coupling needs more: .*{lacking}"):
        check_usable(coupling)


def test_the_trial_takes_no_random_numbers_from_the_script() -> None:
    torch.manual_seed(0)
    check_usable(Assignment())
    first = torch.randn(1)
    torch.manual_seed(0)
    assert torch.equal(first, torch.randn(1))
