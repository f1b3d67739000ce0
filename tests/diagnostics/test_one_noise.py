"""The check of x_t and target: silent for one noise under every schedule, loud for two."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from immiscible_diffusion import one_noise


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


B = 64
X, NOISE, OTHER = randn(B, 3, 8, 8), randn(B, 3, 8, 8, seed=1), randn(B, 3, 8, 8, seed=2)
T = torch.linspace(0.001, 0.999, B).reshape(-1, 1, 1, 1)
ALPHA, SIGMA = (1 - T).sqrt(), T.sqrt()
LOSSES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "eps": (lambda n: ALPHA * X + SIGMA * n, lambda n: n),
    "v": (lambda n: ALPHA * X + SIGMA * n, lambda n: ALPHA * n - SIGMA * X),
    "flow": (lambda n: (1 - T) * X + T * n, lambda n: n - X),
    "flow the other way": (lambda n: T * X + (1 - T) * n, lambda n: X - n),
    "EDM, scaled": (lambda n: (X + 80 * T * n) / (0.25 + (80 * T) ** 2).sqrt(), lambda n: (n - 3 * X) / SIGMA),
    "noise offset": (lambda n: ALPHA * X + SIGMA * (n + 0.1), lambda n: n + 0.1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("loss", LOSSES)
def test_one_noise_is_right_and_two_are_told(loss: str, dtype: torch.dtype) -> None:
    make_x_t, make_target = LOSSES[loss]
    x, x_t, target, wrong = (
        tensor.to(dtype) for tensor in (X, make_x_t(NOISE), make_target(NOISE), make_target(OTHER))
    )
    one_noise(x, x_t, target)
    with pytest.raises(
        ValueError, match=r"x_t holds other noise than target in (5|6)\d of 64 rows.*noise = couple\(x\)"
    ):
        one_noise(x, x_t, wrong)


def test_the_share_of_rows_and_of_their_length_is_told() -> None:
    x_t = ALPHA * X + SIGMA * torch.where(torch.arange(B).reshape(-1, 1, 1, 1) >= B // 2, OTHER, NOISE)
    with pytest.raises(ValueError, match=r"in 32 of 64 rows: of their length, 0\.[89]\d* lies outside"):
        one_noise(X, x_t, NOISE)  # half of the rows, of sigma .7 to 1


def test_input_perturbation_is_seen_and_may_be_let_pass() -> None:
    x_t = ALPHA * X + SIGMA * (NOISE + 0.1 * OTHER)
    with pytest.raises(ValueError, match=r"of their length, 0\.0[67]"):
        one_noise(X, x_t, NOISE)
    one_noise(X, x_t, NOISE, tol=0.12)


@pytest.mark.parametrize("target", [X, 3 * X, 0 * X])
def test_it_is_blind_where_the_target_is_the_data(target: Tensor) -> None:
    for noise in (NOISE, OTHER):
        one_noise(X, ALPHA * X + SIGMA * noise, target)


def test_rows_at_the_ends_of_the_path_are_right() -> None:
    """At the first time x_t is data; at the last, v is data, x_t noise: nothing to compare, and no division by zero."""
    t = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    x, noise = X[:2], NOISE[:2]
    one_noise(x, (1 - t).sqrt() * x + t.sqrt() * noise, (1 - t).sqrt() * noise - t.sqrt() * x)
    one_noise(0 * x, t * noise, noise)


@pytest.mark.usefixtures("unchecked")
def test_other_shapes_and_values_are_told() -> None:
    with pytest.raises(ValueError, match=r"x has shape .* they must be equal"):
        one_noise(X, X.flatten(1), NOISE)
    with pytest.raises(ValueError, match="x_t holds other noise than target"):
        one_noise(X, NOISE / 0, NOISE)
    with pytest.raises(ValueError, match="tol is 2; it must be a number > 0 and < 1"):
        one_noise(X, X, NOISE, tol=2)
